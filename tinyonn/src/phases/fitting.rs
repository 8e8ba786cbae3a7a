//! Routers fitted to labels and to the controls' labels, each time from where they started; refitted, if asked, to what they see once they
//! route.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::LabelUnit;
use super::inputs::{HeldInputs, SplitInputs};
use super::run::Run;
use crate::Result;
use crate::checkpoint::ParamStore;
use crate::data::TokenSet;
use crate::decoder::{CausalLm, Mlp};
use crate::imaging::inputs::Samples;
use crate::imaging::{
    LabelBalance, Labels, NeuronScan, Prices, RowLabels, TokenPass, TokenScore, token_labels, token_prices,
};
use crate::model::TinyOnnForCausalLm;
use crate::moe::RoutePer;
use crate::train::{LevelAccuracy, Losses, RouterAccuracy, RouterFitter, refit, router_accuracy, row_accuracy};

/// Tokens that choices are priced by, about.
const PRICED: usize = 2048;

/// Fitted routers: accuracies on the test split, and the routed losses of the controls.
///
/// ```
/// use tinyonn::phases::{Fits, Run, SplitInputs, Phase1};
///
/// /// Routers fitted once more, to the same labels.
/// fn again(run: &Run<'_>, found: &Phase1) -> tinyonn::Result<()> {
///     let fits: &Fits = &found.fits;
///     println!("before: {:.3} of the groups", fits.token.mean(0));
///     let [train, validation]: [&SplitInputs; 2] = [&found.inputs, &found.held.validation];
///     let mut fitter = run.fitter(train.own(run.variant), validation.own(run.variant))?;
///     run.fit_own(&found.store, &mut fitter, (&found.labels, None), || run.model(&found.store))
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub struct Fits {
    /// Of routers that decide for each token.
    pub token: RouterAccuracy,
    /// Of routers that decide for what shares a decision.
    pub sequence: RouterAccuracy,
    /// Of tokens against their own labels.
    pub own_labels: Vec<LevelAccuracy>,
    /// Under routers fitted to random labels, a draw each.
    pub random: Vec<Losses>,
    /// Under routers fitted to the labels dealt to other tasks, a dealing each.
    pub permuted: Vec<Losses>,
}

/// The labels that routers are fitted to: the run's own, or a control's.
///
/// ```
/// use tinyonn::phases::LabelSet;
/// assert_eq!([LabelSet::Own, LabelSet::Permuted(0)].map(|set| set.to_string()), ["own", "permuted-0"]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelSet {
    /// The run's own.
    Own,
    /// Random ones, of this draw.
    Random(u32),
    /// The run's own dealt to other tasks, in this dealing.
    Permuted(u32),
}

impl fmt::Display for LabelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("own"),
            Self::Random(draw) => write!(f, "random-{draw}"),
            Self::Permuted(dealing) => write!(f, "permuted-{dealing}"),
        }
    }
}

/// All that fits read beside what routers see of the training text.
pub(super) struct ToFit {
    /// The expert of each neuron by layer, if experts have neurons of their own.
    pub(super) units: Option<Vec<Vec<u32>>>,
    /// Each task's path.
    pub(super) labels: Labels,
    /// What routers see of held-out text.
    pub(super) held: HeldInputs,
    /// Tokens' own labels.
    pub(super) rows: Option<TokenRows>,
}

/// The labels of tokens themselves, by layer; their rows are those of [`SplitInputs::tokens`].
///
/// ```
/// use tinyonn::imaging::{LabelBalance, TokenScore};
/// use tinyonn::phases::{Run, TokenRows};
///
/// /// How many tokens of each split have a label of their own.
/// fn labelled(run: &Run<'_>, by: TokenScore<'_>) -> tinyonn::Result<[usize; 3]> {
///     let rows: TokenRows = run.label_tokens(by, LabelBalance::Sinkhorn)?;
///     Ok([rows.train, rows.validation, rows.test].map(|layers| layers[0].class_of_row.len()))
/// }
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub struct TokenRows {
    /// Of the training split.
    pub train: Vec<RowLabels>,
    /// Of the validation split.
    pub validation: Vec<RowLabels>,
    /// Of the test split.
    pub test: Vec<RowLabels>,
}

