//! The shape of a dense decoder: its sizes and constants, whatever family it is of.
//!
//! ```
//! use tinyonn::decoder::{Arch, AttentionBias, Family};
//! let json = serde_json::json!({
//!     "model_type": "qwen2", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2,
//!     "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1000000.0,
//! });
//! let arch = Arch::from_json(&json, "config.json")?;
//! assert_eq!((arch.family, arch.head_dim, arch.kv_groups()), (Family::Qwen2, 8, 2));
//! assert_eq!(arch.attention_bias, AttentionBias::Qkv);
//! assert_eq!(Arch::from_json(&arch.to_json(), "config.json")?, arch);
//! # Ok::<(), tinyonn::Error>(())
//! ```

use super::{Family, RopeScaling};
use crate::{Error, Result, ops};

/// Which projections of an attention have a bias.
///
/// ```
/// use tinyonn::decoder::AttentionBias;
/// let of = |bias: AttentionBias| (bias.before(), bias.behind());
/// assert_eq!([AttentionBias::None, AttentionBias::Qkv, AttentionBias::All].map(of), [(false, false), (true, false), (true, true)]);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionBias {
    /// None.
    #[default]
    None,
    /// Those to queries, keys and values.
    Qkv,
    /// All four.
    All,
}

impl AttentionBias {
    /// Whether the projections to queries, keys and values have one.
    #[must_use]
    pub fn before(self) -> bool {
        self != Self::None
    }

    /// Whether the projection behind the attention has one.
    #[must_use]
    pub fn behind(self) -> bool {
        self == Self::All
    }
}

/// The sizes and constants of a dense decoder.
///
/// ```
/// use tinyonn::decoder::Arch;
/// use tinyonn::phases::RunConfig;
///
/// let arch = RunConfig::default().dense.arch(1000, "silu");
/// assert!(arch.validate().is_ok() && arch.qk_norm());
/// assert_eq!(arch.activation()?.name(), "silu");
/// assert_eq!(arch.parameters(), 915_840);
/// assert!(arch.to_string().starts_with("qwen3, 4 layers of d "));
/// let odd = Arch { head_dim: 7, ..arch };
/// assert!(odd.validate().unwrap_err().to_string().contains("head_dim"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Arch {
    /// The family it is of: names, defaults, and whether queries and keys are normalised.
    pub family: Family,
    /// Rows of the embedding and of the language-model head.
    pub vocab_size: usize,
    /// Width d of the residual stream.
    pub hidden_size: usize,
    /// Width I of the MLP.
    pub intermediate_size: usize,
    /// The MLP's activation, by its name ([`ops::activation()`]): `silu` in nearly every published model.
    pub hidden_act: String,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads of a layer.
    pub num_attention_heads: usize,
    /// Key and value heads of a layer; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; even, for the rotary embedding.
    pub head_dim: usize,
    /// Longest sequence, in tokens, that the model was made for.
    pub max_position_embeddings: usize,
    /// Base of the rotary embedding's wavelengths.
    pub rope_theta: f64,
    /// What is made of those wavelengths.
    pub rope_scaling: RopeScaling,
    /// Layers whose attention knows no positions, ascending.
    pub nope_layers: Vec<usize>,
    /// ε of every RMS norm.
    pub rms_norm_eps: f64,
    /// The language-model head is the embedding itself.
    pub tie_word_embeddings: bool,
    /// Which attention projections have a bias.
    pub attention_bias: AttentionBias,
}

/// More layers, and more neurons in all of them, than any model has.
pub(super) const MOST_LAYERS: usize = 1 << 12;
const MOST_NEURONS: usize = 1 << 26;

