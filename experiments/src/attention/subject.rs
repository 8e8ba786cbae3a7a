//! What all cells share: the model, the directions of its keys, the material; and what is measured of a cell.

use std::time::Instant;

use candle_core::DType;
use tinyonn::checkpoint::{KeyDirections, LoadedModel, ModelFolder, load_model};
use tinyonn::data::TokenSet;
use tinyonn::decoder::attention::check_attention;
use tinyonn::decoder::{CausalLm, Mlp};
use tinyonn::moe::{AttentionSpec, Prefill};
use tinyonn::phases::text;
use tinyonn::train::Precision;
use tinyonn::{Error, Result, SOURCES_SHA256};

use super::masked::Counted;
use super::material::{Material, Read};
use super::reader::Reader;
use super::{AttentionConfig, AttentionRecord, AttentionStore, Cell};
use crate::evidence::KindLosses;

/// Tokens of a row that directions are fitted on, at most.
const ROW: usize = 4096;

/// What all cells share.
pub(super) struct Subject {
    lm: CausalLm<Mlp>,
    directions: KeyDirections,
    material: Material,
}

impl Subject {
    /// Reads all of it; directions that the study has fitted before are read, too.
    ///
    /// # Errors
    /// Text or models that cannot be read.
    pub(super) fn new(config: &AttentionConfig, store: &AttentionStore) -> Result<Self> {
        let folder = ModelFolder::open(&config.model)?;
        let positions = folder.arch()?.max_position_embeddings;
        if let Some(texts) = config.texts.iter().find(|texts| texts.length > positions) {
            let problem = format!("has a length of {}, and the model has {positions} positions", texts.length);
            return Err(Error::setting("texts", problem, "use shorter texts"));
        }
        let tokenizer = text::tokenizer(&folder)?;
        let material = Material::read(config, &tokenizer)?;
        let dtype = if config.dtype == Precision::Bf16 { DType::BF16 } else { DType::F32 };
        let LoadedModel::Dense(lm) = load_model(&config.model, &config.device.open()?, Some(dtype))? else {
            return Err(Error::file(&config.model, "is no dense model", "give one that was not taken apart"));
        };
        let path = store.directions();
        let directions = if path.is_file() {
            KeyDirections::read(&path, &folder)?
        } else {
            let set = TokenSet::encode(&material.fitted, &tokenizer)?;
            let fitted = KeyDirections::fit_on(&folder, &lm, &set, ROW.min(positions), config.calibration_tokens)?;
            fitted.save(path.parent().unwrap_or(&path))?;
            fitted
        };
        Ok(Self { lm, directions, material })
    }

    /// Measures `cell`.
    ///
    /// # Errors
    /// What the library reports.
    pub(super) fn run(&self, config: &AttentionConfig, cell: &Cell) -> Result<AttentionRecord> {
        let started = Instant::now();
        let pairs = cell.method.pairs(cell.share, config.near, config.first);
        check_attention(&AttentionSpec::Pairs(pairs), self.lm.config())?;
        let reader = Reader { lm: &self.lm, directions: &self.directions, method: cell.method, pairs };
        let missing = || Error::setting("texts", format!("has no length {}", cell.length), "name a cell of the study");
        let texts = self.material.texts.iter().find(|texts| texts.length == cell.length).ok_or_else(missing)?;
        let Read { length, kinds, facts } = texts;
        let behind = |first: usize| if cell.prefill == Prefill::Dense { first } else { 0 };
        let (mut text, mut counted) = (Vec::with_capacity(kinds.len()), Counted::default());
        for (kind, documents) in kinds {
            let mut losses = Vec::with_capacity(documents.len());
            for tokens in documents {
                let (sum, tokens, own) = reader.document(tokens, length / 4, behind(length / 4))?;
                losses.push((sum, tokens as f64));
                counted = counted.with(own);
            }
            text.push(KindLosses { kind: kind.clone(), documents: losses });
        }
        let facts = facts.iter().map(|text| reader.facts(text, behind(text.asked_from))).collect::<Result<_>>()?;
        let cfg = self.lm.config();
        let part = |pairs: f64| if counted.causal > 0.0 { pairs / counted.causal } else { 1.0 };
        let (kept, read) = (part(counted.kept), part(counted.read));
        let index = cell.method.index_bytes(cfg.head_dim, cfg.kv_groups());
        Ok(AttentionRecord {
            cell: *cell,
            sources: SOURCES_SHA256.into(),
            material_sha256: self.material.sha256(cell.length),
            text,
            facts,
            kept,
            read,
            bytes: index + read * cell.method.row_bytes(cfg.head_dim),
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}
