//! Files and folders that appear under their names whole or not at all: written beside them, brought to disk, renamed.
//!
//! A process killed at any moment, or a disk that fills, leaves under a name what was there before. No rename crosses a file
//! system, because what is staged lies in the folder of what it becomes: where a link was named, of what it leads to; where a mount point was,
//! in that itself.
//! A program that is interrupted and ends at once takes away what it was filling ([`abandon()`]).

mod byte_order_mark;
mod digest;
mod exchange;
mod lfs_pointer;
mod place;
mod staged_folder;
mod under_way;
mod whole_file;

pub(crate) use byte_order_mark::BYTE_ORDER_MARK;
pub use byte_order_mark::without_mark;
pub use digest::Digest;
pub(crate) use lfs_pointer::{IS_LFS_POINTER, LFS_POINTER, PULL};
pub(crate) use place::parent_of;
pub use place::{is_used, states_of};
pub use staged_folder::StagedFolder;
pub use under_way::{Abandoned, abandon};
pub(crate) use whole_file::staged_by;
pub use whole_file::{try_write, write, write_with};
