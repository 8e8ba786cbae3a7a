//! Routing, which every layer of every variant shares: what decides, what it decides for, and the gates that come of it.
//!
//! Legend: B sequences of T tokens; D decisions; N experts. All forms of `route_per` are causal: a decision reads nothing that comes
//! after the tokens it is for (DESIGN §1, "what shares a decision").

use candle_core::{D, DType, Device, Tensor, Var};

use super::gate::{self, Scores};
use super::select::{Selection, select};
use super::{Balance, Gate, MoeLayer, MoeSpec, Pfag, RoutePer, balance};
use crate::decoder::{Active, InTraining, Keep, Load, Pass, PathTable};
use crate::ops::segment_means::{self, Segments};
use crate::ops::{Grads, RowRun, elementwise, gaussian_routing, open_gates};
use crate::{Error, Result};

/// The gates of a layer, and which tokens they are for.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::moe::Routing;
/// use tinyonn::ops::RowRun;
///
/// assert!(Routing::All.by_token()?.is_none());
/// // Two decisions over two experts, for the first token and for the two behind it.
/// let gate_dn = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
/// let runs = vec![RowRun { rows: 0..1, decision: Some(0) }, RowRun { rows: 1..3, decision: Some(1) }];
/// let routing = Routing::Shared { gate_dn, runs, whole: false };
/// let by_token = routing.by_token()?.expect("it is routed").to_vec2::<f32>()?;
/// assert_eq!(by_token, [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
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
        runs: Vec<RowRun>,
        /// Whether every decision takes every expert at weight one, as the declaration or the paths have it.
        whole: bool,
    },
}

impl Routing {
    /// `[B·T]` u8, 1 for each token that a decision is for. `None` if that is every token, or if nothing is decided and all experts take all
    /// tokens.
    pub(super) fn decided(&self, device: &Device) -> Result<Option<Tensor>> {
        let Self::Shared { runs, .. } = self else { return Ok(None) };
        if runs.iter().all(|run| run.decision.is_some()) {
            return Ok(None);
        }
        let marks = runs.iter().flat_map(|run| std::iter::repeat_n(u8::from(run.decision.is_some()), run.rows.len()));
        let marks: Vec<u8> = marks.collect();
        let tokens = marks.len();
        Ok(Some(Tensor::from_vec(marks, tokens, device)?))
    }

    /// The number of decisions.
    pub(super) fn decisions(&self) -> Result<usize> {
        match self {
            Self::All => Ok(0),
            Self::Each(gate) | Self::Shared { gate_dn: gate, .. } => Ok(gate.dim(0)?),
        }
    }

    /// The work that each of `experts` experts was given by decisions; where nothing was decided, each was given all tokens `[t, d]`.
    pub(super) fn load(&self, experts: usize, x_td: &Tensor) -> Result<Load> {
        let (gate_dn, rows) = match self {
            Self::All => {
                let tokens = x_td.dim(0)? as f64;
                (Tensor::ones((1, experts), DType::F32, x_td.device())?, Some(vec![tokens as f32]))
            }
            Self::Each(gate_tn) => (gate_tn.detach(), None),
            Self::Shared { gate_dn, runs, .. } => {
                let mut rows = vec![0f32; gate_dn.dim(0)?];
                for run in runs {
                    if let Some(decision) = run.decision {
                        rows[decision] += run.rows.len() as f32;
                    }
                }
                (gate_dn.detach(), Some(rows))
            }
        };
        let [tokens_n, counts] = open_gates(&gate_dn, rows)?;
        Ok(Load { tokens_n, counts, neurons_t: None, inputs_t: None })
    }

    /// Sums over the tokens of each decision of values `[B·T, N]`: `[D, N]`.
    pub(super) fn by_decision(&self, values_tn: &Tensor) -> Result<Tensor> {
        let Self::Shared { gate_dn, runs, .. } = self else { return Ok(values_tn.clone()) };
        let (decisions, device) = (gate_dn.dim(0)?, values_tn.device());
        let of_run = |run: &RowRun| std::iter::repeat_n(run.decision.unwrap_or(decisions) as u32, run.rows.len());
        let decision_1t =
            Tensor::new(runs.iter().flat_map(of_run).collect::<Vec<u32>>().as_slice(), device)?.unsqueeze(0)?;
        let own_d1 = Tensor::arange(0, decisions as u32, device)?.unsqueeze(1)?;
        let member_dt = decision_1t.broadcast_eq(&own_d1)?.to_dtype(values_tn.dtype())?;
        Ok(member_dt.matmul(values_tn)?)
    }

