//! Attention in bf16 on every device: its distance from f64, and equal bits from run to run. In a build for a GPU heads of 64 and 128
//! values run kernels of our own there; [`crate::ops`] has the rest.

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tinyonn::ops::attention;

use crate::gradients::{devices, inputs, relative_difference, value_and_gradients};
use crate::models::bits;

/// bf16 carries 2⁻⁹ = 2e-3 an operation: inputs of products, and the outcome.
const BF16: f64 = 1e-2;

/// Inputs that bf16 holds, in f64.
fn rounded(seed: u64, shapes: &[&[usize]]) -> Vec<Tensor> {
    let round = |x: &Tensor| x.to_dtype(DType::BF16).unwrap().to_dtype(DType::F64).unwrap();
    inputs(seed, shapes).iter().map(round).collect()
}

#[rstest]
#[case::a_query_behind_a_cache(1, 1, 5, 2, 1)]
#[case::less_than_a_tile(3, 17, 17, 4, 4)]
#[case::more_than_a_tile(1, 129, 129, 4, 2)]
#[case::behind_a_cache(2, 30, 200, 3, 1)]
#[case::one_key_head(1, 63, 63, 8, 1)]
#[case::decoding(2, 2, 150, 6, 2)]
fn bf16_is_near_f64(
    #[case] b: usize,
    #[case] t: usize,
    #[case] s: usize,
    #[case] h: usize,
    #[case] k: usize,
    #[values(64, 128, 80)] d: usize,
) {
    let xs = rounded(1, &[&[b, t, h, d], &[b, s, k, d], &[b, s, k, d]]);
    let run = |dtype: DType, device: &Device| {
        let (y, gradients) = value_and_gradients(
            &|xs| {
                let (y, saved) = attention::forward(&xs[0], &xs[1], &xs[2])?;
                let back = move |dy: &Tensor, _: &mut _| {
                    Ok(attention::backward(&saved, dy)?.into_iter().enumerate().collect())
                };
                Ok((y, Box::new(back)))
            },
            &xs,
            dtype,
            device,
        )
        .unwrap();
        [vec![y], gradients].concat()
    };
    let expected = run(DType::F64, &Device::Cpu);
    for device in devices() {
        let (found, again) = (run(DType::BF16, &device), run(DType::BF16, &device));
        for (which, ((found, again), expected)) in found.iter().zip(&again).zip(&expected).enumerate() {
            let apart = relative_difference(found, expected);
            assert!(apart <= BF16, "output {which} (0 the value) on {device:?} is {apart} apart");
            assert_eq!(bits(found), bits(again), "output {which} on {device:?}");
        }
    }
}

/// What lies behind the positions of a cache is never read: here no numbers.
#[rstest]
fn bf16_steps_over_room(#[values((1, 8), (20, 4))] (t, h): (usize, usize), #[values(64, 128)] d: usize) {
    let xs = rounded(2, &[&[2, t, h, d], &[2, 150, 2, d], &[2, 150, 2, d]]);
    for device in devices() {
        let on = |x: &Tensor| x.to_dtype(DType::BF16).unwrap().to_device(&device).unwrap();
        let [q, k, v] = [&xs[0], &xs[1], &xs[2]].map(on);
        let wider = |x: &Tensor| {
            let room = Tensor::full(f32::NAN, (2, 42, 2, d), &Device::Cpu).unwrap();
            Tensor::cat(&[x, &on(&room)], 1).unwrap()
        };
        let (expected, _) = attention::forward(&q, &k, &v).unwrap();
        let (found, _) = attention::forward_in_room(&q, &wider(&k), &wider(&v), 150).unwrap();
        assert_eq!(bits(&found), bits(&expected), "{device:?}");
    }
}
