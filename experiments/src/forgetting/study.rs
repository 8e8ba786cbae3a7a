//! The grid: which trials there are, and which runs are made of them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tinyonn::data::NovelTask;
use tinyonn::decoder::smk_rule::Select;
use tinyonn::imaging::{Partition, Score};
use tinyonn::moe::variant;
use tinyonn::phases::{ForgettingConfig, Method, RunConfig};
use tinyonn::train::{OptimizerConfig, PretrainConfig, RouterFitConfig, SmkConfig, UpdateRule};
use tinyonn::{Error, Result};

/// The configuration of a study. As TOML, every key is optional and unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StudyConfig {
    /// The folder of the study: its runs, its pictures. One that was begun is gone on with.
    pub out: PathBuf,
    /// Where the tables and what they say are written; without it `RESULTS.md` in the study's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub results: Option<PathBuf>,
    /// What all runs have in common: model, old text, steps and looks of a task (`smk`). Its `seed`, `out`, and the rule and rate in `smk` are each run's own.
    pub run: RunConfig,
    /// Of a pretrained model: how it is found out what it still knows. `run.data` is then what it goes on behind when it writes the text that it is held to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub knowledge: Option<KnowledgeConfig>,
    /// The orders of the tasks: two or more, or one where there are no finals.
    pub orders: Vec<Vec<NovelTask>>,
    /// Bytes of each task's text.
    pub task_bytes: usize,
    /// Sequences of old text that Fisher information is taken over.
    pub fisher_sequences: u64,
    /// The seed of the screen.
    pub screen_seed: u64,
    /// The seeds of the finals: others than the screen's. Without any the study ends with its screen.
    pub seeds: Vec<u64>,
    /// The rate of the dense run that sets the screen's targets.
    pub reference_rate: f64,
    /// A task counts as learnt where its loss is this share of dense fine-tuning's drop short of dense fine-tuning's last.
    pub margin: f64,
    /// What is tried.
    pub trials: Vec<Trials>,
    /// The methods that are in the finals whatever the screen says; dense fine-tuning is.
    pub finalists: Vec<Method>,
    /// How many of the other methods join them: those that forget least.
    pub open_places: usize,
}

/// How it is found out what a pretrained model still knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KnowledgeConfig {
    /// What `scripts/fetch_material.sh` has written.
    pub material: PathBuf,
    /// The benchmarks by their names ([`tinyonn::benchmark::TASKS`]); those count that carry signal.
    pub benchmarks: Vec<String>,
    /// The first items of each, at most.
    pub items: usize,
    /// Steps of a task between two rounds of questions, which are asked at looks; 0: behind tasks alone.
    pub every: u64,
    /// Documents that the model writes of each task of its text, ..
    pub documents: usize,
    /// .. the tokens that it is given of each, ..
    pub given: usize,
    /// .. and those that it writes behind them, at most.
    pub written: usize,
}

impl Default for KnowledgeConfig {
    fn default() -> Self {
        Self {
            material: "material".into(),
            benchmarks: ["arc_easy", "piqa", "hellaswag", "lambada"].map(str::to_owned).to_vec(),
            items: 400,
            every: 50,
            documents: 80,
            given: 16,
            written: 128,
        }
    }
}

/// A method at several rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trials {
    /// The method.
    pub method: Method,
    /// The rule of the optimizer.
    #[serde(default)]
    pub rule: UpdateRule,
    /// The rates, constant.
    pub rates: Vec<f64>,
}

/// A method, a rule and a rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The method.
    pub method: Method,
    /// The rule of the optimizer.
    pub rule: UpdateRule,
    /// The rate.
    pub rate: f64,
}

/// A run: a trial on a seed, in an order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunKey {
    /// The trial.
    pub trial: Trial,
    /// Decides pretraining, tasks and batches.
    pub seed: u64,
    /// The order of the tasks, by its number.
    pub order: usize,
}

/// A part of the study.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Every trial once.
    Screen,
    /// A few methods on other seeds and in all orders.
    Finals,
}

impl Trial {
    /// The optimizer's rule in a word.
    #[must_use]
    pub fn rule_name(&self) -> &'static str {
        match self.rule {
            UpdateRule::Sgd => "sgd",
            UpdateRule::Lion => "lion",
            _ => "adamw",
        }
    }

    /// A name that no other trial has, good for a file.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}.{}.{}", self.method.name(), self.rule_name(), self.rate_name())
    }

    /// The rate as it is written: `1e-3`.
    #[must_use]
    pub fn rate_name(&self) -> String {
        format!("{:e}", self.rate)
    }
}

