//! Surprise Min-K in all its forms, and the baselines that it is held against: which of a layer's experts learn from a step (DESIGN §4).

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which experts learn, and what becomes of the others. In a file of settings these are the keys of `smk.rule`.
///
/// ```
/// use tinyonn::decoder::smk_rule::{Losers, Select, SmkRule};
///
/// let rule: SmkRule = serde_json::from_str(r#"{ "select": "random_k", "losers": "zero_grad" }"#)?;
/// assert_eq!(rule, SmkRule { select: Select::RandomK, losers: Losers::ZeroGrad, ..SmkRule::DEFAULT });
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// ```
/// use tinyonn::decoder::Smk;
/// use tinyonn::decoder::smk_rule::{Per, Scope, SmkRule, Surprise};
///
/// // One expert of each group learns, of all of them, by the norm of its whole gradient.
/// let rule = SmkRule { per: Per::Group, scope: Scope::All, surprise: Surprise::Exact, ..SmkRule::DEFAULT };
/// let smk = Smk { rule, ..Smk::DEFAULT };
/// assert_eq!(smk.min_k, 1);
/// assert!(!smk.rule.keeps_parts_apart(1));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SmkRule {
    /// By what those that learn are chosen.
    pub select: Select,
    /// What surprise is, and so when it is known.
    pub surprise: Surprise,
    /// What a step does to those that do not learn.
    pub losers: Losers,
    /// Who competes.
    pub scope: Scope,
    /// Where `min_k` counts.
    pub per: Per,
    /// Over what they are compared; unless it is said, each micro-batch by itself where `surprise = token`, the step as a whole where it is
    /// `exact`.
    pub over: Option<Over>,
}

/// By what the experts that learn are chosen: the `min_k` of least key, ties to the lower index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Select {
    /// All that compete.
    All,
    /// The key is the surprise S_n.
    #[default]
    Smk,
    /// A random number, a function of the run's seed, step, micro-batch and layer.
    RandomK,
    /// −S_n: the most surprised learn.
    MaxK,
    /// −S_n · t, t the tokens that the expert was given: the most surprised of those that are used most. Where all are active, as `max_k`.
    MaxProduct,
    /// The tokens that the expert was given.
    MinLoad,
}

/// What the surprise of expert n over a batch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Surprise {
    /// S_n = √( Σ over its tokens t and neurons i of S²(t, i) / (tokens × width) ), known before any weight gradient: those of the losers are
    /// never formed. Of slices only; replicas take `exact` whatever is said here.
    #[default]
    Token,
    /// S_n = √( ‖∂L/∂W_g‖² + ‖∂L/∂W_u‖² + ‖∂L/∂W_d‖² ) over the expert's own weights: the norm of its whole gradient, all of which are formed.
    Exact,
}

/// What a step does to experts that do not learn from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Losers {
    /// Nothing: weights, moments and step counts keep their bits.
    #[default]
    Skip,
    /// They step with a gradient of zero, the naive form: moments decay (m ← β₁ m, v ← β₂ v), what is left of them moves the weights, weight
    /// decay applies, and the step is counted.
    ZeroGrad,
}

/// Who competes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Experts that were given a token.
    #[default]
    Active,
    /// All: the surprise and the load of one without a token are 0, so that it wins, and learns nothing, where the least do.
    All,
}

/// Where `min_k` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// Over all experts of a layer.
    #[default]
    Layer,
    /// In each group of a layer: under each choice of the first level, and in each group that always takes part.
    Group,
}

/// Over what experts are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// Each micro-batch: an expert steps if it won in any, by the sum of the gradients of those in which it did.
    MicroBatch,
    /// The whole step, which needs all gradients where it has several micro-batches.
    Step,
}

/// The choice of one backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smk {
    /// Experts that learn, of each layer or group.
    pub min_k: usize,
    /// By which rule.
    pub rule: SmkRule,
    /// What the numbers of [`Select::RandomK`] are drawn by.
    pub seed: u64,
}

impl SmkRule {
    /// The least surprised of each layer's active experts by their tokens' surprise, losers skipped.
    pub const DEFAULT: Self = Self {
        select: Select::Smk,
        surprise: Surprise::Token,
        losers: Losers::Skip,
        scope: Scope::Active,
        per: Per::Layer,
        over: None,
    };

    /// Over what experts are compared.
    #[must_use]
    pub fn over(&self) -> Over {
        self.over.unwrap_or(match self.surprise {
            Surprise::Token => Over::MicroBatch,
            Surprise::Exact => Over::Step,
        })
    }

    /// Whether each of several micro-batches forms all of its gradients apart from those before it, to choose among them.
    #[must_use]
    pub fn keeps_parts_apart(&self, micro_batches: usize) -> bool {
        self.surprise == Surprise::Exact && self.over() == Over::MicroBatch && micro_batches > 1
    }

    /// Refuses what cannot be decided; `key` is where the rule stands in the settings.
    ///
    /// # Errors
    /// A decision over the step by the surprise of tokens, where the step has several micro-batches.
    ///
    /// ```
    /// use tinyonn::decoder::smk_rule::{Over, SmkRule};
    ///
    /// let rule = SmkRule { over: Some(Over::Step), ..SmkRule::DEFAULT };
    /// assert!(rule.check("smk.rule", 1).is_ok());
    /// assert!(rule.check("smk.rule", 2).unwrap_err().to_string().contains("smk.rule.over"));
    /// ```
    pub fn check(&self, key: &str, micro_batches: usize) -> Result<()> {
        if self.surprise == Surprise::Token && self.over() == Over::Step && micro_batches > 1 {
            let problem = format!(
                "is step, and surprise = token decides in each of the {micro_batches} micro-batches, before gradients are formed"
            );
            let remedy = "use over = micro_batch, surprise = exact, or one micro-batch";
            return Err(Error::setting(format!("{key}.over"), problem, remedy));
        }
        Ok(())
    }
}

impl Smk {
    /// One expert a layer, by [`SmkRule::DEFAULT`].
    pub const DEFAULT: Self = Self { min_k: 1, rule: SmkRule::DEFAULT, seed: 0 };

    /// Whether it is decided before weight gradients are formed.
    pub(crate) fn is_early(&self) -> bool {
        self.rule.surprise == Surprise::Token
    }

    /// Whether it is decided by surprise.
    pub(crate) fn reads_surprise(&self) -> bool {
        matches!(self.rule.select, Select::Smk | Select::MaxK | Select::MaxProduct)
    }
}
