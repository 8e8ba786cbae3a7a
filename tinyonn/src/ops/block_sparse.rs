//! A sparse matrix [t, i] of tokens and neurons, whose blocks are (token, expert) pairs, and its three products.
//!
//! Legend: t tokens, d hidden, i neurons, n experts; p pairs with a gate other than zero, l values: one for each neuron of
//! each pair's expert. What an MLP computes for the chosen pairs only is (Gale et al., 2022, MegaBlocks) a *sampled* product of
//! dense matrices, V = (A Bᵀ) at the pairs, a product with a dense one, V B, and its transpose, Vᵀ A. Values are kept as
//! one vector `[l]`, pair by pair; pairs are ordered by (block of tokens, expert, token), so that an expert's tokens of a
//! block are one small matrix, a *segment*.
//!
//! f32 on the CPU runs register tiles over the rows where they lie ([`fused`]); everything else gathers rows, multiplies segment by segment and
//! gathers back ([`plain`]). Nothing is added in an order that depends on the number of threads.

mod fused;
mod plain;

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::glu_mlp::MlpGate;
use super::sum_of_rows::NOTHING;
use super::{Learners, lanes};

/// Which tokens meet which neurons.
#[derive(Debug)]
pub(super) struct BlockSparse {
    tokens: usize,
    /// Neurons by expert, ascending in each; `neurons[starts[n]..starts[n + 1]]` are expert n's.
    neurons: Vec<u32>,
    starts: Vec<usize>,
    /// The token of each pair.
    pair_token: Vec<u32>,
    /// By block of tokens, then expert; none is empty.
    segments: Vec<Segment>,
    /// The segments of each block of tokens.
    blocks: Vec<Range<usize>>,
    /// Whether the fused loops run.
    fused: bool,
}

/// An expert's pairs within a block of tokens: the matrix `[pairs, width]` of their values.
#[derive(Clone, Debug)]
struct Segment {
    expert: usize,
    pairs: Range<usize>,
    values: Range<usize>,
}

impl BlockSparse {
    /// The pairs with a gate other than zero.
    ///
    /// # Errors
    /// Gates of another number of tokens than `tokens`; a neuron of an expert without a gate.
    pub(super) fn new(gate: MlpGate<'_>, tokens: usize, fused: bool) -> Result<Self> {
        let (rows, experts) = gate.gate_tn.dims2()?;
        if rows != tokens {
            candle_core::bail!("dispatch_mlp: gates of {rows} tokens for {tokens} tokens");
        }
        let (neurons, starts) =
            lanes::with_ids(&gate.neuron_expert.contiguous()?, |owners| by_expert(owners, experts))??;
        let chosen = gate.gate_tn.detach().ne(0f64)?;
        let block = if fused { fused::TOKENS } else { tokens.max(1) };
        let mut pattern = Self { tokens, neurons, starts, pair_token: vec![], segments: vec![], blocks: vec![], fused };
        lanes::with_values(&chosen, |chosen: &[u8]| {
            for (b, chosen) in chosen.chunks(block * experts.max(1)).enumerate() {
                pattern.push_block(b * block, chosen);
            }
        })?;
        Ok(pattern)
    }

    /// Appends the pairs of a block of tokens, the first of which is `first`.
    fn push_block(&mut self, first: usize, chosen: &[u8]) {
        let experts = self.experts();
        let mut tokens = vec![Vec::new(); experts];
        for (t, row) in chosen.chunks_exact(experts).enumerate() {
            for (tokens, _) in tokens.iter_mut().zip(row).filter(|(_, chosen)| **chosen != 0) {
                tokens.push((first + t) as u32);
            }
        }
        let first_segment = self.segments.len();
        for (expert, tokens) in tokens.into_iter().enumerate() {
            let (pair, value) = (self.pair_token.len(), self.values());
            let (pairs, values) = (pair..pair + tokens.len(), value..value + tokens.len() * self.width(expert));
            // An expert without neurons says nothing to anybody.
            if values.is_empty() {
                continue;
            }
            self.pair_token.extend(tokens);
            self.segments.push(Segment { expert, pairs, values });
        }
        self.blocks.push(first_segment..self.segments.len());
    }

    fn experts(&self) -> usize {
        self.starts.len() - 1
    }

    fn width(&self, expert: usize) -> usize {
        self.starts[expert + 1] - self.starts[expert]
    }

    /// The neurons of an expert, ascending.
    fn neurons(&self, expert: usize) -> &[u32] {
        &self.neurons[self.starts[expert]..self.starts[expert + 1]]
    }

    /// l.
    fn values(&self) -> usize {
        self.segments.last().map_or(0, |segment| segment.values.end)
    }

    /// True if no token meets any neuron.
    pub(super) fn is_empty(&self) -> bool {
        self.values() == 0
    }

