//! What the page of the study must hold, known before anything is run: the rows of the screen, of the rates, and of the finalists that are certain.

use serde_json::json;

use super::StudyConfig;
use super::knowledge_tables::{ANY_RATE, BY_TASK, KEPT};
use super::tables::{GATE, RATES, SCREEN, leading};
use crate::fragments::{Declared, DeclaredTable, FORGETTING, FORGETTING_PRETRAINED, Study};
use tinyonn::phases::Method;

impl StudyConfig {
    /// Its part of the results.
    pub(super) fn part(&self) -> &'static Study {
        if self.knowledge.is_some() { &FORGETTING_PRETRAINED } else { &FORGETTING }
    }

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
        let mut settings = json!({
            "orders": orders, "task_bytes": self.task_bytes, "margin": self.margin, "reference_rate": self.reference_rate,
            "screen_seed": self.screen_seed, "finalists": self.finalists, "open_places": self.open_places,
            "variant": run.variant, "length": run.length, "test_tokens": run.test_tokens,
            "steps": run.smk.steps, "batch": run.smk.batch, "look": run.smk.look, "min_k": run.smk.min_k,
        });
        // Where a pretrained model and its text lie is each machine's own.
        let own = match &self.knowledge {
            Some(known) => json!({
                "benchmarks": known.benchmarks, "items": known.items, "every": known.every, "documents": known.documents, "given": known.given,
                "written": known.written,
            }),
            None => json!({ "model": run.model, "data": run.data, "dense": run.dense, "pretrain": run.pretrain }),
        };
        if let (Some(settings), Some(own)) = (settings.as_object_mut(), own.as_object()) {
            settings.extend(own.clone());
        }
        let mut tables = vec![
            table(GATE, dense.map(leading).collect()),
            table(SCREEN, trials.iter().map(leading).collect()),
            table(RATES, rates.collect()),
        ];
        if self.knowledge.is_some() {
            tables
                .extend([KEPT, ANY_RATE, BY_TASK].map(|heading| table(heading, trials.iter().map(leading).collect())));
        }
        Declared { study: self.part().name.into(), seeds: self.seeds.clone(), settings, tables }
    }
}
