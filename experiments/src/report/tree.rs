//! A hierarchy on paper: leaves below one another, every other node amid its children.

use tinyonn::{Error, Result};

/// The nodes at one depth of a hierarchy.
#[derive(Debug, Clone)]
pub struct TreeLevel {
    /// What a node is: `group`, `expert`.
    pub name: String,
    /// The nodes' names.
    pub nodes: Vec<String>,
    /// Each node's parent, as an index into the level before; empty on the first level.
    pub parents: Vec<usize>,
}

/// How much further the leaves of two parents lie apart than those of one.
const FAMILY: f64 = 1.0;

/// Where the nodes of a hierarchy lie, from 0 (top) to 1.
pub(super) struct Tree {
    /// `[level][node]`.
    places: Vec<Vec<f64>>,
    /// First and last leaf below each node, `[level][node]`.
    spans: Vec<Vec<(f64, f64)>>,
    /// In steps from leaf to leaf.
    height: f64,
}

impl Tree {
    /// Refuses levels whose nodes have no parent.
    pub(super) fn check(levels: &[TreeLevel]) -> Result<()> {
        let mut above = 0;
        for (depth, level) in levels.iter().enumerate() {
            let expected = if depth == 0 { 0 } else { level.nodes.len() };
            if level.parents.len() != expected || level.parents.iter().any(|&parent| parent >= above) {
                let problem = format!("level `{}` does not give every node a parent of the level before", level.name);
                return Err(Error::setting("levels", problem, "give one index a node, and none on the first level"));
            }
            above = level.nodes.len();
        }
        Ok(())
    }

    pub(super) fn new(levels: &[TreeLevel]) -> Self {
        let mut tree = Self {
            places: levels.iter().map(|level| vec![0.0; level.nodes.len()]).collect(),
            spans: levels.iter().map(|level| vec![(0.0, 0.0); level.nodes.len()]).collect(),
            height: 0.0,
        };
        for root in 0..levels.first().map_or(0, |level| level.nodes.len()) {
            tree.lay(levels, 0, root);
            tree.height += FAMILY;
        }
        tree.height = (tree.height - FAMILY).max(1.0);
        let height = tree.height;
        tree.places.iter_mut().flatten().for_each(|place| *place /= height);
        tree.spans.iter_mut().flatten().for_each(|(first, last)| {
            *first /= height;
            *last /= height;
        });
        tree
    }

    /// Lays a node and all below it under what lies already; gives its first and last leaf.
    fn lay(&mut self, levels: &[TreeLevel], level: usize, node: usize) -> (f64, f64) {
        let children: Vec<usize> = levels
            .get(level + 1)
            .map_or(vec![], |next| (0..next.nodes.len()).filter(|&child| next.parents[child] == node).collect());
        let mut ends: Option<(f64, f64)> = None;
        for (i, &child) in children.iter().enumerate() {
            // The children of a node that is no leaf's parent are families of their own.
            if i > 0 && level + 2 < levels.len() {
                self.height += FAMILY;
            }
            let (first, last) = self.lay(levels, level + 1, child);
            ends = Some((ends.map_or(first, |(first, _)| first), last));
        }
        let (first, last) = ends.unwrap_or_else(|| {
            let place = self.height + 0.5;
            self.height += 1.0;
            (place, place)
        });
        self.places[level][node] = f64::midpoint(first, last);
        self.spans[level][node] = (first, last);
        (first, last)
    }

    /// Its height in steps from leaf to leaf, at least 1.
    pub(super) fn height(&self) -> f64 {
        self.height
    }

    /// Where a node lies, from 0 to 1.
    pub(super) fn place(&self, level: usize, node: usize) -> f64 {
        self.places[level][node]
    }

    /// Where the first and the last leaf below a node lie.
    pub(super) fn span(&self, level: usize, node: usize) -> (f64, f64) {
        self.spans[level][node]
    }

    /// The least distance between neighbours of a level.
    pub(super) fn least_gap(&self, level: usize) -> f64 {
        let mut places = self.places[level].clone();
        places.sort_by(f64::total_cmp);
        places.windows(2).map(|pair| pair[1] - pair[0]).fold(1.0, f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(nodes: usize, parents: &[usize]) -> TreeLevel {
        TreeLevel { name: "l".into(), nodes: (0..nodes).map(|n| n.to_string()).collect(), parents: parents.to_vec() }
    }

    #[test]
    fn nodes_lie_amid_their_leaves_and_families_apart() {
        // Two groups of three and two, a step more between them: leaves at 0.5, 1.5, 2.5 and 4.5, 5.5 of 6 steps.
        let tree = Tree::new(&[level(2, &[]), level(5, &[0, 0, 0, 1, 1])]);
        let leaves: Vec<f64> = (0..5).map(|n| tree.place(1, n) * tree.height()).collect();
        assert_eq!((tree.height(), leaves), (6.0, vec![0.5, 1.5, 2.5, 4.5, 5.5]));
        assert_eq!((tree.place(0, 0) * 6.0, tree.place(0, 1) * 6.0), (1.5, 5.0));
        let (first, last) = tree.span(0, 1);
        assert_eq!((first * 6.0, last * 6.0), (4.5, 5.5));
    }

    #[test]
    fn any_order_of_children_and_nodes_without_them_have_places_of_their_own() {
        let tree = Tree::new(&[level(3, &[]), level(4, &[2, 0, 2, 0])]);
        let mut places: Vec<f64> = (0..4).map(|n| tree.place(1, n)).chain([tree.place(0, 1)]).collect();
        places.sort_by(f64::total_cmp);
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= 0.99 / tree.height()), "{places:?}");
        assert!(tree.place(0, 0) < tree.place(0, 1) && tree.place(0, 1) < tree.place(0, 2));
    }

    #[test]
    fn parents_that_are_none_are_refused() {
        assert!(Tree::check(&[level(2, &[]), level(2, &[0, 1])]).is_ok());
        assert!(Tree::check(&[level(2, &[]), level(2, &[0, 2])]).is_err());
        assert!(Tree::check(&[level(2, &[]), level(2, &[0])]).is_err());
        assert!(Tree::check(&[level(2, &[0, 0])]).is_err());
    }
}
