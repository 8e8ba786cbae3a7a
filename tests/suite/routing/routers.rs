//! Every kind of router against loops over its formula in f64: values, and gradients in the input and in each parameter.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use tinyonn::checkpoint::ParamStore;
use tinyonn::moe::{
    CosineRouter, Covariance, GaussianMoeRouter, GaussianSpec, LinearRouter, Project, RandomRouter, Reduce, Router,
    RouterKind, RouterShape,
};
use tinyonn::ops::Grads;
use tinyonn::ops::gaussian_routing::{GaussianRouting, Parameters as GaussianParameters};

use crate::gradients::{devices, inputs, relative_difference};

const SHAPE: RouterShape = RouterShape { hidden: 7, parents: 3, choices: 4 };
const NODES: usize = SHAPE.parents * SHAPE.choices;
const INPUTS: usize = 5;

type Parameters = BTreeMap<String, Vec<f64>>;

/// ℓ of one input for every node, by the formula.
fn logits(kind: &RouterKind, parameters: &Parameters, x: &[f64]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let row = |name: &str, at: usize| &parameters[name][at * SHAPE.hidden..][..SHAPE.hidden];
    let of_node = |node: usize| match kind {
        RouterKind::LowRank { dim } => {
            let z: Vec<f64> = (0..*dim).map(|at| dot(row("projection", at), x)).collect();
            dot(&parameters["weight"][node * dim..][..*dim], &z) + parameters["bias"][node]
        }
        RouterKind::Linear => dot(row("weight", node), x) + parameters["bias"][node],
        RouterKind::Random => dot(row("weight", node), x),
        RouterKind::Cosine => {
            let e = row("weight", node);
            parameters["scale"][0] * dot(e, x) / (dot(e, e).sqrt() * dot(x, x).sqrt())
        }
        RouterKind::Gaussian(form) => {
            let z: Vec<f64> = match form.project {
                Project::Identity => x.to_vec(),
                _ => (0..form.dim).map(|at| dot(row("projection", at), x)).collect(),
            };
            let r = z.len();
            // (I + D) of z, or of μ.
            let apart = |of: &[f64], j: usize| match form.covariance {
                Covariance::SharedFull => {
                    let row = (node / SHAPE.choices * r + j) * r;
                    of[j] + dot(&parameters["decorrelation"][row..row + j], &of[..j])
                }
                _ => of[j],
            };
            let log_variance = |j: usize| match form.covariance {
                Covariance::Diag => parameters["log_variance"][node * r + j],
                Covariance::Shared | Covariance::SharedFull => parameters["log_variance"][node / SHAPE.choices * r + j],
                Covariance::Isotropic => parameters["log_variance"][node],
            };
            let term = |j: usize| {
                let apart = apart(&z, j) - apart(&parameters["mean"][node * r..][..r], j);
                -0.5 * apart * apart / log_variance(j).exp() - 0.5 * log_variance(j)
            };
            let sum: f64 = (0..r).map(term).sum();
            let density = if form.reduce == Reduce::Mean { sum / r as f64 } else { sum };
            parameters["scale"][0] * density + parameters["log_prior"][node]
        }
        RouterKind::Custom(_) => unreachable!("the library knows no formula"),
    };
    (0..NODES).map(of_node).collect()
}

/// Random parameters for whatever the router asks for; scales are positive.
fn store(kind: &RouterKind) -> ParamStore {
    let fresh = ParamStore::initialise(&Device::Cpu, 0, |vb| router(kind, &vb).map(drop)).unwrap();
    for (at, (name, var)) in fresh.iter().enumerate() {
        let drawn = inputs(50 + at as u64, &[var.dims()]).remove(0).to_dtype(DType::F32).unwrap();
        var.set(&if name == "scale" { drawn.affine(0.1, 1.3).unwrap() } else { drawn.affine(0.6, 0.0).unwrap() })
            .unwrap();
    }
    fresh
}

