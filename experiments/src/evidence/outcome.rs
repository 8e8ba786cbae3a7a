//! The records of a study, and what is said of a cell beside the dense model and pruning.

use tinyonn::Result;
use tinyonn::metrics::Interval;

use super::compared::{kept, mean_of_kinds, perplexity_ratio, rise};
use super::{Cell, CellAnswers, CellRecord, EvidenceConfig, EvidenceStore, KindLosses, Method, Speed, TaskAnswers};

/// All cells of a study with what was found of those that were made.
#[derive(Clone, Debug)]
pub struct EvidenceOutcome {
    /// In their order.
    pub cells: Vec<(Cell, Option<CellRecord>)>,
    /// Of finalists that answered what the study asks.
    pub answers: Vec<CellAnswers>,
    /// Of those that were timed.
    pub speeds: Vec<Speed>,
    seed: u64,
    unanswered: Vec<String>,
}

impl EvidenceOutcome {
    /// Reads what is there.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub fn read(config: &EvidenceConfig) -> Result<Self> {
        let store = EvidenceStore::new(&config.out);
        let of = |cell: Cell| Ok((cell, store.record(&cell)?));
        let cells: Vec<(Cell, Option<CellRecord>)> = config.cells().into_iter().map(of).collect::<Result<_>>()?;
        let speeds = cells.iter().filter_map(|(cell, _)| store.speed(cell).transpose()).collect::<Result<_>>()?;
        let (mut answers, mut unanswered) = (Vec::new(), Vec::new());
        for (cell, _) in cells.iter().filter(|(cell, _)| config.is_final(cell)) {
            match store.answers(cell)?.filter(|own| own.are_asked(config)) {
                Some(own) => answers.push(own),
                None => unanswered.push(cell.id()),
            }
        }
        Ok(Self { cells, answers, speeds, seed: config.seed, unanswered })
    }

    /// Cells of which something was not made.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        let lacks = |cell: &Cell, record: &Option<CellRecord>| record.is_none() || self.unanswered.contains(&cell.id());
        self.cells.iter().filter(|(cell, record)| lacks(cell, record)).map(|(cell, _)| cell.id()).collect()
    }

    /// How far the validation loss of a model that answered benchmarks lies from its record's, at most: 0 unless it was made once more for them.
    #[must_use]
    pub fn made_again(&self) -> f64 {
        let away = |own: &CellAnswers| {
            let record = self.of(&own.cell)?;
            Some((KindLosses::mean_of(&record.validation) - own.validation).abs())
        };
        self.answers.iter().filter_map(away).fold(0.0, f64::max)
    }

    /// The sources of the library that made cells, and how many each.
    #[must_use]
    pub fn sources(&self) -> Vec<(String, usize)> {
        let mut found: Vec<(String, usize)> = Vec::new();
        for record in self.cells.iter().filter_map(|(_, record)| record.as_ref()) {
            match found.iter_mut().find(|(sources, _)| *sources == record.sources) {
                Some((_, count)) => *count += 1,
                None => found.push((record.sources.clone(), 1)),
            }
        }
        found
    }

    /// What was found of `cell`.
    pub(crate) fn of(&self, cell: &Cell) -> Option<&CellRecord> {
        self.cells.iter().find(|(own, _)| own == cell)?.1.as_ref()
    }

    /// How fast `cell` is: as in closed form.
    pub(crate) fn speed(&self, cell: &Cell) -> Option<&Speed> {
        self.speeds.iter().find(|speed| speed.cell == cell.closed())
    }

    /// The dense model under the seed of `cell`.
    pub(crate) fn dense(&self, cell: &Cell) -> Option<&CellRecord> {
        self.of(&Cell::of(Method::Dense, 100, cell.seed))
    }

    /// One set for all text, at the same share after as many steps.
    pub(crate) fn pruned(&self, cell: &Cell) -> Option<&CellRecord> {
        self.of(&Cell { method: Method::Pruned, change: None, ..*cell })
    }

    /// On the test split.
    pub(crate) fn ratio(&self, own: &CellRecord) -> Option<Interval> {
        perplexity_ratio(&own.test, &self.dense(&own.cell)?.test, self.seed)
    }

    /// On kinds that nothing was calibrated on.
    pub(crate) fn unseen_ratio(&self, own: &CellRecord) -> Option<Interval> {
        perplexity_ratio(&own.unseen, &self.dense(&own.cell)?.unseen, self.seed)
    }

    /// How far the next token's distribution is from the dense model's, nats a token, mean over kinds, on the test split.
    pub(crate) fn divergence(&self, own: &CellRecord) -> Option<Interval> {
        let answers = self.answers.iter().find(|answers| answers.cell == own.cell)?;
        mean_of_kinds(&answers.divergence, self.seed)
    }

    /// (accuracy − floor) kept.
    pub(crate) fn kept(&self, own: &CellRecord) -> Option<Interval> {
        self.of_tasks(own, true)
    }

    /// Accuracy kept, floors and all.
    pub(crate) fn accuracy_kept(&self, own: &CellRecord) -> Option<Interval> {
        self.of_tasks(own, false)
    }

    fn of_tasks(&self, own: &CellRecord, floors: bool) -> Option<Interval> {
        let dense = Cell::of(Method::Dense, 100, own.cell.seed);
        kept(self.tasks(&own.cell)?, self.tasks(&dense)?, floors, self.seed)
    }

    /// What `cell` answers.
    pub(crate) fn tasks(&self, cell: &Cell) -> Option<&[TaskAnswers]> {
        self.answers.iter().find(|own| own.cell == *cell).map(|own| own.tasks.as_slice())
    }

    /// Validation loss above the dense model's.
    pub(crate) fn validation_rise(&self, own: &CellRecord) -> Option<Interval> {
        rise(&own.validation, &self.dense(&own.cell)?.validation, self.seed)
    }

    /// Validation loss above pruning's.
    pub(crate) fn above_pruned(&self, own: &CellRecord) -> Option<Interval> {
        rise(&own.validation, &self.pruned(&own.cell)?.validation, self.seed)
    }
}
