//! What Surprise Min-K decides for one layer.

/// What one layer's last backward decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Experts routed at least one token, ascending.
    pub active: Vec<u32>,
    /// Those that learn, ascending.
    pub learners: Vec<u32>,
}

impl Choice {
    /// The `min_k` least surprised of the active experts, given with their surprise; ties go to the lower index.
    pub(super) fn least(mut surprises: Vec<(f64, u32)>, min_k: usize) -> Self {
        let ascending = |experts: &mut dyn Iterator<Item = u32>| {
            let mut experts: Vec<u32> = experts.collect();
            experts.sort_unstable();
            experts
        };
        let active = ascending(&mut surprises.iter().map(|(_, n)| *n));
        surprises.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let learners = ascending(&mut surprises.iter().take(min_k).map(|(_, n)| *n));
        Self { active, learners }
    }
}
