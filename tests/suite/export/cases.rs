//! Checkpoints of every kind that an export covers, small, their routers moved away from where they start.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use tinyonn::checkpoint::export::ExportFormat::{self, Dense, Mixtral, Qwen3Moe, TinyOnn};
use tinyonn::checkpoint::export::{Exported, export_into};
use tinyonn::checkpoint::{ParamStore, Role, TinyOnnConfig, TinyOnnFolder, upcycle, variant_params};
use tinyonn::decoder::{Arch, AttentionBias, Family, RopeScaling};
use tinyonn::files::StagedFolder;
use tinyonn::imaging::Partition;
use tinyonn::model::ActiveMode::{self, All, Routed};
use tinyonn::moe::{
    CHOICES_LEAST_SCORE, CHOICES_MOST, KEPT, LEAST_HIDDEN, LEAST_INPUT, REPAIR, REPAIR_BIAS, REPAIR_DOWN, WORTH,
};
use tinyonn::{Result, moe};

use crate::gradients::inputs;
use crate::models::{CPU, config, partition, weights};

/// Declarations that between them say each word that the export for transformers computes.
#[allow(dead_code)]
mod declared {
    use tinyonn::moe::moe;

    #[moe(groups = 2, experts = 3, router = gaussian(dim = 5), top_k = [1, 2])]
    pub(crate) struct ExportLevels;

    #[moe(levels = [2, 2, 3], router = [linear, gaussian(covariance = shared), cosine], top_k = [2, 1, 2], gate = scaled)]
    pub(crate) struct ExportDeep;

    #[moe(router = gaussian(dim = 4, covariance = isotropic, reduce = sum), top_k = 2, gate = scaled, balance = bias(0.001))]
    pub(crate) enum ExportNamed {
        #[group(experts = 4, top_k = 2)]
        First,
        #[group(experts = 3, router = linear)]
        Second,
        #[group(experts = 2, router = gaussian(project = identity))]
        Third,
        #[group(experts = 2, always)]
        Common,
    }

    #[moe(levels = [5], router = linear, pfag = nucleus(0.6))]
    pub(crate) struct ExportNucleus;

    #[moe(levels = [3, 4], router = [random, linear], pfag = entropy, gate = straight_through)]
    pub(crate) struct ExportEntropy;

    #[moe(levels = [6], router = linear, top_k = 3, neurons = gate)]
    pub(crate) struct ExportNeurons;

    #[moe(levels = [3, 3], router = linear(dim = 5), top_k = [3, 3], always = 1, neurons = gate)]
    pub(crate) struct ExportGrouped;

    #[moe(levels = [6], router = linear(dim = 5), top_k = 6)]
    pub(crate) struct ExportWhole;

    #[moe(levels = [5], router = linear, top_k = 2, gate = scaled)]
    pub(crate) struct ExportFlat;

    #[moe(levels = [5], router = gaussian(dim = 4, covariance = shared), top_k = 2)]
    pub(crate) struct ExportGaussian;

    #[moe(levels = [5], router = gaussian(dim = 4, covariance = shared_full), top_k = 2)]
    pub(crate) struct ExportFullFlat;

    #[moe(levels = [4], experts_are = replicate, combine = merge, route_per = sequence(2))]
    pub(crate) struct ExportMerged;

    #[moe(levels = [4], experts_are = replicate, combine = dispatch)]
    pub(crate) struct ExportDispatched;

    #[moe(levels = [4], top_k = 2, route_per = segment(3))]
    pub(crate) struct ExportSegment;

    #[moe(levels = [4], top_k = 2, route_per = task)]
    pub(crate) struct ExportTask;

    #[moe(levels = [4], top_k = 2, pfag = surprisal)]
    pub(crate) struct ExportSurprisal;
}

/// What a case is of.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) variant: &'static str,
    pub(crate) cfg: Arch,
    pub(crate) format: ExportFormat,
    pub(crate) active: Option<ActiveMode>,
    /// Whether W_d has a repair beside it, and whether that has a bias.
    pub(crate) repaired: Option<bool>,
    /// Whether it has candidates, what neurons are worth, and deltas of all three matrices.
    pub(crate) distilled: bool,
    /// Whether linear routers have no constants.
    pub(crate) without_constants: bool,
    /// Whether text has bounded the choices of routers.
    pub(crate) bounded: bool,
}

