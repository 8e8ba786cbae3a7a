//! The same declaration with another selection: other numbers of choices, or another form of adaptive gating. Routers and experts are
//! untouched; what changes is how many are taken. This is what a curve of loss against active share is made of.

use super::{MoeSpec, Pfag};

impl MoeSpec {
    /// The same declaration with `top_k[level]` choices of every router of a level (at most as many as it has), under `pfag`.
    ///
    /// ```
    /// use tinyonn::moe::{Pfag, moe};
    ///
    /// #[moe(groups = 10, experts = 10)]
    /// struct Hundred;
    ///
    /// let half = Hundred::SPEC.taking(&[5, 10], Pfag::Off);
    /// assert_eq!(half.active_experts(), 50);
    /// ```
    #[must_use]
    pub fn taking(&self, top_k: &[usize], pfag: Pfag) -> Self {
        let mut spec = Self { pfag, ..self.clone() };
        for (level, k) in spec.levels.to_mut().iter_mut().zip(top_k) {
            level.routers.to_mut().iter_mut().for_each(|run| run.top_k = (*k).clamp(1, run.choices));
        }
        spec
    }

    /// Choices of a router of each level, the most where they differ.
    #[must_use]
    pub fn choices(&self) -> Vec<usize> {
        let most = |level: &super::LevelSpec| level.routers.iter().map(|run| run.choices).max().unwrap_or(1);
        self.levels.iter().map(most).collect()
    }
}
