//! The same declaration with another selection: other numbers of choices, or another form of adaptive gating. Routers and experts are
//! untouched; what changes is how many are taken. This is what a curve of loss against active share is made of.

use std::collections::BTreeMap;

use crate::{LevelSpec, MoeSpec, Pfag};

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
        let most = |level: &LevelSpec| level.routers.iter().map(|run| run.choices).max().unwrap_or(1);
        self.levels.iter().map(most).collect()
    }

    /// Every fixed number of choices, `top_k[level]`, in ascending order.
    ///
    /// ```
    /// use tinyonn::gallery::Depth3;
    /// use tinyonn::moe::moe;
    ///
    /// #[moe(groups = 2, experts = 2)]
    /// struct Four;
    ///
    /// assert_eq!(Depth3::SPEC.choices(), [4, 5, 5]);
    /// assert_eq!(Four::SPEC.every_top_k(), [[1, 1], [1, 2], [2, 1], [2, 2]]);
    /// ```
    #[must_use]
    pub fn every_top_k(&self) -> Vec<Vec<usize>> {
        let longer = |all: Vec<Vec<usize>>, choices: usize| {
            all.iter().flat_map(|k| (1..=choices).map(move |next| [&k[..], &[next]].concat())).collect()
        };
        self.choices().into_iter().fold(vec![Vec::new()], longer)
    }

    /// Fixed numbers of choices for each of `layers` layers, `[layer][level]`, so that their mean activates `percent` of the experts, or as nearly as the
    /// layers can: the same in all where one number does it, else two, dealt evenly over the layers, that lie as near to each
    /// other as they may. What activates as many experts is one: the `top_k` whose levels differ least. Of uneven groups the largest are counted.
    ///
    /// ```
    /// use tinyonn::moe::moe;
    ///
    /// #[moe(groups = 10, experts = 10)]
    /// struct Hundred;
    ///
    /// // 75 is no product of two numbers up to ten, but it lies midway between 70 and 80.
    /// assert_eq!(Hundred::SPEC.top_k_at(75, 4), [[7, 10], [8, 10], [7, 10], [8, 10]]);
    /// assert_eq!(Hundred::SPEC.top_k_at(25, 2), [[5, 5], [5, 5]]);
    /// ```
    #[must_use]
    pub fn top_k_at(&self, percent: usize, layers: usize) -> Vec<Vec<usize>> {
        let steps: Vec<(usize, Vec<usize>)> = self.most_even().into_iter().collect();
        // In hundredths of an expert, over all layers.
        let wanted = percent * self.experts() * layers;
        let pair = |below: usize, above: usize| {
            let (few, many) = (steps[below].0, steps[above].0);
            let (start, step) = (100 * few * layers, (100 * (many - few)).max(1));
            let raised = ((wanted.saturating_sub(start) + step / 2) / step).min(layers);
            let miss = (start + raised * 100 * (many - few)).abs_diff(wanted);
            (miss, many - few, below, above, raised)
        };
        let pairs = (0..steps.len()).flat_map(|below| (below..steps.len()).map(move |above| (below, above)));
        let Some((.., below, above, raised)) = pairs.map(|(below, above)| pair(below, above)).min() else {
            return Vec::new();
        };
        let is_raised = |layer: usize| (layer + 1) * raised / layers > layer * raised / layers;
        (0..layers).map(|layer| steps[if is_raised(layer) { above } else { below }].1.clone()).collect()
    }

    /// By the number of active experts, the numbers of choices that differ least from level to level.
    fn most_even(&self) -> BTreeMap<usize, Vec<usize>> {
        let apart =
            |top_k: &[usize]| top_k.iter().max().zip(top_k.iter().min()).map_or(0, |(most, least)| most - least);
        let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for top_k in self.every_top_k() {
            let kept = found.entry(self.taking(&top_k, Pfag::Off).active_experts()).or_insert_with(|| top_k.clone());
            if apart(&top_k) < apart(kept) {
                *kept = top_k;
            }
        }
        found
    }
}
