//! Variants that ship with the library.

use crate::moe::moe;

/// The seed's hierarchy: 10 groups of 10 experts behind two levels of Gaussian routers.
#[moe(groups = 10, experts = 10, router = gaussian, top_k = [8, 8])]
pub struct TinyOnn;
