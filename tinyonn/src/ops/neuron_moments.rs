//! What imaging keeps of one backward pass: for each neuron, and where asked for each expert, the sums over tokens of a, a², S, S²,
//! and for each neuron those of the Taylor score, of its magnitude, and the number of tokens with S > 0.
//!
//! a = |c h|, S by its [`GradSite`], for the weights S² = ‖δ_y‖² (c h)² + (δ_g² + δ_u²) ‖x‖²; taylor = −c h δ_h (DESIGN §3). An
//! expert's a is the norm over its neurons. log1p values are of x over a scale. Sums are f64.
//! An observation, not a function to differentiate.
//!
//! Legend: t tokens, d hidden, i neurons, n experts.

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::expert_neurons::ExpertNeurons;
use super::grad_site::{GradSite, gated, input_dots};
use super::image_sums::{ImageSums, ImageTensors, NeuronSums, UnitSums};
use super::lanes;
use super::mlp_values::MlpBackward;

/// What log1p values are taken over: x becomes ln(1 + x / scale). Above zero.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log1pScale {
    /// Of a.
    pub activation: f64,
    /// Of S.
    pub surprise: f64,
}

/// What is summed beside the neurons' moments.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::ops::neuron_moments::{Imaging, Log1pScale, activation_and_surprise, image_moments};
/// use tinyonn::ops::{GradSite, MlpWeights, Silu, SlicedMlp as _, glu_mlp};
///
/// let w = Tensor::ones((6, 4), DType::F32, &Device::Cpu)?;
/// let weights = MlpWeights { gate: &w, up: &w, down: &w, activation: &Silu };
/// let (y, saved) = glu_mlp::forward(&Tensor::ones((3, 4), DType::F32, &Device::Cpu)?, weights, None)?;
/// let deltas = saved.deltas(&y.ones_like()?)?;
/// saved.seen(&deltas, |pass| {
///     let [a, s] = activation_and_surprise(pass)?;
///     let scale = Some(Log1pScale { activation: 1.0, surprise: 1.0 });
///     let sums = image_moments(pass, &Tensor::ones(3, DType::U8, &Device::Cpu)?, &Imaging { site: GradSite::Weight, experts: None, scale })?;
///     let by_hand = a.to_dtype(DType::F64)?.sum(0)?.to_vec1::<f64>()?;
///     let summed = sums.neurons.to_vec2::<f64>()?;
///     assert!((summed[0][0] - by_hand[0]).abs() < 1e-3 * by_hand[0] && s.dims() == a.dims() && sums.log1p_neurons.is_some());
///     Ok(())
/// })?;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Imaging<'a> {
    /// Which gradient's norm S is.
    pub site: GradSite,
    /// The experts to sum as well.
    pub experts: Option<&'a ExpertNeurons>,
    /// The scale of the log1p values to sum as well.
    pub scale: Option<Log1pScale>,
}

impl Imaging<'_> {
    fn zero(&self, width: usize) -> ImageSums {
        let experts = self.experts.map(|experts| UnitSums::zero(experts.count()));
        ImageSums {
            neurons: NeuronSums::zero(width),
            log1p_neurons: self.scale.map(|_| UnitSums::zero(width)),
            log1p_experts: self.scale.and(experts.clone()),
            experts,
        }
    }
}

/// Tokens a task of the pool sums at once; a constant, so that sums do not depend on the number of threads.
const TOKENS: usize = 256;

