//! Updates of weights: torch's five steps, a scalar loop in f64, both insides of each operation, rows that skip, and moments in bf16.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Result, Tensor, Var};
use rstest::rstest;
use tinyonn::ops::{AdamwStep, Descriptor, LionStep, SgdStep, UpdateTable, adamw, lion, sgd};
use tinyonn::train::OptimizerConfig;

use crate::adamw::{list, take, training, values};
use crate::gradients::inputs;

/// An update, its constants and λ.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    Adamw(AdamwStep, f64),
    Sgd(SgdStep, f64),
    Lion(LionStep, f64),
}

pub(crate) const ADAMW: Rule = Rule::Adamw(AdamwStep { rate: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8 }, 0.1);
pub(crate) const SGD: Rule = Rule::Sgd(SgdStep { rate: 1e-2, momentum: 0.9 }, 0.1);
pub(crate) const LION: Rule = Rule::Lion(LionStep { rate: 1e-2, beta1: 0.9, beta2: 0.99 }, 0.1);

impl Rule {
    /// θ and its moments.
    pub(crate) fn tensors(self) -> usize {
        if matches!(self, Self::Adamw(..)) { 3 } else { 2 }
    }

    /// Updates θ and its moments where they lie; `counts` is t behind this step.
    fn update(self, state: &[Tensor], g: &Tensor, counts: &Tensor, learn: &Tensor, scale: f64) -> Result<()> {
        // Of another number they are refused, below.
        let like = learn.elem_count() == counts.elem_count();
        let before = if like { (counts - learn.to_dtype(DType::F64)?)? } else { counts.copy()? };
        let second = state.get(2).map(|v| (v, &before));
        let of = self.descriptor([&state[0], g, &state[1]], second, learn);
        self.step(&UpdateTable { descriptors: &[of], scale: &list(&[scale]), finite: &list(&[1u8]) })?;
        if matches!(self, Self::Adamw(..)) {
            assert_eq!(before.to_vec1::<f64>()?, counts.to_vec1::<f64>()?);
        }
        Ok(())
    }

    pub(crate) fn descriptor<'a>(
        self,
        [weight, gradient, m]: [&'a Tensor; 3],
        second: Option<(&'a Tensor, &'a Tensor)>,
        learn: &'a Tensor,
    ) -> Descriptor<'a> {
        let (Self::Adamw(_, decay) | Self::Sgd(_, decay) | Self::Lion(_, decay)) = self;
        Descriptor { weight, work: None, gradient, m, second, learn, decay }
    }

    pub(crate) fn step(self, table: &UpdateTable<'_>) -> Result<()> {
        match self {
            Self::Adamw(step, _) => adamw(&step, table),
            Self::Sgd(step, _) => sgd(&step, table),
            Self::Lion(step, _) => lion(&step, table),
        }
    }

    /// The published algorithm on one number, line by line: θ and its moments after step t.
    fn scalar(self, state: &[f64], g: f64, t: i32) -> Vec<f64> {
        let (p, m) = (state[0], state[1]);
        match self {
            Self::Adamw(c, decay) => {
                let (m, v) = (c.beta1 * m + (1.0 - c.beta1) * g, c.beta2 * state[2] + (1.0 - c.beta2) * g * g);
                let (m_hat, v_hat) = (m / (1.0 - c.beta1.powi(t)), v / (1.0 - c.beta2.powi(t)));
                vec![p - c.rate * m_hat / (v_hat.sqrt() + c.eps) - c.rate * decay * p, m, v]
            }
            Self::Sgd(c, decay) => {
                let m = c.momentum * m + g;
                vec![p - c.rate * m - c.rate * decay * p, m]
            }
            Self::Lion(c, decay) => {
                let direction = c.beta1 * m + (1.0 - c.beta1) * g;
                let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
                vec![p - c.rate * (sign + decay * p), c.beta2 * m + (1.0 - c.beta2) * g]
            }
        }
    }

    /// Copies of θ and its moments after an update: `counts` is t of each row (or of the whole), 0 of one that sits out.
    fn updated(self, state: &[Tensor], g: &Tensor, counts: &[u64], scale: f64) -> Vec<Tensor> {
        let own: Vec<Tensor> = state.iter().map(|x| x.copy().unwrap()).collect();
        let learn: Vec<u8> = counts.iter().map(|count| u8::from(*count > 0)).collect();
        let counts: Vec<f64> = counts.iter().map(|count| *count as f64).collect();
        self.update(&own, g, &list(&counts), &list(&learn), scale).unwrap();
        own
    }
}

