//! Who owns which values of a bucket.

use proptest::prelude::*;
use tinyonn::ranks::pieces::pieces;

/// Weights in a row, each behind a gap, and the ranges that the whole is cut into.
fn buckets() -> impl Strategy<Value = (Vec<(Vec<usize>, usize)>, usize, usize)> {
    let shape = prop_oneof![
        (1usize..9, 1usize..9).prop_map(|(rows, width)| vec![rows, width]),
        (1usize..30).prop_map(|width| vec![width]),
        (1usize..4, 1usize..4, 1usize..4).prop_map(|(a, b, c)| vec![a, b, c]),
        Just(Vec::new()),
    ];
    (prop::collection::vec((shape, 0usize..5), 1..6), 1usize..6).prop_map(|(weights, ranks)| {
        let mut end = 0;
        let mut placed = Vec::new();
        for (shape, gap) in weights {
            let count: usize = shape.iter().product();
            placed.push((shape, end));
            end += count + gap;
        }
        (placed, end.next_multiple_of(ranks), ranks)
    })
}

proptest! {
    /// Every value has one owner; a piece is whole rows of a matrix or lies within one; each row is begun once.
    #[test]
    fn every_value_has_one_owner((weights, length, ranks) in buckets()) {
        let mut owned: Vec<Vec<usize>> = weights.iter().map(|(shape, _)| vec![0; shape.iter().product()]).collect();
        let mut begun: Vec<Vec<usize>> = weights.iter().map(|(shape, _)| vec![0; if shape.len() == 2 { shape[0] } else { 1 }]).collect();
        for rank in 0..ranks {
            let range = rank * (length / ranks)..(rank + 1) * (length / ranks);
            for piece in pieces(&weights, range.clone()) {
                let (shape, start) = &weights[piece.weight];
                prop_assert_eq!(range.start + piece.from, start + piece.values.start);
                prop_assert!(piece.from + piece.values.len() <= range.len());
                owned[piece.weight][piece.values.clone()].iter_mut().for_each(|owners| *owners += 1);
                let width = if shape.len() == 2 { shape[1] } else { shape.iter().product() };
                prop_assert_eq!(piece.rows.start, piece.values.start / width);
                prop_assert_eq!(piece.rows.end, piece.values.end.div_ceil(width));
                let whole = piece.values.start % width == 0 && piece.values.end % width == 0;
                prop_assert!(whole || piece.rows.len() == 1);
                prop_assert_eq!(piece.shape().0 * piece.shape().1, piece.values.len());
                if piece.begins {
                    begun[piece.weight][piece.rows].iter_mut().for_each(|owners| *owners += 1);
                }
            }
        }
        prop_assert!(owned.iter().flatten().all(|owners| *owners == 1), "{owned:?}");
        prop_assert!(begun.iter().flatten().all(|owners| *owners == 1), "{begun:?}");
    }
}