fn router(kind: &RouterKind, vb: &candle_nn::VarBuilder<'_>) -> tinyonn::Result<Box<dyn Router>> {
    Ok(match kind {
        RouterKind::Gaussian(form) => Box::new(GaussianMoeRouter::with_form(SHAPE, form, vb)?),
        RouterKind::Linear => Box::new(LinearRouter::new(SHAPE, vb)?),
        RouterKind::LowRank { dim } => {
            let p_rd = vb.get_with_hints((*dim, SHAPE.hidden), "projection", candle_nn::Init::Const(1.0))?;
            Box::new(LinearRouter::projecting(SHAPE, &p_rd, vb)?)
        }
        RouterKind::Cosine => Box::new(CosineRouter::new(SHAPE, vb)?),
        RouterKind::Random => Box::new(RandomRouter::new(SHAPE, vb)?),
        RouterKind::Custom(_) => unreachable!("the library knows no formula"),
    })
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Router and formula agree. Routers compute in f32 by design, the formula and its central differences in f64: what is left between
/// them is the rounding of f32, at most 1e-4 of the size of what is compared after two products and a softened square.
fn assert_agrees(kind: &RouterKind) {
    let store = store(kind);
    let router = router(kind, &store.builder(DType::F32, |_| true)).unwrap();
    let x = inputs(60, &[&[INPUTS, SHAPE.hidden]])[0].to_dtype(DType::F32).unwrap();
    let found = router.logits(&x).unwrap();
    assert_eq!(found.dims(), [INPUTS, SHAPE.parents, SHAPE.choices]);

    let parameters: Parameters = store.iter().map(|(name, var)| (name.to_owned(), values(var))).collect();
    let formula = |parameters: &Parameters, x: &[f64]| -> Vec<f64> {
        x.chunks_exact(SHAPE.hidden).flat_map(|row| logits(kind, parameters, row)).collect()
    };
    let xs = values(&x);
    for (found, expected) in values(&found).into_iter().zip(formula(&parameters, &xs)) {
        approx::assert_relative_eq!(found, expected, max_relative = 1e-4, epsilon = 1e-4);
    }

    let weights = inputs(61, &[found.dims()]).remove(0);
    let mut grads = Grads::new(store.iter().map(|(_, var)| (var.as_tensor(), 0))).unwrap();
    let dx = router.backward(&x, &weights.to_dtype(DType::F32).unwrap(), true, &mut grads).unwrap().unwrap();
    let weights = values(&weights);
    let loss = |parameters: &Parameters, x: &[f64]| -> f64 {
        formula(parameters, x).iter().zip(&weights).map(|(logit, weight)| logit * weight).sum()
    };
    let eps = 1e-5;
    let moved = |values: &[f64], v: &[f64], step: f64| -> Vec<f64> {
        values.iter().zip(v).map(|(value, v)| value + step * v).collect()
    };
    let check = |what: &str, grad: &Tensor, at: &dyn Fn(&[f64], f64) -> f64| {
        let v = values(&inputs(62, &[grad.dims()])[0]);
        let numeric = (at(&v, eps) - at(&v, -eps)) / (2.0 * eps);
        let grad = values(&grad.copy().unwrap());
        let exact: f64 = grad.iter().zip(&v).map(|(grad, v)| grad * v).sum();
        let size = grad.iter().zip(&v).map(|(grad, v)| (grad * v).abs()).sum::<f64>();
        assert!(size > 0.0, "{kind:?}: {what} has no gradient");
        assert!((numeric - exact).abs() <= 1e-4 * size, "{kind:?} in {what}: {numeric} {exact}");
    };
    assert_eq!(dx.dims(), x.dims());
    check("x", &dx, &|v, step| loss(&parameters, &moved(&xs, v, step)));
    for (name, var) in store.iter() {
        // One dimension has nothing beside it.
        if name == "decorrelation" && var.dims()[1] == 1 {
            assert!(values(&grads.get(var).unwrap().copy().unwrap()).iter().all(|grad| *grad == 0.0));
            continue;
        }
        let drawn = *kind == RouterKind::Random
            || (name == "projection" && matches!(kind, RouterKind::Gaussian(form) if form.project == Project::Random));
        if drawn {
            assert!(grads.get(var).is_none(), "{name} was drawn once");
            continue;
        }
        check(name, grads.get(var).unwrap(), &|v, step| {
            let mut parameters = parameters.clone();
            let value = moved(&parameters[name], v, step);
            parameters.insert(name.to_owned(), value);
            loss(&parameters, &xs)
        });
    }
}

#[rstest]
fn gaussian_routers_are_their_formula(
    #[values(Reduce::Mean, Reduce::Sum)] reduce: Reduce,
    #[values(Covariance::Diag, Covariance::Shared, Covariance::SharedFull, Covariance::Isotropic)]
    covariance: Covariance,
    #[values((1, Project::Learned), (5, Project::Learned), (64, Project::Identity), (3, Project::Random))] form: (
        usize,
        Project,
    ),
) {
    assert_agrees(&RouterKind::Gaussian(GaussianSpec { dim: form.0, reduce, covariance, project: form.1 }));
}

#[rstest]
fn other_routers_are_their_formula(
    #[values(
        RouterKind::Linear,
        RouterKind::LowRank { dim: 1 },
        RouterKind::LowRank { dim: 4 },
        RouterKind::Cosine,
        RouterKind::Random
    )]
    kind: RouterKind,
) {
    assert_agrees(&kind);
}

#[test]
fn a_vector_of_zeros_has_no_direction_and_no_derivative_that_is_no_number() {
    let store = store(&RouterKind::Cosine);
    let router = router(&RouterKind::Cosine, &store.builder(DType::F32, |_| true)).unwrap();
    let x = Tensor::zeros((2, SHAPE.hidden), DType::F32, &Device::Cpu).unwrap();
    let logits = router.logits(&x).unwrap();
    assert!(values(&logits).iter().all(|logit| *logit == 0.0));
    let dx = router.backward(&x, &logits.ones_like().unwrap(), true, &mut Grads::none()).unwrap().unwrap();
    assert!(values(&dx).iter().all(|grad| grad.is_finite()));
}

