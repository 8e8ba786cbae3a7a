//! Routing, which every layer of every variant shares: what decides, what it decides for, and the gates that come of it.
//!
//! Legend: B sequences of T tokens; D decisions; N experts. All forms of `route_per` are causal: a decision reads nothing that comes
//! after the tokens it is for (DESIGN §1, "what shares a decision").

use candle_core::{D, DType, Tensor};

use super::gate::{self, Scores};
use super::select::{Selection, select};
use super::{Balance, MoeLayer, MoeSpec, Pfag, RoutePer, balance};
use crate::ops::Run;
use crate::qwen3::{Active, PathTable, RouteCtx};
use crate::{Error, Result};

/// The gates of a layer, and which tokens they are for.
#[derive(Clone, Debug)]
pub enum Routing {
    /// All experts, without gates: the pseudo-dense pass.
    All,
    /// A decision of its own for each token: `[B·T, N]`.
    Each(Tensor),
    /// Decisions that runs of tokens share.
    Shared {
        /// `[D, N]`.
        gate_dn: Tensor,
        /// All B·T tokens in their order; a run without a decision is all active.
        runs: Vec<Run>,
    },
}

impl Routing {
    /// Which of `tokens` tokens a decision is for.
    fn routed(&self, tokens: usize) -> Vec<bool> {
        match self {
            Self::All => vec![false; tokens],
            Self::Each(_) => vec![true; tokens],
            Self::Shared { runs, .. } => {
                runs.iter().flat_map(|run| std::iter::repeat_n(run.decision.is_some(), run.rows.len())).collect()
            }
        }
    }

    /// The gates of every token, `[B·T, N]`; `None` is all active.
    ///
    /// # Errors
    /// What the device reports.
    pub fn by_token(&self) -> Result<Option<Tensor>> {
        let (gate_dn, runs) = match self {
            Self::All => return Ok(None),
            Self::Each(gate_tn) => return Ok(Some(gate_tn.clone())),
            Self::Shared { gate_dn, runs } => (gate_dn, runs),
        };
        // A row of ones behind the decisions: what runs all active.
        let (decisions, experts) = gate_dn.dims2()?;
        let open = Tensor::ones((1, experts), gate_dn.dtype(), gate_dn.device())?;
        let of_run = |run: &Run| std::iter::repeat_n(run.decision.unwrap_or(decisions) as u32, run.rows.len());
        let rows: Vec<u32> = runs.iter().flat_map(of_run).collect();
        let rows = Tensor::new(rows.as_slice(), gate_dn.device())?;
        Ok(Some(Tensor::cat(&[gate_dn, &open], 0)?.index_select(&rows, 0)?))
    }
}

/// Routes the inputs x `[B, T, d]` of a layer as `ctx` asks.
///
/// # Errors
/// Paths without tasks, or of other tasks, layers or experts than the model's; what a router reports.
pub fn route(module: &MoeLayer, x: &Tensor, ctx: &RouteCtx) -> Result<Routing> {
    let (spec, layer) = (module.spec(), module.layer());
    let routing = match (&ctx.active, spec.route_per) {
        (Active::All, _) => Routing::All,
        (Active::Paths(table), _) => along(spec, layer, x, ctx, Some(table))?,
        (Active::Routed, RoutePer::Task) => along(spec, layer, x, ctx, ctx.paths.as_deref())?,
        (Active::Routed, _) => decided(module, x, ctx)?,
    };
    if let (Some(observer), Active::Routed | Active::Paths(_)) = (&ctx.observer, &ctx.active) {
        // Sequences too short for a decision are routed to all.
        let gate_tn = match routing.by_token()? {
            Some(gate_tn) => gate_tn,
            None => Tensor::ones((x.elem_count() / x.dim(D::Minus1)?, spec.experts()), x.dtype(), x.device())?,
        };
        observer.gates(layer, &gate_tn, &routing.routed(gate_tn.dim(0)?))?;
    }
    Ok(routing)
}

