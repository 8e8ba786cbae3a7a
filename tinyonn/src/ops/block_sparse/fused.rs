//! f32 on the CPU: rows are read and written where they lie, a task a block of tokens or an expert.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::super::lanes;
use super::super::row_tiles::{Accumulate, Dots};
use super::{BlockSparse, Segment};

/// Tokens a task handles: their rows stay in the cache while the experts' pass by.
pub(super) const TOKENS: usize = 256;

/// The rows of a matrix of `d` columns that `index` names.
fn rows<'a>(m: &'a [f32], d: usize, index: &[u32]) -> Vec<&'a [f32]> {
    index.iter().map(|row| &m[*row as usize * d..][..d]).collect()
}

impl BlockSparse {
    /// A vector of values, or of pairs, cut into the blocks'.
    fn by_block<'a>(&self, mut vector: &'a mut [f32], end: impl Fn(&Segment) -> usize) -> Vec<&'a mut [f32]> {
        let mut cut = Vec::with_capacity(self.blocks.len());
        let mut start = 0;
        for block in &self.blocks {
            let to = self.segments[block.clone()].last().map_or(start, &end);
            let (head, tail) = vector.split_at_mut(to - start);
            cut.push(head);
            (vector, start) = (tail, to);
        }
        cut
    }
}

pub(super) fn sampled_product(s: &BlockSparse, a_td: &Tensor, b_id: &Tensor) -> Result<Tensor> {
    let d = a_td.dim(1)?;
    let mut values = vec![0f32; s.values()];
    lanes::with_slices([a_td, b_id], |[a, b]| {
        let parts = s.by_block(&mut values, |segment| segment.values.end);
        parts.into_par_iter().zip(&s.blocks).for_each(|(mut out, block)| {
            for segment in &s.segments[block.clone()] {
                let (a, b) = (rows(a, d, &s.pair_token[segment.pairs.clone()]), rows(b, d, s.neurons(segment.expert)));
                let (own, rest) = out.split_at_mut(segment.values.len());
                pulp::Arch::new().dispatch(Dots { a: &a, b: &b, out: own });
                out = rest;
            }
        });
    })?;
    let count = values.len();
    Tensor::from_vec(values, count, a_td.device())
}

pub(super) fn product<const N: usize>(s: &BlockSparse, pairs: [(&Tensor, &Tensor); N]) -> Result<Tensor> {
    let (_, d) = pairs[0].1.dims2()?;
    let mut out = vec![0f32; s.tokens * d];
    for (v_l, b_id) in pairs {
        lanes::with_slices([v_l, b_id], |[v, b]| {
            out.par_chunks_mut(TOKENS * d).zip(&s.blocks).enumerate().for_each(|(at, (out, block))| {
                let mut out: Vec<&mut [f32]> = out.chunks_exact_mut(d).collect();
                for segment in &s.segments[block.clone()] {
                    let tokens = &s.pair_token[segment.pairs.clone()];
                    let local: Vec<u32> = tokens.iter().map(|token| token - (at * TOKENS) as u32).collect();
                    let neurons = s.neurons(segment.expert);
                    pulp::Arch::new().dispatch(Accumulate {
                        out: &mut out,
                        rows: &local,
                        coefficients: &v[segment.values.clone()],
                        strides: (neurons.len(), 1),
                        b: &rows(b, d, neurons),
                    });
                }
            });
        })?;
    }
    Tensor::from_vec(out, (s.tokens, d), pairs[0].1.device())
}

pub(super) fn transposed_product(s: &BlockSparse, v_l: &Tensor, a_td: &Tensor, learns: &[bool]) -> Result<Tensor> {
    let d = a_td.dim(1)?;
    let mut out = vec![0f32; learns.len() * d];
    let mut by_expert: Vec<Vec<&Segment>> = vec![vec![]; s.experts()];
    s.segments.iter().for_each(|segment| by_expert[segment.expert].push(segment));
    let mut of_neuron: Vec<Option<&mut [f32]>> = out.chunks_exact_mut(d).map(Some).collect();
    let mut tasks = Vec::with_capacity(s.experts());
    for (expert, segments) in by_expert.into_iter().enumerate() {
        let neurons = s.neurons(expert);
        let own: Vec<usize> = (0..neurons.len()).filter(|j| learns[neurons[*j] as usize]).collect();
        let rows: Vec<&mut [f32]> = own.iter().filter_map(|j| of_neuron[neurons[*j] as usize].take()).collect();
        tasks.push((neurons.len(), segments, own, rows));
    }
    lanes::with_slices([v_l, a_td], |[v, a]| {
        tasks.into_par_iter().for_each(|(width, segments, own, mut out)| {
            let targets: Vec<u32> = (0..own.len() as u32).collect();
            for segment in segments {
                let v = &v[segment.values.clone()];
                // The learners' columns alone, so that a tile of them is one of neighbours.
                let part: Vec<f32>;
                let (coefficients, width) = if own.len() == width {
                    (v, width)
                } else {
                    part = v.chunks_exact(width).flat_map(|v| own.iter().map(|j| v[*j])).collect();
                    (&part[..], own.len())
                };
                pulp::Arch::new().dispatch(Accumulate {
                    out: &mut out,
                    rows: &targets,
                    coefficients,
                    strides: (1, width),
                    b: &rows(a, d, &s.pair_token[segment.pairs.clone()]),
                });
            }
        });
    })?;
    Tensor::from_vec(out, (learns.len(), d), a_td.device())
}

pub(super) fn spread_pairs(s: &BlockSparse, pair: &Tensor) -> Result<Tensor> {
    let mut values = Vec::with_capacity(s.values());
    lanes::with_slices([pair], |[pair]| {
        for segment in &s.segments {
            let width = s.width(segment.expert);
            pair[segment.pairs.clone()].iter().for_each(|x| values.extend(std::iter::repeat_n(*x, width)));
        }
    })?;
    let count = values.len();
    Tensor::from_vec(values, count, pair.device())
}

pub(super) fn pair_sums(s: &BlockSparse, v_l: &Tensor) -> Result<Tensor> {
    let mut sums = vec![0f32; s.pair_token.len()];
    lanes::with_slices([v_l], |[v]| {
        for segment in &s.segments {
            let values = v[segment.values.clone()].chunks_exact(s.width(segment.expert));
            sums[segment.pairs.clone()].iter_mut().zip(values).for_each(|(sum, values)| *sum = values.iter().sum());
        }
    })?;
    let count = sums.len();
    Tensor::from_vec(sums, count, v_l.device())
}
