//! Labels of single tokens: the path that a token's own score asks for, from a second pass with the first one's moments (DESIGN §3).
//!
//! SPS_t,n = mean over the neurons i of n of z(a_ti) − z(S_ti), standardised by the moments of the layer's *scan*, which a single token has none
//! of; a token's path is then what a task's is, the best `k₁` groups and in each the best `k₂` experts. The mean of a task's token scores is its
//! ∫SPS. Other scores likewise; taylor is −h_ti δ_h,ti, its magnitude |h_ti δ_h,ti|, not standardised.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::inputs::Positions;
use super::labels::{node_scores, path};
use super::score::Terms;
use super::sps::{Standard, standards};
use super::{Integral, NeuronScan, Prices, RowLabels, ScanOptions, Score};
use crate::data::TokenSet;
use crate::metrics::check_loss;
use crate::moe::{MoeSpec, select};
use crate::ops::{self, MlpBackward, MlpProbe, WeightGrads};
use crate::qwen3::{FeedForward, Qwen3ForCausalLm, RouteCtx};
use crate::{Error, Result};

/// What tokens are labelled by.
#[derive(Clone, Copy)]
pub struct TokenScore<'a> {
    /// The first pass, whose moments standardise: of training text, whatever is labelled.
    pub scan: &'a NeuronScan,
    /// The score.
    pub score: Score,
    /// Minus each neuron's mean over the tasks of the scan.
    pub contrast: bool,
    /// The expert of each neuron, `[layer][i]`.
    pub units: &'a [Vec<u32>],
    /// The hierarchy.
    pub spec: &'a MoeSpec,
    /// By layer what choices cost, where tokens share the experts out evenly ([`token_prices`]): of training text too.
    pub prices: Option<&'a [Prices]>,
}

/// Which tokens are labelled, and the model that reads them.
pub struct TokenPass<'a, F> {
    /// The model.
    pub model: &'a Qwen3ForCausalLm<F>,
    /// The text.
    pub set: &'a TokenSet,
    /// How it is read.
    pub options: ScanOptions,
    /// One token in so many is labelled.
    pub stride: usize,
    /// Where.
    pub device: &'a Device,
}

/// Labels the tokens of a pass, by layer: the tokens that [`RouterInputs`](super::RouterInputs) of the same stride, options and set keep, in
/// their order. One forward through `model`, all active, and one backward to activations.
///
/// # Errors
/// A scan or units of another model; a loss that is no finite number; whatever the model reports.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::data::{TaskTokens, TokenSet};
/// use tinyonn::imaging::{ScanOptions, Score, TokenPass, TokenScore, scan, token_labels};
/// use tinyonn::moe::moe;
/// use tinyonn::qwen3::{Qwen3Config, Qwen3ForCausalLm};
///
/// #[moe(groups = 2, experts = 3, top_k = [1, 2])]
/// struct Six;
///
/// let cfg = Qwen3Config::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| Qwen3ForCausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = Qwen3ForCausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
/// let tokens = (0..90).map(|t| t * t % 32).collect();
/// let task = TaskTokens { name: "squares".into(), tokens, documents: vec![0; 90] };
/// let set = TokenSet { tasks: vec![task], documents: vec!["squares/a".into()], eos: 0 };
///
/// let options = ScanOptions { length: 16, batch: 4, tokens_per_task: 500 };
/// let first = scan(&model, &set, options, &Device::Cpu, None)?;
/// let units = [(0..24).map(|i| i / 4).collect()];
/// let by = TokenScore { scan: &first, score: Score::Sps, contrast: false, units: &units, spec: &Six::SPEC, prices: None };
/// let labels = token_labels(&TokenPass { model: &model, set: &set, options, stride: 1, device: &Device::Cpu }, by)?;
/// assert_eq!(labels[0].class_of_row.len(), 89); // all but the first token are targets
/// assert_eq!(labels[0].path(0).len(), 2); // two experts of one group
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn token_labels<F: FeedForward>(pass: &TokenPass<'_, F>, by: TokenScore<'_>) -> Result<Vec<RowLabels>> {
    let (spec, widths) = (by.spec.clone(), select::path_widths(by.spec));
    let prices = by.prices.map(<[Prices]>::to_vec);
    let path_of = move |layer: usize, mut scores: Vec<Vec<f64>>| {
        if let Some(prices) = prices.as_ref().and_then(|prices| prices.get(layer)) {
            prices.mark(&spec, &widths, &mut scores);
        }
        path(&spec, &scores)
    };
    let paths = rows(pass, by, path_of)?;
    Ok(paths.into_iter().map(RowLabels::from_paths).collect())
}

/// What choices cost, by layer, so that the tokens which [`token_labels`] would label share the experts out about evenly (`label_balance =
/// sinkhorn`): a sample of a few thousand serves for all. `by.prices` are not read.
///
/// # Errors
/// As of [`token_labels`].
pub fn token_prices<F: FeedForward>(pass: &TokenPass<'_, F>, by: TokenScore<'_>) -> Result<Vec<Prices>> {
    let scores = rows(pass, by, |_, scores| scores)?;
    Ok(scores.into_par_iter().map(|scores| Prices::of(by.spec, scores)).collect())
}

