//! Activations: each against central differences and candle's own operations, in the MLP and by its name, one of this crate's own among
//! them, which is no product of a function of g with u.

use candle_core::{DType, Device, Result, Tensor};
use rstest::rstest;
use serde_json::json;
use tinyonn::decoder::Arch;
use tinyonn::inventory;
use tinyonn::ops::{self, Activation, ActivationEntry, MlpGate, MlpWeights, glu_mlp};

use crate::gradients::{Back, assert_derivative, assert_same, inputs};
use crate::models::{config, message};
use crate::ops::sliced;

/// h = tanh(g) u².
#[derive(Debug)]
pub(crate) struct TanhSquare;

impl Activation for TanhSquare {
    fn name(&self) -> &'static str {
        "tanh_square"
    }

    fn forward(&self, g: &Tensor, u: &Tensor) -> Result<Tensor> {
        g.tanh()? * u.sqr()?
    }

    fn backward(&self, g: &Tensor, u: &Tensor, delta: &Tensor) -> Result<(Tensor, Tensor)> {
        let slope = (1.0 - g.tanh()?.sqr()?)?;
        Ok((((delta * u.sqr()?)? * slope)?, ((delta * u)? * (g.tanh()? * 2.0)?)?))
    }
}

// As of two variants that declare it: one type may be submitted often.
inventory::submit! { ActivationEntry(&TanhSquare) }
inventory::submit! { ActivationEntry(&TanhSquare) }

/// Two types of one name.
#[derive(Debug)]
struct Twice<const N: u8>;

impl<const N: u8> Activation for Twice<N> {
    fn name(&self) -> &'static str {
        "twice"
    }

    fn forward(&self, g: &Tensor, _: &Tensor) -> Result<Tensor> {
        Ok(g.clone())
    }

    fn backward(&self, g: &Tensor, _: &Tensor, delta: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((delta.clone(), g.zeros_like()?))
    }
}

inventory::submit! { ActivationEntry(&Twice::<0>) }
inventory::submit! { ActivationEntry(&Twice::<1>) }

/// h(g, u) of the activation of that name, by its formula, from candle's differentiable operations.
pub(crate) fn composed(name: &str, g: &Tensor, u: &Tensor) -> Result<Tensor> {
    match name {
        "silu" => (g * candle_nn::ops::sigmoid(g)?)? * u,
        "gelu" => (g * (((g / 2f64.sqrt())?.erf()? + 1.0)? / 2.0)?)? * u,
        "tanh_square" => g.tanh()? * u.sqr()?,
        other => candle_core::bail!("no composition of {other}"),
    }
}

fn by_name(name: &str) -> &'static dyn Activation {
    ops::activation(name).unwrap()
}

#[rstest]
fn an_mlp_of_each(#[values("silu", "gelu", "tanh_square")] name: &str, #[values(false, true)] gated: bool) {
    let neuron_expert = Tensor::new((0..33u32).map(|i| i * 5 % 4).collect::<Vec<_>>(), &Device::Cpu).unwrap();
    let mlp = |xs: &[Tensor]| -> Result<(Tensor, Back<'static>)> {
        let neuron_expert = neuron_expert.to_device(xs[0].device())?;
        let gate = gated.then(|| MlpGate { gate_tn: &xs[4], neuron_expert: &neuron_expert });
        let weights = MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: by_name(name) };
        let (y, saved) = glu_mlp::forward(&xs[0], weights, gate)?;
        Ok((y, sliced(xs, by_name(name), saved, |dgate| Ok(dgate.clone()))))
    };
    let composition = |xs: &[Tensor]| {
        let h = composed(name, &xs[0].matmul(&xs[1].t()?)?, &xs[0].matmul(&xs[2].t()?)?)?;
        let h = if gated { (h * xs[4].index_select(&neuron_expert, 1)?)? } else { h };
        h.matmul(&xs[3])
    };
    let shapes: [&[usize]; 5] = [&[70, 6], &[33, 6], &[33, 6], &[33, 6], &[70, 4]];
    let xs = inputs(20, &shapes[..if gated { 5 } else { 4 }]);
    assert_derivative(&|xs| mlp(xs), &xs);
    assert_same(&|xs| mlp(xs), &composition, &xs, DType::F64, 1e-12);
    // Sums of a few hundred terms of mixed sign, each 6e-8 off; the cube of a normal value in the third spreads them more.
    assert_same(&|xs| mlp(xs), &composition, &xs, DType::F32, 1e-5);
    // bf16 carries 2⁻⁹ = 2e-3 an operation, and the MLP five in a row.
    assert_same(&|xs| mlp(xs), &composition, &xs, DType::BF16, 3e-2);
}