impl Run<'_> {
    /// What the routers of `store` are fitted to.
    pub(super) fn to_fit(&self, scan: &NeuronScan, store: &ParamStore) -> Result<ToFit> {
        let units = self.model(store)?.neuron_experts()?;
        let labels = self.labels(scan, units.as_deref());
        let held = self.held_inputs()?;
        let rows = units.as_deref().map(|units| self.token_rows(scan, units)).transpose()?.flatten();
        Ok(ToFit { units, labels, held, rows })
    }

    /// All sets of labels that routers are fitted to, the controls' first.
    pub(super) fn label_sets(&self) -> impl Iterator<Item = LabelSet> + use<> {
        let draws = 0..self.draws().count() as u32;
        draws.clone().map(LabelSet::Random).chain(draws.map(LabelSet::Permuted)).chain([LabelSet::Own])
    }

    /// One of them, of the run's own `labels`.
    pub(super) fn labels_of(&self, set: LabelSet, labels: &Labels) -> Labels {
        let seed = |draw: u32| self.draws().nth(draw as usize).unwrap_or_default();
        match set {
            LabelSet::Own => labels.clone(),
            LabelSet::Random(draw) => {
                let (tasks, layers) = (self.text.tasks.len(), self.dense.cfg.num_hidden_layers);
                Labels::random(tasks, layers, &self.variant.spec, seed(draw))
            }
            LabelSet::Permuted(draw) => labels.permuted(seed(draw)),
        }
    }

    /// The tokens' own labels, if the run labels tokens.
    pub(super) fn token_rows(&self, scan: &NeuronScan, units: &[Vec<u32>]) -> Result<Option<TokenRows>> {
        if self.config.label != LabelUnit::Token {
            return Ok(None);
        }
        if let Some(made) = self.passed_labels(scan, units)? {
            return Ok(Some(made));
        }
        self.label_tokens(self.token_score(scan, units), self.config.label_balance).map(Some)
    }

    /// What the run labels tokens by.
    pub(super) fn token_score<'a>(&'a self, scan: &'a NeuronScan, units: &'a [Vec<u32>]) -> TokenScore<'a> {
        let c = self.config;
        TokenScore { scan, score: c.labels, contrast: c.contrast, units, spec: &self.variant.spec, prices: None }
    }

    /// A pass over one token in `stride` of `set`.
    pub(super) fn token_pass<'a>(
        &'a self,
        model: &'a CausalLm<Mlp>,
        set: &'a TokenSet,
        stride: usize,
    ) -> TokenPass<'a, Mlp> {
        TokenPass { model, set, options: self.scan_options(), stride, device: &self.device }
    }

    /// What choices cost on the training split, if `balance` shares tokens out by that.
    pub(super) fn prices(
        &self,
        model: &CausalLm<Mlp>,
        by: TokenScore<'_>,
        balance: LabelBalance,
    ) -> Result<Option<Vec<Prices>>> {
        let train = &self.tokens.train;
        let prices = || token_prices(&self.token_pass(model, train, self.stride_to(train, PRICED)), by);
        (balance == LabelBalance::Sinkhorn).then(prices).transpose()
    }

    /// Labels the tokens of all splits, shared out by what choices cost on the training split if `balance` says so.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn label_tokens(&self, by: TokenScore<'_>, balance: LabelBalance) -> Result<TokenRows> {
        let model = self.dense_model()?;
        let prices = self.prices(&model, by, balance)?;
        let by = TokenScore { prices: prices.as_deref(), ..by };
        let of = |set| token_labels(&self.token_pass(&model, set, self.stride(set)), by);
        Ok(TokenRows {
            train: of(&self.tokens.train)?,
            validation: of(&self.tokens.validation)?,
            test: of(&self.tokens.test)?,
        })
    }

    /// Fits routers to the controls' labels, then, last, to `labels`; `store` keeps those. Where tokens have labels of their own, these are
    /// what the last fit is to. Controls whose losses were `measured` before are not fitted.
    pub(super) fn fit(
        &self,
        store: &ParamStore,
        (labels, rows): (&Labels, Option<&TokenRows>),
        (inputs, held): (&SplitInputs, &HeldInputs),
        measured: Option<[Vec<Losses>; 2]>,
    ) -> Result<Fits> {
        let layers = self.dense.cfg.num_hidden_layers;
        let mut by_token = self.fitter(&inputs.tokens, &held.validation.tokens)?;
        let mut by_sequence = self.fitter(&inputs.sequences, &held.validation.sequences)?;
        let (own, other) = match self.variant.spec.route_per {
            RoutePer::Token | RoutePer::Task => (&mut by_token, &mut by_sequence),
            RoutePer::Sequence { .. } | RoutePer::Segment { .. } => (&mut by_sequence, &mut by_token),
        };
        let from_start = from_where_they_are(store)?;
        let rounds = self.config.router.refit_rounds;
        let mut fit = |set: LabelSet, labels: &Labels, rows: Option<&TokenRows>| {
            from_start()?;
            self.fit_rounds(store, own, (labels, rows), rounds, |round| {
                match self.passed_round((round, set), store, (labels, rows))? {
                    Some(seen) => Ok(seen),
                    None => self.see_routed(&self.model(store)?, labels),
                }
            })
        };
        let is_measured = measured.is_some();
        let [mut random, mut permuted] = measured.unwrap_or_default();
        for set in self.label_sets().filter(|_| !is_measured) {
            let losses = match set {
                LabelSet::Random(_) => &mut random,
                LabelSet::Permuted(_) => &mut permuted,
                LabelSet::Own => continue,
            };
            let control = self.labels_of(set, labels);
            fit(set, &control, None)?;
            losses.push(self.evaluate(self.model(store)?.lm(), &Self::routed(&control))?);
        }
        let accuracy = |inputs: &SplitInputs, sequence: bool| {
            let model = self.model(store)?;
            let modules: Vec<_> = (0..layers).map(|layer| model.moe(layer)).collect();
            router_accuracy(&modules, if sequence { &inputs.sequences } else { &inputs.tokens }, labels)
        };
        let by_own_sequence = self.variant.spec.open_positions() > 0;
        from_start()?;
        let model = (store, &self.dense.cfg, self.variant);
        other.fit(model, labels, &self.config.router, self.config.seed)?;
        let of_other = accuracy(&held.test, !by_own_sequence)?;
        fit(LabelSet::Own, labels, rows)?;
        let of_own = accuracy(&held.test, by_own_sequence)?;
        let (token, sequence) = if by_own_sequence { (of_other, of_own) } else { (of_own, of_other) };
        let own_labels = rows.map(|rows| {
            let model = self.model(store)?;
            let modules: Vec<_> = (0..layers).map(|layer| model.moe(layer)).collect();
            row_accuracy(&modules, &held.test.tokens, &rows.test)
        });
        Ok(Fits { token, sequence, own_labels: own_labels.transpose()?.unwrap_or_default(), random, permuted })
    }

    /// What fits routers to these inputs.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn fitter<'b>(&self, train: &'b [Samples], validation: &'b [Samples]) -> Result<RouterFitter<'b>> {
        let dim = self.variant.spec.projection_width(self.dense.cfg.hidden_size);
        RouterFitter::new(train, validation, self.text.tasks.len(), dim)
    }

    /// One fit for the unit that the variant decides for and, if the run asks for rounds of them, refits to what routers see in the
    /// model that routes with them, `routing`.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn fit_own(
        &self,
        store: &ParamStore,
        fitter: &mut RouterFitter<'_>,
        (labels, rows): (&Labels, Option<&TokenRows>),
        routing: impl Fn() -> Result<TinyOnnForCausalLm>,
    ) -> Result<()> {
        let rounds = self.config.router.refit_rounds;
        self.fit_rounds(store, fitter, (labels, rows), rounds, |_| self.see_routed(&routing()?, labels))
    }

    /// One fit, and so many rounds of them to what routers see in each, from 1, of training and of validation text: `seen`.
    pub(super) fn fit_rounds(
        &self,
        store: &ParamStore,
        fitter: &mut RouterFitter<'_>,
        (labels, rows): (&Labels, Option<&TokenRows>),
        rounds: usize,
        mut seen: impl FnMut(usize) -> Result<[SplitInputs; 2]>,
    ) -> Result<()> {
        let (config, seed) = (&self.config.router, self.config.seed);
        let model = (store, &self.dense.cfg, self.variant);
        let once = |fitter: &mut RouterFitter<'_>| match rows {
            Some(rows) => fitter.fit_rows(model, [&rows.train, &rows.validation], config, seed),
            None => fitter.fit(model, labels, config, seed),
        };
        once(fitter)?;
        let mut round = 0;
        refit(model, rounds, |_| {
            round += 1;
            let [train, validation] = seen(round)?;
            once(&mut self.fitter(train.own(self.variant), validation.own(self.variant))?)
        })
    }

    /// What routers see of training and of validation text in a model that routes with them, `routing`.
    fn see_routed(&self, routing: &TinyOnnForCausalLm, labels: &Labels) -> Result<[SplitInputs; 2]> {
        let (lm, pass) = (routing.lm(), Self::routed(labels));
        Ok([self.own_inputs(lm, &pass)?, self.inputs(lm, &self.tokens.validation, &pass)?])
    }
}

/// Sets the routers of `store` to what they are now: those without a closed form start there, each fit anew, or controls would leave their mark.
pub(super) fn from_where_they_are(store: &ParamStore) -> Result<impl Fn() -> Result<()>> {
    let routers = store.trainable(|name| name.contains("_router."));
    let start = routers.iter().map(|(_, var)| var.as_detached_tensor().copy());
    let start = start.collect::<candle_core::Result<Vec<_>>>()?;
    Ok(move || Ok(routers.iter().zip(&start).try_for_each(|((_, var), value)| var.set(value))?))
}
