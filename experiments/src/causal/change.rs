//! What an intervention does to the loss, and how specific that is to the task whose units were touched.

use tinyonn::train::{DocumentLoss, Losses};

/// The change of the losses against the dense model's, mean over draws.
pub(super) struct Change {
    /// Nats a token.
    pub(super) by_task: Vec<f64>,
    /// Σ over each document.
    by_document: Vec<f64>,
}

impl Change {
    pub(super) fn new(draws: &[Losses], dense: &Losses) -> Self {
        let mean = |change: &dyn Fn(&Losses) -> f64| draws.iter().map(change).sum::<f64>() / draws.len().max(1) as f64;
        let of_task = |task: usize| mean(&|after| after.by_task[task] - dense.by_task[task]);
        let of_document = |at: usize| mean(&|after| after.by_document[at].sum - dense.by_document[at].sum);
        Self {
            by_task: (0..dense.by_task.len()).map(of_task).collect(),
            by_document: (0..dense.by_document.len()).map(of_document).collect(),
        }
    }
}

/// Mean of the diagonal of Δ minus mean of the rest, as what each document adds to it and its weight; tasks weigh equally.
pub(super) fn specificity(changes: &[Change], documents: &[DocumentLoss]) -> Vec<(f64, f64)> {
    let tasks = changes.len();
    let mut tokens = vec![0.0; tasks];
    documents.iter().for_each(|document| tokens[document.task] += document.tokens);
    let of_document = |(at, document): (usize, &DocumentLoss)| {
        let delta = |touched: usize| changes[touched].by_document[at];
        let others = (0..tasks).filter(|touched| *touched != document.task).map(delta).sum::<f64>();
        let own = delta(document.task) - others / (tasks - 1).max(1) as f64;
        let weight = 1.0 / tokens[document.task].max(1.0);
        (own * weight, document.tokens * weight)
    };
    documents.iter().enumerate().map(of_document).collect()
}

/// One specificity minus another, of the same documents.
pub(super) fn difference(one: &[(f64, f64)], other: &[(f64, f64)]) -> Vec<(f64, f64)> {
    one.iter().zip(other).map(|((one, weight), (other, _))| (one - other, *weight)).collect()
}
