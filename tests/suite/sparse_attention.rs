//! Attention to some pairs, the operation: what is kept is what the definition says, the gradient of what is kept is exact, and every form says the same.

use candle_core::{D, DType, Result, Tensor};
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::moe::{KeptPairs, PairIndex, PairsBy, PairsSpec};
use tinyonn::ops::attention;
use tinyonn::ops::sparse_attention::{Choosing, backward, forward};

use crate::gradients::{Back, assert_derivative, inputs, relative_difference, value_and_gradients};
use crate::models::{CPU, apart, bits};

fn choosing(pairs: PairsSpec, kv_heads: usize, head_dim: usize) -> Choosing {
    let directions = |r: usize| inputs(9, &[&[kv_heads, r, head_dim]]).remove(0).to_dtype(DType::F32).unwrap();
    let directions_krd = match pairs.index {
        PairIndex::Directions(r) => Some(directions(r)),
        _ => None,
    };
    Choosing { pairs, directions_krd }
}

fn pairs(share: f64, index: PairIndex, by: PairsBy, near: usize, first: usize) -> PairsSpec {
    PairsSpec { near, first, by, ..PairsSpec::new(KeptPairs::Share(share), index) }
}

/// The logits `[B, H, T, S]` of queries `[B, T, H, D]` and keys `[B, S, K, D]`.
fn logits(q: &Tensor, k: &Tensor) -> Result<Tensor> {
    let (heads, kv_heads, d) = (q.dim(2)?, k.dim(2)?, q.dim(3)?);
    let k = k.unsqueeze(3)?.repeat((1, 1, 1, heads / kv_heads, 1))?.flatten(2, 3)?;
    q.transpose(1, 2)?.contiguous()?.matmul(&k.permute((0, 2, 3, 1))?.contiguous()?)? / (d as f64).sqrt()
}

/// Attention over what `kept` `[B, H, T, S]` says, in candle's differentiable operations.
fn over(kept: &Tensor, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
    let scores = logits(q, k)?;
    let nothing = (scores.zeros_like()? - 1e30)?;
    let p = candle_nn::ops::softmax(&kept.where_cond(&scores, &nothing)?, D::Minus1)?;
    let groups = q.dim(2)? / v.dim(2)?;
    let v = v.unsqueeze(3)?.repeat((1, 1, 1, groups, 1))?.flatten(2, 3)?.transpose(1, 2)?.contiguous()?;
    p.matmul(&v)?.transpose(1, 2)
}

const INDICES: [PairIndex; 5] =
    [PairIndex::Components(3), PairIndex::Directions(2), PairIndex::Blocks(4), PairIndex::Window, PairIndex::Exact];

/// Value and gradients are those of dense attention whose other pairs are masked: in f64 to its roundings, in f32 by the fused form to roundings of f32. 150 positions are three tiles.
#[rstest]
fn it_is_masked_attention_over_what_it_keeps(
    #[values(0, 1, 2, 3, 4)] index: usize,
    #[values(PairsBy::Head, PairsBy::KvHead)] by: PairsBy,
    #[values((DType::F64, 1e-9), (DType::F32, 2e-5))] (dtype, tolerance): (DType, f64),
    #[values((2, 19, 4, 2), (1, 150, 3, 1), (1, 5, 2, 2))] (b, t, h, kv): (usize, usize, usize, usize),
) {
    let by = choosing(pairs(0.25, INDICES[index], by, 2, 1), kv, 6);
    let xs = inputs(3, &[&[b, t, h, 6], &[b, t, kv, 6], &[b, t, kv, 6]]);
    let typed: Vec<Tensor> = xs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
    let kept = forward(&typed[0], &typed[1], &typed[2], t, &by).unwrap().1.kept().unwrap();
    let own = |xs: &[Tensor]| {
        let (y, saved) = forward(&xs[0], &xs[1], &xs[2], t, &by)?;
        let back: Back<'_> = Box::new(move |dy, _| Ok(backward(&saved, dy)?.into_iter().enumerate().collect()));
        Ok((y, back))
    };
    let masked = |xs: &[Tensor]| over(&kept, [&xs[0], &xs[1], &xs[2]]);
    let reference = |xs: &[Tensor]| crate::gradients::by_tape(&masked, xs);
    let (value, gradients) = value_and_gradients(&own, &xs, dtype, &CPU).unwrap();
    let (expected, others) = value_and_gradients(&reference, &xs, DType::F64, &CPU).unwrap();
    for (found, expected) in std::iter::once((&value, &expected)).chain(gradients.iter().zip(&others)) {
        let expected = expected.to_dtype(DType::F64).unwrap();
        let apart = relative_difference(&found.to_dtype(DType::F64).unwrap(), &expected);
        assert!(apart < tolerance, "{apart}");
    }
}