    /// The gates of every token of x, `[B·T, N]`; ones where all `experts` are active.
    pub(super) fn gates(&self, experts: usize, x: &Tensor) -> Result<Tensor> {
        match self.by_token()? {
            Some(gate_tn) => Ok(gate_tn.detach()),
            None => Ok(Tensor::ones((x.dim(0)? * x.dim(1)?, experts), x.dtype(), x.device())?),
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
            Self::Shared { gate_dn, runs, .. } => (gate_dn, runs),
        };
        // A row of ones behind the decisions: what runs all active.
        let (decisions, experts) = gate_dn.dims2()?;
        let open = Tensor::ones((1, experts), gate_dn.dtype(), gate_dn.device())?;
        let of_run = |run: &RowRun| std::iter::repeat_n(run.decision.unwrap_or(decisions) as u32, run.rows.len());
        let rows: Vec<u32> = runs.iter().flat_map(of_run).collect();
        let rows = Tensor::new(rows.as_slice(), gate_dn.device())?;
        Ok(Some(Tensor::cat(&[gate_dn, &open], 0)?.index_select(&rows, 0)?))
    }
}

/// What the derivative of routers' decisions needs.
#[derive(Debug)]
pub(super) struct Saved {
    /// What the routers were asked about, `[D, d]`.
    x_rd: Tensor,
    /// The noise on it.
    jitter: Option<Tensor>,
    /// None, where all routers were asked at once.
    scores: Scores,
    /// What that takes to go back.
    gaussians: Option<gaussian_routing::Saved>,
    /// All scores, `[D, nodes]`, where a kernel made the gates.
    logits_dn: Option<Tensor>,
    taken_dn: Tensor,
    /// In training, what auxiliary losses count, and the choices of the whole batch that fell on each expert.
    counted: Option<(f64, Tensor)>,
    dtype: DType,
}

/// How a layer is routed, and what comes of it.
#[derive(Debug)]
pub(super) struct Routed {
    pub(super) routing: Routing,
    /// The declared auxiliary loss, in training.
    pub(super) auxiliary: Option<Tensor>,
    /// Where a gradient passes through the decisions.
    pub(super) saved: Option<Saved>,
}

/// Routes the inputs x `[B, T, d]` of a layer as `pass` asks.
///
/// # Errors
/// Paths without tasks, or of other tasks, layers or experts than the model's; what a router reports.
pub(super) fn route(module: &MoeLayer, x: &Tensor, pass: &Pass) -> Result<Routed> {
    let (spec, layer) = (module.spec(), module.layer());
    let routing = match (&pass.active, spec.route_per) {
        (Active::All, _) => Routing::All,
        // No level: there is nothing but experts that always take part.
        _ if spec.levels.is_empty() => Routing::All,
        (Active::Paths(table), _) => along(spec, layer, x, pass, Some(table))?,
        (Active::Routed, RoutePer::Task) => along(spec, layer, x, pass, pass.paths.as_deref())?,
        (Active::Routed, _) => return decided(module, x, pass),
    };
    Ok(Routed { routing, auxiliary: None, saved: None })
}