impl RunKey {
    /// A name that no other run has, good for a file.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}.seed{}.order{}", self.trial.id(), self.seed, self.order)
    }
}

const SMK: Method = Method::Experts { select: Select::Smk, routed: false };
const MIN_LOAD: Method = Method::Experts { select: Select::MinLoad, routed: true };
/// Of about as many weights as the MLPs of the small models have.
const LORA: Method = Method::Lora { rank: 96 };

impl Default for StudyConfig {
    fn default() -> Self {
        let run = RunConfig::default();
        let experts = |select, routed| Method::Experts { select, routed };
        let trials = |method, rates: &[f64]| Trials { method, rule: UpdateRule::Adamw, rates: rates.to_vec() };
        let sgd = |method, rates: &[f64]| Trials { rule: UpdateRule::Sgd, ..trials(method, rates) };
        let few = [1e-3, 4e-3, 1.6e-2];
        Self {
            out: "runs/forgetting".into(),
            results: None,
            knowledge: None,
            orders: vec![NovelTask::ALL.to_vec(), NovelTask::ALL.into_iter().rev().collect()],
            task_bytes: 300_000,
            fisher_sequences: 64,
            screen_seed: 0,
            seeds: vec![1, 2, 3],
            reference_rate: 1e-3,
            margin: 0.1,
            trials: vec![
                trials(Method::DENSE, &[2.5e-4, 1e-3, 4e-3, 1.6e-2]),
                trials(SMK, &[1e-3, 4e-3, 1.6e-2]),
                trials(experts(Select::RandomK, false), &few),
                trials(experts(Select::MaxK, false), &[1e-3, 4e-3]),
                trials(Method::Lora { rank: 10 }, &few),
                trials(LORA, &[2.5e-4, 1e-3]),
                trials(Method::LeastImportant, &[1e-3, 4e-3]),
                trials(Method::Replay { one_in: 100 }, &[2.5e-4, 1e-3, 4e-3]),
                trials(Method::Decay { strength: 10.0, fisher: false }, &[1e-3, 4e-3]),
                trials(Method::Decay { strength: 10.0, fisher: true }, &[1e-3, 4e-3]),
                trials(experts(Select::All, true), &[1e-3]),
                trials(experts(Select::Smk, true), &[4e-3, 1.6e-2]),
                trials(experts(Select::RandomK, true), &[4e-3]),
                trials(experts(Select::MaxK, true), &[4e-3]),
                trials(experts(Select::MaxProduct, true), &[4e-3]),
                trials(MIN_LOAD, &[4e-3, 1.6e-2]),
                sgd(Method::DENSE, &[3e-2, 1e-1]),
                sgd(SMK, &[3e-2, 1e-1]),
            ],
            finalists: vec![Method::DENSE, SMK, experts(Select::RandomK, false), MIN_LOAD, LORA],
            open_places: 2,
            run: RunConfig {
                out: "runs/forgetting".into(),
                partition: Some(Partition::Activation),
                labels: Score::TaylorMagnitude,
                scan_tokens: 4096,
                test_tokens: 1024,
                router: RouterFitConfig { steps: 60, ..run.router },
                smk: SmkConfig {
                    steps: 150,
                    look: 5,
                    min_k: 10,
                    optimizer: OptimizerConfig { decay: 0.0, ..OptimizerConfig::DEFAULT },
                    ..SmkConfig::DEFAULT
                },
                ..run
            },
        }
    }
}

impl StudyConfig {
    /// A first look, some minutes on two cores: a smaller model that is hardly pretrained, two tasks, few trials.
    #[must_use]
    pub fn quick() -> Self {
        let whole = Self::default();
        let trials = |method| Trials { method, rule: UpdateRule::Adamw, rates: vec![1e-3, 4e-3] };
        let order = vec![NovelTask::LetterSums, NovelTask::Contradictions];
        Self {
            orders: vec![order.clone(), order.into_iter().rev().collect()],
            task_bytes: 60_000,
            fisher_sequences: 16,
            seeds: vec![1, 2],
            trials: vec![trials(Method::DENSE), trials(SMK), trials(Method::Lora { rank: 10 })],
            finalists: vec![Method::DENSE, SMK],
            open_places: 1,
            run: RunConfig {
                pretrain: PretrainConfig { steps: 220, warmup: 30, ..whole.run.pretrain },
                test_tokens: 512,
                scan_tokens: 1024,
                smk: SmkConfig { steps: 20, look: 5, ..whole.run.smk },
                ..whole.run
            },
            ..whole
        }
    }