/// Finite differences hold the choice: by position alone it does not move, and elsewhere no score lies so near to its threshold in these few.
#[rstest]
fn the_gradient_of_what_is_kept_is_exact(#[values(0, 1, 2, 3, 4)] index: usize) {
    let by = choosing(pairs(0.4, INDICES[index], PairsBy::KvHead, 1, 1), 1, 4);
    let xs = inputs(11, &[&[1, 9, 2, 4], &[1, 9, 1, 4], &[1, 9, 1, 4]]);
    let own = |xs: &[Tensor]| {
        let (y, saved) = forward(&xs[0], &xs[1], &xs[2], 9, &by)?;
        let back: Back<'_> = Box::new(move |dy, _| Ok(backward(&saved, dy)?.into_iter().enumerate().collect()));
        Ok((y, back))
    };
    assert_derivative(&own, &xs);
}

/// Which of a query's keys are kept, by the definition: those kept anyway first, then by score, ties to the lower position.
fn by_sorting(pairs: &PairsSpec, scores: &[f32]) -> Vec<u8> {
    let seen = scores.len();
    let anyway = |j: usize| j < pairs.first || j + pairs.near >= seen;
    let mut order: Vec<usize> = (0..seen).collect();
    order.sort_by(|a, b| anyway(*b).cmp(&anyway(*a)).then(scores[*b].partial_cmp(&scores[*a]).unwrap()).then(a.cmp(b)));
    let mut kept = vec![0; seen];
    order.iter().take(pairs.keys(seen)).for_each(|j| kept[*j] = 1);
    kept
}

/// Small whole numbers, whose logits are exact and often equal.
fn whole(values: &[i8], shape: (usize, usize, usize, usize)) -> Tensor {
    Tensor::from_vec(values.iter().map(|x| f32::from(*x)).collect::<Vec<f32>>(), shape, &CPU).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_kept_is_what_sorting_keeps(
        values in prop::collection::vec(-2i8..3, 2 * 70 * 4),
        share in 0.01f64..=1.0,
        (near, first) in (0usize..9, 0usize..9),
        t in 1usize..70,
        window in any::<bool>(),
    ) {
        // Heads of 4 values: their logits are halves of whole numbers.
        let (q, k) = (whole(&values[..t * 4], (1, t, 1, 4)), whole(&values[280..][..t * 4], (1, t, 1, 4)));
        let index = if window { PairIndex::Window } else { PairIndex::Exact };
        let by = choosing(pairs(share, index, PairsBy::Head, near, first), 1, 4);
        let kept = forward(&q, &k, &k, t, &by).unwrap().1.kept().unwrap().squeeze(0).unwrap().squeeze(0).unwrap();
        let scores = logits(&q, &k).unwrap().squeeze(0).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        for (at, kept) in kept.to_vec2::<u8>().unwrap().into_iter().enumerate() {
            let scores: Vec<f32> = (0..=at).map(|j| if window { j as f32 } else { scores[at][j] }).collect();
            prop_assert_eq!(&kept[..=at], &by_sorting(&by.pairs, &scores)[..]);
            prop_assert!(kept[at + 1..].iter().all(|kept| *kept == 0));
        }
    }
}

/// The four of eight components that are largest decide alone: others may be anything.
#[test]
fn components_read_no_others() {
    let by = choosing(pairs(0.3, PairIndex::Components(4), PairsBy::Head, 1, 0), 1, 8);
    let xs = inputs(5, &[&[1, 40, 1, 8], &[1, 40, 1, 8], &[1, 40, 1, 4]]);
    let xs: Vec<Tensor> = xs.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    // Queries whose last four components are small, and keys whose last four are large.
    let weights = |by: f32| Tensor::new(&[1f32, 1.0, 1.0, 1.0, by, by, by, by], &CPU).unwrap();
    let q = xs[0].clamp(-3f32, 3f32).unwrap().affine(1.0, 5.0).unwrap().broadcast_mul(&weights(0.01)).unwrap();
    let kept = |k: &Tensor| bits(&forward(&q, k, k, 40, &by).unwrap().1.kept().unwrap());
    assert_eq!(kept(&xs[1]), kept(&xs[1].broadcast_mul(&weights(100.0)).unwrap()));
}