/// The sums over the tokens of a pass that are counted: 1 in `counted_t` `[t]` u8. Padding and positions without a target count nowhere.
///
/// # Errors
/// A `counted_t` or experts of another size than the pass; `grad_site = input` of a pass whose tokens share no matrices; whatever
/// candle reports.
pub fn image_moments(pass: &MlpBackward<'_>, counted_t: &Tensor, imaging: &Imaging<'_>) -> Result<ImageTensors> {
    let (t, width) = pass.h_ti.dims2()?;
    if counted_t.dims() != [t] {
        candle_core::bail!("image_moments: {:?} marks for {t} tokens", counted_t.shape());
    }
    if let Some(experts) = imaging.experts.filter(|experts| experts.width() != width) {
        candle_core::bail!("image_moments: experts of {} neurons for {width}", experts.width());
    }
    let h_ti = match pass.gate_ti {
        None => pass.h_ti.clone(),
        Some(gate_ti) => (pass.h_ti * gate_ti)?,
    };
    #[cfg(feature = "cuda")]
    if super::image_kernel::takes(&h_ti, pass, imaging)? {
        return super::image_kernel::moments(&h_ti, pass, counted_t, imaging);
    }
    if !lanes::fused(&[&h_ti, pass.delta_y_td, pass.x_td]) {
        return composed(pass, &h_ti, counted_t, imaging);
    }
    let counted: Vec<bool> =
        lanes::with_values(counted_t, |marks: &[u8]| marks.iter().map(|mark| *mark != 0).collect())?;
    let site = Site::of(pass, imaging)?;
    let inputs = [&h_ti, pass.delta_h_ti, pass.delta_g_ti, pass.delta_u_ti];
    let sums = if imaging.experts.is_some() || imaging.scale.is_some() {
        fused::<true>(inputs, &site, &counted, imaging)
    } else {
        fused::<false>(inputs, &site, &counted, imaging)
    };
    ImageTensors::new(&sums?, h_ti.device())
}

/// a and S of every token and neuron, `[t, i]` f32: the definition, in plain operations; S is of the weights.
///
/// # Errors
/// Whatever candle reports.
pub fn activation_and_surprise(pass: &MlpBackward<'_>) -> Result<[Tensor; 2]> {
    Ok([gated(pass)?.abs()?, GradSite::Weight.neuron_squares(pass)?.sqrt()?])
}

fn composed(pass: &MlpBackward<'_>, h_ti: &Tensor, counted_t: &Tensor, imaging: &Imaging<'_>) -> Result<ImageTensors> {
    let marks_1t = counted_t.to_dtype(DType::F64)?.unsqueeze(0)?;
    let sum = |x: &Tensor| marks_1t.matmul(x);
    let unit_sums = |a: &Tensor, s: &Tensor| Tensor::cat(&[sum(a)?, sum(&a.sqr()?)?, sum(s)?, sum(&s.sqr()?)?], 0);
    let log1p = |x: &Tensor, scale: f64| ((x / scale)? + 1.0)?.log();
    let squares_ti = imaging.site.neuron_squares(pass)?;
    let [a_ti, s_ti, taylor_ti] = [gated(pass)?.abs()?, squares_ti.sqrt()?, (h_ti * pass.delta_h_ti)?.neg()?]
        .map(|values_ti| values_ti.to_dtype(DType::F64));
    let (a_ti, s_ti, taylor_ti) = (a_ti?, s_ti?, taylor_ti?);
    let surprised = sum(&s_ti.gt(0f64)?.to_dtype(DType::F64)?)?;
    let neurons = Tensor::cat(&[unit_sums(&a_ti, &s_ti)?, sum(&taylor_ti)?, sum(&taylor_ti.abs()?)?, surprised], 0)?;
    let log1p_of =
        |scale: Log1pScale, a: &Tensor, s: &Tensor| unit_sums(&log1p(a, scale.activation)?, &log1p(s, scale.surprise)?);
    let log1p_neurons = imaging.scale.map(|scale| log1p_of(scale, &a_ti, &s_ti)).transpose()?;
    let (mut experts, mut log1p_experts) = (None, None);
    if let Some(of) = imaging.experts {
        let a_tn = of.sums(&a_ti.sqr()?)?.sqrt()?;
        let s_tn =
            imaging.site.expert_squares(pass, &squares_ti.to_dtype(DType::F64)?, of)?.to_dtype(DType::F64)?.sqrt()?;
        experts = Some(unit_sums(&a_tn, &s_tn)?);
        let roots: Vec<f64> = (0..of.count()).map(|n| of.root_width(n)).collect();
        let roots_1n = Tensor::from_vec(roots, (1, of.count()), h_ti.device())?;
        let narrowed = |x_tn: &Tensor| x_tn.broadcast_div(&roots_1n);
        log1p_experts = imaging.scale.map(|scale| log1p_of(scale, &narrowed(&a_tn)?, &narrowed(&s_tn)?)).transpose()?;
    }
    Ok(ImageTensors { neurons, experts, log1p_neurons, log1p_experts })
}

