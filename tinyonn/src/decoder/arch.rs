//! The shape of a dense Qwen3: what `config.json` says, as transformers 4 and 5 write it.
//!
//! What this library does not compute (scaled rotary embeddings, sliding windows, unknown activations) is refused by name:
//! a model read wrongly gives plausible nonsense.
//!
//! ```
//! use tinyonn::decoder::Arch;
//! let json = serde_json::json!({
//!     "model_type": "qwen3", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
//!     "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 1000000.0,
//! });
//! let config = Arch::from_json(&json, "config.json")?;
//! assert_eq!(config.kv_groups(), 2);
//! assert_eq!(Arch::from_json(&config.to_json(), "config.json")?, config);
//! # Ok::<(), tinyonn::Error>(())
//! ```

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{Error, Result, ops};

/// The sizes and constants of a dense Qwen3.
#[derive(Debug, Clone, PartialEq)]
pub struct Arch {
    /// Rows of the embedding and of the language-model head.
    pub vocab_size: usize,
    /// Width d of the residual stream.
    pub hidden_size: usize,
    /// Width I of the MLP.
    pub intermediate_size: usize,
    /// The MLP's activation, by its name ([`ops::activation()`]): `silu` in every published Qwen3.
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
    /// ε of every RMS norm.
    pub rms_norm_eps: f64,
    /// The language-model head is the embedding itself.
    pub tie_word_embeddings: bool,
    /// The four attention projections have a bias.
    pub attention_bias: bool,
}

/// A key of the configuration that cannot work: key, problem, remedy.
type Refusal = (&'static str, String, String);

impl Arch {
    /// Reads a `config.json`; `path` only names it in errors. Missing keys take transformers' defaults. The dense part of
    /// a Tiny-ONN checkpoint (`model_type: "tinyonn"`) is read likewise.
    ///
    /// # Errors
    /// Names the key that is of the wrong type, impossible, or asks for what is not computed here.
    pub fn from_json(json: &Value, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let object = json
            .as_object()
            .ok_or_else(|| Error::file(path, "is not a JSON object", "give the config.json of a Qwen3 checkpoint"))?;
        let keys = Keys { object, path };
        keys.refuse_other_models()?;
        keys.refuse_sliding_window()?;
        let hidden_size = keys.size("hidden_size", 4096)?;
        let num_attention_heads = keys.size("num_attention_heads", 32)?;
        let config = Self {
            vocab_size: keys.size("vocab_size", 151_936)?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size", 22_016)?,
            hidden_act: keys.hidden_act()?,
            num_hidden_layers: keys.size("num_hidden_layers", 32)?,
            num_attention_heads,
            num_key_value_heads: match object.get("num_key_value_heads") {
                Some(Value::Null) => num_attention_heads,
                _ => keys.size("num_key_value_heads", 32)?,
            },
            head_dim: match object.get("head_dim") {
                Some(Value::Null) => hidden_size.checked_div(num_attention_heads).unwrap_or(0),
                _ => keys.size("head_dim", 128)?,
            },
            max_position_embeddings: keys.size("max_position_embeddings", 32_768)?,
            rope_theta: keys.rope_theta()?,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            tie_word_embeddings: keys.flag("tie_word_embeddings")?,
            attention_bias: keys.flag("attention_bias")?,
        };
        keys.check_layer_types(config.num_hidden_layers)?;
        match config.refusal() {
            Some((key, problem, remedy)) => Err(Error::file(path, format!("`{key}` {problem}"), remedy)),
            None => Ok(config),
        }
    }

    /// Writes a `config.json` that transformers 4 (`rope_theta`) and 5 (`rope_parameters`) both read.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "head_dim": self.head_dim,
            "hidden_act": self.hidden_act,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "qwen3",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": { "rope_theta": self.rope_theta, "rope_type": "default" },
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": self.vocab_size,
        })
    }

    /// Refuses sizes that make no model, as [`Arch::from_json`] does, for a configuration made in code.
    pub fn validate(&self) -> Result<()> {
        match self.refusal() {
            Some((key, problem, remedy)) => Err(Error::setting(key, problem, remedy)),
            None => Ok(()),
        }
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
        let biases = if self.attention_bias { heads * head + 2 * kv * head + d } else { 0 };
        let norms = 2 * d + 2 * head;
        let embeddings = if self.tie_word_embeddings { vocab * d } else { 2 * vocab * d };
        let total = embeddings + layers * (projections + biases + norms + 3 * d * width) + d;
        usize::try_from(total).unwrap_or(usize::MAX)
    }

    /// The first key that cannot work.
    fn refusal(&self) -> Option<Refusal> {
        // The bounds are far above any model; they keep products of sizes and lists of names within the machine.
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 24),
            ("intermediate_size", self.intermediate_size, 1 << 24),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 16),
            ("num_attention_heads", self.num_attention_heads, 1 << 16),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 16),
            ("head_dim", self.head_dim, 1 << 16),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 31),
        ];
        if let Some((key, size, most)) = sizes.into_iter().find(|&(_, size, most)| size == 0 || size > most) {
            return Some((key, format!("is {size}"), format!("give a whole number from 1 to {most}")));
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
        [("rope_theta", self.rope_theta), ("rms_norm_eps", self.rms_norm_eps)]
            .into_iter()
            .find(|(_, value)| !(value.is_finite() && *value > 0.0))
            .map(|(key, value)| (key, format!("is {value}"), "give a finite number above 0".into()))
    }
}

/// A configuration's keys, read with errors that name file and key.
struct Keys<'a> {
    object: &'a Map<String, Value>,
    path: &'a Path,
}

