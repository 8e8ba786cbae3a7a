//! Labels of single tokens: the path that a token's own score asks for, from a second pass with the first one's moments (DESIGN §3).
//!
//! SPS_t,n = mean over the neurons i of n of z(a_ti) − z(S_ti), standardised by the moments of the layer's *scan*, which a single token has none
//! of; a token's path is then what a task's is, the best `k₁` groups and in each the best `k₂` experts. The mean of a task's token scores is its
//! ∫SPS. Other scores likewise; taylor is −h_ti δ_h,ti, its magnitude |h_ti δ_h,ti|, not standardised.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::inputs::Positions;
use super::labels::path;
use super::score::Terms;
use super::sps::standards;
use super::{Integral, NeuronScan, Prices, RowLabels, ScanOptions, Score, Shard};
use crate::data::TokenSet;
use crate::decoder::{CausalLm, FeedForward, ImageAsk, Learn, Pass};
use crate::metrics::check_loss;
use crate::moe::{LevelSpec, MoeSpec, select};
use crate::ops::{ExpertNeurons, Grads, ScoreTerms, TokenScores, host};
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
    pub model: &'a CausalLm<F>,
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
/// use tinyonn::decoder::{Arch, CausalLm};
///
/// #[moe(groups = 2, experts = 3, top_k = [1, 2])]
/// struct Six;
///
/// let cfg = Arch::from_json(&serde_json::json!({
///     "model_type": "qwen3", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
///     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
/// }), "config.json")?;
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
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
    let rows = token_paths(pass, Shard::WHOLE, by)?;
    Ok(rows.by_layer.into_iter().map(RowLabels::from_paths).collect())
}

/// What was made of the kept tokens of a shard.
pub(crate) struct ShardTokens<T> {
    /// By layer, of each token.
    pub(crate) by_layer: Vec<Vec<T>>,
    /// The batch of each token, of all batches of the pass.
    pub(crate) batches: Vec<u32>,
}

/// The paths that the tokens of a shard of the batches ask for.
pub(crate) fn token_paths<F: FeedForward>(
    pass: &TokenPass<'_, F>,
    shard: Shard,
    by: TokenScore<'_>,
) -> Result<ShardTokens<Vec<u32>>> {
    let (spec, widths) = (by.spec.clone(), select::path_widths(by.spec));
    let prices = by.prices.map(<[Prices]>::to_vec);
    let path_of = move |layer: usize, mut scores: Vec<Vec<f64>>| {
        if let Some(prices) = prices.as_ref().and_then(|prices| prices.get(layer)) {
            prices.mark(&spec, &widths, &mut scores);
        }
        path(&spec, &scores)
    };
    rows(pass, shard, by, path_of)
}

/// What choices cost, by layer, so that the tokens which [`token_labels`] would label share the experts out about evenly (`label_balance =
/// sinkhorn`): a sample of a few thousand serves for all. `by.prices` are not read.
///
/// ```
/// use tinyonn::decoder::FeedForward;
/// use tinyonn::imaging::{TokenPass, TokenScore, token_labels, token_prices};
///
/// /// The paths of a text's tokens in its first layer, shared out about evenly.
/// fn first_layer<F: FeedForward>(pass: &TokenPass<'_, F>, by: TokenScore<'_>) -> tinyonn::Result<usize> {
///     let prices = token_prices(pass, TokenScore { prices: None, ..by })?;
///     Ok(token_labels(pass, TokenScore { prices: Some(&prices), ..by })?[0].paths.len())
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// As of [`token_labels`].
pub fn token_prices<F: FeedForward>(pass: &TokenPass<'_, F>, by: TokenScore<'_>) -> Result<Vec<Prices>> {
    let scores = rows(pass, Shard::WHOLE, by, |_, scores| scores)?;
    Ok(scores.by_layer.into_par_iter().map(|scores| Prices::of(by.spec, scores)).collect())
}

