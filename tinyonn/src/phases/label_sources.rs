//! What each way to label is worth: the loss along its paths, the task known and no router between, before experts differentiate.
//!
//! Beside ∫SPS: other scores of the same scan ([`Score`]), ∫SPS contrasted, shared out evenly (Sinkhorn), its lowest experts, one path for all tasks, other
//! tasks' paths, and paths drawn at random (DESIGN §3, controls). All on the same tokens, and on the run's partition, which by default is
//! itself made of ∫SPS profiles.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::run::Run;
use super::summary::SourceFigures;
use crate::Result;
use crate::checkpoint::ParamStore;
use crate::imaging::{Integral, LabelBalance, Labels, NeuronScan, Score};
use crate::qwen3::{Active, RouteCtx};

/// Test tokens of each task that the comparison reads, at most.
const TOKENS: usize = 2048;

impl Run<'_> {
    /// Each source's loss by its name; `dense` is the loss without any expert left out. `units[layer][i]` is the expert of
    /// neuron i.
    pub(super) fn label_sources(
        &self,
        store: &ParamStore,
        scan: &NeuronScan,
        units: &[Vec<u32>],
    ) -> Result<BTreeMap<String, SourceFigures>> {
        let spec = &self.variant.spec;
        let (tasks, layers) = (self.text.tasks.len(), self.dense.cfg.num_hidden_layers);
        let model = self.model(store)?;
        let mut set = self.tokens.test.clone();
        // A sequence whole, or a shared decision would be for nobody.
        set.truncate(TOKENS.max(self.config.length + 1));
        let loss = |ctx: &RouteCtx| -> Result<SourceFigures> {
            let losses = self.evaluate_on(model.lm(), &set, ctx)?;
            let by_task = self.text.tasks.iter().cloned().zip(losses.by_task).collect();
            Ok(SourceFigures { loss: losses.mean, by_task })
        };
        let along = |labels: &Labels| {
            loss(&RouteCtx { active: Active::Paths(Arc::new(labels.paths.clone())), ..RouteCtx::default() })
        };
        let by = |integral: &Integral| Labels::from_integral(integral, units, spec);
        let mut figures = BTreeMap::from([("dense".to_owned(), loss(&RouteCtx::all())?)]);
        for score in Score::ALL {
            figures.insert(score.name().to_owned(), along(&by(&Integral::new(scan, score)))?);
        }
        let sps = Integral::new(scan, Score::Sps);
        let of_sps = [("contrasted", sps.contrasted()), ("lowest", sps.negated()), ("one_path", sps.averaged())];
        for (name, integral) in of_sps {
            figures.insert(format!("sps_{name}"), along(&by(&integral))?);
        }
        let even = Labels::balanced(&sps, units, spec, LabelBalance::Sinkhorn);
        figures.insert("sps_sinkhorn".into(), along(&even)?);
        let own = by(&sps);
        let mean = |labels: &dyn Fn(u64) -> Labels| -> Result<SourceFigures> {
            let draws = self.draws().map(|seed| along(&labels(seed))).collect::<Result<Vec<_>>>()?;
            let over = |f: &dyn Fn(&SourceFigures) -> f64| draws.iter().map(f).sum::<f64>() / draws.len() as f64;
            let by_task = self.text.tasks.iter().map(|task| (task.clone(), over(&|draw| draw.by_task[task]))).collect();
            Ok(SourceFigures { loss: over(&|draw| draw.loss), by_task })
        };
        figures.insert("sps_permuted".into(), mean(&|seed| own.permuted(seed))?);
        figures.insert("random".into(), mean(&|seed| Labels::random(tasks, layers, spec, seed))?);
        Ok(figures)
    }
}
