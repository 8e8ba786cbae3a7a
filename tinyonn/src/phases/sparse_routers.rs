//! The routers of a layer that is made sparse: fitted in closed form to what their choices would add on the sparse stream, and bounded to a share of the layer
//! ([`choice_calibration`](crate::imaging::choice_calibration)).

use candle_core::Tensor;

use super::run::Run;
use super::sparse_layers::{Making, put};
use crate::checkpoint::{ParamStore, mixture_prefix};
use crate::imaging::choice_calibration::{choice_parameters, routed_cut};
use crate::imaging::{Choose, Cut, calibrate_choices};
use crate::moe::{MoeLayer, Neurons};
use crate::ops::host;
use crate::train::router_fit::RIDGE;
use crate::train::{OutputNorms, RouterSums};
use crate::{Error, Result};

/// Operations of a layer's routers, as a share of its MLP's, at most.
const MOST: f64 = 0.05;

/// What came of a layer's routers.
pub(super) struct Bounded {
    /// Candidates and neurons of the layer.
    pub(super) cut: Cut,
    /// The part of the best choice's win that theirs keeps.
    pub(super) kept: f64,
}

impl Run<'_> {
    /// The operations of a layer's routers, as a share of its MLP's: 0 where there are none.
    pub(super) fn router_share(&self) -> f64 {
        let (spec, d, i) = (&self.variant.spec, self.dense.cfg.hidden_size, self.dense.cfg.intermediate_size);
        spec.router_operations(d).unwrap_or(0) as f64 / (3 * i * d).max(1) as f64
    }

    /// Refuses routers that cost more than they can be worth.
    pub(super) fn check_routers(&self) -> Result<()> {
        let (spec, d) = (&self.variant.spec, self.dense.cfg.hidden_size);
        if let Some((_, r)) = spec.shared_projection(usize::MAX).filter(|(_, r)| *r >= d) {
            let problem = format!("`linear(dim = {r})` reduces nothing of the hidden size {d}");
            return Err(Error::variant(spec.name.clone(), problem, format!("use less than {d}, or `router = linear`")));
        }
        let share = self.router_share();
        if share <= MOST {
            return Ok(());
        }
        let nodes: usize = spec.levels.iter().map(crate::moe::LevelSpec::nodes).sum();
        let fits = (MOST * (3 * self.dense.cfg.intermediate_size * d) as f64 / (d + nodes) as f64) as usize;
        let problem = format!("its routers cost {:.1} % of the MLPs' operations, more than 5 %", 100.0 * share);
        let remedy = match fits {
            0 => "declare fewer groups".to_owned(),
            _ => format!("declare `router = linear(dim = {fits})` or less, or fewer groups"),
        };
        Err(Error::variant(spec.name.clone(), problem, remedy))
    }

    /// Fits the routers of a layer to what it sees, `seen` in pieces `[n, d]`.
    pub(super) fn fit_routers(
        &self,
        store: &mut ParamStore,
        layer: &MoeLayer,
        seen: impl Iterator<Item = Result<Tensor>>,
        making: &Making<'_>,
    ) -> Result<()> {
        let (norms, mut sums) = (OutputNorms::new(layer)?, RouterSums::new(self.dense.cfg.hidden_size));
        for x_nd in seen {
            let x_nd = x_nd?;
            sums.push(&x_nd, &making.target.of(&norms.of(&x_nd)?)?)?;
        }
        for (name, value) in sums.solve(RIDGE)?.parameters(layer.spec(), &self.device)? {
            put(store, &format!("{}.{name}", mixture_prefix(layer.layer())), value)?;
        }
        Ok(())
    }

    /// Bounds the choices of a layer whose routers were fitted, by rows `[n, d]` that it sees; `layer` is as the store has it.
    pub(super) fn bound_choices(
        &self,
        store: &mut ParamStore,
        layer: &MoeLayer,
        x_nd: &Tensor,
        making: &Making<'_>,
    ) -> Result<Bounded> {
        let (at, spec) = (layer.layer(), layer.spec());
        let (asked, worth_i) = (making.cuts[at], making.worth.and_then(|worth| worth.get(at)));
        let operations = asked.operations();
        let cut = match (spec.neurons, making.candidates) {
            (Neurons::All, _) => Cut::of(operations, operations),
            // As near as the layer's operations allow: no more neurons than candidates, and some.
            (_, Some(share)) => {
                let candidates = share.clamp(operations.min(1.0), (2.9 * operations).min(1.0));
                Cut::of(candidates, (3.0 * operations - candidates) / 2.0)
            }
            _ => routed_cut(layer, x_nd, operations, worth_i)?,
        };
        self.set_choices(store, layer, x_nd, cut.candidates, making.choose)?;
        let bounded = (self.variant.build)(&self.dense.cfg, at, store.frozen().pp(mixture_prefix(at)))?;
        Ok(Bounded { cut, kept: kept_of_the_best(&bounded, x_nd)? })
    }

    /// Bounds a layer's choices to the share of its neurons.
    pub(super) fn set_choices(
        &self,
        store: &mut ParamStore,
        layer: &MoeLayer,
        x_nd: &Tensor,
        share: f64,
        choose: Choose,
    ) -> Result<()> {
        let found = calibrate_choices(layer, x_nd, share, choose)?;
        for (name, value) in choice_parameters(&found, &self.device)? {
            put(store, &format!("{}.{name}", mixture_prefix(layer.layer())), value)?;
        }
        Ok(())
    }
}

/// (a − c)/(b − c): a what the experts chosen for the rows x `[n, d]` add up to, Σ ‖y‖, b what as many pairs (row, expert) of largest ‖y‖ would, c as many drawn
/// at random.
fn kept_of_the_best(layer: &MoeLayer, x_nd: &Tensor) -> Result<f64> {
    let (spec, norms) = (layer.spec(), host::in_memory(&OutputNorms::new(layer)?.of(x_nd)?)?);
    let (routed, nodes) = (spec.routed_experts(), spec.levels.iter().map(crate::moe::LevelSpec::nodes).sum::<usize>());
    let Some(gates) = layer.taken(x_nd)? else { return Ok(1.0) };
    let gates = host::in_memory(&gates)?;
    let own = norms.chunks_exact(nodes.max(1)).map(|row| &row[nodes - routed..]);
    let mut of_all: Vec<(f32, bool)> = own
        .zip(gates.chunks_exact(spec.experts()))
        .flat_map(|(norms, gates)| norms.iter().zip(gates).map(|(norm, gate)| (*norm, *gate > 0.0)))
        .collect();
    let sum = |pairs: &[(f32, bool)]| pairs.iter().map(|(norm, _)| f64::from(*norm)).sum::<f64>();
    let taken: f64 = of_all.iter().filter(|(_, taken)| *taken).map(|(norm, _)| f64::from(*norm)).sum();
    let count = of_all.iter().filter(|(_, taken)| *taken).count();
    let by_chance = sum(&of_all) * count as f64 / of_all.len().max(1) as f64;
    of_all.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    let best = sum(&of_all[..count]);
    Ok(if best > by_chance { (taken - by_chance) / (best - by_chance) } else { 1.0 })
}
