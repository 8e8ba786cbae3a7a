//! What a model forgets while it is taught one task after another (DESIGN §4).
//!
//! A dense model that knows its *old text* learns [`NovelTask`](crate::data::NovelTask)s in an order, each for as many steps, by a [`Method`], at a constant rate; the optimizer
//! begins anew with each task. The old text and all tasks are measured on held-out text before the first task and behind each, the old text and the task
//! at hand now and then in between. What the method knows of text (scan, routers, replay) is that of the old text and of the tasks so far.
//!
//! Only the MLPs learn. [`Method::Experts`] of all, all active, is dense fine-tuning of them, bit for bit (a test).

mod figures;
mod method;
mod operations;
mod sequence;
mod subject;

pub use figures::{Crossing, ForgettingRecord, Look};
pub use method::{ForgettingConfig, Method};
pub use operations::multiply_adds;
pub use sequence::forgetting;