/// On a GPU kernels ask all Gaussian routers of a layer at once, of x in bf16: what they say, and every gradient, is that of each router by itself in
/// main memory; elsewhere there are no kernels.
#[rstest]
fn kernels_ask_all_gaussian_routers_at_once(
    #[values(Reduce::Mean, Reduce::Sum)] reduce: Reduce,
    #[values(Covariance::Diag, Covariance::Shared, Covariance::Isotropic)] covariance: Covariance,
    #[values(1, 40, 1100)] tokens: usize,
) {
    let (hidden, cpu) = (24, Device::Cpu);
    let x_td = inputs(7, &[&[tokens, hidden]]).remove(0).to_dtype(DType::BF16).unwrap();
    let wide_td = x_td.to_dtype(DType::F32).unwrap();
    let forms = [(1, 10, 6), (10, 3, 9)].map(|(parents, choices, dim)| {
        let form = GaussianSpec { reduce, covariance, ..GaussianSpec::new(dim) };
        (RouterShape { hidden, parents, choices }, form)
    });
    for device in devices() {
        let (mut all, mut expected, mut dlogits, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut dx_td = wide_td.zeros_like().unwrap();
        for (at, (shape, form)) in forms.iter().enumerate() {
            let new = |vb: &candle_nn::VarBuilder<'_>| GaussianMoeRouter::with_form(*shape, form, vb);
            let store = ParamStore::initialise(&cpu, at as u64, |vb| new(&vb).map(drop)).unwrap();
            for (name, var) in store.iter() {
                let moved =
                    inputs(first, &[var.dims()]).remove(0).to_dtype(DType::F32).unwrap().affine(0.2, 0.0).unwrap();
                var.set(&(var.as_tensor() + moved).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
                first += 1;
            }
            let router = new(&store.builder(DType::F32, |_| true)).unwrap();
            let logits = router.logits(&wide_td).unwrap();
            let dlogits_tpc = inputs(90 + at as u64, &[logits.dims()]).remove(0).to_dtype(DType::F32).unwrap();
            let mut grads = Grads::new(store.iter().map(|(_, var)| (var.as_tensor(), 0))).unwrap();
            let dx = router.backward(&wide_td, &dlogits_tpc, true, &mut grads).unwrap().unwrap();
            dx_td = (dx_td + dx).unwrap();
            let names = ["projection", "mean", "log_variance", "log_prior", "scale"];
            let gradients = names.map(|name| grads.get(store.get(name).unwrap()).unwrap().copy().unwrap());
            let own = names.map(|name| store.get(name).unwrap().as_tensor().to_device(&device).unwrap());
            let [projection, mean, log_variance, log_prior, scale] = own;
            let sum = reduce == Reduce::Sum;
            all.push(GaussianParameters { projection, mean, log_variance, log_prior, scale, sum });
            expected.push((logits.flatten_from(1).unwrap(), gradients));
            dlogits.push(dlogits_tpc.flatten_from(1).unwrap());
        }
        let kernels = GaussianRouting::new(all.clone(), &device).unwrap();
        assert_eq!(kernels.is_some(), device.is_cuda());
        let Some(kernels) = kernels else { continue };
        let same = |found: &Tensor, expected: &Tensor, most: f64, what: &str| {
            let error = relative_difference(&found.to_device(&cpu).unwrap(), &expected.to_dtype(DType::F64).unwrap());
            assert!(error <= most, "{what}: {error:.1e}");
        };
        let on = x_td.to_device(&device).unwrap();
        let (logits, saved) = kernels.forward(&on).unwrap().unwrap();
        let all_of = |of: &[Tensor]| Tensor::cat(of, 1).unwrap();
        let of_routers: Vec<Tensor> = expected.iter().map(|(logits, _)| logits.clone()).collect();
        same(&logits, &all_of(&of_routers), 1e-4, "logits");
        let learning = all.iter().flat_map(|of| [&of.projection, &of.mean, &of.log_variance, &of.log_prior, &of.scale]);
        let mut grads = Grads::new(learning.map(|weight| (weight, 0))).unwrap();
        let there = on.ones_like().unwrap();
        let dlogits = all_of(&dlogits).to_device(&device).unwrap();
        let dx = kernels.backward(&saved, &on, &dlogits, Some(there), true, &mut grads).unwrap().unwrap();
        same(&dx, &(dx_td + 1.0).unwrap(), 1e-2, "dx");
        for (of, (_, expected)) in all.iter().zip(&expected) {
            let own = [&of.projection, &of.mean, &of.log_variance, &of.log_prior, &of.scale];
            for ((weight, expected), most) in own.into_iter().zip(expected).zip([1e-2, 1e-3, 1e-3, 1e-3, 1e-3]) {
                same(grads.get(weight).unwrap(), expected, most, &format!("{:?}", weight.dims()));
            }
        }
    }
}
