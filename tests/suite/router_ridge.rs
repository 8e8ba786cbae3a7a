//! Linear routers in closed form: the least squares of all rows, its best map of lower rank, and what a model's choices would add.

use candle_core::{DType, Device, Tensor};
use nalgebra::DMatrix;
use proptest::prelude::*;
use tinyonn::imaging::Labels;
use tinyonn::moe::Scores;
use tinyonn::train::{FitBy, OutputNorms, RouterFitConfig, RouterFitter, RouterSums, RouterTarget};

use crate::gradients::{inputs, relative_difference};
use crate::models::message;
use crate::router_fit::{TASKS, planted};
use crate::tiny;

fn matrix(x: &Tensor) -> DMatrix<f64> {
    let (rows, columns) = x.dims2().unwrap();
    let values = x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    DMatrix::from_row_slice(rows, columns, &values)
}

/// Inputs whose channels vary by very different amounts, and targets.
fn rows(seed: u64, (t, d, c): (usize, usize, usize)) -> [Tensor; 2] {
    let drawn = inputs(seed, &[&[t, d], &[t, c]]);
    let scales: Vec<f64> = (0..d).map(|at| 3f64.powi(-(at as i32 % 4))).collect();
    let x = drawn[0].broadcast_mul(&Tensor::from_vec(scales, (1, d), &Device::Cpu).unwrap()).unwrap();
    [(x + 0.7).unwrap(), (&drawn[1] + 2.0).unwrap()].map(|x| x.to_dtype(DType::F32).unwrap())
}

/// In pieces of uneven length.
fn sums(x: &Tensor, target: &Tensor) -> RouterSums {
    let mut sums = RouterSums::new(x.dim(1).unwrap());
    for from in (0..x.dim(0).unwrap()).step_by(7) {
        let piece = |x: &Tensor| x.narrow(0, from, 7.min(x.dim(0).unwrap() - from)).unwrap();
        sums.push(&piece(x), &piece(target)).unwrap();
    }
    sums
}

/// Least squares about the means, in f64: the map `[d, c]` and its metric.
fn expected(x: &Tensor, target: &Tensor, ridge: f64) -> (DMatrix<f64>, DMatrix<f64>) {
    let centred = |m: DMatrix<f64>| {
        let mean = m.row_mean();
        DMatrix::from_fn(m.nrows(), m.ncols(), |row, column| m[(row, column)] - mean[column])
    };
    let second = matrix(x).norm_squared() / x.dim(1).unwrap() as f64;
    let (x, target) = (centred(matrix(x)), centred(matrix(target)));
    let metric = x.transpose() * &x + DMatrix::identity(x.ncols(), x.ncols()) * (ridge * second);
    (metric.clone().cholesky().unwrap().solve(&(x.transpose() * target)), metric)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    /// The whole map is that of dense least squares; of as many dimensions as it has the reduced one is the same; of fewer it is the one of least error in the
    /// metric of the inputs, by a singular value decomposition. Sums are of f32 products: 1e-4 of what is compared.
    #[test]
    fn it_is_the_least_squares_and_its_best_map_of_lower_rank(
        seed in 0u64..1000, t in 20usize..90, d in 2usize..9, c in 2usize..7, r in 1usize..8,
    ) {
        let [x, target] = rows(seed, (t, d, c));
        let (map, metric) = expected(&x, &target, 0.01);
        let found = sums(&x, &target).solve(0.01).unwrap();
        prop_assert_eq!(found.ridge(), 0.01);
        let [weight, bias] = found.full(&Device::Cpu).unwrap();
        let size = map.norm().max(1e-3);
        prop_assert!((matrix(&weight).transpose() - &map).norm() < 1e-4 * size);
        // The regression goes through the means.
        let means = |x: &Tensor| x.mean_keepdim(0).unwrap();
        let at_mean = (means(&x).matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap() - means(&target)).unwrap();
        prop_assert!(at_mean.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-4);

        let [p, w, b] = found.reduced(r, &Device::Cpu).unwrap();
        prop_assert_eq!((p.dims(), w.dims(), b.dims()), (&[r, d][..], &[c, r][..], &[c][..]));
        let reduced = (matrix(&w) * matrix(&p)).transpose();
        let root = metric.cholesky().unwrap().l().transpose();
        let singular = (&root * &map).svd(true, true);
        let values = singular.singular_values.as_slice();
        let least: f64 = values.iter().skip(r).map(|value| value * value).sum::<f64>().sqrt();
        let error = (&root * (&map - &reduced)).norm();
        prop_assert!((error - least).abs() < 1e-3 * values[0].max(1e-3), "{} {}", error, least);
        let at_mean = (means(&x).matmul(&p.t().unwrap()).unwrap().matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap() - means(&target)).unwrap();
        prop_assert!(at_mean.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-4);
    }
}

