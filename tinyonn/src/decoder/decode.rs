//! Writing token by token on a GPU: the step from a token of each row to the next is a captured graph, launched as one.
//!
//! Every matrix is read once for all rows ([`gemv`]), attention reads how many positions there are on the device ([`decode_attention`](crate::ops::decode_attention)), and the best
//! token of each row is found there, which the next step reads: of a greedy text the host sees nothing but its tokens. The first step is made launch by launch, so that
//! kernels are compiled and the workspace is there; the second is captured. What layers compute by plain operations is captured with the rest, if it reads nothing by the
//! host; a step that does is made launch by launch each time.

use candle_core::Tensor;

use super::{Active, CausalLm, FeedForward, KvCache, Pass};
use crate::Result;
use crate::ops::decode_attention::Past;
use crate::ops::gemv::{self, Normed, Stored};
use crate::ops::graph::{Graph, sent_once};
use crate::ops::{Workspace, host, next_token};

/// Rows on their way, each by one token a step.
#[derive(Debug)]
pub(super) struct Decoding {
    workspace: Workspace,
    /// The newest token of each row `[B]`.
    ids: Tensor,
    /// Where they stand, `[1]`.
    position: Tensor,
    /// What the step before said, `[B, V]` f32.
    logits_bv: Option<Tensor>,
    step: Step,
}

/// How the next step is made.
#[derive(Debug)]
enum Step {
    First,
    Second,
    Captured(Graph),
    /// Launch by launch: it reads by the host.
    Launched,
}

/// Whether a pass asks for nothing that only whole passes say.
fn is_plain(pass: &Pass) -> bool {
    let ask = &pass.ask;
    let asked = ask.load || ask.gates || ask.outputs || ask.inputs.is_some() || ask.hidden.is_some();
    !asked && pass.surprisal.is_none() && !matches!(pass.active, Active::Paths(_))
}

impl Decoding {
    /// Of rows whose newest tokens are to be read, behind what `cache` holds; `None` where the kernels do not take them.
    ///
    /// # Errors
    /// What the device reports.
    pub(super) fn new<F: FeedForward>(
        lm: &CausalLm<F>,
        pass: &Pass,
        cache: &KvCache,
        newest: &[u32],
    ) -> Result<Option<Self>> {
        let (model, device) = (lm.model(), lm.head().device());
        let reads = model.layers().iter().any(|layer| layer.mlp().reads_surprisal());
        let rows = (1..=gemv::MOST_ROWS).contains(&newest.len());
        if !device.is_cuda() || !is_plain(pass) || reads || !rows || !model.has_angles(cache.room())? {
            return Ok(None);
        }
        let (ids, position) = (Tensor::new(newest, device)?, Tensor::new(&[cache.positions() as u32], device)?);
        Ok(Some(Self { workspace: Workspace::default(), ids, position, logits_bv: None, step: Step::First }))
    }

    /// Reads the newest token of each row, `newest` where the host has chosen them; whether it could. Nothing has changed where not.
    ///
    /// # Errors
    /// What the device reports.
    pub(super) fn step<F: FeedForward>(
        &mut self,
        lm: &CausalLm<F>,
        pass: &Pass,
        cache: &mut KvCache,
        newest: Option<&[u32]>,
    ) -> Result<bool> {
        let device = lm.head().device().clone();
        if let Some(newest) = newest {
            self.ids.slice_set(&Tensor::new(newest, &device)?, 0, 0)?;
        }
        match std::mem::replace(&mut self.step, Step::Launched) {
            Step::First => {
                if !sent_once(&device, || self.launches(lm, pass, cache))? {
                    return Ok(false);
                }
                self.step = Step::Second;
            }
            Step::Second => match Graph::capture(&device, || self.launches(lm, pass, cache).map(drop)) {
                Ok(graph) => {
                    graph.launch()?;
                    self.step = Step::Captured(graph);
                }
                Err(reason) => {
                    tracing::debug!("a step of decoding is not captured: {reason}");
                    self.launches(lm, pass, cache)?;
                }
            },
            Step::Captured(graph) => {
                graph.launch()?;
                self.step = Step::Captured(graph);
            }
            Step::Launched => drop(self.launches(lm, pass, cache)?),
        }
        cache.count_one();
        Ok(true)
    }

    /// A step's launches; `false` where a layer has none.
    fn launches<F: FeedForward>(&mut self, lm: &CausalLm<F>, pass: &Pass, cache: &KvCache) -> Result<bool> {
        let (model, workspace) = (lm.model(), &mut self.workspace);
        workspace.rewind();
        let mut x_bd = next_token::embedded(&self.ids, model.embed_tokens(), workspace)?;
        if !gemv::takes(&x_bd, &[lm.head()])? {
            return Ok(false);
        }
        let Some(past) = cache.with_room_for_one() else { return Ok(false) };
        for (layer, [keys_bskd, values_bskd]) in model.layers().iter().zip(past) {
            let past = Past { keys_bskd, values_bskd, position: &self.position };
            match layer.decode(&x_bd, model.rotary(), past, pass, workspace)? {
                Some(out_bd) => x_bd = out_bd,
                None => return Ok(false),
            }
        }
        let norm = model.last_norm();
        let of = Normed { x_bd: &x_bd, norm: Some((&norm.weight, norm.eps)) };
        let logits_bv = gemv::project(of, &[(lm.head(), None)], None, Stored::Rounded, workspace)?;
        next_token::choose(&logits_bv, &self.ids, &self.position, workspace)?;
        self.logits_bv = Some(logits_bv);
        Ok(true)
    }

    /// The best token of each row, by the logits of the last step; `u32::MAX` where none is a number.
    ///
    /// # Errors
    /// What the device reports.
    pub(super) fn best(&self) -> Result<Vec<u32>> {
        Ok(host::ids(&self.ids)?)
    }

    /// The logits of the last step, `[B · V]`.
    ///
    /// # Errors
    /// What the device reports.
    pub(super) fn logits(&self) -> Result<Vec<f32>> {
        self.logits_bv.as_ref().map_or(Ok(Vec::new()), |logits_bv| Ok(host::values(logits_bv)?))
    }
}
