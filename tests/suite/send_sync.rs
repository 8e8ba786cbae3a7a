//! What goes from thread to thread, and is read by several at once: a type that no longer can does not compile here.

use std::sync::Arc;

use tinyonn::benchmark::BenchmarkTask;
use tinyonn::checkpoint::{
    GgufFile, LoadedModel, MappedSafetensors, ModelFolder, ParamStore, TinyOnnFolder, WorkWeights,
};
use tinyonn::data::{Corpus, TextTokenizer, TokenFile, TokenSet};
use tinyonn::decoder::{Arch, CausalLm, Generation, Mlp, Pass};
use tinyonn::generation::ChatTemplate;
use tinyonn::imaging::{Labels, NeuronScan, RouterInputs, StoredScan};
use tinyonn::interrupt::Interrupt;
use tinyonn::metrics::MetricsLog;
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{MoeSpec, Variant};
use tinyonn::ops::Grads;
use tinyonn::phases::{Dense, Prepared, RunConfig};
use tinyonn::train::TrainState;

fn both<T: Send + Sync>() {}

#[test]
fn main_types_are_send_and_sync() {
    both::<tinyonn::Error>();
    both::<(ModelFolder, TinyOnnFolder, MappedSafetensors, GgufFile)>();
    both::<(ParamStore, WorkWeights, LoadedModel, CausalLm<Mlp>, Arc<TinyOnnForCausalLm>)>();
    both::<(Corpus, TextTokenizer, TokenSet, TokenFile, BenchmarkTask)>();
    both::<(Arch, Pass, Generation, ChatTemplate, MoeSpec, &'static Variant)>();
    both::<(NeuronScan, StoredScan, Labels, RouterInputs)>();
    both::<(RunConfig, Dense, Prepared)>();
    both::<(TrainState, Grads, MetricsLog, Interrupt)>();
}
