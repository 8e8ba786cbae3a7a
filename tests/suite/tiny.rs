//! Models, hierarchies and texts so small that loops over every definition take milliseconds.

use std::borrow::Cow;

use candle_core::{DType, Device, Tensor};
use rand::Rng;
use tinyonn::checkpoint::{ParamStore, upcycle};
use tinyonn::data::{Corpus, SplitShares, Splits, TaskTokens, TextTokenizer, TokenSet, arithmetic, sorting};
use tinyonn::decoder::{Arch, Ask, CausalLm, Mlp, Pass};
use tinyonn::imaging::{Partition, PartitionSources, partition};
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{
    self, AttentionSpec, Balance, Combine, ExpertsAre, Gate, GaussianSpec, LevelSpec, LoadMeter, MoeSpec, Neurons,
    Pfag, RoutePer, RouterKind, RouterSpec, Variant,
};
use tinyonn::ops::host;
use tinyonn::random;

use crate::models;

/// Two layers whose 26 neurons divide by few numbers of experts.
pub(crate) fn config(vocab_size: usize) -> Arch {
    Arch { vocab_size, ..models::config(26, false) }
}

/// A dense store whose matrices are ten times larger than new ones: every part of the network bends what passes through it.
pub(crate) fn dense_store(cfg: &Arch, seed: u64) -> ParamStore {
    let store = ParamStore::initialise(&Device::Cpu, seed, |vb| CausalLm::dense(cfg, &vb).map(drop)).unwrap();
    for (_, var) in store.iter().filter(|(_, var)| var.rank() == 2) {
        var.set(&(var.as_detached_tensor() * 10.0).unwrap()).unwrap();
    }
    store
}

/// The frozen dense model of a store.
pub(crate) fn dense(cfg: &Arch, store: &ParamStore) -> CausalLm<Mlp> {
    models::dense(cfg, store, DType::F32)
}

/// The frozen sparse model of a store.
pub(crate) fn sparse(cfg: &Arch, variant: &'static Variant, store: &ParamStore) -> TinyOnnForCausalLm {
    models::sparse(cfg, variant, store, DType::F32)
}

/// A dense store upcycled to a declared variant over a random partition.
pub(crate) fn upcycled(cfg: &Arch, name: &str, dense: &ParamStore) -> (&'static Variant, ParamStore) {
    let variant = moe::variant(name).unwrap();
    let shape = (cfg.num_hidden_layers, cfg.intermediate_size);
    let units = partition::assign(Partition::Random, &variant.spec, shape, PartitionSources::default(), 5).unwrap();
    (variant, upcycle(dense.deep_copy().unwrap(), cfg, variant, &units, 6).unwrap())
}

/// What the experts are given to do in a pass over `ids`.
pub(crate) fn load(model: &TinyOnnForCausalLm, ids: &Tensor, pass: &Pass) -> LoadMeter {
    let pass = Pass { ask: Ask { load: true, ..Ask::default() }, ..pass.clone() };
    let (_, traces) = model.traced_logits(ids, &pass).unwrap();
    let mut meter = LoadMeter::new(traces.len(), model.spec().experts());
    meter.add(&traces, &host::read(&LoadMeter::wanted(&traces)).unwrap());
    meter
}

/// A hierarchy of (choices, top_k) levels.
pub(crate) fn spec(levels: &[(usize, usize)]) -> MoeSpec {
    let parents = |at: usize| levels[..at].iter().map(|(choices, _)| choices).product();
    let level = |(at, (choices, top_k)): (usize, &(usize, usize))| {
        let name: Cow<'static, str> = Cow::Owned(["group", "expert", "third", "fourth"][at].to_owned());
        let kind = RouterKind::Gaussian(GaussianSpec::new(64));
        let router = RouterSpec { name: name.clone(), parents: parents(at), choices: *choices, top_k: *top_k, kind };
        LevelSpec { name, routers: Cow::Owned(vec![router]) }
    };
    MoeSpec {
        name: Cow::Borrowed("Test"),
        levels: levels.iter().enumerate().map(level).collect(),
        always: Cow::Borrowed(&[]),
        always_by: None,
        experts_are: ExpertsAre::Slice,
        combine: Combine::Concat,
        route_per: RoutePer::Token,
        gate: Gate::Unit,
        neurons: Neurons::All,
        attention: AttentionSpec::Dense,
        pfag: Pfag::Off,
        balance: Balance::None,
        z_loss: 0.0,
        jitter: 0.0,
        partition: None,
        activation: None,
    }
}

/// Tasks of `sizes` tokens each, every task over its own half of the vocabulary, so that tasks differ.
pub(crate) fn tokens(seed: u64, sizes: &[usize], vocab: u32) -> TokenSet {
    let task = |(at, size): (usize, &usize)| {
        let mut rng = random::stream(seed, &format!("tests/tokens/{at}"));
        let first = vocab / 2 * (at as u32 % 2);
        let tokens = (0..*size).map(|_| first + rng.random_range(0..vocab / 2)).collect();
        TaskTokens { name: format!("task{at}"), tokens, documents: vec![at as u32; *size] }
    };
    let tasks: Vec<TaskTokens> = sizes.iter().enumerate().map(task).collect();
    let documents = tasks.iter().map(|task| format!("{}/all", task.name)).collect();
    TokenSet { tasks, documents, eos: 0 }
}

/// The vocabulary of [`text`].
pub(crate) const TEXT_VOCAB: usize = 280;

/// Train and test tokens of generated arithmetic and sorting.
pub(crate) fn text() -> (TokenSet, TokenSet) {
    let corpus = Corpus { tasks: vec![arithmetic(0, 24_000), sorting(0, 24_000)] };
    let splits = Splits::new(&corpus, SplitShares::default(), 0).unwrap();
    let tokenizer = TextTokenizer::train(&splits.train, TEXT_VOCAB).unwrap();
    (TokenSet::encode(&splits.train, &tokenizer).unwrap(), TokenSet::encode(&splits.test, &tokenizer).unwrap())
}

/// The bits of every tensor, by name.
pub(crate) fn bits(store: &ParamStore) -> Vec<(String, Vec<u32>)> {
    let values = |var: &candle_core::Var| {
        let flat = var.as_detached_tensor().flatten_all().unwrap();
        match flat.dtype() {
            DType::U32 => flat.to_vec1::<u32>().unwrap(),
            _ => flat.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect(),
        }
    };
    store.iter().map(|(name, var)| (name.to_owned(), values(var))).collect()
}