/// By the routers.
fn decided(module: &MoeLayer, x: &Tensor, pass: &Pass) -> Result<Routed> {
    let (spec, layer) = (module.spec(), module.layer());
    let (b, t, _) = x.dims3()?;
    let shared = Shared::new(spec.route_per, t);
    if shared.as_ref().is_some_and(|shared| shared.decisions == 0) {
        return Ok(Routed { routing: Routing::All, auxiliary: None, saved: None });
    }
    let inputs = |values: &Tensor| -> Result<Tensor> {
        Ok(match &shared {
            None => values.flatten_to(1)?,
            Some(shared) => segment_means::forward(values, shared.segments())?,
        })
    };
    let mut x_rd = inputs(&x.detach())?;
    let jitter = match &pass.training {
        Some(training) => balance::jitter(spec, layer, training, &x_rd)?,
        None => None,
    };
    if let Some(noise_rd) = &jitter {
        x_rd = (elementwise::cast(&x_rd, DType::F32)? * noise_rd)?;
    }
    let surprisal = match (spec.pfag, &pass.surprisal) {
        (Pfag::Surprisal, Some(surprisal)) => {
            Some(inputs(&surprisal.to_dtype(DType::F32)?.unsqueeze(2)?)?.flatten_all()?)
        }
        _ => None,
    };
    let asked = asked_at_once(module, &x_rd)?;
    let scores = match &asked {
        Some(_) => Scores { logits: Vec::new() },
        None => Scores::new(module, &x_rd)?,
    };
    let (logits_dn, gaussians) = match asked {
        Some((logits_dn, saved)) => (Some(logits_dn), Some(saved)),
        None => (module.hierarchy().map(|_| side_by_side(&scores)).transpose()?, None),
    };
    let mut counted = None;
    let Gates { logits_dn, taken_dn, gate_dn, auxiliary } =
        if let (Some(hierarchy), Some(logits_dn)) = (module.hierarchy(), logits_dn) {
            // It has no auxiliary loss.
            let [taken_dn, gate_dn] = hierarchy.gates(&logits_dn, x.dtype())?;
            Gates { logits_dn: Some(logits_dn), taken_dn, gate_dn, auxiliary: None }
        } else {
            let bias = match spec.balance {
                Balance::Bias { .. } => module.experts().balance_bias(spec)?,
                Balance::None | Balance::Loss { .. } => None,
            };
            let compared =
                if bias.is_some() || spec.pfag != Pfag::Off { scores.log_probs()? } else { scores.by_level()? };
            let with = Selection { bias: bias.as_deref(), surprisal: surprisal.as_ref() };
            let taken_dn = match module.choices() {
                Some(rule) => rule.within(&compared, &select(rule.spec(), &compared, with)?)?,
                None => select(spec, &compared, with)?,
            };
            let is_declared = spec.z_loss > 0.0 || matches!(spec.balance, Balance::Loss { .. });
            let training = pass.training.as_ref().filter(|_| is_declared);
            counted = training.map(|training| counts(spec, &taken_dn, training)).transpose()?;
            let auxiliary = match &counted {
                Some(counted) => auxiliary(spec, &scores, counted)?,
                None => None,
            };
            let gate_dn = gate::gates(spec, &scores, &taken_dn, x.dtype())?;
            Gates { logits_dn: None, taken_dn, gate_dn, auxiliary }
        };
    let routing = match shared {
        None => Routing::Each(gate_dn),
        Some(shared) => Routing::Shared { gate_dn, runs: shared.runs(b, t), whole: takes_all(spec) },
    };
    let differentiable = pass.keep != Keep::Nothing && (spec.gate != Gate::Unit || auxiliary.is_some());
    let dtype = x.dtype();
    let saved = differentiable.then(|| Saved { x_rd, jitter, scores, gaussians, logits_dn, taken_dn, counted, dtype });
    Ok(Routed { routing, auxiliary, saved })
}

/// What comes of the routers' scores.
struct Gates {
    logits_dn: Option<Tensor>,
    taken_dn: Tensor,
    gate_dn: Tensor,
    auxiliary: Option<Tensor>,
}

/// All scores, and what goes back through them, where kernels take them from x to gates.
fn asked_at_once(module: &MoeLayer, x_rd: &Tensor) -> Result<Option<(Tensor, gaussian_routing::Saved)>> {
    match (module.hierarchy(), module.gaussians()) {
        (Some(_), Some(gaussians)) => Ok(gaussians.forward(x_rd)?),
        _ => Ok(None),
    }
}

/// The scores of all levels, `[D, nodes]`.
fn side_by_side(scores: &Scores) -> Result<Tensor> {
    Ok(Tensor::cat(&scores.by_level()?, 1)?.contiguous()?)
}

/// What auxiliary losses count of this pass, and the choices that fell on each expert, of all ranks that pass the batch together where a loss reads them.
fn counts(spec: &MoeSpec, taken_dn: &Tensor, training: &InTraining) -> Result<(f64, Tensor)> {
    let taken_n = taken_dn.sum(0)?;
    let taken_n = match &training.ranks {
        Some(ranks) if matches!(spec.balance, Balance::Loss { .. }) => ranks.all_reduce(&taken_n)?,
        _ => taken_n,
    };
    Ok((training.share, taken_n))
}

/// The declared auxiliary loss, times the share of a step that this pass is.
fn auxiliary(spec: &MoeSpec, scores: &Scores, (share, taken_n): &(f64, Tensor)) -> Result<Option<Tensor>> {
    let loss = balance::auxiliary_loss(spec, scores, taken_n)?;
    Ok(if *share < 1.0 { loss.map(|loss| loss * *share).transpose()? } else { loss })
}

/// Whether every decision takes every expert at weight one.
fn takes_all(spec: &MoeSpec) -> bool {
    let all = |run: &super::RouterSpec| run.top_k == run.choices;
    spec.gate == Gate::Unit && spec.pfag == Pfag::Off && spec.levels.iter().flat_map(|l| l.routers.iter()).all(all)
}

