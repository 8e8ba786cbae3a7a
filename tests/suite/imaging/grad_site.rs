//! Where surprise is measured, of neurons and of experts: against candle's own tape, which gives every neuron an input of its own;
//! fused against composed; and the control whose units are all the same.

use approx::assert_relative_eq;
use candle_core::{DType, Device, Result, Tensor, Var};
use rstest::rstest;
use tinyonn::imaging::{ExpertForm, Form, Integral, Log1p, Norm, ScanRequest, Score, Units, dump, scan_with};
use tinyonn::ops::{
    self, ExpertNeurons, GradSite, ImageSums, Imaging, Log1pScale, MlpBackward, MlpGate, MlpWeights, NeuronSums, Silu,
    SlicedMlp as _, UnitSums, glu_mlp,
};

use super::{VOCAB, options};
use crate::gradients::{devices, doubled, inputs};
use crate::ops::counted_t;
use crate::tiny;

const SITES: [GradSite; 3] = [GradSite::Weight, GradSite::Input, GradSite::Output];

/// Seven neurons of three experts of uneven width.
const EXPERTS: [u32; 7] = [2, 0, 1, 0, 2, 0, 1];

const SCALE: Log1pScale = Log1pScale { activation: 0.3, surprise: 2.0 };

/// What imaging sums over an MLP of L = Σ y².
fn watched(xs: &[Tensor], dtype: DType, site: GradSite, gated: bool, device: &Device) -> ImageSums {
    let xs: Vec<Tensor> = xs.iter().map(|x| x.to_dtype(dtype).unwrap().to_device(device).unwrap()).collect();
    let neuron_expert = Tensor::new(&EXPERTS, device).unwrap();
    let experts = ExpertNeurons::new(&EXPERTS, 3).unwrap();
    let gate = gated.then_some(MlpGate { gate_tn: &xs[4], neuron_expert: &neuron_expert });
    let weights = MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu };
    let (y, saved) = glu_mlp::forward(&xs[0], weights, gate).unwrap();
    let see = |pass: &MlpBackward<'_>| {
        let imaging = Imaging { site, experts: Some(&experts), scale: Some(SCALE) };
        ops::image_moments(pass, &counted_t(pass.x_td.dim(0)?, device), &imaging)
    };
    let seen = saved.seen(&saved.deltas(&doubled(&y)).unwrap(), see).unwrap();
    let mut sums = ImageSums {
        neurons: NeuronSums::zero(7),
        experts: Some(UnitSums::zero(3)),
        log1p_neurons: Some(UnitSums::zero(7)),
        log1p_experts: Some(UnitSums::zero(3)),
    };
    let mut values = seen.flat().unwrap().to_vec1::<f64>().unwrap().into_iter();
    sums.read(&mut values);
    assert!(values.next().is_none());
    sums
}

/// x, W_g, W_u, W_d and a gate; more tokens than one task of the pool sums.
fn matrices() -> Vec<Tensor> {
    inputs(13, &[&[600, 4], &[7, 4], &[7, 4], &[7, 4], &[600, 3]])
}

fn unit_sums(sums: &ImageSums) -> [&UnitSums; 3] {
    [&sums.experts, &sums.log1p_neurons, &sums.log1p_experts].map(|sums| sums.as_ref().unwrap())
}

#[rstest]
fn sums_in_single_precision_equal_the_definition(#[values(0, 1, 2)] site: usize, #[values(false, true)] gated: bool) {
    let xs = matrices();
    let expected = watched(&xs, DType::F64, SITES[site], gated, &Device::Cpu);
    // The tokens' values are f32; only their sums are f64.
    let close = |expected: &[f64], found: &[f64]| {
        let pairs = expected.iter().zip(found);
        pairs.for_each(|(a, b)| assert_relative_eq!(a, b, max_relative = 2e-5, epsilon = 1e-5));
    };
    for device in devices() {
        let found = watched(&xs, DType::F32, SITES[site], gated, &device);
        for (expected, found) in expected.neurons.each().into_iter().zip(found.neurons.each()) {
            close(expected, found);
        }
        for (expected, found) in unit_sums(&expected).into_iter().zip(unit_sums(&found)) {
            expected.each().into_iter().zip(found.each()).for_each(|(expected, found)| close(expected, found));
        }
    }
}

/// Every neuron reads an input of its own, equal to the shared one: its gradient is the neuron's part of ∂L/∂x.
fn parts_of_the_inputs_gradient(xs: &[Tensor], gated: bool) -> Result<Vec<Vec<Vec<f64>>>> {
    let xs: Vec<Tensor> = xs.iter().map(|x| x.to_dtype(DType::F64).unwrap()).collect();
    let (t, d) = xs[0].dims2()?;
    let own_tid = Var::from_tensor(&xs[0].unsqueeze(1)?.broadcast_as((t, 7, d))?.contiguous()?)?;
    let product = |matrix_id: &Tensor| own_tid.broadcast_mul(&matrix_id.unsqueeze(0)?)?.sum(2);
    let mut h_ti = (candle_nn::ops::silu(&product(&xs[1])?)? * product(&xs[2])?)?;
    if gated {
        h_ti = (h_ti * xs[4].index_select(&Tensor::new(&EXPERTS, &Device::Cpu)?, 1)?)?;
    }
    let loss = h_ti.matmul(&xs[3])?.sqr()?.sum_all()?;
    loss.backward()?.get(&own_tid).unwrap().to_vec3()
}

