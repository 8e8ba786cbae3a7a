//! Phase 2, Surprise Min-K: of the experts a batch was routed to, only the `min_k` with the smallest surprise learn. [`SmkRule`] has its forms, and the
//! baselines that it is held against.
//!
//! The surprise of expert n over a batch is known before any weight gradient (`surprise = token`):
//! S_n = √( Σ over its tokens t and neurons i of S²(t, i) / (tokens × width) ), S²(t, i) = ‖δ_y‖² (c h)² + (δ_g² + δ_u²) ‖x‖².
//! (Without the division load alone would decide.) Losers' weight gradients are never formed, and losers
//! *skip* their step: no momentum, no decay, no step count (DESIGN §4). Experts without a token do not compete. The rate is constant
//! unless its settings say otherwise. The log has a line every ten steps: the loss, and the load of the steps since the last one (`load_max_over_mean` of the worst layer;
//! `load_evenness` and `load_dead`, means over layers: [`crate::moe::load_figures`]).
//! Replicas learn by their deltas, and their surprise is known only behind the backward pass: a merge gives every delta the same gradient
//! but for its weight, ∂L/∂ΔW_n = Σ_d w_dn ∂L/∂W̃_d, so S_n is the norm of that (`surprise = exact`). What distinguishes replicas is their
//! weights alone: the claims of SMK are for slices (DESIGN §1).
//!
//! Who learns is decided where the gradients are, in [`crate::moe`]; here is the rule.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::checkpoints::digest;
use super::evaluate::EvaluateOptions;
use super::fine_tune::{Stage, teach};
use super::recycling::{RecycleConfig, Recycling};
use super::state::slots;
use super::{
    Adjust, Checkpoints, FineTune, HeldOut, Memory, Model, OptimizerConfig, Said, Saving, Schedule, TrainState,
    Verdict, Watch,
};
use crate::checkpoint::{Param, ParamStore, Role, variant_params};
use crate::data::{Sampler, TokenSet};
use crate::decoder::smk_rule::{Per, Select, Surprise};
use crate::decoder::{Active, Experts, Learn, Pass, PathTable, Smk, SmkRule};
use crate::metrics::MetricsLog;
use crate::model::TinyOnnForCausalLm;
use crate::moe::{Balance, ExpertsAre, LoadFigures, MoeLayer, MoeSpec, balance};
use crate::ops::activation::fingerprint;
use crate::{Error, Result, files};

/// How experts differentiate.
///
/// ```
/// use tinyonn::decoder::smk_rule::Surprise;
/// use tinyonn::gallery::{Smear, TinyOnn};
/// use tinyonn::train::SmkConfig;
///
/// let config = SmkConfig { min_k: 16, ..SmkConfig::DEFAULT };
/// assert!(config.check("smk", &TinyOnn::SPEC).is_ok());
/// assert!(SmkConfig { min_k: 0, ..config.clone() }.check("smk", &TinyOnn::SPEC).is_err());
/// // What surprises a replica is known by its whole gradient alone.
/// assert_eq!(config.choice(&Smear::SPEC).rule.surprise, Surprise::Exact);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SmkConfig {
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences a step.
    pub batch: usize,
    /// Experts of a layer, or of a group, that learn in a step; as many as compete or more is `all`.
    pub min_k: usize,
    /// By what they are chosen, and what becomes of the others.
    pub rule: SmkRule,
    /// Whether routers learn too: by the gates' gradients (`gate = scaled` or `straight_through`) and their auxiliary losses.
    pub routers: bool,
    /// Steps over which the rate rises from zero.
    pub warmup: u64,
    /// How it goes on.
    pub schedule: Schedule,
    /// Steps between looks at held-out text, whose loss is logged; the weights of the least one are the result. 0: never, the last ones are.
    pub look: u64,
    /// The optimizer; `rate` is the highest. (Earlier its key was `adamw`.)
    #[serde(alias = "adamw")]
    pub optimizer: OptimizerConfig,
    /// What a step holds in memory.
    pub memory: Memory,
    /// When dead experts become children of overloaded ones.
    pub recycle: RecycleConfig,
}

impl SmkConfig {
    /// 300 steps of 8 sequences, a quarter of a hundred experts learning.
    pub const DEFAULT: Self = Self {
        steps: 300,
        batch: 8,
        min_k: 25,
        rule: SmkRule::DEFAULT,
        routers: false,
        warmup: 0,
        schedule: Schedule::Constant,
        look: 0,
        optimizer: OptimizerConfig { rate: 5e-4, decay: 0.0, ..OptimizerConfig::DEFAULT },
        memory: Memory::DEFAULT,
        recycle: RecycleConfig::DEFAULT,
    };