impl Saved {
    /// `dx` and ∂L/∂x `[B, T, d]` through the decisions, if `input`, given ∂L/∂gate (none: they had no part in the output) and the auxiliary loss
    /// itself as a part of L. The routers' gradients go to `grads`.
    ///
    /// # Errors
    /// What a router reports.
    pub(super) fn backward(
        &self,
        module: &MoeLayer,
        dgate_dn: Option<&Tensor>,
        dx: Option<Tensor>,
        shape: &[usize],
        input: bool,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        if let (Some(gaussians), Some(saved)) = (module.gaussians(), &self.gaussians) {
            let Some(dlogits_dn) = self.dlogits_of_nodes(module, dgate_dn)? else { return Ok(dx) };
            let dx_rd = dx.map(|dx| dx.flatten_to(1)).transpose()?;
            let dx_rd = gaussians.backward(saved, &self.x_rd, &dlogits_dn, dx_rd, input, grads)?;
            // Decisions for runs of tokens read means, which are not asked at once.
            return Ok(dx_rd.map(|dx_rd| dx_rd.reshape(shape)).transpose()?);
        }
        match (dx, self.through(module, dgate_dn, shape, input, grads)?) {
            (Some(dx), Some(through)) => Ok(Some(elementwise::add(&dx, &through)?)),
            (dx, _) => Ok(dx),
        }
    }

    /// ∂L/∂x, if `input`, router by router.
    fn through(
        &self,
        module: &MoeLayer,
        dgate_dn: Option<&Tensor>,
        shape: &[usize],
        input: bool,
        grads: &mut Grads,
    ) -> Result<Option<Tensor>> {
        let spec = module.spec();
        let Some(dlogits) = self.dlogits(module, dgate_dn)? else { return Ok(None) };
        let (mut dx_rd, mut wide_rd): (Option<Tensor>, _) = (None, None);
        for (routers, dlogits) in module.routers().iter().zip(&dlogits) {
            for (router, dlogits) in routers.iter().zip(dlogits) {
                let Some(dlogits) = dlogits else { continue };
                let x_rd = gate::as_read(router.as_ref(), &self.x_rd, &mut wide_rd)?;
                if let Some(dx) = router.backward(x_rd, dlogits, input, grads)? {
                    let dx = elementwise::cast(&dx, self.x_rd.dtype())?;
                    dx_rd = Some(dx_rd.map_or(Ok(dx.clone()), |sum| elementwise::add(&sum, &dx))?);
                }
            }
        }
        let Some(mut dx_rd) = dx_rd.filter(|_| input) else { return Ok(None) };
        if let Some(noise_rd) = &self.jitter {
            dx_rd = (dx_rd * noise_rd)?;
        }
        let &[b, t, d] = shape else { return Ok(None) };
        Ok(Some(match Shared::new(spec.route_per, t) {
            None => elementwise::cast(&dx_rd.reshape(shape)?, self.dtype)?,
            Some(shared) => segment_means::backward(&dx_rd, shared.segments(), (b, t, d), self.dtype)?,
        }))
    }

    /// ∂L/∂ℓ of all nodes, where a kernel made the gates.
    fn dlogits_of_nodes(&self, module: &MoeLayer, dgate_dn: Option<&Tensor>) -> Result<Option<Tensor>> {
        match (module.hierarchy(), &self.logits_dn, dgate_dn) {
            (Some(hierarchy), Some(logits_dn), Some(dgate_dn)) => {
                Ok(Some(hierarchy.backward(logits_dn, &self.taken_dn, dgate_dn)?))
            }
            _ => Ok(None),
        }
    }

    /// ∂L/∂ℓ by level and run of routers; `None` where L does not depend on them.
    fn dlogits(&self, module: &MoeLayer, dgate_dn: Option<&Tensor>) -> Result<Option<Vec<Vec<Option<Tensor>>>>> {
        if self.logits_dn.is_some() {
            let Some(dlogits_dn) = self.dlogits_of_nodes(module, dgate_dn)? else { return Ok(None) };
            let mut first = 0;
            let mut own = |run: &Tensor| -> Result<Option<Tensor>> {
                let nodes = run.dim(1)? * run.dim(2)?;
                let part = dlogits_dn.narrow(1, first, nodes)?.contiguous()?.reshape(run.shape())?;
                first += nodes;
                Ok(Some(part))
            };
            let levels = self.scores.logits.iter().map(|runs| runs.iter().map(&mut own).collect());
            return levels.collect::<Result<Vec<_>>>().map(Some);
        }
        self.dlogits_by_tape(module.spec(), dgate_dn)
    }

