//! From what phase 1 found to the figures of its summary.

use std::collections::BTreeMap;

use super::phase1::Phase1;
use super::run::{Run, active_share};
use super::summary::{
    DecisionAccuracy, LoadStages, LossFigures, ModelFigures, Phase1Summary, RouterFigures, ScanFigures,
};
use crate::metrics::Stopwatch;
use crate::train::Losses;

impl Phase1 {
    /// Its figures, with the seconds of `watch`.
    #[must_use]
    pub fn summary(&self, run: &Run<'_>, watch: &Stopwatch) -> Phase1Summary {
        let spec = &run.variant.spec;
        let own = DecisionAccuracy::new(self.own_accuracy(spec));
        Phase1Summary {
            variant: spec.name.to_string(),
            seed: run.config.seed,
            corpus: run.corpus_figures(),
            model: self.model_figures(run),
            lossless: self.lossless,
            scan: ScanFigures {
                gradient_nonzero_share: self.scan.gradient_nonzero_share(),
                tokens: self.scan.tokens.iter().sum(),
            },
            labels_by: run.labels_by(),
            labels: self.labels.statistics(spec),
            router: RouterFigures {
                group_accuracy: own.group_accuracy,
                expert_accuracy: own.expert_accuracy,
                chance: own.chance,
                expert_chance: own.expert_chance,
                token: DecisionAccuracy::new(&self.fits.token),
                sequence: DecisionAccuracy::new(&self.fits.sequence),
                own_labels: self.fits.own_labels.clone(),
            },
            loss: self.loss_figures(),
            loss_by_task: self.losses_by_task(&run.text.tasks),
            random_labels: self.fits.random.iter().map(|losses| losses.mean).collect(),
            permuted_labels: self.fits.permuted.iter().map(|losses| losses.mean).collect(),
            active_share: active_share(&self.before.load, self.units.as_deref()),
            load: LoadStages { asked: run.asked_load(&self.labels), before: self.before.load.figures(spec) },
            seconds: watch.seconds().into_iter().map(|(stage, seconds)| (stage, seconds.into())).collect(),
        }
    }

    fn model_figures(&self, run: &Run<'_>) -> ModelFigures {
        let elements = |name: &str| self.store.get(name).map_or(0, |var| var.elem_count());
        ModelFigures {
            parameters: run.dense.cfg.parameters(),
            router_parameters: self.store.names().filter(|name| name.contains("_router.")).map(elements).sum(),
            layers: run.dense.cfg.num_hidden_layers,
            experts: run.variant.spec.experts(),
            partition: self.units.is_some().then(|| run.partition.to_string()),
        }
    }

    fn loss_figures(&self) -> LossFigures {
        LossFigures {
            dense: self.before.all_active.mean,
            routed_before: self.before.routed.mean,
            label_paths: self.label_paths.mean,
            routed_random_labels: mean(&self.fits.random),
            routed_permuted_labels: mean(&self.fits.permuted),
        }
    }

    fn losses_by_task(&self, tasks: &[String]) -> BTreeMap<String, BTreeMap<String, f64>> {
        let by_task = |losses: &Losses| tasks.iter().cloned().zip(losses.by_task.iter().copied()).collect();
        let named = [
            ("dense", &self.before.all_active),
            ("routed_before", &self.before.routed),
            ("label_paths", &self.label_paths),
        ];
        let drawn = |draws: &[Losses]| -> BTreeMap<String, f64> {
            let mean = |task: usize| draws.iter().map(|losses| losses.by_task[task]).sum::<f64>() / draws.len() as f64;
            tasks.iter().cloned().enumerate().map(|(task, name)| (name, mean(task))).collect()
        };
        let named = named.into_iter().map(|(name, losses)| (name.to_string(), by_task(losses)));
        let controls = [("routed_random_labels", &self.fits.random), ("routed_permuted_labels", &self.fits.permuted)];
        named.chain(controls.map(|(name, draws)| (name.to_string(), drawn(draws)))).collect()
    }
}

/// The mean over draws.
fn mean(draws: &[Losses]) -> f64 {
    draws.iter().map(|losses| losses.mean).sum::<f64>() / draws.len() as f64
}