    /// The choice that a variant's steps make: replicas' surprise is known only by their whole gradients.
    #[must_use]
    pub fn choice(&self, spec: &MoeSpec) -> Smk {
        let surprise = match spec.experts_are {
            ExpertsAre::Slice => self.rule.surprise,
            ExpertsAre::Replicate => Surprise::Exact,
        };
        Smk { min_k: self.min_k, rule: SmkRule { surprise, ..self.rule }, seed: 0 }
    }

    /// Refuses what could only fail; `key` is where it stands in the settings.
    ///
    /// # Errors
    /// A `min_k` of zero; a rule that the variant's experts or the micro-batches cannot follow; an optimizer or a memory that cannot be; experts that cannot be
    /// recycled.
    pub fn check(&self, key: &str, spec: &MoeSpec) -> Result<()> {
        if self.min_k == 0 {
            return Err(Error::setting(format!("{key}.min_k"), "is 0, and no expert would learn", "use 1 or more"));
        }
        self.memory.check(&format!("{key}.memory"), self.batch)?;
        self.optimizer.check(&format!("{key}.optimizer"))?;
        self.choice(spec).rule.check(&format!("{key}.rule"), self.memory.micro_batches)?;
        self.recycle.check(&format!("{key}.recycle"), spec, self.routers)?;
        if self.rule.per == Per::Group && spec.levels.len() == 1 {
            let problem = format!("is group, and the choices of the one level of `{}` are single experts", spec.name);
            return Err(Error::setting(format!("{key}.rule.per"), problem, "use layer"));
        }
        Ok(())
    }
}

impl Default for SmkConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What Surprise Min-K moves: slices themselves; of replicas the deltas.
pub(crate) fn learning_role(spec: &MoeSpec) -> Role {
    match spec.experts_are {
        ExpertsAre::Slice => Role::Expert,
        ExpertsAre::Replicate => Role::Delta,
    }
}

/// What the training did.
///
/// ```
/// use tinyonn::train::smk::SmkOutcome;
/// let line = |did: &SmkOutcome| format!("{:.0} % of active experts learnt, {} recycled", 100.0 * did.updated_share, did.recycled);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SmkOutcome {
    /// Learners among active experts, mean over steps and layers.
    pub updated_share: f64,
    /// Experts that were recycled, over all layers.
    pub recycled: u64,
}

