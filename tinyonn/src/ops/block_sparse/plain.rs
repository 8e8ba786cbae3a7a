//! Any dtype and device: rows gathered in the pairs' order, one product a segment, and gathered back.
//!
//! There is one block of tokens, so a segment is all of an expert's pairs. Nothing is added in place at an index, which is serial
//! on a GPU.

use candle_core::{Result, Tensor};

use super::super::sum_of_rows::{NOTHING, sum_of_rows};
use super::{BlockSparse, Segment};

impl BlockSparse {
    /// Rows of A `[t, d]`, one a pair.
    fn of_pairs(&self, a_td: &Tensor) -> Result<Tensor> {
        a_td.index_select(&Tensor::new(self.pair_token.as_slice(), a_td.device())?, 0)
    }

    /// Rows of B `[i, d]`, sorted by expert.
    fn sorted(&self, b_id: &Tensor) -> Result<Tensor> {
        b_id.index_select(&Tensor::new(self.neurons.as_slice(), b_id.device())?, 0)
    }

    fn rows_of(&self, sorted_id: &Tensor, segment: &Segment) -> Result<Tensor> {
        sorted_id.narrow(0, self.starts[segment.expert], self.width(segment.expert))
    }

    fn matrix(&self, v_l: &Tensor, segment: &Segment) -> Result<Tensor> {
        let shape = (segment.pairs.len(), self.width(segment.expert));
        v_l.narrow(0, segment.values.start, segment.values.len())?.reshape(shape)
    }
}

fn rows_of_pairs(a_pd: &Tensor, segment: &Segment) -> Result<Tensor> {
    a_pd.narrow(0, segment.pairs.start, segment.pairs.len())
}

pub(super) fn sampled_product(s: &BlockSparse, a_td: &Tensor, b_id: &Tensor) -> Result<Tensor> {
    let (a_pd, b_id) = (s.of_pairs(a_td)?, s.sorted(b_id)?);
    let product = |segment| rows_of_pairs(&a_pd, segment)?.matmul(&s.rows_of(&b_id, segment)?.t()?)?.flatten_all();
    Tensor::cat(&s.segments.iter().map(product).collect::<Result<Vec<_>>>()?, 0)
}

pub(super) fn product<const N: usize>(s: &BlockSparse, pairs: [(&Tensor, &Tensor); N]) -> Result<Tensor> {
    let mut sum_pd: Option<Tensor> = None;
    for (v_l, b_id) in pairs {
        let b_id = s.sorted(b_id)?;
        let product = |segment| s.matrix(v_l, segment)?.matmul(&s.rows_of(&b_id, segment)?);
        let y_pd = Tensor::cat(&s.segments.iter().map(product).collect::<Result<Vec<_>>>()?, 0)?;
        sum_pd = Some(match sum_pd {
            Some(sum_pd) => (sum_pd + y_pd)?,
            None => y_pd,
        });
    }
    let mut lists = vec![Vec::new(); s.tokens];
    s.pair_token.iter().zip(0..).for_each(|(token, pair)| lists[*token as usize].push(pair));
    match sum_pd {
        Some(sum_pd) => sum_of_rows(&sum_pd, &lists),
        None => candle_core::bail!("a sum of no products"),
    }
}

pub(super) fn transposed_product(s: &BlockSparse, v_l: &Tensor, a_td: &Tensor, learns: &[bool]) -> Result<Tensor> {
    let (a_pd, device) = (s.of_pairs(a_td)?, a_td.device());
    let (mut row_of, mut products, mut count) = (vec![NOTHING; learns.len()], Vec::new(), 0u32);
    for segment in &s.segments {
        let neurons = s.neurons(segment.expert);
        let own: Vec<u32> = (0..neurons.len() as u32).filter(|j| learns[neurons[*j as usize] as usize]).collect();
        if own.is_empty() {
            continue;
        }
        for j in &own {
            row_of[neurons[*j as usize] as usize] = count;
            count += 1;
        }
        let v_pw = s.matrix(v_l, segment)?;
        let v_pw = if own.len() == neurons.len() { v_pw } else { v_pw.index_select(&Tensor::new(own, device)?, 1)? };
        products.push(v_pw.t()?.matmul(&rows_of_pairs(&a_pd, segment)?)?);
    }
    if products.is_empty() {
        return Tensor::zeros((learns.len(), a_td.dim(1)?), a_td.dtype(), device);
    }
    Tensor::cat(&products, 0)?.index_select(&Tensor::new(row_of, device)?, 0)
}

pub(super) fn spread_pairs(s: &BlockSparse, pair: &Tensor) -> Result<Tensor> {
    let of_value = s.segments.iter().flat_map(|segment| {
        let width = s.width(segment.expert);
        segment.pairs.clone().flat_map(move |pair| std::iter::repeat_n(pair as u32, width))
    });
    pair.index_select(&Tensor::new(of_value.collect::<Vec<u32>>(), pair.device())?, 0)
}

pub(super) fn pair_sums(s: &BlockSparse, v_l: &Tensor) -> Result<Tensor> {
    let sum = |segment| s.matrix(v_l, segment)?.sum(1);
    Tensor::cat(&s.segments.iter().map(sum).collect::<Result<Vec<_>>>()?, 0)
}