/// A block's keys share its score, and a block that is not whole is the query's own, which comes first.
#[test]
fn blocks_are_kept_whole_while_there_is_room() {
    let by = choosing(pairs(0.5, PairIndex::Blocks(4), PairsBy::KvHead, 1, 0), 1, 4);
    let xs: Vec<Tensor> =
        inputs(6, &[&[1, 32, 2, 4], &[1, 32, 1, 4]]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let kept = forward(&xs[0], &xs[1], &xs[1], 32, &by).unwrap().1.kept().unwrap().to_dtype(DType::F32).unwrap();
    // The last query keeps 16 of 32 keys: four blocks, its own among them.
    let blocks = kept.narrow(2, 31, 1).unwrap().reshape((2, 8, 4)).unwrap().sum(2).unwrap().to_vec2::<f32>().unwrap();
    for blocks in blocks {
        assert!(blocks.iter().all(|kept| *kept == 0.0 || *kept == 4.0) && blocks[7] == 4.0, "{blocks:?}");
    }
}

/// A later token changes no earlier choice.
#[rstest]
fn choices_are_causal(#[values(0, 1, 2, 3, 4)] index: usize, #[values(PairsBy::Head, PairsBy::KvHead)] by: PairsBy) {
    let by = choosing(pairs(0.2, INDICES[index], by, 2, 1), 2, 6);
    let xs: Vec<Tensor> =
        inputs(7, &[&[1, 90, 4, 6], &[1, 90, 2, 6]]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let changed = Tensor::cat(&[xs[1].narrow(1, 0, 70).unwrap(), xs[1].narrow(1, 70, 20).unwrap().neg().unwrap()], 1);
    let [before, after] = [&xs[1], &changed.unwrap()].map(|k| forward(&xs[0], k, k, 90, &by).unwrap());
    let first = |x: &Tensor| bits(&x.narrow(1, 0, 70).unwrap());
    assert_eq!(first(&before.0), first(&after.0));
    assert_ne!(bits(&before.0), bits(&after.0));
}

/// Where a query keeps all, it says what dense attention says, in a pass in which others do not.
#[rstest]
fn full_queries_agree_with_dense_attention(#[values(0, 2, 4)] index: usize) {
    let by = choosing(pairs(0.1, INDICES[index], PairsBy::KvHead, 20, 4), 2, 6);
    let xs: Vec<Tensor> =
        inputs(8, &[&[2, 80, 4, 6], &[2, 80, 2, 6]]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let (y, saved) = forward(&xs[0], &xs[1], &xs[1], 80, &by).unwrap();
    let (dense, _) = attention::forward(&xs[0], &xs[1], &xs[1]).unwrap();
    let part = |x: &Tensor, first, count| x.narrow(1, first, count).unwrap();
    assert!(apart(&part(&y, 0, 24), &part(&dense, 0, 24)) < 1e-5); // another order of the same sums
    assert!(apart(&part(&y, 24, 56), &part(&dense, 24, 56)) > 1e-3);
    assert_eq!(
        saved
            .kept()
            .unwrap()
            .narrow(2, 23, 1)
            .unwrap()
            .narrow(3, 0, 24)
            .unwrap()
            .min_all()
            .unwrap()
            .to_scalar::<u8>()
            .unwrap(),
        1
    );
}

/// One new query at a time over the room of a cache, gathered, keeps what the whole text's mask keeps but for scores within 1e-5 of each other, and says the same.
#[rstest]
fn gathered_rows_say_what_the_mask_says(
    #[values(0, 1, 2, 3, 4)] index: usize,
    #[values(PairsBy::Head, PairsBy::KvHead)] by: PairsBy,
) {
    let by = choosing(pairs(0.25, INDICES[index], by, 3, 1), 2, 6);
    let xs: Vec<Tensor> = inputs(12, &[&[2, 70, 4, 6], &[2, 70, 2, 6], &[2, 70, 2, 6]])
        .iter()
        .map(|x| x.to_dtype(DType::F32).unwrap())
        .collect();
    let (whole, saved) = forward(&xs[0], &xs[1], &xs[2], 70, &by).unwrap();
    let room = |x: &Tensor| x.pad_with_zeros(1, 0, 13).unwrap();
    for t in [1, 2, 40, 69] {
        let one =
            forward(&xs[0].narrow(1, t, 1).unwrap().contiguous().unwrap(), &room(&xs[1]), &room(&xs[2]), t + 1, &by);
        let (y, own) = one.unwrap();
        let mask = saved.kept().unwrap().narrow(2, t, 1).unwrap().narrow(3, 0, t + 1).unwrap();
        assert_eq!(bits(&own.kept().unwrap()), bits(&mask)); // of these numbers no two scores are so near
        assert!(apart(&y, &whole.narrow(1, t, 1).unwrap()) < 1e-5);
        assert!(backward(&own, &y).is_err());
    }
}

#[test]
fn an_index_that_heads_cannot_have_is_refused() {
    let x = Tensor::zeros((1, 4, 2, 6), DType::F32, &CPU).unwrap();
    let refused = |by: Choosing| forward(&x, &x, &x, 4, &by).is_err();
    assert!(refused(choosing(pairs(0.5, PairIndex::Components(7), PairsBy::Head, 1, 0), 2, 6)));
    assert!(refused(choosing(pairs(0.5, PairIndex::Directions(3), PairsBy::Head, 1, 0), 1, 6)));
    let none = Choosing { directions_krd: None, pairs: pairs(0.5, PairIndex::Directions(3), PairsBy::Head, 1, 0) };
    assert!(refused(none));
}