/// Differentiates the experts of a model, routed as `routed` says; everything but the experts is frozen, and the routers unless asked.
///
/// With `checkpoints` it goes on behind the last state of the same training, the log as well ([`Checkpoints`]).
///
/// # Errors
/// Settings that cannot be ([`SmkConfig::check`]); `min_load` where all experts are active, and so equally loaded; a state of other settings;
/// [`Error::Interrupted`]; a loss or gradient that is no finite number; whatever the model or the log reports.
///
/// ```
/// use candle_core::Device;
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::data::{Sampler, TaskTokens, TokenSet};
/// use tinyonn::imaging::{Partition, PartitionSources, partition};
/// use tinyonn::metrics::MetricsLog;
/// use tinyonn::moe::{self, moe};
/// use tinyonn::decoder::{Arch, CausalLm, Pass};
/// use tinyonn::train::{SmkConfig, train_smk};
///
/// #[moe(groups = 2, experts = 3)]
/// struct Learners;
///
/// let variant = moe::variant("Learners")?;
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let units = partition::assign(Partition::Random, &Learners::SPEC, (1, 24), PartitionSources::default(), 0)?;
/// let store = upcycle(dense, &cfg, variant, &units, 0)?;
///
/// let task = TaskTokens { name: "count".into(), tokens: (0..200).collect(), documents: vec![0; 200] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["count/a".into()], eos: 0 };
/// let config = SmkConfig { steps: 3, batch: 4, min_k: 1, ..SmkConfig::DEFAULT };
/// let sampler = Sampler::new(&set, 32, config.batch, 0, &Device::Cpu)?;
/// let dir = tempfile::tempdir()?;
/// let mut log = MetricsLog::create(dir.path().join("smk.jsonl"))?;
/// let outcome = train_smk((&store, &cfg, variant), &Pass::routed(), (&sampler, None), &config, &mut log, None)?;
/// assert!(outcome.updated_share < 1.0); // one of several active experts
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn train_smk(
    (store, cfg, variant): Model<'_>,
    routed: &Pass,
    (sampler, held): (&Sampler<'_>, Option<&TokenSet>),
    config: &SmkConfig,
    log: &mut MetricsLog,
    checkpoints: Option<&Checkpoints>,
) -> Result<SmkOutcome> {
    let (routers, spec) = (config.routers, &variant.spec);
    config.check("smk", spec)?;
    if sampler.ranks().is_some() {
        refuse_several_ranks(config, spec)?;
    }
    if config.rule.select == Select::MinLoad && matches!(routed.active, Active::All) {
        let problem = "is min_load, and where all experts are active all have the same load";
        return Err(Error::setting("smk.rule.select", problem, "use random_k, or a routed pass"));
    }
    let role = learning_role(spec);
    let mut params = variant_params(cfg, variant)?;
    params.retain(|param| param.role == role || (routers && param.role == Role::Router));
    if let Some(param) = params.iter().find(|param| param.role == Role::Delta && store.get(&param.name).is_none()) {
        let remedy = "add the deltas that are to learn with `checkpoint::grow_deltas`";
        return Err(Error::tensor(param.name.clone(), "is missing: this replica cannot learn", remedy));
    }
    let dtype = config.memory.weights.dtype();
    let own = |param: &Param| if param.role == Role::Router { DType::F32 } else { dtype };
    let types: BTreeMap<String, DType> = params.iter().map(|param| (param.name.clone(), own(param))).collect();
    let work = store.work_weights(dtype, |name| types.get(name).copied())?;
    let model = TinyOnnForCausalLm::new(cfg, variant, work.builder())?;
    let biases = biases(store, cfg.num_hidden_layers, spec)?;
    let recycling = Recycling::new((store, cfg.num_hidden_layers), spec, config.recycle, routed)?;
    let beside = biases.iter().cloned().chain(recycling.iter().flat_map(Recycling::beside)).collect();
    // Biases follow the load while routers learn.
    let adjust = |load: &[Tensor], finite: &Tensor| -> Result<()> {
        for ((_, bias), tokens_n) in biases.iter().zip(load) {
            let moved = balance::step(spec, &bias.as_detached_tensor(), tokens_n)?;
            let kept = finite.broadcast_as(moved.shape())?.where_cond(&moved, &bias.as_detached_tensor())?;
            bias.set(&kept)?;
        }
        Ok(())
    };
    let open = spec.open_positions();
    let what = FineTune {
        model: model.lm(),
        slots: slots(&work, params),
        learn: Learn { experts: Experts::Smk(config.choice(spec)), routers, ..Learn::default() },
        pass: routed.clone(),
        open,
        anchor: None,
    };
    let saving = match checkpoints {
        Some(checkpoints) => {
            let settings = json!({
                "code": crate::SOURCES_SHA256, "model": cfg.to_json(), "variant": spec, "smk": config, "data": sampler.digest(),
                "activation": fingerprint(cfg.activation()?)?,
                "held_out": held.filter(|_| config.look > 0).map(TokenSet::sha256),
                "weights": digest(store)?, "active": active(routed),
            });
            Some(Saving { checkpoints, settings })
        }
        None => None,
    };
    let options = EvaluateOptions { length: sampler.length(), batch: sampler.batch(), skip: open };
    let held = HeldOut::new("smk", model.lm(), (held, config.look), (options, routed.clone()))?;
    let adjust: Option<&Adjust<'_>> = if routers && !biases.is_empty() { Some(&adjust) } else { None };
    let stage = Stage { name: ("Surprise Min-K", "smk.optimizer"), shown: true, beside, adjust };
    let is_saved = saving.is_some();
    let watched = teach(what, (sampler, config), stage, saving.as_ref(), |step, tally| {
        if is_saved {
            log.rewind("smk", step)?;
        }
        Ok(Logged { log, spec, steps: config.steps, tally, held, recycling })
    })?;
    let Tally { shares, count, recycled, .. } = watched.tally;
    Ok(SmkOutcome { updated_share: shares / count.max(1) as f64, recycled })
}

/// Refuses what several ranks cannot do together yet.
fn refuse_several_ranks(config: &SmkConfig, spec: &MoeSpec) -> Result<()> {
    let cannot = |name: &str, problem: &str| Err(Error::setting(name, problem, "leave it out, or use one rank"));
    if spec.experts_are == ExpertsAre::Replicate {
        return cannot(
            "experts_are",
            "is replicas, each with weights of its own, which several ranks have not been taught to choose among",
        );
    }
    if config.recycle.every > 0 {
        return cannot("smk.recycle", "moves weights of which each of several ranks has a part");
    }
    Ok(())
}

/// A line of the log every ten steps, and one a look.
struct Logged<'a> {
    log: &'a mut MetricsLog,
    spec: &'a MoeSpec,
    steps: u64,
    tally: Tally,
    held: HeldOut<'a, MoeLayer>,
    recycling: Option<Recycling<'a>>,
}

