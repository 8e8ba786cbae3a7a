//! Files and folders that appear under their names whole or not at all: written beside them, brought to disk, renamed.
//!
//! A process killed at any moment, or a disk that fills, leaves under a name what was there before. No rename crosses a file
//! system, because what is staged lies in the folder of what it becomes.

mod digest;
mod staged_folder;
mod whole_file;

pub use digest::Digest;
pub use staged_folder::{StagedFolder, is_used};
pub use whole_file::{write, write_with};