impl Keys<'_> {
    fn refuse(&self, key: &str, problem: &str, remedy: &str) -> Error {
        Error::file(self.path, format!("`{key}` {problem}"), remedy)
    }

    /// A whole number, or `default` where the key is missing.
    fn size(&self, key: &str, default: usize) -> Result<usize> {
        self.object.get(key).map_or(Ok(default), |value| {
            let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
            size.ok_or_else(|| self.refuse(key, &format!("is {value}"), "give a whole number above 0"))
        })
    }

    /// A number, `None` where the key is missing.
    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.object.get(key).map(|value| self.as_number(key, value)).transpose()
    }

    fn as_number(&self, key: &str, value: &Value) -> Result<f64> {
        value.as_f64().ok_or_else(|| self.refuse(key, &format!("is {value}"), "give a number"))
    }

    /// A boolean, false where the key is missing.
    fn flag(&self, key: &str) -> Result<bool> {
        match self.object.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.refuse(key, &format!("is {other}"), "give true or false")),
        }
    }

    fn refuse_other_models(&self) -> Result<()> {
        match self.object.get("model_type") {
            Some(Value::String(kind)) if kind == "qwen3" || kind == "tinyonn" => {}
            other => {
                let found = other.map_or("is missing".to_owned(), |kind| format!("is {kind}"));
                return Err(self.refuse(
                    "model_type",
                    &found,
                    "give a dense Qwen3 (\"qwen3\") or a \"tinyonn\" checkpoint",
                ));
            }
        }
        Ok(())
    }

    /// The activation's name; whether there is one of that name is for [`Arch::refusal`] to say.
    fn hidden_act(&self) -> Result<String> {
        match self.object.get("hidden_act") {
            None => Ok("silu".into()),
            Some(Value::String(name)) => Ok(name.clone()),
            Some(other) => Err(self.refuse("hidden_act", &format!("is {other}"), "give the name of an activation")),
        }
    }

    fn refuse_sliding_window(&self) -> Result<()> {
        if self.flag("use_sliding_window")? {
            return Err(self.refuse(
                "use_sliding_window",
                "is true",
                "only full attention is computed: use a checkpoint without sliding windows, or set it to false if no layer slides",
            ));
        }
        Ok(())
    }

    /// `layer_types`, where given, names one full-attention layer after the other.
    fn check_layer_types(&self, layers: usize) -> Result<()> {
        let types = match self.object.get("layer_types") {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Array(types)) => types,
            Some(other) => {
                return Err(self.refuse("layer_types", &format!("is {other}"), "give a list, a name a layer"));
            }
        };
        if let Some(other) = types.iter().find(|kind| kind.as_str() != Some("full_attention")) {
            return Err(self.refuse(
                "layer_types",
                &format!("holds {other}"),
                "only \"full_attention\" is computed: use a checkpoint without other layers",
            ));
        }
        if types.len() != layers {
            let problem = format!("names {} layers, num_hidden_layers is {layers}", types.len());
            return Err(self.refuse("layer_types", &problem, "make them agree"));
        }
        Ok(())
    }

    /// θ from `rope_parameters` (transformers 5), `rope_theta` (transformers 4), or the default 10 000.
    fn rope_theta(&self) -> Result<f64> {
        self.refuse_partial_rotary(self.object.get("partial_rotary_factor"))?;
        let top = self.number("rope_theta")?;
        let nested = match (self.plain_rope("rope_parameters")?, self.plain_rope("rope_scaling")?) {
            (Some(a), Some(b)) if a.to_bits() != b.to_bits() => {
                let problem = format!("is {b} inside, {a} inside `rope_parameters`");
                return Err(self.refuse("rope_scaling", &problem, "remove it: `rope_parameters` says all"));
            }
            (a, b) => a.or(b),
        };
        match (top, nested) {
            (Some(a), Some(b)) if a.to_bits() != b.to_bits() => {
                let problem = format!("is {a} at the top and {b} inside `rope_parameters`");
                Err(self.refuse(
                    "rope_theta",
                    &problem,
                    "make them equal: versions of transformers differ in which they read",
                ))
            }
            (a, b) => Ok(b.or(a).unwrap_or(10_000.0)),
        }
    }

    /// The θ inside an object of rotary parameters, which must ask for no scaling. One level of nesting by layer type is
    /// read through: only full attention is ever used.
    fn plain_rope(&self, key: &str) -> Result<Option<f64>> {
        let object = match self.object.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(object)) => object,
            Some(other) => return Err(self.refuse(key, &format!("is {other}"), "give an object or null")),
        };
        let object = match object.get("full_attention") {
            Some(Value::Object(inner)) => inner,
            _ => object,
        };
        match object.get("rope_type").or_else(|| object.get("type")) {
            None => {}
            Some(Value::String(kind)) if kind == "default" => {}
            Some(other) => {
                return Err(self.refuse(
                    key,
                    &format!("asks for rotary scaling of type {other}"),
                    "only unscaled rotary embeddings are computed: set it to null, and keep sequences within the trained length",
                ));
            }
        }
        if object.contains_key("factor") {
            return Err(self.refuse(
                key,
                "has a scaling `factor` and no scaling type",
                "set it to null: none is computed",
            ));
        }
        self.refuse_partial_rotary(object.get("partial_rotary_factor"))?;
        object.get("rope_theta").map(|value| self.as_number(&format!("{key}.rope_theta"), value)).transpose()
    }

    fn refuse_partial_rotary(&self, factor: Option<&Value>) -> Result<()> {
        match factor {
            None | Some(Value::Null) => Ok(()),
            Some(value) if value.as_f64() == Some(1.0) => Ok(()),
            Some(value) => Err(self.refuse(
                "partial_rotary_factor",
                &format!("is {value}"),
                "Qwen3 rotates whole heads: remove it or set it to 1",
            )),
        }
    }
}
