//! temporary
#![allow(missing_docs, unused)]
use super::*;
use candle_core::{Result, Tensor};
use std::sync::Arc;
pub fn shared_mlp(
    x: &Tensor,
    w: MlpWeights<'_>,
    gate: MlpGate<'_>,
    runs: &[Run],
    probe: Option<(Arc<dyn MlpProbe>, usize)>,
) -> Result<Tensor> {
    let (d, n) = gate.gate_tn.dims2()?;
    let open = Tensor::ones((1, n), gate.gate_tn.dtype(), gate.gate_tn.device())?;
    let rows: Vec<u32> =
        runs.iter().flat_map(|r| std::iter::repeat_n(r.decision.unwrap_or(d) as u32, r.rows.len())).collect();
    let rows = Tensor::new(rows.as_slice(), gate.gate_tn.device())?;
    let g = Tensor::cat(&[gate.gate_tn, &open], 0)?.index_select(&rows, 0)?;
    glu_mlp(x, w, Some(MlpGate { gate_tn: &g, neuron_expert: gate.neuron_expert }), probe)
}
pub fn merged_mlp(
    x: &Tensor,
    w: MlpWeights<'_>,
    deltas: &[Option<[&Tensor; 3]>],
    gate_dn: &Tensor,
    runs: &[Run],
) -> Result<Tensor> {
    glu_mlp(x, w, None, None)
}
pub fn replica_dispatch(
    x: &Tensor,
    w: MlpWeights<'_>,
    deltas: &[Option<[&Tensor; 3]>],
    gate_tn: &Tensor,
) -> Result<Tensor> {
    glu_mlp(x, w, None, None)
}