/// ‖row‖² of each row.
fn squared_norms(x_td: &Tensor) -> Result<Vec<f32>> {
    let d = x_td.dim(1)?;
    let x_td = x_td.contiguous()?;
    lanes::with_slices([&x_td], |[x]| lanes::vectorised(|| x.chunks_exact(d).map(|row| lanes::dot(row, row)).collect()))
}

/// What S² is made of beside δ_g and δ_u.
enum Site {
    /// ‖δ_y‖² and ‖x‖² by token.
    Weight { y2: Vec<f32>, x2: Vec<f32> },
    /// The three dot products of each neuron's rows, and S² of the experts, `[t, n]`, where they are summed.
    Input { dots: [Vec<f32>; 3], experts: Vec<f32> },
    /// ‖δ_y‖² by token.
    Output { y2: Vec<f32> },
}

impl Site {
    fn of(pass: &MlpBackward<'_>, imaging: &Imaging<'_>) -> Result<Self> {
        let list = |x: &Tensor| lanes::with_slices([&x.flatten_all()?.contiguous()?], |[x]| x.to_vec());
        let y2 = || squared_norms(pass.delta_y_td);
        Ok(match imaging.site {
            GradSite::Weight => Self::Weight { y2: y2()?, x2: squared_norms(pass.x_td)? },
            GradSite::Output => Self::Output { y2: y2()? },
            GradSite::Input => {
                let [gg, gu, uu] = input_dots(pass)?;
                let experts = imaging.experts.map(|experts| list(&GradSite::input_parts(pass, experts)?));
                Self::Input {
                    dots: [list(&gg)?, list(&gu)?, list(&uu)?],
                    experts: experts.transpose()?.unwrap_or_default(),
                }
            }
        })
    }
}

/// a² and S² of one token's neurons.
struct Token {
    a2: Vec<f32>,
    s2: Vec<f32>,
}

fn fused<const KEPT: bool>(
    inputs: [&Tensor; 4],
    site: &Site,
    counted: &[bool],
    imaging: &Imaging<'_>,
) -> Result<ImageSums> {
    let (t, width) = inputs[0].dims2()?;
    lanes::with_slices(inputs, |slices| {
        let partial: Vec<ImageSums> = (0..t.div_ceil(TOKENS))
            .into_par_iter()
            .map(|block| {
                let mut sums = imaging.zero(width);
                let kept = if KEPT { width } else { 0 };
                let mut token = Token { a2: vec![0.0; kept], s2: vec![0.0; kept] };
                lanes::vectorised(|| {
                    for t in (block * TOKENS..t.min((block + 1) * TOKENS)).filter(|t| counted[*t]) {
                        let rows = slices.map(|slice| &slice[t * width..][..width]);
                        add_neurons::<KEPT>(&mut sums.neurons, rows, site, t, &mut token);
                        if KEPT {
                            add_kept(&mut sums, &token, site, t, imaging);
                        }
                    }
                });
                sums
            })
            .collect();
        let mut total = imaging.zero(width);
        partial.iter().for_each(|part| total.add(part));
        total
    })
}

