//! What each way to label is worth: the loss along its paths, the task known and no router between, before experts differentiate.
//!
//! Beside ∫SPS: other scores of the same scan ([`Score`]), ∫SPS contrasted, shared out evenly (Sinkhorn), its lowest experts, one path for all tasks, other
//! tasks' paths, and paths drawn at random (DESIGN §3, controls). All on the same tokens, and on the run's partition, which by default is
//! itself made of ∫SPS profiles.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tinyonn::Result;
use tinyonn::checkpoint::ParamStore;
use tinyonn::decoder::{Active, Pass};
use tinyonn::imaging::{Form, How, LabelBalance, LabelInputs, LabelSource, Labels, NeuronScan, Score};
use tinyonn::phases::Run;

/// Test tokens of each task that the comparison reads, at most.
const TOKENS: usize = 2048;

/// The loss along the paths of one source of labels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceFigures {
    /// Nats a token.
    pub loss: f64,
    /// The same by task.
    pub by_task: BTreeMap<String, f64>,
}

/// Each source's loss by its name; `dense` is the loss without any expert left out. `units[layer][i]` is the expert of
/// neuron i.
///
/// # Errors
/// Whatever the device reports.
pub fn label_sources(
    run: &Run<'_>,
    store: &ParamStore,
    scan: &NeuronScan,
    units: &[Vec<u32>],
) -> Result<BTreeMap<String, SourceFigures>> {
    let spec = &run.variant.spec;
    let model = run.model(store)?;
    let mut set = run.tokens.test.clone();
    // A sequence whole, or a shared decision would be for nobody.
    set.truncate(TOKENS.max(run.config.length + 1));
    let loss = |pass: &Pass| -> Result<SourceFigures> {
        let losses = run.evaluate_on(model.lm(), &set, pass)?;
        let by_task = run.text.tasks.iter().cloned().zip(losses.by_task).collect();
        Ok(SourceFigures { loss: losses.mean, by_task })
    };
    let along = |labels: &Labels| loss(&Pass { active: Active::Paths(Arc::new(labels.paths.clone())), ..Pass::all() });
    let plain = LabelInputs { scan, form: Form::default(), units, spec, contrast: false, balance: LabelBalance::None };
    let mut figures = BTreeMap::from([("dense".to_owned(), loss(&Pass::all())?)]);
    let mut measure = |name: String, source: LabelSource, from: &LabelInputs<'_>| -> Result<()> {
        let seeds = if source.is_drawn() { run.draws().collect() } else { vec![run.config.seed] };
        let labels = seeds.into_iter().map(|seed| source.labels(from, seed)).collect::<Result<Vec<_>>>()?;
        let draws = labels.iter().flatten().map(along).collect::<Result<Vec<_>>>()?;
        figures.insert(name, mean(&draws));
        Ok(())
    };
    let of_scores = Score::ALL.into_iter().map(|score| LabelSource::By(score, How::Best));
    let of_sps = [How::Lowest, How::OnePath, How::Permuted].map(|how| LabelSource::By(Score::Sps, how));
    for source in of_scores.chain(of_sps).chain([LabelSource::Random]) {
        measure(source.to_string(), source, &plain)?;
    }
    let sps = LabelSource::SPS;
    measure(format!("{sps}_contrasted"), sps, &LabelInputs { contrast: true, ..plain })?;
    measure(format!("{sps}_sinkhorn"), sps, &LabelInputs { balance: LabelBalance::Sinkhorn, ..plain })?;
    Ok(figures)
}

fn mean(draws: &[SourceFigures]) -> SourceFigures {
    let over = |f: &dyn Fn(&SourceFigures) -> f64| draws.iter().map(f).sum::<f64>() / draws.len().max(1) as f64;
    let tasks = draws.first().into_iter().flat_map(|draw| draw.by_task.keys());
    let by_task = tasks.map(|task| (task.clone(), over(&|draw| draw.by_task[task]))).collect();
    SourceFigures { loss: over(&|draw| draw.loss), by_task }
}
