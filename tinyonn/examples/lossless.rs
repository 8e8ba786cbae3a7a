//! Declares a variant, takes a random model apart, and compares: all experts active, the logits are the same bits.
//!
//!     cargo run --release --example lossless

use serde_json::json;
use tinyonn::candle_core::{DType, Device, Tensor};
use tinyonn::checkpoint::{ParamStore, upcycle};
use tinyonn::decoder::{Arch, CausalLm, Pass};
use tinyonn::imaging::{Partition, PartitionSources, partition};
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{self, moe};

/// Seven groups of three experts; a token takes two groups, and one expert of each.
#[moe(groups = 7, experts = 3, router = gaussian(dim = 16), top_k = [2, 1])]
pub struct Seven;

fn main() -> tinyonn::Result<()> {
    let config = json!({
        "model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 100, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    });
    let (arch, seed) = (Arch::from_json(&config, "config.json")?, 0);
    let dense = ParamStore::initialise(&Device::Cpu, seed, |vb| CausalLm::dense(&arch, &vb).map(drop))?;

    // 100 neurons do not divide by 21 experts: some have four, some five.
    let variant = moe::variant("Seven")?;
    let shape = (arch.num_hidden_layers, arch.intermediate_size);
    let experts = partition::assign(Partition::Random, &variant.spec, shape, PartitionSources::default(), seed)?;
    let sparse = upcycle(dense.share(), &arch, variant, &experts, seed)?;

    let dense = CausalLm::dense(&arch, &dense.builder(DType::F32, |_| false))?;
    let sparse = TinyOnnForCausalLm::new(&arch, variant, &sparse.builder(DType::F32, |_| false))?;
    let ids = Tensor::new(&[[3u32, 1, 4, 1, 5, 9, 2, 6]], &Device::Cpu)?;
    let before = dense.logits(&ids, &Pass::all(), None)?.to_vec3::<f32>()?;
    let after = sparse.logits(&ids, &Pass::all(), None)?.to_vec3::<f32>()?;
    let routed = sparse.logits(&ids, &Pass::routed(), None)?.to_vec3::<f32>()?;

    assert_eq!(before, after);
    assert_ne!(before, routed);
    println!("{}: all {} experts active, bit-equal", variant.spec.hierarchy(), variant.spec.experts());
    println!(
        "routed, {} of them, the first logit goes from {} to {}",
        variant.spec.active_experts(),
        before[0][0][0],
        routed[0][0][0]
    );
    Ok(())
}
