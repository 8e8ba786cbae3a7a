//! What the page of the study must hold, known before anything is run: the rows of the screen, of the rates, and of the finalists that are certain.

use serde_json::json;

use super::StudyConfig;
use super::tables::{GATE, RATES, SCREEN, leading};
use crate::fragments::{Declared, DeclaredTable, FORGETTING};
use tinyonn::phases::Method;

impl StudyConfig {
    /// What its page must hold.
    #[must_use]
    pub fn declared(&self) -> Declared {
        let trials = self.all_trials();
        let dense = trials.iter().filter(|trial| trial.method == Method::DENSE);
        let rates = self.trials.iter().map(|trials| {
            let trial = super::Trial { method: trials.method, rule: trials.rule, rate: 0.0 };
            vec![trials.method.name(), trial.rule_name().to_owned()]
        });
        let table = |heading: &str, rows| DeclaredTable { heading: heading.to_owned(), rows };
        let (run, orders) = (&self.run, &self.orders);
        Declared {
            study: FORGETTING.name.into(),
            seeds: self.seeds.clone(),
            settings: json!({
                "orders": orders, "task_bytes": self.task_bytes, "margin": self.margin, "reference_rate": self.reference_rate,
                "screen_seed": self.screen_seed, "finalists": self.finalists, "open_places": self.open_places, "model": run.model, "data": run.data,
                "variant": run.variant, "dense": run.dense, "pretrain": run.pretrain, "length": run.length, "test_tokens": run.test_tokens,
                "steps": run.smk.steps, "batch": run.smk.batch, "look": run.smk.look, "min_k": run.smk.min_k,
            }),
            tables: vec![
                table(GATE, dense.map(leading).collect()),
                table(SCREEN, trials.iter().map(leading).collect()),
                table(RATES, rates.collect()),
            ],
        }
    }
}
