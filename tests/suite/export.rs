//! What other programs are given of a checkpoint: what is written, what is refused by name, what is lost in figures, and that transformers computes the same.

mod cases;
mod choices;
mod dense;
mod mixture;
mod transformers;
