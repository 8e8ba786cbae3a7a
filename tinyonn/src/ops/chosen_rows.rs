//! A few tokens through an MLP of which each takes single neurons ([`chosen_neurons`](super::chosen_neurons)), f32 in main memory: decoding. A neuron is a row of all
//! three matrices, and rows of W_u that a token does not take are not read, nor those of W_d that its hidden values do not ask for. Where W_g reads a part of x it
//! lies by channels, whose rows are added up, 64 at a time; rows that are cut into pieces of columns cost a wait for memory each.
//!
//! Bytes decide: a matrix of 576 × 1536 is 3.5 MB, read once. The whole is one piece of work for the pool, which is entered once a call: that costs as much as reading a
//! hundred rows, and three products and an activation by themselves would each pay it. Within it there are two loops over rows: W_g, then W_u and W_d of what it chose.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::chosen_neurons::{ByChannel, NeuronChoice, ReadInputs, best_of, reaches, scores};
use super::glu_mlp::MlpWeights;
use super::host::in_memory;
use super::lanes;
use super::mlp_values::MlpValues;
use super::rows_apart::Rows;

/// Rows that a thread computes at a time; parts of y are added in their order: a constant, so that sums do not depend on the number of threads.
const ROWS: usize = 32;
/// Rows of W_gᵀ that a thread adds up at a time.
const CHANNELS: usize = 64;

/// Values (zeros where nothing was computed), y and how many neurons each token took, of x `[t, d]`, what W_g reads of it, and gates `[t, i]`.
///
/// # Errors
/// Shapes that do not go together; what the activation reports.
pub(super) fn forward(
    [x_td, gate_x_td]: [&Tensor; 2],
    matrices: &[Tensor; 3],
    weights: MlpWeights<'_>,
    gate_ti: Option<&Tensor>,
    choice: NeuronChoice<'_>,
) -> Result<(MlpValues, Tensor, Tensor)> {
    let ((t, d), i) = (x_td.dims2()?, matrices[0].dim(0)?);
    if matrices.iter().any(|matrix| matrix.dims() != [i, d]) {
        candle_core::bail!(
            "chosen_neurons: matrices {:?} and x {:?} do not go together",
            matrices[2].shape(),
            x_td.shape()
        );
    }
    rayon::scope(|_| {
        let gates = gate_ti.map(in_memory).transpose()?;
        let fixed = match choice {
            NeuronChoice::Fixed(kept_i) => Some(in_memory(kept_i)?),
            NeuronChoice::Gate { candidates_i, .. } => candidates_i.map(in_memory).transpose()?,
        };
        let gate_dc = match choice {
            NeuronChoice::Gate {
                inputs: Some(ReadInputs { by_channel: Some(ByChannel { gate_dc, .. }), .. }), ..
            } if gates.is_none() => Some(gate_dc),
            _ => None,
        };
        let candidates = fixed.as_ref().map_or(i, |marks| marks.iter().filter(|mark| **mark != 0.0).count());
        if gate_dc.is_some_and(|gate_dc| gate_dc.dims() != [d, candidates]) {
            candle_core::bail!("chosen_neurons: channels {gate_dc:?} of {d} inputs and {candidates} candidates");
        }
        let [gate, up, down] = matrices;
        let mut made = Made::new(t, d, i);
        let read = [x_td, gate_x_td, gate, up, down, gate_dc.unwrap_or(gate)];
        lanes::with_slices(read, |[x_td, gate_x_td, gate, up, down, channels]| {
            let slices = Slices { gate, by_channel: gate_dc.is_some().then_some(channels), up, down };
            for token in 0..t {
                let own = Token {
                    x: &x_td[token * d..][..d],
                    gate_x: &gate_x_td[token * d..][..d],
                    gates: gates.as_ref().map(|gates| &gates[token * i..][..i]),
                    fixed: fixed.as_deref(),
                };
                own.through(slices, weights, choice, &mut made.of(token))?;
            }
            Ok::<_, candle_core::Error>(())
        })??;
        let of = |values: Vec<f32>| Tensor::from_vec(values, (t, i), &Device::Cpu);
        let of_neurons = [of(made.g)?, of(made.u)?, of(made.h)?];
        let values = MlpValues::of(weights.activation, x_td.clone(), of_neurons, of(made.c)?)?;
        let y_td = Tensor::from_vec(made.y, (t, d), &Device::Cpu)?;
        Ok((values, y_td, Tensor::from_vec(made.taken, t, &Device::Cpu)?))
    })
}

/// The matrices' values.
#[derive(Clone, Copy)]
struct Slices<'a> {
    gate: &'a [f32],
    /// W_gᵀ of the candidates.
    by_channel: Option<&'a [f32]>,
    up: &'a [f32],
    down: &'a [f32],
}

/// What is made of all tokens; of neurons that are not taken u, h and c are zeros, of those that do not stand for choice g too.
struct Made {
    g: Vec<f32>,
    u: Vec<f32>,
    h: Vec<f32>,
    c: Vec<f32>,
    y: Vec<f32>,
    taken: Vec<f32>,
}

/// What is made of one.
struct MadeOf<'a> {
    g: &'a mut [f32],
    u: &'a mut [f32],
    h: &'a mut [f32],
    c: &'a mut [f32],
    y: &'a mut [f32],
    taken: &'a mut f32,
}

impl Made {
    fn new(t: usize, d: usize, i: usize) -> Self {
        let zeros = || vec![0f32; t * i];
        Self { g: zeros(), u: zeros(), h: zeros(), c: zeros(), y: vec![0f32; t * d], taken: vec![0f32; t] }
    }

