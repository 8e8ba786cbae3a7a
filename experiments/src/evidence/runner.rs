//! Makes the cells of a study that nobody else makes, in their order, and says what is to be made.

use std::time::Instant;

use tinyonn::Result;
use tinyonn::train::Checkpoints;

use super::{Cell, CellRecord, EvidenceConfig, EvidenceStore, Method, Subject};

/// Cells that are made one behind another of one model: closed form, then distilled.
fn jobs(cells: &[Cell]) -> Vec<Vec<Cell>> {
    let mut jobs: Vec<Vec<Cell>> = Vec::new();
    for cell in cells {
        match jobs.iter_mut().find(|job| job[0].closed() == cell.closed()) {
            Some(job) => job.push(*cell),
            None => jobs.push(vec![*cell]),
        }
    }
    jobs
}

/// Makes those of `cells` that were not made and that no other process makes, until `until`; `done` is told of each. Any number of processes may do so at
/// once. Returns how many are left.
///
/// # Errors
/// What a cell reports.
pub fn run_cells(
    config: &EvidenceConfig,
    cells: &[Cell],
    until: Option<Instant>,
    checkpoints: &Checkpoints,
    mut done: impl FnMut(&CellRecord),
) -> Result<usize> {
    let store = EvidenceStore::new(&config.out);
    let mut subject: Option<(u64, Subject)> = None;
    for job in jobs(cells) {
        let left = |job: &[Cell]| job.iter().filter(|cell| !store.file(cell).exists()).copied().collect::<Vec<_>>();
        if left(&job).is_empty() || until.is_some_and(|until| Instant::now() >= until) {
            continue;
        }
        let Some(_places) = store.claim(&job)? else { continue };
        // Another process may have made it before it gave its places back.
        let own = left(&job);
        let Some(first) = own.first() else { continue };
        let kept = subject.take().filter(|(seed, _)| *seed == first.seed);
        let shared = match kept {
            Some(kept) => kept,
            None => (first.seed, Subject::new(config, first.seed)?),
        };
        shared.1.run(config, &own, Some(checkpoints), |record| {
            store.keep(&record)?;
            done(&record);
            Ok(())
        })?;
        subject = Some(shared);
    }
    Ok(cells.iter().filter(|cell| !store.file(cell).exists()).count())
}

/// What a cell takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlannedCell {
    /// Which.
    pub cell: Cell,
    /// Tokens that go through the model, forwards, backwards counted as two.
    pub tokens: f64,
    /// Multiply-adds.
    pub multiply_adds: f64,
    /// Whether it was made.
    pub done: bool,
}

/// Multiply-adds a second of one H200 in f32, as its pace was on SmolLM2-135M.
pub const PACE: f64 = 6e12;

impl EvidenceConfig {
    /// Counts what each of `cells` takes of a model of `parameters` parameters; of an item of a benchmark some 150 tokens.
    ///
    /// # Errors
    /// Text that is not there.
    pub fn plan(&self, cells: &[Cell], parameters: usize) -> Result<Vec<PlannedCell>> {
        let [kinds, unseen] = [self.kinds("text")?.len(), self.kinds("held_out_text")?.len()];
        let store = EvidenceStore::new(&self.out);
        let of = |cell: &Cell| {
            let made = if cell.method == Method::Dense {
                0
            } else {
                kinds * (2 * self.calibration_tokens + 6 * self.share_tokens)
            };
            // The teacher's forward, the pupil's and its way back.
            let distilled = 4 * cell.steps as usize * self.distil.batch * self.length;
            let test = kinds * self.test_tokens + unseen * self.test_tokens + self.tasks.len() * self.items * 150;
            let measured = kinds * self.validation_tokens + if self.is_final(cell) { test } else { 0 };
            let tokens = (made + distilled + measured) as f64;
            let multiply_adds = tokens * parameters as f64;
            PlannedCell { cell: *cell, tokens, multiply_adds, done: store.file(cell).exists() }
        };
        Ok(cells.iter().map(of).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_one_model_closed_form_first() {
        let config = EvidenceConfig::default();
        let (cells, jobs) = (config.cells(), jobs(&config.cells()));
        assert_eq!(jobs.iter().map(Vec::len).sum::<usize>(), cells.len());
        assert!(jobs.iter().all(|job| job.len() <= 2 && job[0].steps == 0));
        let ids: std::collections::BTreeSet<String> = cells.iter().map(Cell::id).collect();
        assert_eq!(ids.len(), cells.len());
    }
}
