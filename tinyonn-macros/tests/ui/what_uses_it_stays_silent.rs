// One error a declaration: what names the variant brings no other.
#![deny(warnings, missing_docs)]
//! A crate.

use tinyonn::moe::{MoeLayer, MoeSpec, moe};
use tinyonn::decoder::{FeedForward, Pass, Arch};
use tinyonn::candle_core::Tensor;
use tinyonn::candle_nn::VarBuilder;

/// Kept.
#[moe(groups = 0, experts = 4)]
pub struct Even;

/// Kept.
#[moe(top_k = 9)]
#[derive(Debug)]
pub enum Cortex {
    /// Words.
    #[group(experts = 4)]
    Language,
    /// Everything.
    #[group(experts = 2, always)]
    Shared,
}

/// A use of all that a declaration leaves.
pub fn uses(cfg: &Arch, vb: &VarBuilder<'_>, x: &Tensor) -> tinyonn::Result<(Tensor, MoeLayer)> {
    static SPECS: [MoeSpec; 2] = [Even::SPEC, Cortex::SPEC];
    for (group, spec) in CortexGroup::ALL.into_iter().zip(&SPECS) {
        println!("{} {} {}", group.name(), spec.experts(), group == CortexGroup::Shared);
    }
    let even = Even::layer(cfg, 0, vb.clone())?;
    println!("{even:?} {} {}", even.spec().name, even.routers().len());
    Ok((even.forward(x, &Pass::all())?.0, Cortex::layer(cfg, 0, vb.clone())?))
}

fn main() {}
