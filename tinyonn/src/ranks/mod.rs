//! Several processes, a rank each, that train one model or read one text: how they are started, how they meet, who is missed, who owns what, and how what each
//! has made comes together ([`gather()`]).
//!
//! A launcher ([`launcher`]) says which rank a process is; an [address](address::meeting_place) where they meet. There every rank shows a [`Token`], and
//! [`rendezvous`] compares what they were given; the connections stay open, so that a rank that is lost is named to all ([`watch`]). No tensor
//! passes there: those go through a [`Collective`], NCCL's on GPUs.
//!
//! A world of one does none of this.

pub mod address;
mod collective;
mod gather;
pub mod launcher;
mod message;
mod node_list;
pub mod pieces;
pub mod rendezvous;
mod threads;
pub mod token;
pub mod watch;

pub use collective::{Collective, Underway};
pub use gather::gather;
pub use launcher::{Launched, Launcher};
pub use rendezvous::{Greeting, Meeting, meet};
pub use threads::Threads;
pub use token::Token;
pub use watch::{Connected, Watched, end_now};
