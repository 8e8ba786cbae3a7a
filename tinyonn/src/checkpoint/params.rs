//! The one list of a model's parameters: the name, role, layer and shape of each, as files hold it. Checkpoints are checked against it, and
//! trainings pick their weights from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::decoder::Arch;

/// The token embedding.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The language-model head; the embedding itself where tied.
pub(super) const HEAD: &str = "lm_head.weight";

/// What a parameter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// The token embedding.
    Embedding,
    /// The language-model head.
    Head,
    /// The weight of a normalisation.
    Norm,
    /// A matrix or bias of an attention.
    Attention,
    /// A matrix of a feed-forward: what experts are slices of, or the base of replicas.
    Expert,
    /// A replica's difference from the base.
    Delta,
    /// A router's.
    Router,
    /// The bias that selection adds to probabilities to keep load even; a rule of its own moves it.
    Balance,
    /// The expert of each neuron: a part of a model's structure, which never learns.
    Partition,
    /// Which neurons a token takes: calibrated on text, no step moves it.
    Choice,
    /// What lies beside a feed-forward for passes in which tokens take some of its neurons.
    Repair,
}

impl Role {
    /// What weights of this role are called in text.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Head => "head",
            Self::Norm => "norms",
            Self::Attention => "attention",
            Self::Expert => "experts",
            Self::Delta => "deltas",
            Self::Router => "routers",
            Self::Balance => "balance",
            Self::Partition => "partition",
            Self::Choice => "choice of neurons",
            Self::Repair => "repairs",
        }
    }
}

/// Some roles; in settings a list of their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Role>", into = "Vec<Role>")]
pub struct Roles(u16);

impl Roles {
    /// None.
    pub const NONE: Self = Self(0);
    const ALL: [Role; 11] = [
        Role::Embedding,
        Role::Head,
        Role::Norm,
        Role::Attention,
        Role::Expert,
        Role::Delta,
        Role::Router,
        Role::Balance,
        Role::Partition,
        Role::Choice,
        Role::Repair,
    ];

    /// Whether `role` is one of them.
    ///
    /// ```
    /// use tinyonn::checkpoint::{Role, Roles};
    ///
    /// let roles: Roles = serde_json::from_str(r#"["embedding", "router"]"#)?;
    /// assert!(roles.contains(Role::Router) && !roles.contains(Role::Expert));
    /// assert_eq!(serde_json::to_string(&roles)?, r#"["embedding","router"]"#);
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    #[must_use]
    pub fn contains(self, role: Role) -> bool {
        self.0 & (1 << role as u16) != 0
    }
}

impl From<Vec<Role>> for Roles {
    fn from(roles: Vec<Role>) -> Self {
        Self(roles.into_iter().fold(0, |set, role| set | (1 << role as u16)))
    }
}

impl From<Roles> for Vec<Role> {
    fn from(roles: Roles) -> Self {
        Roles::ALL.into_iter().filter(|role| roles.contains(*role)).collect()
    }
}

/// A parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in a checkpoint.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The layer it belongs to.
    pub layer: Option<usize>,
    /// Its shape in a file.
    pub stored: Vec<usize>,
}

/// The parameters of the dense model of shape `config`.
///
/// ```
/// use tinyonn::checkpoint::{Param, Role, Roles, dense_params, expected_tensors};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let params = dense_params(&cfg);
/// let experts: Vec<&Param> = params.iter().filter(|param| param.role == Role::Expert).collect();
/// assert_eq!((experts.len(), experts[0].layer, Role::Expert.words()), (4 * 3, Some(0), "experts"));
/// assert_eq!(expected_tensors(&cfg)[&experts[0].name], experts[0].stored);
/// assert!(!Roles::NONE.contains(Role::Expert));
/// ```
#[must_use]
pub fn dense_params(config: &Arch) -> Vec<Param> {
    let (d, width, head) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_attention_heads * head, config.num_key_value_heads * head);
    let mut params = Vec::new();
    let mut add = |layer: Option<usize>, name: &str, role, shape: &[usize]| {
        let prefix = layer.map_or(String::new(), |layer| format!("model.layers.{layer}."));
        params.push(Param { name: format!("{prefix}{name}"), role, layer, stored: shape.to_vec() });
    };
    add(None, EMBEDDING, Role::Embedding, &[config.vocab_size, d]);
    add(None, "model.norm.weight", Role::Norm, &[d]);
    if !config.tie_word_embeddings {
        add(None, HEAD, Role::Head, &[config.vocab_size, d]);
    }
    for layer in (0..config.num_hidden_layers).map(Some) {
        add(layer, "input_layernorm.weight", Role::Norm, &[d]);
        add(layer, "post_attention_layernorm.weight", Role::Norm, &[d]);
        let (before, behind) = (config.attention_bias.before(), config.attention_bias.behind());
        for (name, rows, columns, bias) in
            [("q", q, d, before), ("k", kv, d, before), ("v", kv, d, before), ("o", d, q, behind)]
        {
            add(layer, &format!("self_attn.{name}_proj.weight"), Role::Attention, &[rows, columns]);
            if bias {
                add(layer, &format!("self_attn.{name}_proj.bias"), Role::Attention, &[rows]);
            }
        }
        if config.qk_norm() {
            add(layer, "self_attn.q_norm.weight", Role::Norm, &[head]);
            add(layer, "self_attn.k_norm.weight", Role::Norm, &[head]);
        }
        add(layer, "mlp.gate_proj.weight", Role::Expert, &[width, d]);
        add(layer, "mlp.up_proj.weight", Role::Expert, &[width, d]);
        add(layer, "mlp.down_proj.weight", Role::Expert, &[d, width]);
    }
    params.sort_by(|a, b| a.name.cmp(&b.name));
    params
}

/// Name and shape in a file of every tensor of the dense model: what [`ModelFolder::check_names`](super::ModelFolder::check_names)
/// compares a folder with.
pub fn expected_tensors(config: &Arch) -> BTreeMap<String, Vec<usize>> {
    dense_params(config).into_iter().map(|param| (param.name, param.stored)).collect()
}

/// Where the mixture of a layer lies in a checkpoint.
pub(crate) fn mixture_prefix(layer: usize) -> String {
    format!("model.layers.{layer}.mlp")
}

/// The name of a layer's partition: the expert of each of its neurons.
pub(super) fn neuron_expert_name(layer: usize) -> String {
    format!("{}.neuron_expert", mixture_prefix(layer))
}