/// What `of` makes of the scores `[level][node]` of each kept token of a shard.
fn rows<F: FeedForward, T: Send>(
    pass: &TokenPass<'_, F>,
    shard: Shard,
    by: TokenScore<'_>,
    of: impl Fn(usize, Vec<Vec<f64>>) -> T + Send + Sync,
) -> Result<ShardTokens<T>> {
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
    let by_layer = (0..layers).map(|layer| scores_of(&by, layer, device)).collect::<Result<Vec<TokenScores>>>()?;
    let scores: Arc<[TokenScores]> = by_layer.into();
    let nodes: Vec<usize> = by.spec.levels.iter().map(LevelSpec::nodes).collect();
    let mut positions = Positions::new(stride);
    let mut made: Vec<Vec<T>> = (0..layers).map(|_| Vec::new()).collect();
    let (set, mut batches, mut begun) = (&options.part(set), Vec::new(), 0);
    for (task, tokens) in set.tasks.iter().enumerate() {
        for batch in set.batches_of_task(task, options.length, options.batch, device)? {
            let batch = batch?;
            positions.begin(&batch);
            let (number, kept) = (begun, positions.kept().map(|at| at as u32).collect::<Vec<_>>());
            begun += 1;
            if kept.is_empty() || !shard.has(number) {
                continue;
            }
            let rows = kept.len();
            batches.extend(std::iter::repeat_n(number as u32, rows));
            let image = ImageAsk::Scores { kept_k: Tensor::from_vec(kept, rows, device)?, by: scores.clone() };
            let learn = Learn { image: Some(Arc::new(image)), ..Learn::default() };
            let forward = model.forward(&batch.inputs, &batch.targets, &Pass::all().kept())?;
            let loss = forward.losses.to_dtype(DType::F64)?.sum_all()?;
            let answers = model.backward(forward.saved, &forward.losses.ones_like()?, &learn, &mut Grads::none())?;
            let found: Vec<&Tensor> =
                answers.iter().filter_map(|answer| answer.scores.as_ref()).chain([&loss]).collect();
            let values = host::read(&found)?;
            let loss = values.last().and_then(|loss| loss.first()).copied().unwrap_or(f64::NAN);
            check_loss("token labels", &tokens.name, loss)?;
            for (layer, (made, values)) in made.iter_mut().zip(&values).enumerate() {
                let of_row = |row: &[f64]| of(layer, by_level(row, &nodes));
                // Behind the nodes of each level stand the experts that always take part, which are nobody's choice.
                let width = nodes.iter().sum::<usize>() + nodes.len();
                made.extend(values.par_chunks(width).map(of_row).collect::<Vec<T>>());
            }
        }
    }
    Ok(ShardTokens { by_layer: made, batches })
}

/// One token's scores, by level and node.
fn by_level(row: &[f64], nodes: &[usize]) -> Vec<Vec<f64>> {
    let mut rest = row;
    let of_level = |nodes: &usize| {
        let (own, others) = rest.split_at(nodes + 1);
        rest = others;
        own[..*nodes].to_vec()
    };
    nodes.iter().map(of_level).collect()
}

/// How the tokens of a layer are scored.
fn scores_of(by: &TokenScore<'_>, layer: usize, device: &Device) -> Result<TokenScores> {
    let terms = match by.score.terms() {
        Terms::Standardised(of_activation, of_surprise) => {
            let [a, s] = standards(by.scan)[layer];
            ScoreTerms::Standardised([a.term(of_activation), s.term(of_surprise)])
        }
        Terms::Taylor { magnitude } => ScoreTerms::Taylor { magnitude },
    };
    let common = || -> Result<Tensor> {
        let values = Integral::new(by.scan, by.score).averaged().neurons.swap_remove(0).swap_remove(layer);
        let width = values.len();
        Ok(Tensor::from_vec(values, (1, width), device)?)
    };
    let of_level = |(level, declared): (usize, &LevelSpec)| {
        let (nodes, node_of) = (declared.nodes(), by.spec.node_of_experts(level));
        let node = |expert: &u32| node_of.get(*expert as usize).map_or(nodes, |node| *node) as u32;
        let owners: Vec<u32> = by.units[layer].iter().map(node).collect();
        Ok(ExpertNeurons::new(&owners, nodes + 1)?)
    };
    let nodes = by.spec.levels.iter().enumerate().map(of_level).collect::<Result<_>>()?;
    Ok(TokenScores { terms, baseline: by.contrast.then(common).transpose()?, nodes })
}
