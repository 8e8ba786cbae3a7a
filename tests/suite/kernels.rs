//! Operations that have a form of their own for a device, against their plain form in f64: f32 and bf16, widths that divide nothing, the same bits twice.
//! A build for a GPU runs all of it there too.

use candle_core::{DType, Tensor};
use rstest::rstest;
use tinyonn::Result;
use tinyonn::ops::{
    Activation as _, Grads, Silu, attention, cross_entropy, elementwise, embedding, norm_rope, open_gates, ranks,
    rms_norm, rope,
};

use crate::gradients::{devices, inputs, relative_difference};
use crate::models::{CPU, bits};

/// ‖a − b‖ ⁄ ‖b‖ in bf16, whose numbers have eight bits; in f32, whose sums of some thousand terms lose four digits at most.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::BF16 { 1e-2 } else { 1e-4 }
}

/// `run` of the inputs in every type on every device is what it is in f64 in main memory, and the same when it runs again.
pub(crate) fn holds(inputs: &[Tensor], run: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>) {
    for dtype in [DType::F32, DType::BF16] {
        let narrow: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
        let wide: Vec<Tensor> = narrow.iter().map(|x| x.to_dtype(DType::F64).unwrap()).collect();
        let expected = run(&wide).unwrap();
        for device in devices() {
            let on: Vec<Tensor> = narrow.iter().map(|x| x.to_device(&device).unwrap()).collect();
            let found = run(&on).unwrap();
            let again = run(&on).unwrap();
            assert_eq!(found.len(), expected.len());
            for (at, ((found, again), expected)) in found.iter().zip(&again).zip(&expected).enumerate() {
                assert_eq!(found.dims(), expected.dims());
                let error = relative_difference(&found.to_device(&CPU).unwrap(), expected);
                assert!(error <= tolerance(dtype), "{device:?}, {dtype:?}, output {at}: {error:.1e}");
                let [found, again] = [found, again].map(|x| bits(&x.to_device(&CPU).unwrap()));
                assert_eq!(found, again, "{device:?}, {dtype:?}, output {at}");
            }
        }
    }
}

#[rstest]
fn rms_norm_is_its_formula(
    #[values((1, 3), (3, 5), (17, 64), (70, 130), (600, 128), (9, 776), (2200, 1024), (9, 2048), (9, 4096))] (t, d): (
        usize,
        usize,
    ),
) {
    holds(&inputs(1, &[&[t, d], &[d], &[t, d]]), |xs| {
        let mut grads = Grads::new([(&xs[1], 0)])?;
        let y = rms_norm::forward(&xs[0], &xs[1], 1e-6)?;
        let dx = rms_norm::backward(&xs[0], &xs[1], 1e-6, &xs[2], &mut grads)?;
        Ok(vec![y, dx, grads.get(&xs[1]).unwrap().copy()?])
    });
}

/// What goes round a norm is added by the norm: x + a before it, its gradient behind it.
#[rstest]
fn a_norm_adds_what_goes_round_it(#[values((1, 3), (17, 64), (70, 130), (9, 2048))] (t, d): (usize, usize)) {
    holds(&inputs(10, &[&[t, d], &[d], &[t, d], &[t, d]]), |xs| {
        let mut grads = Grads::new([(&xs[1], 0)])?;
        let [sum, y] = rms_norm::forward_sum(&xs[0], &xs[3], &xs[1], 1e-6)?;
        let dx = rms_norm::backward_sum(&xs[0], &xs[1], 1e-6, &xs[2], &xs[3], &mut grads)?;
        let plain = rms_norm::backward(&xs[0], &xs[1], 1e-6, &xs[2], &mut Grads::none())?;
        let round = (dx.to_dtype(DType::F64)? - plain.to_dtype(DType::F64)?)?;
        Ok(vec![sum, y, round, dx, grads.get(&xs[1]).unwrap().copy()?])
    });
}

#[rstest]
fn sums_and_products_are_those_of_each_value(#[values(1, 3, 4, 1021, 5000)] n: usize) {
    holds(&inputs(11, &[&[n], &[n]]), |xs| {
        Ok(vec![elementwise::add(&xs[0], &xs[1])?, elementwise::multiply(&xs[0], &xs[1])?])
    });
}

/// Ties go to the lower index, the two zeros tie, and what is no number beats the rest.
#[rstest]
#[case(&[0.5, 2.0, 0.5, -1.0], &[1.0, 0.0, 2.0, 3.0])]
#[case(&[0.0, -0.0, 1.0, f32::NAN], &[2.0, 3.0, 1.0, 0.0])]
#[case(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN], &[0.0, 1.0, 3.0, 2.0])]
fn a_rank_is_the_number_of_those_ahead(#[case] keys: &[f32], #[case] expected: &[f32]) {
    for device in devices() {
        let keys = Tensor::new(keys, &device).unwrap().reshape((1, 1, keys.len())).unwrap();
        let keys = Tensor::cat(&[&keys, &keys], 1).unwrap();
        let found = ranks(&keys).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(found, [expected, expected].concat(), "{device:?}");
    }
}