#[rstest]
fn input_is_the_norm_of_each_units_part_of_the_inputs_gradient(#[values(false, true)] gated: bool) {
    let xs = matrices();
    let parts = parts_of_the_inputs_gradient(&xs, gated).unwrap();
    let norm = |part: &[f64]| part.iter().map(|x| x * x).sum::<f64>().sqrt();
    let (mut neurons, mut experts) = ([0f64; 7], [0f64; 3]);
    for (_, token) in parts.iter().enumerate().filter(|(t, _)| t % 7 != 3) {
        (0..7).for_each(|i| neurons[i] += norm(&token[i]));
        for n in 0..3 {
            let own = || (0..7).filter(|i| EXPERTS[*i] as usize == n);
            let sum: Vec<f64> = (0..4).map(|j| own().map(|i| token[i][j]).sum()).collect();
            experts[n] += norm(&sum);
        }
    }
    for (dtype, tolerance) in [(DType::F64, 1e-10), (DType::F32, 2e-5)] {
        let sums = watched(&xs, dtype, GradSite::Input, gated, &Device::Cpu);
        for (found, expected) in sums.neurons.surprise.iter().zip(neurons) {
            assert_relative_eq!(*found, expected, max_relative = tolerance);
        }
        for (found, expected) in sums.experts.unwrap().surprise.iter().zip(experts) {
            assert_relative_eq!(*found, expected, max_relative = tolerance);
        }
    }
}

fn units(count: usize) -> Units {
    let neuron_expert = (0..2).map(|layer| (0..26).map(|i| ((i * 5 + layer) % count) as u32).collect()).collect();
    Units { neuron_expert, count }
}

/// The expert sums of a scan are sums over the tokens that `dump` shows one by one.
#[rstest]
#[case(26)]
#[case(7)]
#[case(1)]
fn expert_sums_are_sums_of_every_tokens_norms(#[case] count: usize) {
    let cfg = tiny::config(VOCAB as usize);
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 3));
    let (set, units) = (tiny::tokens(3, &[17, 17], VOCAB), units(count));
    let request = ScanRequest { units: Some(units.clone()), ..ScanRequest::new(options(16, 1)) };
    let experts = scan_with(&model, &set, &request, &Device::Cpu, None).unwrap().experts.unwrap();
    assert_eq!(experts.units, units);
    for (task, text) in set.tasks.iter().enumerate() {
        // The 17th token is the last target; `dump` takes it from the ids.
        let ids = Tensor::new(text.tokens.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let image = dump(&model, &ids, &units.neuron_expert, count).unwrap();
        for layer in 0..2 {
            let sums = &experts.sums[layer][task];
            let pairs = [
                (&image.activation, &sums.activation, &sums.activation_squared),
                (&image.surprise, &sums.surprise, &sums.surprise_squared),
            ];
            for (rows, sum, squared) in pairs {
                let rows = rows[layer].to_vec2::<f32>().unwrap();
                for n in 0..count {
                    let own = || rows[..16].iter().map(|row| f64::from(row[n]));
                    super::close(sum[n], own().sum(), 1.0);
                    super::close(squared[n], own().map(|x| x * x).sum(), 1.0);
                }
            }
        }
    }
}

/// Measured at the output, surprise cannot tell units apart: one value for all neurons and experts of a token, and so one ∫ for
/// all of a task.
#[rstest]
#[case(ExpertForm::Mean)]
#[case(ExpertForm::Norm)]
fn the_degenerate_control_ties(#[case] expert: ExpertForm) {
    let cfg = tiny::config(VOCAB as usize);
    let model = tiny::dense(&cfg, &tiny::dense_store(&cfg, 3));
    // 26 neurons in 13 pairs: an expert's norm over √width has one divisor.
    let request = |grad_site| ScanRequest {
        grad_site,
        units: Some(units(13)),
        log1p: Log1p::Measured,
        ..ScanRequest::new(options(8, 2))
    };
    let set = tiny::tokens(3, &[40, 30], VOCAB);
    let [output, weight, input] = [GradSite::Output, GradSite::Weight, GradSite::Input]
        .map(|site| scan_with(&model, &set, &request(site), &Device::Cpu, None).unwrap());
    for sums in output.sums.iter().flatten() {
        let [_, _, s, s2, _, _, surprised] = sums.each();
        assert!([s, s2, surprised].iter().all(|sums| sums.iter().all(|x| *x == sums[0])));
        assert!(sums.surprise[0] > 0.0);
    }
    for norm in [Norm::Layer, Norm::Global, Norm::Log1p] {
        let form = Form { norm, expert };
        let tied = |layer: &Vec<f64>| layer.iter().all(|x| *x == layer[0]);
        let surprise = Integral::of(&output, Score::Surprise, form).unwrap();
        assert!(surprise.neurons.iter().flatten().all(tied), "{form:?}");
        for other in [&weight, &input] {
            let surprise = Integral::of(other, Score::Surprise, form).unwrap();
            assert!(!surprise.neurons.iter().flatten().any(tied), "{form:?}");
        }
    }
    // Nothing but surprise depends on where it is measured.
    let taylor = [&output, &weight, &input].map(|scan| Integral::new(scan, Score::Taylor));
    assert!(taylor[0] == taylor[1] && taylor[1] == taylor[2]);
}