    /// That of a pretrained model: one seed, one order, no finals. What it knew is known by [`KnowledgeConfig`]. Twelve runs were planned; seven
    /// at lower rates joined them, since of most methods the lowest that had been tried forgot least.
    #[must_use]
    pub fn pretrained() -> Self {
        let whole = Self::default();
        let trials = |method, rates: &[f64]| Trials { method, rule: UpdateRule::Adamw, rates: rates.to_vec() };
        Self {
            out: "runs/forgetting-pretrained".into(),
            knowledge: Some(KnowledgeConfig::default()),
            orders: vec![vec![NovelTask::LetterSums, NovelTask::InventedLanguage]],
            seeds: Vec::new(),
            reference_rate: 3e-4,
            margin: 0.2,
            trials: vec![
                trials(Method::DENSE, &[3e-5, 1e-4, 3e-4, 1e-3, 3e-3]),
                trials(SMK, &[3e-4, 1e-3, 3e-3]),
                trials(Method::Experts { select: Select::RandomK, routed: false }, &[3e-4, 1e-3, 3e-3]),
                trials(Method::LeastImportant, &[3e-4, 1e-3]),
                trials(Method::Lora { rank: 42 }, &[3e-4, 1e-3]),
                trials(Method::Replay { one_in: 100 }, &[1e-4, 3e-4]),
                trials(Method::Decay { strength: 10.0, fisher: true }, &[1e-4, 3e-4]),
            ],
            finalists: vec![Method::DENSE],
            open_places: 0,
            run: RunConfig {
                length: 256,
                test_tokens: 1536,
                smk: SmkConfig { steps: 100, look: 10, ..whole.run.smk },
                ..whole.run
            },
            ..whole
        }
    }

    /// All trials, each once.
    #[must_use]
    pub fn all_trials(&self) -> Vec<Trial> {
        let mut seen = BTreeSet::new();
        let of = |trials: &Trials| {
            let (method, rule) = (trials.method, trials.rule);
            trials.rates.iter().map(move |rate| Trial { method, rule, rate: *rate }).collect::<Vec<_>>()
        };
        self.trials.iter().flat_map(of).filter(|trial| seen.insert(trial.id())).collect()
    }

    /// The methods that are tried.
    #[must_use]
    pub fn methods(&self) -> Vec<Method> {
        let mut methods: Vec<Method> = Vec::new();
        for trials in &self.trials {
            if !methods.contains(&trials.method) {
                methods.push(trials.method);
            }
        }
        methods
    }