#[inline(always)]
fn add_neurons<const KEPT: bool>(sums: &mut NeuronSums, rows: [&[f32]; 4], site: &Site, t: usize, token: &mut Token) {
    let [h, _, g, u] = rows;
    let (h, g, u) = (&h[..h.len()], &g[..h.len()], &u[..h.len()]);
    match site {
        Site::Weight { y2, x2 } => {
            let (y2, x2) = (y2[t], x2[t]);
            add_token::<KEPT>(sums, rows, token, |i| y2 * h[i] * h[i] + (g[i] * g[i] + u[i] * u[i]) * x2);
        }
        Site::Input { dots, .. } => {
            let [gg, gu, uu] = dots.each_ref().map(|dot| &dot[..h.len()]);
            // Where the two cancel, rounding may leave less than nothing.
            let squared = |i: usize| g[i] * g[i] * gg[i] + 2.0 * g[i] * u[i] * gu[i] + u[i] * u[i] * uu[i];
            add_token::<KEPT>(sums, rows, token, |i| squared(i).max(0.0));
        }
        Site::Output { y2 } => add_token::<KEPT>(sums, rows, token, |_| y2[t]),
    }
}

#[inline(always)]
fn add_token<const KEPT: bool>(
    sums: &mut NeuronSums,
    [h, delta_h, _, _]: [&[f32]; 4],
    token: &mut Token,
    squared: impl Fn(usize) -> f32,
) {
    let width = h.len();
    let [a1, a2, s1, s2, taylor, magnitude, surprised] = sums.each_mut().map(|sum| &mut sum[..width]);
    let delta_h = &delta_h[..width];
    let kept = if KEPT { width } else { 0 };
    let (kept_a2, kept_s2) = (&mut token.a2[..kept], &mut token.s2[..kept]);
    for i in 0..width {
        let squared = squared(i);
        let (a, s) = (f64::from(h[i].abs()), f64::from(squared.sqrt()));
        a1[i] += a;
        a2[i] += a * a;
        s1[i] += s;
        s2[i] += s * s;
        let slope = f64::from(h[i] * delta_h[i]);
        taylor[i] -= slope;
        magnitude[i] += slope.abs();
        surprised[i] += f64::from(u8::from(squared > 0.0));
        if KEPT {
            kept_a2[i] = h[i] * h[i];
            kept_s2[i] = squared;
        }
    }
}

/// Experts and log1p values of one token.
#[inline(always)]
fn add_kept(sums: &mut ImageSums, token: &Token, site: &Site, t: usize, imaging: &Imaging<'_>) {
    if let (Some(scale), Some(sums)) = (imaging.scale, &mut sums.log1p_neurons) {
        add_log1p(sums, token, scale);
    }
    let (Some(experts), Some(of_experts)) = (imaging.experts, &mut sums.experts) else { return };
    for n in 0..experts.count() {
        let (mut a2, mut s2) = (0f64, 0f64);
        for i in experts.neurons(n) {
            a2 += f64::from(token.a2[*i as usize]);
            s2 += f64::from(token.s2[*i as usize]);
        }
        match site {
            Site::Weight { .. } => {}
            Site::Input { experts: squares_tn, .. } => s2 = f64::from(squares_tn[t * experts.count() + n]),
            Site::Output { y2 } => s2 = f64::from(y2[t]),
        }
        let (a, s) = (a2.sqrt(), s2.sqrt());
        of_experts.add_token(n, a, s);
        if let (Some(scale), Some(sums)) = (imaging.scale, &mut sums.log1p_experts) {
            let root_width = experts.root_width(n);
            let log1p = |x: f64, scale: f64| (x / root_width / scale).ln_1p();
            sums.add_token(n, log1p(a, scale.activation), log1p(s, scale.surprise));
        }
    }
}

/// log1p values of one token's neurons.
#[inline(always)]
fn add_log1p(sums: &mut UnitSums, token: &Token, scale: Log1pScale) {
    let width = token.a2.len();
    let (token_a2, token_s2) = (&token.a2[..width], &token.s2[..width]);
    let [a1, a2, s1, s2] = sums.each_mut().map(|sum| &mut sum[..width]);
    let [of_activation, of_surprise] = [scale.activation, scale.surprise].map(|scale| scale as f32);
    for i in 0..width {
        let a = f64::from(lanes::ln_1p(token_a2[i].sqrt() / of_activation));
        let s = f64::from(lanes::ln_1p(token_s2[i].sqrt() / of_surprise));
        a1[i] += a;
        a2[i] += a * a;
        s1[i] += s;
        s2[i] += s * s;
    }
}