impl Case {
    pub(crate) fn of(name: &'static str, variant: &'static str, format: ExportFormat) -> Self {
        let cfg = config(26, false);
        let (active, repaired) = (None, None);
        Self {
            name,
            variant,
            cfg,
            format,
            active,
            repaired,
            distilled: false,
            without_constants: false,
            bounded: false,
        }
    }

    fn family(name: &'static str, family: Family, change: impl Fn(&mut Arch)) -> Self {
        let mut case = Self::of(name, "ExportLevels", TinyOnn);
        case.cfg.family = family;
        change(&mut case.cfg);
        case
    }

    /// The parameters of the checkpoint.
    pub(crate) fn store(&self) -> ParamStore {
        let variant = moe::variant(self.variant).unwrap();
        let dense = weights(&self.cfg, DType::F32);
        let experts = match variant.spec.experts_are {
            moe::ExpertsAre::Slice => partition(Partition::Random, &variant.spec, &self.cfg).unwrap(),
            moe::ExpertsAre::Replicate => Vec::new(),
        };
        let mut store = upcycle(dense, &self.cfg, variant, &experts, 4).unwrap();
        let params = variant_params(&self.cfg, variant).unwrap().into_iter();
        for (at, param) in params.filter(|param| param.role != Role::Repair).enumerate() {
            let Some(value) = store.get(&param.name).map(candle_core::Var::as_detached_tensor) else { continue };
            let drawn = inputs(500 + at as u64, &[value.dims()]).remove(0).to_dtype(DType::F32).unwrap();
            let moved = match param.role {
                Role::Router if self.without_constants && param.name.ends_with("router.bias") => {
                    value.zeros_like().unwrap()
                }
                Role::Router => (value + (drawn * 0.5).unwrap()).unwrap(),
                Role::Balance => (drawn * 0.1).unwrap(),
                Role::Choice if param.name.ends_with("kept") => drawn.gt(0f64).unwrap().to_dtype(DType::F32).unwrap(),
                Role::Choice if param.name.ends_with("most") => Tensor::new(&[11f32], &CPU).unwrap(),
                Role::Choice if param.name.ends_with("least_score") => Tensor::new(&[0.02f32], &CPU).unwrap(),
                Role::Choice => (drawn.abs().unwrap() + 0.2).unwrap(),
                _ => continue,
            };
            store.set(&param.name, &moved).unwrap();
        }
        for (layer, bias) in (0..self.cfg.num_hidden_layers).filter_map(|layer| Some((layer, self.repaired?))) {
            let shapes: [&[usize]; 2] = [&[self.cfg.intermediate_size, self.cfg.hidden_size], &[self.cfg.hidden_size]];
            let drawn = inputs(900 + layer as u64, &shapes);
            for ((name, value), scale) in
                [REPAIR_DOWN, REPAIR_BIAS].into_iter().zip(drawn).zip([0.1, f64::from(u8::from(bias))])
            {
                let value = (value * scale).unwrap().to_dtype(DType::F32).unwrap();
                store.insert(format!("model.layers.{layer}.mlp.{name}"), value).unwrap();
            }
        }
        for layer in (0..self.cfg.num_hidden_layers).filter(|_| self.bounded) {
            let levels = variant.spec.levels.len();
            for (name, value) in [(CHOICES_MOST, 2f32), (CHOICES_LEAST_SCORE, -0.3)] {
                let value = Tensor::full(value, levels, &CPU).unwrap();
                store.insert(format!("model.layers.{layer}.mlp.{name}"), value).unwrap();
            }
        }
        for layer in (0..self.cfg.num_hidden_layers).filter(|_| self.distilled) {
            let (i, d) = (self.cfg.intermediate_size, self.cfg.hidden_size);
            let drawn = inputs(950 + layer as u64, &[&[i, d], &[i, d], &[i], &[i]]);
            let [gate, up, worth, kept] = drawn.try_into().unwrap();
            let kept = kept.gt(-0.7).unwrap().to_dtype(DType::F64).unwrap();
            for (name, value) in [
                (REPAIR[0], (gate * 0.1).unwrap()),
                (REPAIR[1], (up * 0.1).unwrap()),
                (WORTH, (worth.abs().unwrap() + 0.2).unwrap()),
                (KEPT, kept),
                (LEAST_HIDDEN, Tensor::new(&[0.03f64], &CPU).unwrap()),
                (LEAST_INPUT, Tensor::new(&[0.2f64], &CPU).unwrap()),
            ]
            .into_iter()
            .take(if self.variant == "Pruned" { 2 } else { 6 })
            {
                let name = format!("model.layers.{layer}.mlp.{name}");
                store.insert(name, value.to_dtype(DType::F32).unwrap()).unwrap();
            }
        }
        store
    }

