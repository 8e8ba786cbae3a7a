//! Everything that decides what the study finds.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tinyonn::checkpoint::variant_parameters;
use tinyonn::decoder::SmkRule;
use tinyonn::decoder::smk_rule::Select;
use tinyonn::imaging::Score;
use tinyonn::moe::expert::check_width;
use tinyonn::moe::{self, Variant};
use tinyonn::phases::{DeviceName, RunConfig};
use tinyonn::train::{OptimizerConfig, PretrainConfig, SmkConfig};
use tinyonn::{Error, Result};

use super::Arm;
use crate::fragments::{Declared, DeclaredTable, GROWTH};

/// The heading of the study's table.
pub(super) const HEADING: &str = "The same further tokens";

/// The settings of a study of growth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrowthConfig {
    /// Its folder.
    pub out: PathBuf,
    /// The file of the results; without one, `RESULTS.md` in the folder.
    pub results: Option<PathBuf>,
    /// Each a dense model of its own.
    pub seeds: Vec<u64>,
    /// Where it computes.
    pub device: DeviceName,
    /// The variant that `run.variant` grows into.
    pub grown: String,
    /// Neurons that each new expert brings, where new ones do.
    pub new_neurons: usize,
    /// Model, text, labels, and how experts learn: `run.smk.steps` in all, growth at half of them, fits at three quarters.
    pub run: RunConfig,
}

impl Default for GrowthConfig {
    fn default() -> Self {
        // A model that was pretrained no longer than a quick run's hardly uses its MLPs, grown or not.
        let quick = RunConfig::quick();
        // All experts learn: what growth buys is not what Min-K costs.
        let rule = SmkRule { select: Select::All, ..quick.smk.rule };
        let optimizer = OptimizerConfig { rate: 1e-3, ..quick.smk.optimizer };
        let smk = SmkConfig { steps: 160, rule, optimizer, ..quick.smk };
        Self {
            out: "runs/growth".into(),
            results: None,
            seeds: vec![0, 1, 2],
            device: DeviceName::Cpu,
            grown: "TinyOnnDoubled".into(),
            new_neurons: 4,
            run: RunConfig { labels: Score::TaylorMagnitude, pretrain: PretrainConfig::DEFAULT, smk, ..quick },
        }
    }
}

impl GrowthConfig {
    /// The variants before and after.
    ///
    /// # Errors
    /// One that is not known.
    pub fn variants(&self) -> Result<[&'static Variant; 2]> {
        Ok([moe::variant(&self.run.variant)?, moe::variant(&self.grown)?])
    }

    /// Refuses what could only fail later.
    ///
    /// # Errors
    /// No seed, or one twice; steps that have no quarters; a model of one's own, whose seeds would all be one; new neurons too few for a dense model to match; a
    /// model too narrow for all children to share; what [`RunConfig::validate`] refuses.
    pub fn validate(&self) -> Result<()> {
        let [young, grown] = self.variants()?;
        self.run.validate(young)?;
        check_width(&grown.spec, self.run.dense.intermediate_size, 0)?;
        let refuse = |name: &str, problem: String, remedy: &str| Err(Error::setting(name, problem, remedy));
        if self.seeds.is_empty() {
            return refuse("seeds", "there are none".into(), "give one or more");
        }
        if let Some(twice) = self.seeds.iter().enumerate().find(|(at, seed)| self.seeds[..*at].contains(seed)) {
            let problem =
                format!("{} stands there twice, and what is paired by seed would be one figure twice", twice.1);
            return refuse("seeds", problem, "name each seed once");
        }
        if self.run.model.is_some() {
            return refuse(
                "run.model",
                "is one model for all seeds".into(),
                "leave it out: each seed pretrains its own",
            );
        }
        let steps = self.run.smk.steps;
        if steps == 0 || !steps.is_multiple_of(4) {
            return refuse("run.smk.steps", format!("is {steps}, which has no quarters"), "use a multiple of 4");
        }
        if self.equal()? == 0 {
            let problem = format!("{} are too few for a dense model to grow to as many operations", self.new_neurons);
            return refuse("new_neurons", problem, "use more");
        }
        Ok(())
    }

    /// New neurons of each new expert, by which a dense model comes nearest to the operations of the grown and routed one, routers included.
    fn equal(&self) -> Result<usize> {
        let [young, grown] = self.variants()?;
        let new = grown.spec.experts().saturating_sub(young.spec.experts()).max(1) as f64;
        let width = self.run.dense.intermediate_size as f64;
        let taken = grown.spec.active_share() * (width + new * self.new_neurons as f64);
        let operations = self.operations(taken, self.routers(grown)?);
        let neurons = operations / self.operations(1.0, 0);
        Ok(((neurons - width) / new).round().max(0.0) as usize)
    }

    /// The ways to go on.
    ///
    /// # Errors
    /// A variant that is not known.
    pub fn arms(&self) -> Result<[Arm; 8]> {
        Ok(Arm::all(self.new_neurons, self.equal()?))
    }

    /// Steps from one state to the next.
    #[must_use]
    pub fn quarter(&self) -> u64 {
        self.run.smk.steps / 4
    }

    /// Multiply-adds of a token's feed-forwards over all layers, of which `neurons` of a layer take part, and of `routers` parameters of routers, each of which meets
    /// one value of a token.
    #[must_use]
    pub fn operations(&self, neurons: f64, routers: usize) -> f64 {
        let dense = &self.run.dense;
        3.0 * (dense.num_hidden_layers * dense.hidden_size) as f64 * neurons + routers as f64
    }

    /// Parameters of the routers of `variant`.
    ///
    /// # Errors
    /// A variant that does not fit the model.
    pub fn routers(&self, variant: &Variant) -> Result<usize> {
        Ok(variant_parameters(&self.run.dense.arch(self.run.dense.vocab_size, "silu"), variant)?.routers)
    }

    /// The file of the results.
    #[must_use]
    pub fn results_file(&self) -> PathBuf {
        self.results.clone().unwrap_or_else(|| self.out.join("RESULTS.md"))
    }

    /// What the results must hold.
    #[must_use]
    pub fn declared(&self) -> Declared {
        let arms = Arm::all(self.new_neurons, 0);
        let rows = arms.iter().map(|arm| vec![arm.name.to_owned()]).collect();
        let run = RunConfig { out: PathBuf::new(), cache: PathBuf::new(), ..self.run.clone() };
        Declared {
            study: GROWTH.name.into(),
            seeds: self.seeds.clone(),
            settings: json!({ "grown": self.grown, "new_neurons": self.new_neurons, "run": run }),
            tables: vec![DeclaredTable { heading: HEADING.into(), rows }],
        }
    }
}
