//! The mixtures of experts of transformers that a model of slices is written as: what they compute is the same, what their parts are called is not.

use super::ExportFormat;
use crate::checkpoint::params::mixture_prefix;
use crate::decoder::{Arch, AttentionBias, Family};
use crate::{Error, Result};

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct MixtureFormat {
    /// What it is called here.
    pub(super) word: &'static str,
    /// What it is called there.
    pub(super) name: &'static str,
    pub(super) model_type: &'static str,
    /// The dense family whose attention it has, and whose configuration its own is beside the experts.
    pub(super) dense: Family,
    /// What stands between a layer and its gate and experts.
    mixture: &'static str,
    /// W_g, W_u and W_d of an expert.
    pub(super) projections: [&'static str; 3],
    /// Under which key the configuration has the width of an expert, and their number.
    pub(super) width_key: &'static str,
    pub(super) experts_key: &'static str,
}

pub(super) const QWEN3_MOE: MixtureFormat = MixtureFormat {
    word: "qwen3-moe",
    name: "Qwen3MoE",
    model_type: "qwen3_moe",
    dense: Family::Qwen3,
    mixture: "mlp",
    projections: ["gate_proj", "up_proj", "down_proj"],
    width_key: "moe_intermediate_size",
    experts_key: "num_experts",
};

pub(super) const MIXTRAL: MixtureFormat = MixtureFormat {
    word: "mixtral",
    name: "Mixtral",
    model_type: "mixtral",
    dense: Family::Llama,
    mixture: "block_sparse_moe",
    projections: ["w1", "w3", "w2"],
    width_key: "intermediate_size",
    experts_key: "num_local_experts",
};

impl MixtureFormat {
    /// That of a `model_type`.
    pub(super) fn of_model_type(model_type: &str) -> Option<Self> {
        [QWEN3_MOE, MIXTRAL].into_iter().find(|format| format.model_type == model_type)
    }

    /// Where gate and experts of a layer are.
    pub(super) fn prefix(&self, layer: usize) -> String {
        format!("{}.{}", mixture_prefix(layer).trim_end_matches(".mlp"), self.mixture)
    }

    /// Refuses a model whose attention is another.
    ///
    /// # Errors
    /// Names its family and the formats that hold it.
    pub(super) fn check_attention(&self, arch: &Arch) -> Result<()> {
        let like_mixtral =
            matches!(arch.family, Family::Llama | Family::Mistral) && arch.attention_bias == AttentionBias::None;
        let fits = if self.dense == Family::Qwen3 { arch.family == Family::Qwen3 } else { like_mixtral };
        if fits {
            return Ok(());
        }
        let family = arch.family.model_type();
        let problem = format!(
            "`{}` is for models with the attention of {}, and this is of {family}",
            self.word,
            self.dense.model_type()
        );
        let other = match arch.family {
            Family::Qwen3 => format!("`{}`, or as ", ExportFormat::Qwen3Moe.word()),
            _ if like_mixtral => format!("`{}`, or as ", ExportFormat::Mixtral.word()),
            _ => String::new(),
        };
        Err(Error::setting("--format", problem, format!("export it as {other}`tinyonn`, which holds every family")))
    }
}