    /// The way from scores to gates and to the auxiliary loss as an island of candle's own tape: a few plain operations over `[D, N]`.
    fn dlogits_by_tape(&self, spec: &MoeSpec, dgate_dn: Option<&Tensor>) -> Result<Option<Vec<Vec<Option<Tensor>>>>> {
        let vars = self.scores.logits.iter().map(|runs| runs.iter().map(Var::from_tensor).collect());
        let vars: Vec<Vec<Var>> = vars.collect::<candle_core::Result<_>>()?;
        let logits = vars.iter().map(|runs| runs.iter().map(|var| var.as_tensor().clone()).collect()).collect();
        let scores = Scores { logits };
        let own = self.counted.as_ref().map(|counted| auxiliary(spec, &scores, counted)).transpose()?;
        let mut loss = own.flatten();
        if let Some(dgate_dn) = dgate_dn.filter(|_| spec.gate != Gate::Unit) {
            let gate_dn = gate::gates(spec, &scores, &self.taken_dn, self.dtype)?;
            let through = (gate_dn * dgate_dn)?.to_dtype(DType::F32)?.sum_all()?;
            loss = Some(loss.map_or(Ok(through.clone()), |loss| loss + through)?);
        }
        let Some(loss) = loss else { return Ok(None) };
        let store = loss.backward()?;
        let of_runs = |runs: &Vec<Var>| runs.iter().map(|var| store.get(var).map(Tensor::detach)).collect();
        Ok(Some(vars.iter().map(of_runs).collect()))
    }
}

/// The decisions of one sequence. Each reads the tokens that have come since the decision before it.
struct Shared {
    /// How many there are.
    decisions: usize,
    /// Tokens that each reads: decision k reads those from k · reads on, and is for the tokens behind them.
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
        // No decision after the last token: it would be for none.
        Some(Self { decisions: (t.saturating_sub(1) / reads).min(most), reads })
    }

    /// The runs of the tokens of `b` sequences of `t`.
    fn runs(&self, b: usize, t: usize) -> Vec<RowRun> {
        let of_sequence = |row: usize| {
            (0..=self.decisions).map(move |at| {
                let end = if at == self.decisions { t } else { (at + 1) * self.reads };
                let decision = at.checked_sub(1).map(|index| row * self.decisions + index);
                RowRun { rows: row * t + at * self.reads..row * t + end, decision }
            })
        };
        (0..b).flat_map(of_sequence).collect()
    }

    /// What the decisions read.
    fn segments(&self) -> Segments {
        Segments { count: self.decisions, tokens: self.reads }
    }
}

/// Along given paths: one decision a sequence, by its task.
fn along(spec: &MoeSpec, layer: usize, x: &Tensor, pass: &Pass, table: Option<&PathTable>) -> Result<Routing> {
    let (b, t, _) = x.dims3()?;
    let table = table.ok_or_else(|| {
        Error::setting("paths", "route_per = task takes paths, and there are none", "set Pass::paths")
    })?;
    let tasks = pass.tasks.as_deref().filter(|tasks| tasks.len() == b).ok_or_else(|| {
        Error::setting("tasks", format!("paths need the task of each of {b} sequences"), "set Pass::tasks")
    })?;
    let experts = spec.experts();
    let mut gates = vec![0f32; b * experts];
    let mut whole = spec.gate != Gate::Normalised;
    for (gates, task) in gates.chunks_exact_mut(experts).zip(tasks) {
        let path = table.experts.get(*task as usize).and_then(|layers| layers.get(layer)).ok_or_else(|| {
            let problem = format!("none for task {task}, layer {layer}");
            Error::setting("paths", problem, "label every task and layer")
        })?;
        if path.is_empty() {
            let problem = format!("that of task {task}, layer {layer}, takes no expert");
            return Err(Error::setting("paths", problem, "give one or more"));
        }
        whole &= path.len() == spec.routed_experts();
        for expert in path.iter().map(|expert| *expert as usize).chain(spec.routed_experts()..experts) {
            *gates.get_mut(expert).ok_or_else(|| {
                Error::setting("paths", format!("expert {expert} of {experts}"), "label this variant")
            })? = 1.0;
        }
    }
    let gate_dn = Tensor::from_vec(gates, (b, experts), x.device())?;
    let gate_dn = match spec.gate {
        // Equal shares, since no router was asked.
        Gate::Normalised => gate_dn.broadcast_div(&gate_dn.sum_keepdim(D::Minus1)?)?,
        _ => gate_dn,
    };
    let runs = (0..b).map(|row| RowRun { rows: row * t..(row + 1) * t, decision: Some(row) }).collect();
    Ok(Routing::Shared { gate_dn: gate_dn.to_dtype(x.dtype())?, runs, whole })
}