#[rstest]
fn silu_is_its_formula(#[values(1, 3, 4, 1021, 5000)] n: usize) {
    holds(&inputs(2, &[&[n], &[n], &[n]]), |xs| {
        let (g, u) = ((&xs[0] * 3.0)?, &xs[1]);
        let (dg, du) = Silu.backward(&g, u, &xs[2])?;
        Ok(vec![Silu.forward(&g, u)?, dg, du])
    });
}

#[rstest]
fn rotary_positions_are_turned_and_turned_back(
    #[values((1, 1, 1, 2), (2, 7, 3, 6), (3, 33, 2, 64))] shape: (usize, usize, usize, usize),
    #[values(false, true)] narrow: bool,
) {
    let (b, t, h, d) = shape;
    let angles = inputs(3, &[&[t, d / 2]]).remove(0).to_dtype(DType::F32).unwrap();
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    holds(&inputs(4, &[&[b, t, h, d]]), |xs| {
        let dtype = if narrow { xs[0].dtype() } else { DType::F32 };
        let [cos, sin] = [&cos, &sin].map(|x| x.to_device(xs[0].device()).unwrap().to_dtype(dtype).unwrap());
        let y = rope::forward(&xs[0], &cos, &sin)?;
        Ok(vec![rope::backward(&y, &cos, &sin)?, y])
    });
}

/// Heads of queries and of keys, and the gradients of both norms' weights.
#[rstest]
fn heads_are_normalised_and_turned(
    #[values((1, 1, 2, 1, 32), (2, 37, 3, 1, 6), (1, 70, 6, 2, 64), (2, 33, 4, 4, 128), (1, 9, 2, 1, 96))] shape: (
        usize,
        usize,
        usize,
        usize,
        usize,
    ),
) {
    let (b, t, h, k, d) = shape;
    let angles = inputs(3, &[&[t, d / 2]]).remove(0);
    let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
    holds(&inputs(13, &[&[b, t, h, d], &[b, t, k, d], &[d], &[d], &[b, t, h, d], &[b, t, k, d]]), |xs| {
        let [cos, sin] = [&cos, &sin].map(|x| {
            // What angles are in the narrower type is what they are in f64 too.
            let narrow = x.to_dtype(DType::BF16).unwrap();
            narrow.to_device(xs[0].device()).unwrap().to_dtype(xs[0].dtype()).unwrap()
        });
        let by = norm_rope::NormRope { weights: [&xs[2], &xs[3]], eps: 1e-6, cos: &cos, sin: &sin };
        let mut grads = Grads::new([(&xs[2], 0), (&xs[3], 0)])?;
        let [q, k] = norm_rope::forward([&xs[0], &xs[1]], by)?;
        let [dq, dk] = norm_rope::backward([&xs[0], &xs[1]], by, [&xs[4], &xs[5]], &mut grads)?;
        let dw = [&xs[2], &xs[3]].map(|w| grads.get(w).unwrap().copy().unwrap());
        Ok([vec![q, k, dq, dk], dw.to_vec()].concat())
    });
}

/// Tokens of every expert, and of every number of experts, of decisions for one token each or for more.
#[rstest]
fn open_gates_are_counted(
    #[values((1, 1), (7, 3), (64, 100), (200, 33))] (d, n): (usize, usize),
    #[values(false, true)] for_more: bool,
) {
    let open = |at: usize| at * 5 % 7 < 3;
    let gates: Vec<f32> = (0..d * n).map(|at| if open(at) { 0.5 } else { 0.0 }).collect();
    let tokens = |decision: usize| if for_more { (decision % 5) as f32 } else { 1.0 };
    let (mut of_expert, mut of_count) = (vec![0f32; n], vec![0f32; n + 1]);
    for decision in 0..d {
        let taken: Vec<usize> = (0..n).filter(|expert| open(decision * n + expert)).collect();
        taken.iter().for_each(|expert| of_expert[*expert] += tokens(decision));
        of_count[taken.len()] += tokens(decision);
    }
    for device in devices() {
        for dtype in [DType::F32, DType::BF16, DType::F64] {
            let gate_dn = Tensor::from_vec(gates.clone(), (d, n), &device).unwrap().to_dtype(dtype).unwrap();
            let found = open_gates(&gate_dn, for_more.then(|| (0..d).map(tokens).collect())).unwrap();
            let [found, counts] = found.map(|x| x.to_vec1::<f32>().unwrap());
            assert_eq!((found, counts), (of_expert.clone(), of_count.clone()), "{device:?}, {dtype:?}");
        }
    }
}

