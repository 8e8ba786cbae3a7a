//! What a model takes in main memory while it is read: its weights in the type that it computes in, and little else. Counted in a process of its own,
//! by its allocator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use candle_core::{DType, Device};
use peak_alloc::PeakAlloc;
use serde_json::json;
use tempfile::TempDir;
use tinyonn::checkpoint::{ModelFolder, ParamStore, load_model};
use tinyonn::decoder::{Arch, CausalLm};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The most that `load_model` held, by what its weights take in `dtype`.
fn peak_by_weights(path: &Path, dtype: DType) -> f64 {
    let weights = ModelFolder::open(path).unwrap().arch().unwrap().parameters() * dtype.size_in_bytes();
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let model = load_model(path, &Device::Cpu, Some(dtype)).unwrap();
    let peak = ALLOCATOR.peak_usage() - before;
    drop(model);
    peak as f64 / weights as f64
}

/// One test, since the count is the process's. Most of these weights are one matrix, the embedding, as in small models of large vocabularies.
#[test]
fn a_model_is_never_twice_in_memory() {
    let arch = json!({
        "model_type": "qwen3", "vocab_size": 100_000, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "tie_word_embeddings": true,
    });
    let cfg = Arch::from_json(&arch, "config.json").unwrap();
    let dir = TempDir::new().unwrap();
    for stored in [DType::F32, DType::BF16] {
        let path = dir.path().join(stored.as_str());
        let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop)).unwrap();
        let mut narrow = ParamStore::new(&Device::Cpu);
        for (name, var) in store.iter() {
            narrow.insert(name, var.as_detached_tensor().to_dtype(stored).unwrap()).unwrap();
        }
        ModelFolder::save(&path, &cfg.to_json(), &narrow, None).unwrap();
        drop((store, narrow));
        for dtype in [DType::F32, DType::BF16] {
            let share = peak_by_weights(&path, dtype);
            assert!((1.0..=1.15).contains(&share), "{stored:?} read as {dtype:?}: {share}");
        }
    }
    let Some(material) = std::env::var_os("TINYONN_MATERIAL") else {
        println!("a GGUF file: skipped, TINYONN_MATERIAL names no folder of scripts/fetch_material.sh");
        return;
    };
    let share = peak_by_weights(&Path::new(&material).join("model/SmolLM2-135M-Instruct.Q4_1.gguf"), DType::F32);
    assert!((1.0..=1.15).contains(&share), "a GGUF file: {share}");
}
