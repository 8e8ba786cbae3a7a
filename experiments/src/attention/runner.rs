//! Makes the cells of a study that nobody else makes, in their order, and says what is to be made.

use std::time::Instant;

use tinyonn::Result;
use tinyonn::decoder::Arch;
use tinyonn::phases::DeviceName;

use super::subject::Subject;
use super::{AttentionConfig, AttentionRecord, AttentionStore, Cell, Method};

/// Makes those of `cells` that were not made and that no other process makes, until `until`; `done` is told of each. Any number of processes may do so at
/// once. Returns how many are left.
///
/// # Errors
/// What a cell reports.
pub fn run_cells(
    config: &AttentionConfig,
    cells: &[Cell],
    until: Option<Instant>,
    mut done: impl FnMut(&AttentionRecord),
) -> Result<usize> {
    let store = AttentionStore::new(&config.out);
    let mut subject: Option<Subject> = None;
    for cell in cells {
        let is_made = || store.file(cell).exists();
        if is_made() || until.is_some_and(|until| Instant::now() >= until) {
            continue;
        }
        let Some(_place) = store.claim(cell)? else { continue };
        // Another process may have made it before it gave its place back.
        if is_made() {
            continue;
        }
        let shared = match subject.take() {
            Some(shared) => shared,
            None => Subject::new(config, &store)?,
        };
        let record = shared.run(config, cell)?;
        store.keep(&record)?;
        done(&record);
        subject = Some(shared);
    }
    Ok(cells.iter().filter(|cell| !store.file(cell).exists()).count())
}

/// What a cell takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlannedCell {
    /// Which.
    pub cell: Cell,
    /// Tokens that go through the model, at most: of kinds that have as many documents as are asked for.
    pub tokens: f64,
    /// Multiply-adds.
    pub multiply_adds: f64,
    /// Seconds, at an assumed pace.
    pub seconds: f64,
    /// Whether it was made.
    pub done: bool,
}

impl AttentionConfig {
    /// Counts what each of `cells` takes of a model of the shape `arch`: its parameters for a token, and for a pair the products of dense attention, twice as many of tiles that are masked,
    /// once more for an index. Seconds are of a pace that is assumed: no machine has run the study yet.
    ///
    /// # Errors
    /// Text that is not there.
    pub fn plan(&self, cells: &[Cell], arch: &Arch) -> Result<Vec<PlannedCell>> {
        let (kinds, store) = (self.kinds()?.len(), AttentionStore::new(&self.out));
        let pairs = (arch.num_hidden_layers * arch.num_attention_heads * 2 * arch.head_dim) as f64;
        let of = |cell: &Cell| {
            let length = cell.length as f64;
            let texts = self.texts_of(cell.length).map_or(0.0, |texts| {
                // Some fourteen tokens tell a fact, and as many ask for it.
                (kinds * texts.documents) as f64 + (texts.facts as f64 * 28.0 / length).ceil()
            });
            let tokens = texts * length;
            let times = if cell.method == Method::Dense { 1.0 } else { 3.0 };
            let multiply_adds = tokens * (arch.parameters() as f64 + times * pairs * length / 2.0);
            let seconds = multiply_adds / pace(self.device);
            PlannedCell { cell: *cell, tokens, multiply_adds, seconds, done: store.file(cell).exists() }
        };
        Ok(cells.iter().map(of).collect())
    }
}

/// Multiply-adds a second, assumed: of SmolLM2-135M in f32 on one H200 as the study of evidence had them, and on two cores.
fn pace(device: DeviceName) -> f64 {
    if device == DeviceName::Cpu { 3e10 } else { 6e12 }
}