    fn of(&mut self, token: usize) -> MadeOf<'_> {
        let tokens = self.taken.len();
        let (i, d) = (self.g.len() / tokens, self.y.len() / tokens);
        let [g, u, h, c] = [&mut self.g, &mut self.u, &mut self.h, &mut self.c].map(|all| &mut all[token * i..][..i]);
        MadeOf { g, u, h, c, y: &mut self.y[token * d..][..d], taken: &mut self.taken[token] }
    }
}

/// One token: x `[d]`, what W_g reads of it, the gates of its neurons `[i]`, and the marks of those that may be taken `[i]`.
struct Token<'a> {
    x: &'a [f32],
    gate_x: &'a [f32],
    gates: Option<&'a [f32]>,
    fixed: Option<&'a [f32]>,
}

/// W_u and W_d of some of its neurons.
struct Part {
    u: Vec<f32>,
    h: Vec<f32>,
    y: Vec<f32>,
}

impl Token<'_> {
    fn stands_for_choice(&self, neuron: usize) -> bool {
        self.gates.is_none_or(|gates| gates[neuron] != 0.0) && self.fixed.is_none_or(|kept| kept[neuron] != 0.0)
    }

    fn through(
        &self,
        matrices: Slices<'_>,
        weights: MlpWeights<'_>,
        choice: NeuronChoice<'_>,
        made: &mut MadeOf<'_>,
    ) -> Result<()> {
        let (width, i) = (self.x.len(), made.g.len());
        let candidates: Vec<u32> = (0..i as u32).filter(|at| self.stands_for_choice(*at as usize)).collect();
        let mut gate_values = vec![0f32; candidates.len()];
        match matrices.by_channel {
            Some(matrix) => {
                let read: Vec<u32> = (0..width as u32).filter(|j| self.gate_x[*j as usize] != 0.0).collect();
                let x: Vec<f32> = read.iter().map(|j| self.gate_x[*j as usize]).collect();
                let width = candidates.len();
                let part = |(at, x): (&[u32], &[f32])| {
                    let mut sum = vec![0f32; width];
                    Rows { matrix, width, at }.add_weighted(x, &mut sum);
                    sum
                };
                let parts: Vec<Vec<f32>> = read.par_chunks(CHANNELS).zip(x.par_chunks(CHANNELS)).map(part).collect();
                for part in parts {
                    gate_values.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
                }
            }
            None => gate_values.par_chunks_mut(ROWS).zip(candidates.par_chunks(ROWS)).for_each(|(out, at)| {
                Rows { matrix: matrices.gate, width, at }.dots(self.gate_x, out);
            }),
        }
        candidates.iter().zip(&gate_values).for_each(|(at, value)| made.g[*at as usize] = *value);
        let chosen = match choice {
            NeuronChoice::Fixed(_) => candidates,
            NeuronChoice::Gate { take, .. } => {
                let g_1i = Tensor::from_slice(&*made.g, (1, i), &Device::Cpu)?;
                let mut scores = in_memory(&scores(&g_1i, weights, choice)?)?;
                let scored = scores.iter_mut().enumerate();
                scored.filter(|(at, _)| !self.stands_for_choice(*at)).for_each(|(_, score)| *score = -1.0);
                best_of(&scores, take)
            }
        };
        let worth = match choice {
            NeuronChoice::Gate { worth_i, least_hidden, .. } if least_hidden > 0.0 => {
                Some((in_memory(worth_i)?, least_hidden))
            }
            _ => None,
        };
        let reads = |neuron: u32, hidden: f32| {
            worth.as_ref().is_none_or(|(worth, least)| reaches(hidden, worth[neuron as usize], *least))
        };
        let g: &[f32] = made.g;
        let part = |at: &[u32]| {
            let of = |values: Vec<f32>| Tensor::from_vec(values, (1, at.len()), &Device::Cpu);
            let (mut u, mut y) = (vec![0f32; at.len()], vec![0f32; width]);
            Rows { matrix: matrices.up, width, at }.dots(self.x, &mut u);
            let own = of(at.iter().map(|at| g[*at as usize]).collect())?;
            let h = in_memory(&weights.activation.forward(&own, &of(u.clone())?)?)?;
            let (mut read, mut gated) = (Vec::with_capacity(at.len()), Vec::with_capacity(at.len()));
            for (at, h) in at.iter().zip(&h).filter(|(at, h)| reads(**at, **h)) {
                read.push(*at);
                gated.push(self.gates.map_or(*h, |gates| h * gates[*at as usize]));
            }
            Rows { matrix: matrices.down, width, at: &read }.add_weighted(&gated, &mut y);
            Ok(Part { u, h, y })
        };
        let parts = chosen.par_chunks(ROWS).map(part).collect::<Result<Vec<_>>>()?;
        let mut read = 0usize;
        for (at, part) in chosen.chunks(ROWS).zip(parts) {
            for ((at, u), h) in at.iter().zip(part.u).zip(part.h) {
                let own = *at as usize;
                made.u[own] = u;
                if reads(*at, h) {
                    read += 1;
                    (made.h[own], made.c[own]) = (h, self.gates.map_or(1.0, |gates| gates[own]));
                }
            }
            made.y.iter_mut().zip(part.y).for_each(|(sum, value)| *sum += value);
        }
        *made.taken = 0.5 * (chosen.len() + read) as f32;
        Ok(())
    }
}