/// A key of the configuration that cannot work: key, problem, remedy.
pub(super) type Refusal = (&'static str, String, String);

impl Arch {
    /// Refuses sizes that make no model, as [`Arch::from_json`] does, for one made in code.
    pub fn validate(&self) -> Result<()> {
        match self.refusal() {
            Some((key, problem, remedy)) => Err(Error::setting(key, problem, remedy)),
            None => Ok(()),
        }
    }

    /// Whether queries and keys are normalised.
    #[must_use]
    pub fn qk_norm(&self) -> bool {
        self.family.table().qk_norm
    }

    /// Query heads that share one key and value head.
    #[must_use]
    pub fn kv_groups(&self) -> usize {
        self.num_attention_heads.checked_div(self.num_key_value_heads).unwrap_or(0)
    }

    /// The activation that `hidden_act` names.
    ///
    /// # Errors
    /// A name that no activation has, or that two have.
    pub fn activation(&self) -> Result<&'static dyn ops::Activation> {
        ops::activation(&self.hidden_act).ok_or_else(|| {
            let (key, problem, remedy) = self.unknown_activation();
            Error::setting(key, problem, remedy)
        })
    }

    fn unknown_activation(&self) -> Refusal {
        let known: Vec<&str> = ops::activations().iter().map(|activation| activation.name()).collect();
        let problem = if known.contains(&self.hidden_act.as_str()) {
            format!("is {:?}, which is declared more than once", self.hidden_act)
        } else {
            format!("is {:?}; known: {}", self.hidden_act, known.join(", "))
        };
        ("hidden_act", problem, "name one of these; if yours lives in another crate, link it in".into())
    }

    /// New weights that write to the residual stream are smaller by √(2 layers) (Radford et al., 2019).
    pub(super) fn residual_stdev(&self) -> f64 {
        0.02 / ((2 * self.num_hidden_layers) as f64).sqrt()
    }

    /// The number of weights; a tied head counts once. (Saturates at `usize::MAX`.)
    #[must_use]
    pub fn parameters(&self) -> usize {
        let [vocab, d, width, layers, heads, kv, head] = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.head_dim,
        ]
        .map(|size| size as u128);
        let projections = 2 * d * heads * head + 2 * d * kv * head;
        let before = if self.attention_bias.before() { heads * head + 2 * kv * head } else { 0 };
        let biases = before + if self.attention_bias.behind() { d } else { 0 };
        let norms = 2 * d + if self.qk_norm() { 2 * head } else { 0 };
        let embeddings = if self.tie_word_embeddings { vocab * d } else { 2 * vocab * d };
        let total = embeddings + layers * (projections + biases + norms + 3 * d * width) + d;
        usize::try_from(total).unwrap_or(usize::MAX)
    }

    /// The first key that cannot work.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        // The bounds are far above any model; they keep products of sizes and lists of names within the machine.
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 24),
            ("intermediate_size", self.intermediate_size, 1 << 24),
            ("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS),
            ("num_attention_heads", self.num_attention_heads, 1 << 16),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 16),
            ("head_dim", self.head_dim, 1 << 16),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 31),
        ];
        if let Some((key, size, most)) = sizes.into_iter().find(|&(_, size, most)| size == 0 || size > most) {
            return Some((key, format!("is {size}"), format!("give a whole number from 1 to {most}")));
        }
        // What stands for a partition is made of every neuron, even of a model on paper.
        if self.num_hidden_layers * self.intermediate_size > MOST_NEURONS {
            let problem = format!("is {} in each of {} layers", self.intermediate_size, self.num_hidden_layers);
            return Some(("intermediate_size", problem, format!("give at most {MOST_NEURONS} neurons in all layers")));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Some((
                "num_key_value_heads",
                format!(
                    "is {}, which does not divide num_attention_heads = {}",
                    self.num_key_value_heads, self.num_attention_heads
                ),
                "make the query heads a multiple of the key-value heads".into(),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Some((
                "head_dim",
                format!("is {}, an odd number", self.head_dim),
                "give an even one: the rotary embedding turns pairs".into(),
            ));
        }
        if ops::activation(&self.hidden_act).is_none() {
            return Some(self.unknown_activation());
        }
        if let Some(layer) = self.nope_layers.iter().find(|layer| **layer >= self.num_hidden_layers) {
            let problem = format!("has no rotary positions in layer {layer} of {}", self.num_hidden_layers);
            return Some(("no_rope_layers", problem, "give an entry a layer".into()));
        }
        if let Some(problem) = self.rope_scaling.problem() {
            return Some(("rope_scaling", problem, "give the numbers that the model was published with".into()));
        }
        [("rope_theta", self.rope_theta), ("rms_norm_eps", self.rms_norm_eps)]
            .into_iter()
            .find(|(_, value)| !(value.is_finite() && *value > 0.0))
            .map(|(key, value)| (key, format!("is {value}"), "give a finite number above 0".into()))
    }
}

/// Its family and sizes, as a line of a plan: `llama, 16 layers of d 2048, I 8192, 32 / 8 heads of 64, vocabulary 128256, tied`.
impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, {} layers of d {}, I {}, {} / {} heads of {}, vocabulary {}, {}",
            self.family.model_type(),
            self.num_hidden_layers,
            self.hidden_size,
            self.intermediate_size,
            self.num_attention_heads,
            self.num_key_value_heads,
            self.head_dim,
            self.vocab_size,
            if self.tie_word_embeddings { "tied" } else { "untied" },
        )
    }
}