    /// What an old text's figure is.
    #[must_use]
    pub fn old_measure(&self) -> &'static str {
        match self.knowledge {
            Some(_) => "divergence from the original on what it wrote itself",
            None => "held-out loss of the old text",
        }
    }

    /// The runs of the screen.
    #[must_use]
    pub fn screen(&self) -> Vec<RunKey> {
        self.all_trials().into_iter().map(|trial| RunKey { trial, seed: self.screen_seed, order: 0 }).collect()
    }

    /// The runs of the finals of these trials: those of a seed side by side, since they share a dense model.
    #[must_use]
    pub fn finals(&self, trials: &[Trial]) -> Vec<RunKey> {
        let of_seed = |seed: &u64| {
            let seed = *seed;
            let orders = (0..self.orders.len()).flat_map(move |order| trials.iter().map(move |t| (order, *t)));
            orders.map(move |(order, trial)| RunKey { trial, seed, order })
        };
        self.seeds.iter().flat_map(of_seed).collect()
    }

    /// The runs of the whole study, at most.
    #[must_use]
    pub fn most_runs(&self) -> usize {
        self.screen().len() + (self.finalists.len() + self.open_places) * self.seeds.len() * self.orders.len()
    }

    /// What the library runs for `key`.
    #[must_use]
    pub fn settings(&self, key: &RunKey) -> (RunConfig, ForgettingConfig) {
        let Trial { method, rule, rate } = key.trial;
        let smk = SmkConfig { optimizer: OptimizerConfig { rule, rate, ..self.run.smk.optimizer }, ..self.run.smk };
        let run = RunConfig { seed: key.seed, smk, out: self.out.clone(), ..self.run.clone() };
        let order = self.orders.get(key.order).cloned().unwrap_or_default();
        let (task_bytes, fisher_sequences) = (self.task_bytes, self.fisher_sequences);
        (run, ForgettingConfig { order, task_bytes, method, fisher_sequences })
    }

    /// Refuses what could only fail later.
    ///
    /// # Errors
    /// Fewer than two orders where there are finals, orders of other tasks; a seed twice, or of both stages; knowledge of no model, or asked where nobody looks; dense fine-tuning missing at a rate that something else is tried at,
    /// or at the reference's; a finalist that is not tried; what the library refuses.
    pub fn validate(&self) -> Result<()> {
        let refused = |name: &str, problem: String, remedy: &str| Err(Error::setting(name, problem, remedy));
        let sorted = |order: &Vec<NovelTask>| order.iter().copied().collect::<BTreeSet<_>>();
        let same = self.orders.windows(2).all(|pair| sorted(&pair[0]) == sorted(&pair[1]) && pair[0] != pair[1]);
        let least = if self.seeds.is_empty() { 1 } else { 2 };
        if self.orders.len() < least || !same {
            let problem = format!("{} orders, which must be {least} or more of the same tasks", self.orders.len());
            return refused("orders", problem, "give each order once, all of the same tasks");
        }
        let seeds: BTreeSet<u64> = self.seeds.iter().copied().collect();
        if seeds.len() != self.seeds.len() || seeds.contains(&self.screen_seed) {
            let problem = format!("{:?} has a seed twice, or the screen's {}", self.seeds, self.screen_seed);
            return refused("seeds", problem, "give seeds that nothing was chosen by");
        }
        let look = self.run.smk.look;
        if let Some(known) = self.knowledge.as_ref().filter(|known| look == 0 || !known.every.is_multiple_of(look)) {
            let problem = format!("is {}, and questions are asked at looks, every {look} steps", known.every);
            return refused("knowledge.every", problem, "use a multiple of run.smk.look");
        }
        if self.knowledge.is_some() && self.run.model.is_none() {
            return refused(
                "knowledge",
                "is asked of a model that is none yet".into(),
                "name a pretrained one with --model",
            );
        }
        if !(0.0..1.0).contains(&self.margin) {
            return refused("margin", format!("is {}", self.margin), "use a share from 0 to below 1");
        }
        let trials = self.all_trials();
        if let Some(trial) = trials.iter().find(|trial| !(trial.rate > 0.0 && trial.rate.is_finite())) {
            return refused("trials.rates", format!("has {}", trial.rate), "use finite rates above 0");
        }
        let dense = |rule, rate| trials.contains(&Trial { method: Method::DENSE, rule, rate });
        if let Some(trial) = trials.iter().find(|trial| !dense(trial.rule, trial.rate)) {
            let problem = format!("has `{}`, and dense fine-tuning is not tried at that rate", trial.id());
            return refused(
                "trials",
                problem,
                "add it: what it does to the old text decides whether a rate is compared",
            );
        }
        if !dense(UpdateRule::Adamw, self.reference_rate) {
            let problem = format!("is {:e}, at which dense fine-tuning is not tried", self.reference_rate);
            return refused("reference_rate", problem, "name one of its rates");
        }
        if !self.finalists.contains(&Method::DENSE) {
            return refused("finalists", "lack dense fine-tuning".into(), "add it: the others are compared with it");
        }
        if let Some(method) = self.finalists.iter().find(|m| !trials.iter().any(|trial| trial.method == **m)) {
            return refused("finalists", format!("has `{}`, which is not tried", method.name()), "add it to trials");
        }
        for key in self.screen() {
            let (run, of) = self.settings(&key);
            let variant = variant(&run.variant)?;
            run.validate(variant)?;
            of.check(&run, &variant.spec)?;
        }
        Ok(())
    }

    /// The file of the results.
    #[must_use]
    pub fn results_file(&self) -> PathBuf {
        self.results.clone().unwrap_or_else(|| self.out.join("RESULTS.md"))
    }
}
