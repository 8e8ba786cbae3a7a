//! The cells, in the order in which they are run: what the bars ask for first.

use super::{Cell, Change, EvidenceConfig, Method};

/// The shares of the operations that are compared, in percent, as they matter.
const SHARES: [u32; 4] = [50, 75, 33, 25];
/// Shares at which closed form is followed by distillation.
const DISTILLED: [u32; 3] = [50, 75, 33];
/// The ways of others, at 50 % and then at what else they can reach.
const OTHERS: [Method; 8] = [
    Method::Cmoe { experts: 16 },
    Method::Teal,
    Method::Cats,
    Method::Oracle,
    Method::Shared { tokens: 16 },
    Method::Shared { tokens: 128 },
    Method::Random,
    Method::Permuted,
];
/// What is otherwise, one at a time, of the gate at 50 %.
const CHANGES: [Change; 8] = [
    Change::NoRepair,
    Change::UniformShares,
    Change::ByNorm,
    Change::TopK,
    Change::NoBias,
    Change::Candidates(1.0),
    Change::Calibration(2.0),
    Change::Inputs(1.0),
];

impl EvidenceConfig {
    /// All cells.
    ///
    /// ```
    /// use experiments::evidence::EvidenceConfig;
    ///
    /// let config = EvidenceConfig::default();
    /// let cells = config.cells();
    /// assert!(cells.len() <= 60 && cells.iter().filter(|cell| cell.steps > 0).count() <= 6);
    /// assert!(cells.iter().filter(|cell| config.is_final(cell)).count() <= 12 + 6 + 1); // finalists in closed form; distilled; dense
    /// ```
    #[must_use]
    pub fn cells(&self) -> Vec<Cell> {
        let of = |method, percent| Cell::of(method, percent, self.seed);
        let both = [Method::OwnGate, Method::Pruned];
        let mut cells = vec![of(Method::Dense, 100)];
        for percent in SHARES {
            for method in both {
                cells.push(of(method, percent));
                if DISTILLED.contains(&percent) && self.distil.steps > 0 {
                    cells.push(Cell { steps: self.distil.steps, ..of(method, percent) });
                }
            }
        }
        let behind_routers = [Method::GroupedGate, Method::WholeGroups];
        cells.extend(SHARES.iter().flat_map(|percent| behind_routers.map(|method| of(method, *percent))));
        cells.extend(OTHERS.map(|method| of(method, 50)));
        for percent in [75, 33, 25] {
            let cats = (percent > 33).then_some(Method::Cats);
            let others = [Method::Cmoe { experts: 16 }, Method::Teal, Method::Oracle];
            cells.extend(others.into_iter().chain(cats).map(|method| of(method, percent)));
        }
        cells.extend(CHANGES.map(|change| Cell { change: Some(change), ..of(Method::OwnGate, 50) }));
        let of_pruned = [Change::NoRepair, Change::UniformShares];
        cells.extend(of_pruned.map(|change| Cell { change: Some(change), ..of(Method::Pruned, 50) }));
        cells.push(of(Method::Cmoe { experts: 32 }, 50));
        cells.extend(both.map(|method| of(method, 90)));
        for seed in &self.seeds {
            cells.extend([Method::Dense, Method::OwnGate, Method::Pruned].map(|method| {
                let percent = if method == Method::Dense { 100 } else { 50 };
                Cell::of(method, percent, *seed)
            }));
        }
        cells
    }

    /// Whether it is measured on the test split, on kinds of text that nothing was calibrated on and by benchmarks; others on the validation split
    /// alone. Decided before anything was run.
    #[must_use]
    pub fn is_final(&self, cell: &Cell) -> bool {
        let declared =
            matches!(cell.method, Method::Dense | Method::OwnGate | Method::Pruned | Method::Cmoe { experts: 16 });
        declared && cell.change.is_none() && cell.seed == self.seed && cell.percent != 90
    }
}