    /// Writes the checkpoint into `dir`.
    pub(crate) fn save(&self, dir: &Path, store: &ParamStore) {
        let own =
            TinyOnnConfig { active: Routed, ..TinyOnnConfig::new(moe::variant(self.variant).unwrap(), "random", 3) };
        let mut json = self.cfg.to_json();
        if self.cfg.family == Family::SmolLm3 {
            // What the family pads with goes beyond a small vocabulary.
            json["pad_token_id"] = 2.into();
        }
        TinyOnnFolder::save(dir, &json, &own, store, None).unwrap();
    }

    /// The checkpoint and what is exported of it, below `root`.
    pub(crate) fn write(&self, root: &Path) -> (PathBuf, PathBuf, Exported) {
        let [from, to] = ["checkpoint", self.name].map(|name| root.join(name));
        self.save(&from, &self.store());
        let exported = self.export(&from, &to).unwrap();
        (from, to, exported)
    }

    pub(crate) fn export(&self, from: &Path, to: &Path) -> Result<Exported> {
        let (source, staged) = (TinyOnnFolder::open(from)?, StagedFolder::new(to)?);
        let exported = export_into(&source, &staged, self.format, self.active)?;
        staged.publish()?;
        Ok(exported)
    }
}

/// All that transformers is asked about.
pub(crate) fn all() -> Vec<Case> {
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 16 };
    let moe = |name, variant, active| Case { active: Some(active), ..Case::of(name, variant, Qwen3Moe) };
    let mixtral = |name, variant, active| Case { format: Mixtral, ..moe(name, variant, active) };
    let tied = Arch { tie_word_embeddings: true, ..config(26, false) };
    vec![
        Case { cfg: tied.clone(), ..Case::of("levels", "ExportLevels", TinyOnn) },
        Case::of("deep", "ExportDeep", TinyOnn),
        Case::of("named", "ExportNamed", TinyOnn),
        Case::of("nucleus", "ExportNucleus", TinyOnn),
        Case::of("entropy", "ExportEntropy", TinyOnn),
        Case::of("own_gate", "OwnGate", TinyOnn),
        Case { repaired: Some(true), ..Case::of("neurons", "ExportNeurons", TinyOnn) },
        Case { repaired: Some(true), bounded: true, ..Case::of("grouped", "ExportGrouped", TinyOnn) },
        Case { repaired: Some(true), bounded: true, ..Case::of("whole", "ExportWhole", TinyOnn) },
        Case { bounded: true, ..Case::of("bounded", "ExportWhole", TinyOnn) },
        Case { repaired: Some(true), distilled: true, ..Case::of("distilled", "OwnGate", TinyOnn) },
        Case { repaired: Some(true), ..Case::of("pruned", "Pruned", TinyOnn) },
        Case::family("llama", Family::Llama, |cfg| cfg.rope_scaling = llama3),
        Case::family("qwen2", Family::Qwen2, |cfg| cfg.attention_bias = AttentionBias::Qkv),
        Case::family("mistral", Family::Mistral, |_| ()),
        Case::family("smollm3", Family::SmolLm3, |cfg| cfg.nope_layers = vec![1]),
        Case {
            cfg: Arch { hidden_act: "gelu".into(), ..config(26, false) },
            ..Case::of("gelu", "ExportLevels", TinyOnn)
        },
        Case { cfg: tied.clone(), ..moe("moe_all", "ExportLevels", All) },
        Case { without_constants: true, ..moe("moe_routed", "ExportFlat", Routed) },
        moe("moe_of_levels", "ExportLevels", Routed),
        Case { repaired: Some(false), distilled: true, ..moe("moe_pruned", "Pruned", Routed) },
        Case {
            cfg: Arch { family: Family::Llama, rope_scaling: llama3, ..tied.clone() },
            ..mixtral("mixtral_all", "ExportLevels", All)
        },
        Case {
            cfg: Arch { family: Family::Mistral, ..config(26, false) },
            without_constants: true,
            ..mixtral("mixtral_routed", "ExportFlat", Routed)
        },
        Case {
            active: Some(Routed),
            repaired: Some(false),
            distilled: true,
            ..Case::of("dense_pruned", "Pruned", Dense)
        },
    ]
}