    /// V = A Bᵀ at the pairs `[l]`, for A `[t, d]` and B `[i, d]`.
    pub(super) fn sampled_product(&self, a_td: &Tensor, b_id: &Tensor) -> Result<Tensor> {
        if self.fused { fused::sampled_product(self, a_td, b_id) } else { plain::sampled_product(self, a_td, b_id) }
    }

    /// Σ V B `[t, d]` over pairs of V `[l]` and B `[i, d]`.
    pub(super) fn product<const N: usize>(&self, pairs: [(&Tensor, &Tensor); N]) -> Result<Tensor> {
        if self.fused { fused::product(self, pairs) } else { plain::product(self, pairs) }
    }

    /// Vᵀ A `[i, d]`, only the learners' rows, for V `[l]` and A `[t, d]`; and its multiply-adds.
    pub(super) fn transposed_product(&self, v_l: &Tensor, a_td: &Tensor, learners: &Learners) -> Result<(Tensor, u64)> {
        let learns = match learners {
            Learners::All => vec![true; self.neurons.len()],
            Learners::Neurons(neurons) => neurons.flags(self.neurons.len())?,
        };
        if self.is_empty() {
            return Ok((Tensor::zeros((self.neurons.len(), a_td.dim(1)?), a_td.dtype(), a_td.device())?, 0));
        }
        let product = if self.fused {
            fused::transposed_product(self, v_l, a_td, &learns)?
        } else {
            plain::transposed_product(self, v_l, a_td, &learns)?
        };
        let own = |expert: usize| self.neurons(expert).iter().filter(|neuron| learns[**neuron as usize]).count();
        let values: usize = self.segments.iter().map(|segment| segment.pairs.len() * own(segment.expert)).sum();
        Ok((product, (values * a_td.dim(1)?) as u64))
    }

    /// The gate of each value's pair, `[l]`, in the dtype of `like`.
    pub(super) fn gates(&self, gate_tn: &Tensor, like: DType) -> Result<Tensor> {
        let gate_p = gate_tn.flatten_all()?.to_dtype(like)?.index_select(&self.pair_index(gate_tn.device())?, 0)?;
        if self.fused { fused::spread_pairs(self, &gate_p) } else { plain::spread_pairs(self, &gate_p) }
    }

    /// The sum of the values of each pair, at its place in `[t, n]`; zero elsewhere.
    pub(super) fn pair_sums(&self, v_l: &Tensor) -> Result<Tensor> {
        let sum_p = if self.fused { fused::pair_sums(self, v_l)? } else { plain::pair_sums(self, v_l)? };
        let mut at = vec![NOTHING; self.tokens * self.experts()];
        self.each_pair(|pair, place| at[place] = pair as u32);
        sum_p.index_select(&Tensor::new(at, v_l.device())?, 0)?.reshape((self.tokens, self.experts()))
    }

    /// The values in their places `[t, i]`; zero elsewhere.
    pub(super) fn dense(&self, v_l: &Tensor) -> Result<Tensor> {
        let width = self.neurons.len();
        let mut at = vec![NOTHING; self.tokens * width];
        for segment in &self.segments {
            let neurons = self.neurons(segment.expert);
            let mut value = segment.values.clone();
            for token in &self.pair_token[segment.pairs.clone()] {
                for (neuron, value) in neurons.iter().zip(&mut value) {
                    at[*token as usize * width + *neuron as usize] = value as u32;
                }
            }
        }
        v_l.index_select(&Tensor::new(at, v_l.device())?, 0)?.reshape((self.tokens, width))
    }

    /// The place t·n + expert of each pair in the gates, `[p]`.
    fn pair_index(&self, device: &Device) -> Result<Tensor> {
        let mut index = vec![0u32; self.pair_token.len()];
        self.each_pair(|pair, place| index[pair] = place as u32);
        Tensor::new(index, device)
    }

    fn each_pair(&self, mut f: impl FnMut(usize, usize)) {
        for segment in &self.segments {
            for pair in segment.pairs.clone() {
                f(pair, self.pair_token[pair] as usize * self.experts() + segment.expert);
            }
        }
    }
}

/// Neurons sorted by expert, and where each expert's begin.
fn by_expert(owners: &[u32], experts: usize) -> Result<(Vec<u32>, Vec<usize>)> {
    let mut lists = vec![Vec::new(); experts];
    for (neuron, owner) in owners.iter().enumerate() {
        match lists.get_mut(*owner as usize) {
            Some(list) => list.push(neuron as u32),
            None => candle_core::bail!("dispatch_mlp: neuron {neuron} is of expert {owner} of {experts}"),
        }
    }
    let mut starts = vec![0];
    for list in &lists {
        starts.push(starts[starts.len() - 1] + list.len());
    }
    Ok((lists.concat(), starts))
}
