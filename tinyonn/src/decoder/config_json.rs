//! `config.json` of a dense decoder, as transformers 4 and 5 write it, read and written.
//!
//! What this library does not compute (other rotary scalings, sliding windows, biases of an MLP, quantised weights, unknown activations) is
//! refused by name: a model read wrongly gives plausible nonsense. A key that is null is one that was not given.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::arch::MOST_LAYERS;
use super::{Arch, AttentionBias, Family, RopeScaling};
use crate::{Error, Result};

/// What `model_type` says of a checkpoint of this library.
const TINYONN: &str = "tinyonn";

impl Arch {
    /// Reads a `config.json`; `path` only names it in errors. Missing keys take transformers' defaults for the family. The dense part of
    /// a Tiny-ONN checkpoint (`model_type: "tinyonn"`) is read likewise, as of the family in `tinyonn.dense.model_type`.
    ///
    /// ```
    /// use tinyonn::decoder::Arch;
    ///
    /// let json = serde_json::json!({ "model_type": "llama", "hidden_size": 2048, "sliding_window": 4096, "quantization_config": { "bits": 4 } });
    /// let refused = Arch::from_json(&json, "config.json").unwrap_err().to_string();
    /// assert!(refused.contains("quantization_config"), "{refused}"); // read as if it were not there, it would be nonsense
    /// ```
    ///
    /// # Errors
    /// Names the key that is of the wrong type, impossible, or asks for what is not computed here.
    pub fn from_json(json: &Value, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let object = json
            .as_object()
            .ok_or_else(|| Error::file(path, "is not a JSON object", "give the config.json of a dense decoder"))?;
        let keys = Keys { object, path };
        let family = keys.family()?;
        let table = family.table();
        keys.refuse_quantised()?;
        keys.refuse_true("use_sliding_window", "only full attention is computed: use a checkpoint without sliding windows, or set it to false if no layer slides")?;
        if keys.flag("is_causal")? == Some(false) {
            return Err(keys.refuse(
                "is_causal",
                "is false",
                "every token reads those before it alone: use a model that predicts the next token",
            ));
        }
        keys.refuse_true("mlp_bias", "a gated MLP without biases is computed: use a checkpoint without them")?;
        let hidden_size = keys.size("hidden_size", table.hidden_size)?;
        let num_attention_heads = keys.size("num_attention_heads", table.num_attention_heads)?;
        let num_hidden_layers = keys.size("num_hidden_layers", table.num_hidden_layers)?;
        let max_position_embeddings = keys.size("max_position_embeddings", table.max_position_embeddings)?;
        // What is null follows from the other sizes, whatever the family takes where nothing stands.
        let named = |key: &str, default: Option<usize>| default.filter(|_| !object.contains_key(key));
        let by_heads = hidden_size.checked_div(num_attention_heads).unwrap_or(0);
        let (rope_theta, rope_scaling) = keys.rope(table.rope_theta, max_position_embeddings)?;
        let config = Self {
            family,
            vocab_size: keys.size("vocab_size", table.vocab_size)?,
            hidden_size,
            intermediate_size: keys.size("intermediate_size", table.intermediate_size)?,
            hidden_act: keys.text("hidden_act", "silu", "give the name of an activation")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: keys.size(
                "num_key_value_heads",
                named("num_key_value_heads", table.num_key_value_heads).unwrap_or(num_attention_heads),
            )?,
            head_dim: keys.size("head_dim", named("head_dim", table.head_dim).unwrap_or(by_heads))?,
            max_position_embeddings,
            rope_theta,
            rope_scaling,
            // More layers are refused below.
            nope_layers: keys.nope_layers(table.nope_interval, num_hidden_layers.min(MOST_LAYERS))?,
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6),
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(table.tied),
            attention_bias: match table.bias {
                Some(bias) => bias,
                None if keys.flag("attention_bias")? == Some(true) => AttentionBias::All,
                None => AttentionBias::None,
            },
        };
        keys.check_layer_types(num_hidden_layers)?;
        keys.check_window(table.window, max_position_embeddings)?;
        match config.refusal() {
            Some((key, problem, remedy)) => Err(Error::file(path, format!("`{key}` {problem}"), remedy)),
            None => Ok(config),
        }
    }

    /// Writes a `config.json` that transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) both read.
    ///
    /// ```
    /// use tinyonn::phases::RunConfig;
    ///
    /// let json = RunConfig::default().dense.arch(64, "silu").to_json();
    /// assert_eq!((json["model_type"].as_str(), json["rope_theta"].as_f64()), (Some("qwen3"), Some(10_000.0)));
    /// ```
    #[must_use]
    pub fn to_json(&self) -> Value {
        let table = self.family.table();
        let mut rope = self.rope_scaling.to_json();
        rope["rope_theta"] = json!(self.rope_theta);
        let mut json = json!({
            "architectures": [table.architecture],
            "attention_bias": self.attention_bias == AttentionBias::All,
            "attention_dropout": 0.0,
            "head_dim": self.head_dim,
            "hidden_act": self.hidden_act,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": table.model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": rope,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": true,
            "use_sliding_window": false,
            "vocab_size": self.vocab_size,
        });
        if self.rope_scaling != RopeScaling::None {
            json["rope_scaling"] = self.rope_scaling.to_json();
        }
        if table.nope_interval.is_some() {
            let rotates = |layer: usize| u8::from(!self.nope_layers.contains(&layer));
            json["no_rope_layers"] = (0..self.num_hidden_layers).map(rotates).collect();
        }
        if table.window.is_some() {
            json["sliding_window"] = Value::Null;
        }
        json
    }
}