impl Watch for Logged<'_> {
    fn hear(&mut self, said: &Said) -> Result<()> {
        for (learnt, active) in &said.learners {
            self.tally.shares += learnt / active.max(1.0);
            self.tally.count += 1;
        }
        add(&mut self.tally.load, &said.load);
        if self.recycling.is_some() {
            add(&mut self.tally.since_recycling, &said.load);
        }
        if said.step.is_multiple_of(10) || said.step + 1 == self.steps {
            let load = LoadFigures::new(self.spec, &std::mem::take(&mut self.tally.load));
            let [peak, evenness, dead] = [load.max_over_mean(), load.evenness(), load.dead()];
            let load = [("load_max_over_mean", peak), ("load_evenness", evenness), ("load_dead", dead)];
            self.log.log(said.step, "smk", &[&[("loss", said.loss)], &load[..]].concat())?;
        }
        Ok(())
    }

    fn look_every(&self) -> u64 {
        common_divisor(self.held.every(), self.recycling.as_ref().map_or(0, Recycling::every))
    }

    fn look(&mut self, state: &mut TrainState) -> Result<Verdict> {
        let step = state.step;
        let ended = step == self.steps;
        let due = |every: u64| every > 0 && step.is_multiple_of(every);
        let verdict = if ended || due(self.held.every()) { self.held.look(self.log, state)? } else { Verdict::GoOn };
        // Behind the last step nobody would learn from it.
        if let Some(recycling) = self.recycling.as_ref().filter(|recycling| !ended && due(recycling.every())) {
            let recycled = recycling.apply(&std::mem::take(&mut self.tally.since_recycling))?;
            self.tally.recycled += recycled;
            self.log.log(step - 1, "smk", &[("recycled", recycled as f64)])?;
        }
        Ok(verdict)
    }

    fn tally(&self) -> serde_json::Value {
        json!(self.tally)
    }
}

/// What has been summed up.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Tally {
    /// Of each step and layer, the share of the active experts that learnt; and how many there were.
    shares: f64,
    count: u64,
    /// Tokens by layer and expert since the last line of the log.
    load: Vec<Vec<f64>>,
    /// The same since experts were recycled last.
    #[serde(default)]
    since_recycling: Vec<Vec<f64>>,
    /// Experts that were, so far.
    #[serde(default)]
    recycled: u64,
}

/// The largest number that divides both; of 0 and another, the other.
fn common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// Which experts take part, with the digest of given paths.
fn active(routed: &Pass) -> serde_json::Value {
    let of = |paths: &PathTable| {
        let mut digest = files::Digest::new();
        for experts in paths.experts.iter().flatten() {
            digest.words(experts);
        }
        digest.hex()
    };
    let (how, given) = match &routed.active {
        Active::All => ("all", None),
        Active::Routed => ("routed", None),
        Active::Paths(paths) => ("paths", Some(of(paths))),
    };
    json!({ "experts": how, "given": given, "of_tasks": routed.paths.as_deref().map(of) })
}

/// The biases of every layer's selection, where they are declared.
fn biases(store: &ParamStore, layers: usize, spec: &MoeSpec) -> Result<Vec<(String, Var)>> {
    if !matches!(spec.balance, Balance::Bias { .. }) {
        return Ok(Vec::new());
    }
    let of_layer = |layer: usize| {
        let name = format!("model.layers.{layer}.mlp.balance_bias");
        let missing = || Error::tensor(&name, "is missing", "upcycle the dense model again");
        let var = store.get(&name).ok_or_else(missing)?.clone();
        Ok((name, var))
    };
    (0..layers).map(of_layer).collect()
}

/// Adds what a step gave each expert of each layer.
fn add(sums: &mut Vec<Vec<f64>>, load: &[Vec<f64>]) {
    if sums.is_empty() {
        *sums = load.to_vec();
    } else {
        sums.iter_mut().flatten().zip(load.iter().flatten()).for_each(|(sum, load)| *sum += load);
    }
}
