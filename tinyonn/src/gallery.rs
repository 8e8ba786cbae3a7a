//! Variants that ship with the library.