/// The same values with their rows apart in memory: the plain inside takes them.
fn scattered(x: &Tensor) -> Tensor {
    x.t().unwrap().contiguous().unwrap().t().unwrap()
}

type Tensors = HashMap<String, Tensor>;

fn file(name: &str) -> Tensors {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/optimizers");
    candle_core::safetensors::load(folder.join(name).with_extension("safetensors"), &Device::Cpu).unwrap()
}

/// The constant of this name.
fn one(file: &Tensors, name: &str) -> f64 {
    file[name].clone().to_vec1::<f64>().unwrap()[0]
}

/// The largest |a − b| / (1 + |b|) in θ, which is of order 1, and |a − b| / |b| in moments, which may be as small as they like.
fn apart(a: &Tensor, b: &Tensor, is_moment: bool) -> f64 {
    let both = values(a).into_iter().flatten().zip(values(b).into_iter().flatten());
    let apart = |(a, b): (f64, f64)| if a == b { 0.0 } else { (a - b).abs() / (f64::from(!is_moment) + b.abs()) };
    both.map(apart).fold(0.0, f64::max)
}

fn torch_adamw(file: &Tensors) -> Rule {
    let [rate, beta1, beta2, eps, decay] = ["rate", "beta1", "beta2", "eps", "decay"].map(|name| one(file, name));
    Rule::Adamw(AdamwStep { rate, beta1, beta2, eps }, decay)
}

fn torch_sgd(file: &Tensors) -> Rule {
    let [rate, momentum, decay] = ["rate", "momentum", "decay"].map(|name| one(file, name));
    assert_eq!(decay, 0.0, "ours is decoupled, torch's is not");
    Rule::Sgd(SgdStep { rate, momentum }, decay)
}

fn their_lion(file: &Tensors) -> Rule {
    let [rate, beta1, beta2, decay] = ["rate", "beta1", "beta2", "decay"].map(|name| one(file, name));
    Rule::Lion(LionStep { rate, beta1, beta2 }, decay)
}

/// Five steps, each from where ours ended before. f32: a few roundings of 6e-8 a step, and 1 − β rounded from f32 or from f64, 2e-7 of the
/// terms of a moment, which may cancel to a tenth. f64: the same of 1e-16.
#[rstest]
#[case::adamw("adamw_f32", torch_adamw, 5e-6)]
#[case::adamw_f64("adamw_f64", torch_adamw, 1e-14)]
#[case::sgd("sgd", torch_sgd, 1e-6)]
#[case::lion("lion", their_lion, 5e-6)]
fn five_steps_are_those_of_torch(
    #[case] name: &str,
    #[case] rule: fn(&Tensors) -> Rule,
    #[case] tolerance: f64,
    #[values(false, true)] plain: bool,
) {
    let file = file(name);
    let load = |name: &str| file[name].clone();
    let (rule, weight, gradients) = (rule(&file), load("weight"), load("gradients"));
    let mut state = vec![weight.zeros_like().unwrap(); rule.tensors()];
    state[0] = weight;
    let names = &["expected", "m", "v"][..rule.tensors()];
    for step in 0..gradients.dim(0).unwrap() {
        let g = gradients.get(step).unwrap();
        let g = if plain { scattered(&g) } else { g };
        state = rule.updated(&state, &g, &[step as u64 + 1], 1.0);
        for (at, (found, name)) in state.iter().zip(names).enumerate() {
            let apart = apart(found, &load(name).get(step).unwrap(), at > 0);
            println!("{step} {name}: {apart:.1e}");
            assert!(apart <= tolerance, "{name} of step {step}: {apart:.1e}");
        }
    }
}