/// What `of` makes of each kept token's scores `[level][node]`, by layer.
fn rows<F: FeedForward, T: Send + 'static>(
    pass: &TokenPass<'_, F>,
    by: TokenScore<'_>,
    of: impl Fn(usize, Vec<Vec<f64>>) -> T + Send + Sync + 'static,
) -> Result<Vec<Vec<T>>> {
    let TokenPass { model, set, options, stride, device } = *pass;
    let (layers, width) = (model.config().num_hidden_layers, model.config().intermediate_size);
    let fits = |units: &Vec<u32>| units.len() == width && units.iter().all(|unit| (*unit as usize) < by.spec.experts());
    if by.scan.sums.len() != layers || by.scan.width() != width {
        let problem = format!("it is not of {layers} layers of {width} neurons");
        return Err(Error::setting("scan", problem, "scan this model first"));
    }
    if by.units.len() != layers || !by.units.iter().all(fits) {
        let problem = format!("they do not give each of {width} neurons in {layers} layers an expert");
        return Err(Error::setting("units", problem, "take them from this model (`neuron_experts`)"));
    }
    let scorer = Arc::new(Scorer {
        values: standards(by.scan).into_iter().enumerate().map(|(layer, of)| Values::new(by, layer, of)).collect(),
        units: by.units.to_vec(),
        spec: by.spec.clone(),
        of: Box::new(of),
        state: Mutex::new(State { positions: Positions::new(stride), rows: (0..layers).map(|_| Vec::new()).collect() }),
    });
    let ctx = RouteCtx { probe: Some(scorer.clone()), ..RouteCtx::all() };
    let set = &options.part(set);
    for (task, tokens) in set.tasks.iter().enumerate() {
        for batch in set.batches_of_task(task, options.length, options.batch, device)? {
            let batch = batch?;
            scorer.lock().positions.begin(&batch)?;
            let loss = model.token_losses(&batch.inputs, &batch.targets, &ctx)?.sum_all()?;
            ops::backward(&loss)?;
            check_loss("token labels", &tokens.name, f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?))?;
        }
    }
    let rows = std::mem::take(&mut scorer.lock().rows);
    Ok(rows)
}

/// How the values of one layer's neurons at one token make their scores.
struct Values {
    kind: Kind,
    /// Taken from each neuron's score.
    baseline: Option<Vec<f64>>,
}

enum Kind {
    Standardised { of: [Standard; 2], signs: (f64, f64) },
    Taylor { magnitude: bool },
}

impl Values {
    fn new(by: TokenScore<'_>, layer: usize, of: [Standard; 2]) -> Self {
        let kind = match by.score.terms() {
            Terms::Standardised(of_activation, of_surprise) => {
                Kind::Standardised { of, signs: (of_activation, of_surprise) }
            }
            Terms::Taylor { magnitude } => Kind::Taylor { magnitude },
        };
        let common = || Integral::new(by.scan, by.score).averaged().neurons.swap_remove(0).swap_remove(layer);
        Self { kind, baseline: by.contrast.then(common) }
    }

    /// The scores `[kept][i]` of the tokens `rows` of a pass.
    fn of(&self, pass: &MlpBackward<'_>, rows: &[u32]) -> candle_core::Result<Vec<Vec<f64>>> {
        let rows = Tensor::new(rows, pass.x_td.device())?;
        let values = |x_ti: &Tensor| x_ti.index_select(&rows, 0)?.to_dtype(DType::F64)?.to_vec2::<f64>();
        let mut scores = match &self.kind {
            Kind::Taylor { magnitude } => {
                let gated = pass.gate_ti.map(|gate_ti| pass.h_ti * gate_ti).transpose()?;
                let taylor_ti = (gated.as_ref().unwrap_or(pass.h_ti) * pass.delta_h_ti)?.neg()?;
                values(&if *magnitude { taylor_ti.abs()? } else { taylor_ti })?
            }
            Kind::Standardised { of: [za, zs], signs } => {
                let [a_ti, s_ti] = ops::activation_and_surprise(pass)?;
                let (mut scores, surprises) = (values(&a_ti)?, values(&s_ti)?);
                let both = scores.iter_mut().flatten().zip(surprises.iter().flatten());
                both.for_each(|(a, s)| *a = signs.0 * za.z(*a) + signs.1 * zs.z(*s));
                scores
            }
        };
        if let Some(baseline) = &self.baseline {
            scores.iter_mut().for_each(|row| row.iter_mut().zip(baseline).for_each(|(score, mean)| *score -= mean));
        }
        Ok(scores)
    }
}

/// What is made of the scores `[level][node]` of a token in a layer.
type Of<T> = Box<dyn Fn(usize, Vec<Vec<f64>>) -> T + Send + Sync>;

struct Scorer<T> {
    /// By layer.
    values: Vec<Values>,
    units: Vec<Vec<u32>>,
    spec: MoeSpec,
    of: Of<T>,
    state: Mutex<State<T>>,
}

struct State<T> {
    positions: Positions,
    /// By layer, of the tokens seen so far.
    rows: Vec<Vec<T>>,
}

/// Tokens a task of the pool scores at once.
const TOKENS: usize = 32;

impl<T> Scorer<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send> MlpProbe for Scorer<T> {
    fn observe(&self, layer: usize, pass: &MlpBackward<'_>) -> candle_core::Result<WeightGrads> {
        let rows: Vec<u32> = self.lock().positions.kept().map(|at| at as u32).collect();
        if !rows.is_empty() {
            let scores = self.values[layer].of(pass, &rows)?;
            // For its score a token is what a task is, one of a single layer.
            let made = scores.par_chunks(TOKENS).map(|scores| {
                let integral = Integral { neurons: scores.iter().map(|row| vec![row.clone()]).collect() };
                let scored = node_scores(&integral, &self.units[layer..=layer], &self.spec).into_iter();
                let of_layer = |levels: Vec<Vec<Vec<f64>>>| levels.into_iter().flatten().collect();
                scored.map(|levels| (self.of)(layer, of_layer(levels))).collect::<Vec<T>>()
            });
            let made: Vec<_> = made.collect();
            self.lock().rows[layer].extend(made.into_iter().flatten());
        }
        Ok(WeightGrads::All)
    }
}