/// By the routers.
fn decided(module: &MoeLayer, x: &Tensor, ctx: &RouteCtx) -> Result<Routing> {
    let (spec, layer) = (module.spec(), module.layer());
    let (b, t, _) = x.dims3()?;
    let shared = Shared::new(spec.route_per, t);
    if shared.as_ref().is_some_and(|shared| shared.decisions == 0) {
        return Ok(Routing::All);
    }
    let inputs = |values: &Tensor| match &shared {
        None => Ok(values.flatten_to(1)?),
        Some(shared) => shared.means(values),
    };
    let mut x_rd = inputs(x)?;
    if let Some(seed) = ctx.training {
        x_rd = balance::jittered(spec, layer, seed, &x_rd)?;
    }
    let surprisal = match (spec.pfag, &ctx.surprisal) {
        (Pfag::Surprisal, Some(surprisal)) => {
            Some(inputs(&surprisal.to_dtype(DType::F32)?.unsqueeze(2)?)?.flatten_all()?.to_vec1::<f32>()?)
        }
        _ => None,
    };
    let scores = Scores::new(module, &x_rd)?;
    let bias = match spec.balance {
        Balance::Bias { .. } => module.experts().balance_bias(spec)?,
        Balance::None | Balance::Loss { .. } => None,
    };
    let compared = if bias.is_some() || spec.pfag != Pfag::Off { scores.log_probs()? } else { scores.by_level()? };
    let taken = select(spec, &compared, Selection { bias: bias.as_deref(), surprisal: surprisal.as_deref() })?;
    if let (Some(observer), Some(_)) = (&ctx.observer, ctx.training)
        && let Some(loss) = balance::auxiliary_loss(spec, &scores, &taken)?
    {
        observer.auxiliary_loss(layer, &loss)?;
    }
    let gate_dn = gate::gates(spec, &scores, &taken, x.dtype())?;
    Ok(match shared {
        None => Routing::Each(gate_dn),
        Some(shared) => Routing::Shared { gate_dn, runs: shared.runs(b, t) },
    })
}

/// Decisions that a sequence makes one after the other, each by as many tokens as come before it and have not been read.
struct Shared {
    /// How many.
    decisions: usize,
    /// Tokens that each reads: decision k reads those of k · reads.. and takes over behind them.
    reads: usize,
}

impl Shared {
    /// Those of a sequence of `t` tokens; `None` where each token decides for itself.
    fn new(route_per: RoutePer, t: usize) -> Option<Self> {
        let (reads, most) = match route_per {
            RoutePer::Token | RoutePer::Task => return None,
            RoutePer::Sequence { first } => (first.max(1), 1),
            RoutePer::Segment { tokens } => (tokens.max(1), usize::MAX),
        };
        // The last one has a token to be for.
        Some(Self { decisions: (t.saturating_sub(1) / reads).min(most), reads })
    }

    /// The runs of the tokens of `b` sequences of `t`.
    fn runs(&self, b: usize, t: usize) -> Vec<Run> {
        let of_sequence = |row: usize| {
            (0..=self.decisions).map(move |at| {
                let end = if at == self.decisions { t } else { (at + 1) * self.reads };
                let decision = at.checked_sub(1).map(|index| row * self.decisions + index);
                Run { rows: row * t + at * self.reads..row * t + end, decision }
            })
        };
        (0..b).flat_map(of_sequence).collect()
    }

    /// The means `[D, d]`, f32, of what the decisions read of values `[B, T, d]`.
    fn means(&self, values: &Tensor) -> Result<Tensor> {
        let (b, _, d) = values.dims3()?;
        let read = values.narrow(1, 0, self.decisions * self.reads)?.to_dtype(DType::F32)?;
        Ok(read.reshape((b, self.decisions, self.reads, d))?.mean(2)?.flatten_to(1)?)
    }
}

/// Along given paths: one decision a sequence, by its task.
fn along(spec: &MoeSpec, layer: usize, x: &Tensor, ctx: &RouteCtx, table: Option<&PathTable>) -> Result<Routing> {
    let (b, t, _) = x.dims3()?;
    let table = table.ok_or_else(|| {
        Error::setting("paths", "route_per = task takes paths, and there are none", "set RouteCtx::paths")
    })?;
    let tasks = ctx.tasks.as_deref().filter(|tasks| tasks.len() == b).ok_or_else(|| {
        Error::setting("tasks", format!("paths need the task of each of {b} sequences"), "set RouteCtx::tasks")
    })?;
    let experts = spec.experts();
    let mut gates = vec![0f32; b * experts];
    for (gates, task) in gates.chunks_exact_mut(experts).zip(tasks) {
        let path = table.experts.get(*task as usize).and_then(|layers| layers.get(layer)).ok_or_else(|| {
            let problem = format!("none for task {task}, layer {layer}");
            Error::setting("paths", problem, "label every task and layer")
        })?;
        if path.is_empty() {
            let problem = format!("that of task {task}, layer {layer}, takes no expert");
            return Err(Error::setting("paths", problem, "give one or more"));
        }
        for expert in path.iter().map(|expert| *expert as usize).chain(spec.routed_experts()..experts) {
            *gates.get_mut(expert).ok_or_else(|| {
                Error::setting("paths", format!("expert {expert} of {experts}"), "label this variant")
            })? = 1.0;
        }
    }
    let gate_dn = Tensor::from_vec(gates, (b, experts), x.device())?;
    let gate_dn = match spec.gate {
        // Equal shares, since no router was asked.
        super::Gate::Normalised => gate_dn.broadcast_div(&gate_dn.sum_keepdim(D::Minus1)?)?,
        _ => gate_dn,
    };
    let runs = (0..b).map(|row| Run { rows: row * t..(row + 1) * t, decision: Some(row) }).collect();
    Ok(Routing::Shared { gate_dn: gate_dn.to_dtype(x.dtype())?, runs })
}