/// torch divides by the norm + 1e-6, which is 1e-6 of a clipped gradient and 1e-8 of θ; beside it the roundings of five steps.
#[test]
fn clipped_steps_are_those_of_torch() {
    let file = file("adamw_clipped");
    let load = |name: &str| file[name].clone();
    let [rate, beta1, beta2, eps, decay, clip] =
        ["rate", "beta1", "beta2", "eps", "decay", "clip"].map(|name| one(&file, name));
    let config = OptimizerConfig { rate, beta1, beta2, eps, decay, clip, ..OptimizerConfig::DEFAULT };
    let names = ["matrix", "vector"];
    let vars = names.map(|name| (name.to_owned(), Var::from_tensor(&load(&format!("{name}.weight"))).unwrap()));
    let mut state = training(&vars);
    for (step, norm) in load("norms").to_vec1::<f64>().unwrap().into_iter().enumerate() {
        let of = |name: &str, what: &str| load(&format!("{name}.{what}")).get(step).unwrap();
        let found = take(&mut state, &vars, &names.map(|name| of(name, "gradients")), &config);
        approx::assert_relative_eq!(found, norm, max_relative = 1e-6);
        for (name, (_, var)) in names.iter().zip(&vars) {
            let row = |x: &Tensor| x.reshape((1, ())).unwrap();
            let apart = apart(&row(var), &row(&of(name, "expected")), false);
            println!("{step} {name}: {apart:.1e}");
            assert!(apart <= 5e-7, "{name} of step {step}: {apart:.1e}");
        }
    }
}

/// Which rows learn in a step: all in the first, then two in three.
fn learns(row: usize, step: usize) -> bool {
    step == 0 || !(row + step).is_multiple_of(3)
}

/// How θ, and moments and gradients, are stored, and which inside that takes.
#[derive(Clone, Copy, Debug)]
struct Stored {
    weight: DType,
    rest: DType,
    scattered: bool,
    /// How far θ is from f64, of values of order 1 to 3: a few roundings of f32 (6e-8) or f64.
    tolerance: f64,
    /// What storing a moment adds, of its size: bf16 keeps 8 bits, so that the nearest is at most half of 2⁻⁷ away.
    rounding: f64,
}

const F32: Stored = Stored { weight: DType::F32, rest: DType::F32, scattered: false, tolerance: 1e-6, rounding: 0.0 };
const PLAIN: Stored = Stored { scattered: true, ..F32 };
const F64: Stored = Stored { weight: DType::F64, rest: DType::F64, tolerance: 1e-14, ..F32 };
const HALF: Stored = Stored { rest: DType::BF16, rounding: 1.0 / 256.0, ..F32 };

/// Each of ten steps, from the state that the one before left, rounded moments too: θ is to be computed from moments that are not rounded
/// yet, or it would be off by η / 256 = 4e-5. Not a bit of a row that skips moves.
#[rstest]
fn ten_steps_are_the_scalar_algorithms(
    #[values(ADAMW, SGD, LION)] rule: Rule,
    #[values(F32, PLAIN, F64, HALF)] stored: Stored,
    #[values(false, true)] by_row: bool,
) {
    let shape = [9usize, 7];
    let xs = inputs(1, &[&shape[..]; 11]);
    let zero = xs[0].zeros_like().unwrap().to_dtype(stored.rest).unwrap();
    let mut state = vec![zero; rule.tensors()];
    state[0] = xs[0].to_dtype(stored.weight).unwrap();
    let rows = if by_row { 9 } else { 1 };
    let mut counts = vec![0u64; rows];
    for (at, g) in xs[1..].iter().enumerate() {
        let g = g.to_dtype(stored.rest).unwrap();
        let learning: Vec<bool> = (0..rows).map(|row| !by_row || learns(row, at)).collect();
        counts.iter_mut().zip(&learning).for_each(|(count, learns)| *count += u64::from(*learns));
        let now: Vec<u64> = counts.iter().zip(&learning).map(|(count, on)| if *on { *count } else { 0 }).collect();
        let given = if stored.scattered { scattered(&g) } else { g.clone() };
        let next = rule.updated(&state, &given, &now, 0.5);
        assert!(next.iter().zip(&state).all(|(next, before)| next.dtype() == before.dtype()));
        let (before, after): (Vec<_>, Vec<_>) = (state.iter().map(values).collect(), next.iter().map(values).collect());
        for (i, row) in values(&g).into_iter().enumerate() {
            for (j, g) in row.into_iter().enumerate() {
                let old: Vec<f64> = before.iter().map(|x| x[i][j]).collect();
                let new: Vec<f64> = after.iter().map(|x| x[i][j]).collect();
                let line = if by_row { i } else { 0 };
                if !learning[line] {
                    assert!(old.iter().zip(&new).all(|(old, new)| old.to_bits() == new.to_bits()), "{old:?} {new:?}");
                    continue;
                }
                let expected = rule.scalar(&old, 0.5 * g, counts[line] as i32);
                for (part, (found, expected)) in new.iter().zip(&expected).enumerate() {
                    let rounding = if part == 0 { 0.0 } else { stored.rounding * expected.abs() };
                    let apart = (found - expected).abs();
                    assert!(apart <= stored.tolerance + rounding, "{part} of [{i}, {j}] in step {at}: {apart:.1e}");
                }
            }
        }
        state = next;
    }
}