/// gelu where its halves cancel, far out, and at zero.
#[test]
fn the_fused_gelu_is_as_exact_as_it_says() {
    let g: Vec<f32> = (-9000..9000).map(|i| i as f32 / 900.0).collect();
    let count = g.len();
    let g = Tensor::from_vec(g, count, &Device::Cpu).unwrap();
    let ones = g.ones_like().unwrap();
    let h = ops::Gelu.forward(&g, &ones).unwrap().to_dtype(DType::F64).unwrap();
    let expected = composed("gelu", &g.to_dtype(DType::F64).unwrap(), &ones.to_dtype(DType::F64).unwrap()).unwrap();
    let scale = g.to_dtype(DType::F64).unwrap().abs().unwrap().maximum(1f64).unwrap();
    let error = ((h - expected).unwrap() / scale).unwrap().abs().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap();
    assert!(error < 4e-7, "{error}");
}

#[test]
fn activations_are_known_by_their_names() {
    for name in ["silu", "gelu", "tanh_square"] {
        assert_eq!(ops::activation(name).unwrap().name(), name);
    }
    assert!(ops::activation("gelu_pytorch_tanh").is_none() && ops::activation("twice").is_none());
    let names: Vec<&str> = ops::activations().iter().map(|activation| activation.name()).collect();
    assert!(names.is_sorted() && names.len() >= 4);
    assert_eq!(names.iter().filter(|name| **name == "tanh_square").count(), 1);
}

#[test]
fn a_configuration_names_its_activation() {
    let read = |name: &str| Arch::from_json(&json!({ "model_type": "qwen3", "hidden_act": name }), "config.json");
    let own = read("tanh_square").unwrap();
    assert_eq!(own.activation().unwrap().name(), "tanh_square");
    assert_eq!(own.to_json()["hidden_act"], json!("tanh_square"));
    let refused = message(read("swish"));
    assert!(refused.contains("is \"swish\"; known: gelu, silu, tanh_square"), "{refused}");
    assert!(message(read("twice")).contains("declared more than once"));
    assert!(message(Arch { hidden_act: "swish".into(), ..config(9, true) }.activation()).contains("known: gelu"));
}

/// x clamped, then SwiGLU: within the limit the one is the other.
#[derive(Debug)]
struct Clamped(f32);

impl Activation for Clamped {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn forward(&self, g: &Tensor, u: &Tensor) -> Result<Tensor> {
        ops::Silu.forward(&g.clamp(-self.0, self.0)?, u)
    }

    fn backward(&self, g: &Tensor, u: &Tensor, delta: &Tensor) -> Result<(Tensor, Tensor)> {
        ops::Silu.backward(&g.clamp(-self.0, self.0)?, u, delta)
    }
}

/// A formula is known by its values, far from zero too, whatever its name is.
#[test]
fn an_activation_is_known_by_its_values() {
    static CLAMPED: [Clamped; 3] = [Clamped(100.0), Clamped(7.0), Clamped(20.0)];
    let of = |activation| ops::activation::fingerprint(activation).unwrap();
    assert_ne!(of(&ops::Silu), of(&ops::Gelu));
    assert_eq!(of(&ops::Silu), of(&CLAMPED[0]));
    assert_ne!(of(&ops::Silu), of(&CLAMPED[1]));
    assert_ne!(of(&ops::Silu), of(&CLAMPED[2]));
}