impl RopeScaling {
    /// As transformers has it, without θ.
    fn to_json(self) -> Value {
        match self {
            Self::None => json!({ "rope_type": "default" }),
            Self::Linear { factor } => json!({ "factor": factor, "rope_type": "linear" }),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => json!({
                "factor": factor,
                "high_freq_factor": high_freq_factor,
                "low_freq_factor": low_freq_factor,
                "original_max_position_embeddings": original,
                "rope_type": "llama3",
            }),
        }
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

    /// What stands under `key`, unless it is null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// A whole number, or `default`.
    fn size(&self, key: &str, default: usize) -> Result<usize> {
        self.get(key).map_or(Ok(default), |value| self.as_size(key, value))
    }

    fn as_size(&self, key: &str, value: &Value) -> Result<usize> {
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.ok_or_else(|| self.refuse(key, &format!("is {value}"), "give a whole number above 0"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|value| self.as_number(key, value)).transpose()
    }

    fn as_number(&self, key: &str, value: &Value) -> Result<f64> {
        value.as_f64().ok_or_else(|| self.refuse(key, &format!("is {value}"), "give a number"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.refuse(key, &format!("is {other}"), "give true or false")),
        }
    }

    fn text(&self, key: &str, default: &str, remedy: &str) -> Result<String> {
        match self.get(key) {
            None => Ok(default.into()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(self.refuse(key, &format!("is {other}"), remedy)),
        }
    }

    fn refuse_true(&self, key: &str, remedy: &str) -> Result<()> {
        if self.flag(key)? == Some(true) { Err(self.refuse(key, "is true", remedy)) } else { Ok(()) }
    }

    /// The family that `model_type` names, of a checkpoint of this library that of its dense model (Qwen3, where none is named: version
    /// 0.1.0 knew no other).
    fn family(&self) -> Result<Family> {
        let own = self.get("model_type").is_some_and(|kind| kind.as_str() == Some(TINYONN));
        let (key, named) = if own {
            ("tinyonn.dense.model_type", self.get(TINYONN).and_then(|object| object.get("dense")?.get("model_type")))
        } else {
            ("model_type", self.get("model_type"))
        };
        let Some(named) = named else {
            return if own { Ok(Family::Qwen3) } else { Err(self.refuse(key, "is missing", &known())) };
        };
        let name = named.as_str().unwrap_or_default();
        Family::of(name).ok_or_else(|| {
            let remedy = match name {
                _ if name.contains("moe") || name == "mixtral" || name == "deepseek_v3" => {
                    format!("it is a mixture of experts already; {}", known())
                }
                _ => known(),
            };
            self.refuse(key, &format!("is {named}"), &remedy)
        })
    }

    fn refuse_quantised(&self) -> Result<()> {
        let Some(config) = self.get("quantization_config") else { return Ok(()) };
        let method = config.get("quant_method").and_then(Value::as_str).unwrap_or("a method without a name");
        let remedy = "give the original weights in bf16, f16 or f32, or a GGUF file";
        Err(self.refuse("quantization_config", &format!("says that the weights are quantised ({method})"), remedy))
    }

    /// `layer_types`, where given, names one full-attention layer after the other.
    fn check_layer_types(&self, layers: usize) -> Result<()> {
        let types = match self.get("layer_types") {
            None => return Ok(()),
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

    /// A window that is shorter than the context slides; `default` is that of a family where no other key says whether it does.
    fn check_window(&self, default: Option<usize>, context: usize) -> Result<()> {
        let Some(default) = default.filter(|_| self.object.get("sliding_window") != Some(&Value::Null)) else {
            return Ok(());
        };
        let window = self.size("sliding_window", default)?;
        if window == 0 {
            return Err(self.refuse("sliding_window", "is 0", "set it to null, if no layer slides"));
        }
        if window >= context {
            return Ok(());
        }
        let problem = format!("is {window}, shorter than max_position_embeddings = {context}");
        let remedy = format!(
            "only full attention is computed, which is the same within the window: set max_position_embeddings to {window}"
        );
        Err(self.refuse("sliding_window", &problem, &remedy))
    }

    /// Layers without rotary positions: those with a 0 in `no_rope_layers`, or every `no_rope_layer_interval`th.
    fn nope_layers(&self, interval: Option<usize>, layers: usize) -> Result<Vec<usize>> {
        let Some(interval) = interval else { return Ok(Vec::new()) };
        let interval = self.size("no_rope_layer_interval", interval)?;
        if interval == 0 {
            return Err(self.refuse("no_rope_layer_interval", "is 0", "give a whole number above 0"));
        }
        let Some(list) = self.get("no_rope_layers") else {
            return Ok((0..layers).filter(|layer| (layer + 1).is_multiple_of(interval)).collect());
        };
        let entry = |value: &Value| value.as_u64().filter(|value| *value < 2);
        let entries = list.as_array().and_then(|list| list.iter().map(entry).collect::<Option<Vec<_>>>());
        match entries {
            Some(entries) if entries.len() >= layers => Ok((0..layers).filter(|layer| entries[*layer] == 0).collect()),
            _ => Err(self.refuse("no_rope_layers", &format!("is {list}"), "give a list with a 1 or 0 for each layer")),
        }
    }

    /// θ and scaling, from `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (transformers 4).
    fn rope(&self, default: f64, context: usize) -> Result<(f64, RopeScaling)> {
        self.refuse_partial_rotary(self.get("partial_rotary_factor"))?;
        let top = self.number("rope_theta")?;
        let [new, old] = [self.rope_object("rope_parameters", context)?, self.rope_object("rope_scaling", context)?];
        let differ = |a: Option<f64>, b: Option<f64>| a.zip(b).is_some_and(|(a, b)| a.to_bits() != b.to_bits());
        let theta = |object: Option<(Option<f64>, RopeScaling)>| object.and_then(|(theta, _)| theta);
        if let (Some((_, a)), Some((_, b))) = (new, old)
            && (a != b || differ(theta(new), theta(old)))
        {
            let problem = "says something else than `rope_parameters`";
            return Err(self.refuse("rope_scaling", problem, "remove it: `rope_parameters` says all"));
        }
        let nested = theta(new).or(theta(old));
        if let (Some(a), Some(b)) = (top, nested)
            && differ(top, nested)
        {
            let problem = format!("is {a} at the top and {b} inside `rope_parameters`");
            let remedy = "make them equal: versions of transformers differ in which they read";
            return Err(self.refuse("rope_theta", &problem, remedy));
        }
        let scaling = new.or(old).map_or(RopeScaling::None, |(_, scaling)| scaling);
        Ok((nested.or(top).unwrap_or(default), scaling))
    }

    /// θ, where it stands there, and the scaling of an object of rotary parameters. One level of nesting by layer type is read through where
    /// layers have types: only full attention is ever used.
    fn rope_object(&self, key: &str, context: usize) -> Result<Option<(Option<f64>, RopeScaling)>> {
        let object = match self.get(key) {
            None => return Ok(None),
            Some(Value::Object(object)) => object,
            Some(other) => return Err(self.refuse(key, &format!("is {other}"), "give an object or null")),
        };
        let object = match object.get("full_attention") {
            Some(Value::Object(_)) if self.get("layer_types").is_none() => {
                let problem =
                    "is nested by types of layers, and `layer_types` is missing: transformers ignores it then";
                return Err(self.refuse(
                    key,
                    problem,
                    "name a type for each layer in `layer_types`, or take the nesting away",
                ));
            }
            Some(Value::Object(inner)) => inner,
            _ => object,
        };
        let get = |name: &str| object.get(name).filter(|value| !value.is_null());
        self.refuse_partial_rotary(get("partial_rotary_factor"))?;
        let number = |name: &str| {
            let value = get(name).map(|value| self.as_number(&format!("{key}.{name}"), value)).transpose()?;
            value.ok_or_else(|| {
                let remedy = "give the numbers that the model was published with";
                self.refuse(key, &format!("has no `{name}`, which its type asks for"), remedy)
            })
        };
        let scaling = match get("rope_type").or_else(|| get("type")) {
            Some(Value::String(kind)) if kind == "linear" => RopeScaling::Linear { factor: number("factor")? },
            Some(Value::String(kind)) if kind == "llama3" => RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original: {
                    let name = "original_max_position_embeddings";
                    let nested = get(name).map(|value| self.as_size(&format!("{key}.{name}"), value)).transpose()?;
                    let top = self.get(name).map(|value| self.as_size(name, value)).transpose()?;
                    if let (Some(a), Some(b)) = (top, nested)
                        && a != b
                    {
                        let problem = format!("is {a} at the top and {b} inside `{key}`");
                        return Err(self.refuse(name, &problem, "make them equal: transformers reads the first"));
                    }
                    nested.or(top).unwrap_or(context)
                },
            },
            None => RopeScaling::None,
            Some(Value::String(kind)) if kind == "default" => RopeScaling::None,
            Some(other) => {
                return Err(self.refuse(
                    key,
                    &format!("asks for rotary scaling of type {other}"),
                    "\"linear\" and \"llama3\" are computed: set it to null, and keep sequences within the trained length",
                ));
            }
        };
        if scaling == RopeScaling::None
            && let Some(factor) = get("factor")
        {
            return Err(self.refuse(
                key,
                &format!("has `factor` = {factor} and no type that scales"),
                "name the type (\"linear\", \"llama3\"), or set it to null: none is computed then",
            ));
        }
        let theta = get("rope_theta").map(|value| self.as_number(&format!("{key}.rope_theta"), value)).transpose()?;
        Ok(Some((theta, scaling)))
    }

    fn refuse_partial_rotary(&self, factor: Option<&Value>) -> Result<()> {
        match factor {
            None => Ok(()),
            Some(value) if value.as_f64() == Some(1.0) => Ok(()),
            Some(value) => Err(self.refuse(
                "partial_rotary_factor",
                &format!("is {value}"),
                "whole heads are rotated: remove it or set it to 1",
            )),
        }
    }
}

/// What to give instead of another `model_type`.
fn known() -> String {
    let known: Vec<&str> = Family::ALL.iter().map(|family| family.model_type()).collect();
    format!("give a dense decoder ({}) or a \"{TINYONN}\" checkpoint", known.join(", "))
}