/// Blocks that threads share, and rows: all insides agree on large tensors too, and with the plain form.
#[rstest]
fn rows_and_wholes_agree_on_many_blocks(#[values(ADAMW, SGD, LION)] rule: Rule) {
    let xs: Vec<Tensor> =
        inputs(2, &[&[300, 130], &[300, 130], &[300, 130]]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let (g, v) = (&xs[1], xs[2].sqr().unwrap());
    let state = &[xs[0].clone(), xs[2].clone(), v][..rule.tensors()];
    let counts: Vec<u64> = (0..300).map(|row| row % 5).collect();
    let rows = rule.updated(state, g, &counts, 1.0);
    let (whole, each) = (rule.updated(state, g, &[3], 1.0), rule.updated(state, g, &[3; 300], 1.0));
    assert!(whole.iter().zip(&each).all(|(a, b)| values(a) == values(b)));
    // Constants rounded from f64 or from f32, in another order: 2e-7 of values up to 4, and no direction of Lion's is so near to 0.
    let plain = rule.updated(state, &scattered(g), &counts, 1.0);
    for (a, b) in rows.iter().zip(&plain) {
        let apart = values(a).concat().iter().zip(values(b).concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart <= 2e-6, "{apart:.1e}");
    }
}

/// A number alone, as a router's scale is, in the fused loop and in the plain form.
#[rstest]
fn a_weight_of_no_rank_is_updated(
    #[values(ADAMW, SGD, LION)] rule: Rule,
    #[values(DType::F32, DType::F64, DType::BF16)] moments: DType,
) {
    let number = |value: f64, dtype| Tensor::new(value, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    let wide = if moments == DType::F64 { DType::F64 } else { DType::F32 };
    let state = [number(0.5, wide), number(0.25, moments), number(0.125, moments)];
    let state = &state[..rule.tensors()];
    rule.update(state, &number(2.0, wide), &list(&[3f64]), &list(&[1u8]), 0.5).unwrap();
    let expected = rule.scalar(&[0.5, 0.25, 0.125], 1.0, 3);
    for (found, expected) in state.iter().zip(expected) {
        let found = found.to_dtype(DType::F64).unwrap().to_scalar::<f64>().unwrap();
        // bf16 holds 8 bits.
        approx::assert_relative_eq!(found, expected, max_relative = if moments == DType::BF16 { 4e-3 } else { 1e-6 });
    }
}

#[rstest]
fn what_does_not_go_together_is_refused(#[values(ADAMW, SGD, LION)] rule: Rule) {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let refused = |moment: &Tensor, counts: usize, learn: usize| {
        let state = [zeros(&[3, 4]), moment.copy().unwrap(), moment.copy().unwrap()];
        let (counts, learn) = (list(&vec![1f64; counts]), list(&vec![1u8; learn]));
        rule.update(&state[..rule.tensors()], &zeros(&[3, 4]), &counts, &learn, 1.0).unwrap_err().to_string()
    };
    assert!(refused(&zeros(&[3, 4]), 4, 4).contains("4 marks for the rows of [3, 4]"));
    assert!(refused(&zeros(&[4, 3]), 1, 1).contains("a moment [4, 3] of a weight [3, 4]"));
    let Rule::Adamw(..) = rule else { return };
    assert!(refused(&zeros(&[3, 4]), 4, 1).contains("4 step counts for 1 marks"));
    assert!(refused(&zeros(&[3, 4]), 1, 3).contains("1 step counts for 3 marks"));
}

/// Without a gradient ever, only decay is left of each: 0 / ε, and sign(0) = 0.
#[rstest]
fn nothing_but_decay_without_a_gradient(
    #[values(ADAMW, SGD, LION)] rule: Rule,
    #[values(DType::F32, DType::F64)] dtype: DType,
) {
    let p = Tensor::ones((2, 3), dtype, &Device::Cpu).unwrap();
    let zero = p.zeros_like().unwrap();
    let after = rule.updated(&[p, zero.clone(), zero.clone()][..rule.tensors()], &zero, &[1], 1.0);
    // 1 − η λ, rounded once.
    assert!(values(&after[0]).concat().iter().all(|p| (p - 0.999).abs() < 1e-7));
    assert!(after[1..].iter().all(|moment| values(moment).concat() == [0.0; 6]));
}