/// Targets that two directions make are found again by two directions, however much the inputs vary elsewhere.
#[test]
fn a_planted_map_of_low_rank_is_found() {
    let [x, _] = rows(3, (400, 12, 1));
    let drawn = inputs(4, &[&[2, 12], &[2, 9]]).map_to_f32();
    let planted = drawn[0].t().unwrap().matmul(&drawn[1]).unwrap();
    let target = (x.matmul(&planted).unwrap() + 0.5).unwrap();
    let [p, w, _] = sums(&x, &target).solve(1e-9).unwrap().reduced(2, &Device::Cpu).unwrap();
    let found = w.matmul(&p).unwrap().t().unwrap();
    // Sums of 400 products in f32.
    assert!(relative_difference(&found, &planted.to_dtype(DType::F64).unwrap()) < 1e-3);
}

trait InF32 {
    fn map_to_f32(&self) -> Vec<Tensor>;
}

impl InF32 for Vec<Tensor> {
    fn map_to_f32(&self) -> Vec<Tensor> {
        self.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect()
    }
}

/// The norm of a group is that of the sum of its experts' outputs.
#[test]
fn a_choice_adds_the_sum_of_its_experts() {
    let cfg = tiny::config(40);
    let (variant, store) = tiny::upcycled(&cfg, "Moe2x4", &tiny::dense_store(&cfg, 1));
    let model = tiny::sparse(&cfg, variant, &store);
    let (layer, x) = (model.moe(1), inputs(5, &[&[9, cfg.hidden_size]]).map_to_f32().remove(0));
    let norms = OutputNorms::new(layer).unwrap().of(&x).unwrap();
    assert_eq!(norms.dims(), [9, 2 + 8]);
    let weights = layer.experts().weights();
    let [g, u] = [weights.gate, weights.up].map(|w| x.matmul(&w.t().unwrap()).unwrap());
    let h = weights.activation.forward(&g, &u).unwrap();
    let owners = layer.experts().neuron_expert().unwrap().to_vec1::<u32>().unwrap();
    for (node, experts) in layer.spec().experts_under(0).into_iter().chain(layer.spec().experts_under(1)).enumerate() {
        let mask: Vec<f32> =
            owners.iter().map(|owner| f32::from(u8::from(experts.contains(&(*owner as usize))))).collect();
        let own = h.broadcast_mul(&Tensor::from_vec(mask, (1, owners.len()), &Device::Cpu).unwrap()).unwrap();
        let norm = own.matmul(weights.down).unwrap().sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap();
        let found = norms.narrow(1, node, 1).unwrap();
        assert!(relative_difference(&found, &norm.to_dtype(DType::F64).unwrap()) < 1e-4, "{node}");
    }
    let roots = RouterTarget::Sqrt.of(&norms).unwrap().sqr().unwrap();
    assert!(relative_difference(&roots, &norms.to_dtype(DType::F64).unwrap()) < 1e-5);
    assert_eq!(RouterTarget::Log.of(&Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap()).unwrap().dims(), [1, 1]);
}

/// A layer's scores are the regression of its own choices' norms on the rows that it sees.
#[test]
fn routers_of_a_model_are_fitted_to_what_their_choices_add() {
    let (variant, store) = tiny::upcycled(&tiny::config(40), "Linear3x4", &tiny::dense_store(&tiny::config(40), 0));
    let rows = planted("train", 400, 2.0);
    let labels = Labels::random(TASKS, 2, &variant.spec, 3);
    let config = RouterFitConfig { fit: FitBy::Ridge, ..RouterFitConfig::default() };
    let mut fitter = RouterFitter::new(&rows, &rows, TASKS, 64).unwrap();
    fitter.fit((&store, &tiny::config(40), variant), &labels, &config, 0).unwrap();
    let model = tiny::sparse(&tiny::config(40), variant, &store);
    for (at, samples) in rows.iter().enumerate() {
        let (layer, x) = (model.moe(at), samples.tensor(&Device::Cpu).unwrap());
        let target = OutputNorms::new(layer).unwrap().of(&x).unwrap().sqrt().unwrap();
        let [weight, bias] = sums(&x, &target).solve(0.01).unwrap().full(&Device::Cpu).unwrap();
        let expected = x.matmul(&weight.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        let found = Tensor::cat(&Scores::new(layer, &x).unwrap().by_level().unwrap(), 1).unwrap();
        assert!(relative_difference(&found, &expected.to_dtype(DType::F64).unwrap()) < 1e-4);
    }
}

#[test]
fn what_cannot_be_fitted_is_refused() {
    assert!(message(RouterSums::new(5).solve(0.01)).contains("no tokens were seen"));
    let mut sums = RouterSums::new(2);
    let x = Tensor::full(f32::NAN, (3, 2), &Device::Cpu).unwrap();
    sums.push(&x, &x).unwrap();
    assert!(message(sums.solve(0.01)).contains("positive definite"));
}