/// Some tokens have no target.
#[rstest]
fn cross_entropy_is_its_formula(#[values((1, 3, 2), (5, 8, 37), (33, 16, 1000))] (t, d, v): (usize, usize, usize)) {
    let targets: Vec<u32> = (0..t).map(|at| if at % 4 == 3 { u32::MAX } else { (7 * at % v) as u32 }).collect();
    holds(&inputs(5, &[&[t, d], &[v, d], &[t]]), |xs| {
        let targets = Tensor::new(targets.as_slice(), xs[0].device())?;
        let mut grads = Grads::new([(&xs[1], 0)])?;
        let (losses, saved) = cross_entropy::forward(&xs[0], &xs[1], &targets, true)?;
        let dx = cross_entropy::backward(saved.unwrap(), &xs[1], &xs[2].to_dtype(losses.dtype())?, true, &mut grads)?;
        Ok(vec![losses, dx.unwrap(), grads.get(&xs[1]).unwrap().copy()?])
    });
}

/// The first gradient of a step takes the place of the last step's, the second is added; sums stay f32 beside bf16 weights.
#[rstest]
fn products_are_put_and_added(#[values((1, 1, 1), (5, 3, 7), (130, 33, 65))] (t, m, n): (usize, usize, usize)) {
    holds(&inputs(6, &[&[m, n], &[t, m], &[t, n], &[t, m]]), |xs| {
        let mut found = Vec::new();
        for dtype in [DType::F32, xs[0].dtype()] {
            let mut grads = Grads::in_dtype([(&xs[0], 0)], dtype)?;
            for _ in 0..2 {
                grads.begin();
                grads.add_product(&xs[0], &xs[1], &xs[2])?;
                found.push(grads.get(&xs[0]).unwrap().copy()?);
                grads.add_product(&xs[0], &xs[3], &xs[2])?;
                found.push(grads.get(&xs[0]).unwrap().copy()?);
            }
        }
        Ok(found)
    });
}

/// Ids come often, once and never; a row that nobody named is zero, or what was there.
#[rstest]
fn an_embeddings_gradient_is_the_sum_of_its_tokens(
    #[values((1, 1, 1), (9, 4, 3), (600, 40, 33))] (t, v, d): (usize, usize, usize),
) {
    let ids: Vec<u32> = (0..t).map(|at| ((at * at) % 7 % v) as u32).collect();
    holds(&inputs(7, &[&[v, d], &[t, d]]), |xs| {
        let ids = Tensor::new(ids.as_slice(), xs[0].device())?;
        let mut grads = Grads::new([(&xs[0], 0)])?;
        embedding::backward(&ids, &xs[0], &xs[1], &mut grads)?;
        let once = grads.get(&xs[0]).unwrap().copy()?;
        embedding::backward(&ids, &xs[0], &xs[1], &mut grads)?;
        Ok(vec![once, grads.get(&xs[0]).unwrap().copy()?])
    });
}

/// Heads of 64 and 128 values have kernels of their own: tiles that are not full, a cache before the queries, few queries that share a tile.
#[rstest]
#[case::less_than_a_tile(3, 17, 17, 4, 4)]
#[case::more_than_a_tile(1, 129, 129, 4, 2)]
#[case::behind_a_cache(2, 30, 200, 3, 1)]
#[case::one_key_head(1, 63, 63, 8, 1)]
#[case::many_tiles(1, 300, 301, 2, 1)]
#[case::one_query(1, 1, 5, 2, 1)]
#[case::few_queries(2, 2, 150, 6, 2)]
fn attention_is_its_formula(
    #[case] b: usize,
    #[case] t: usize,
    #[case] s: usize,
    #[case] h: usize,
    #[case] k: usize,
    #[values(64, 128, 80)] d: usize,
) {
    holds(&inputs(8, &[&[b, t, h, d], &[b, s, k, d], &[b, s, k, d], &[b, t, h, d]]), |xs| {
        // The composition rounds scores to bf16, whose error grows with their size: half of each, exact in any type.
        let (y, saved) = attention::forward(&(&xs[0] * 0.5)?, &xs[1], &xs[2])?;
        let [dq, dk, dv] = attention::backward(&saved, &xs[3])?;
        Ok(vec![y, dq, dk, dv])
    });
}

/// Neither a tile of many queries nor one of few reads what lies behind a cache's positions: here no numbers.
#[rstest]
fn attention_steps_over_what_is_no_number(
    #[values((1, 8), (20, 4))] (t, h): (usize, usize),
    #[values(64, 128)] d: usize,
    #[values(DType::F32, DType::BF16)] dtype: DType,
) {
    let xs = inputs(9, &[&[2, t, h, d], &[2, 150, 2, d], &[2, 150, 2, d]]);
    for device in devices() {
        let on = |x: &Tensor| x.to_dtype(dtype).unwrap().to_device(&device).unwrap();
        let [q, k, v] = [&xs[0], &xs[1], &xs[2]].map(on);
        let behind = on(&Tensor::full(f32::NAN, (2, 42, 2, d), &CPU).unwrap());
        let wider = |x: &Tensor| Tensor::cat(&[x, &behind], 1).unwrap();
        let (expected, _) = attention::forward(&q, &k, &v).unwrap();
        let (found, _) = attention::forward_in_room(&q, &wider(&k), &wider(&v), 150).unwrap();
        let [found, expected] = [&found, &expected].map(|y| bits(&y.to_device(&CPU).unwrap()));
        assert_eq!(found, expected, "{device:?}");
    }
}
