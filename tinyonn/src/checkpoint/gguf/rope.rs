//! The scaling of the rotary embedding, recovered from what GGUF keeps of it.
//!
//! A linear scaling is a setting. Llama 3.1's is not: llama.cpp writes the factor of each frequency as a tensor. Its settings are
//! found by trying those that models were published with, and every factor must then be what they give.

use std::f64::consts::PI;

use serde_json::{Value, json};

use super::architecture::Architecture;
use super::fault::Fault;
use super::metadata::Metadata;

const REMEDY: &str = "give the model as a Hugging Face folder, or another model";

/// Of Llama 3.1, 3.2 and 3.3.
const LOW_FREQUENCY_FACTOR: f64 = 1.0;
const HIGH_FREQUENCY_FACTOR: f64 = 4.0;
/// Contexts that such a model can have been pretrained with, the published one first.
const ORIGINAL_CONTEXTS: [usize; 9] = [8192, 4096, 2048, 1024, 512, 256, 16384, 32768, 65536];
/// The factors were rounded to f32, after a division or two.
const TOLERANCE: f64 = 1e-5;

/// `rope_scaling` of a Hugging Face configuration, `null` where nothing is scaled.
///
/// `frequencies` are the tensor's, where the file has it.
pub(super) fn scaling(
    architecture: Architecture,
    metadata: &Metadata,
    frequencies: Option<&[f32]>,
    theta: f64,
    head_dim: usize,
) -> Result<Value, Fault> {
    let factor = match metadata.float(&architecture.key("rope.scaling.factor"))? {
        None => metadata.float(&architecture.key("rope.scale_linear"))?,
        factor => factor,
    };
    let kind = metadata.text(&architecture.key("rope.scaling.type"))?;
    let attention = architecture.key("rope.scaling.attn_factor");
    if let Some(factor) = metadata.float(&attention)?.filter(|factor| *factor != 1.0) {
        return Err(Fault::new(format!("scales its attention by `{attention}` = {factor}, which is not read"), REMEDY));
    }
    let stated = match (kind, factor) {
        (Some("none"), _) | (None | Some("linear"), None | Some(1.0)) => Value::Null,
        (None | Some("linear"), Some(factor)) if factor > 0.0 => json!({ "rope_type": "linear", "factor": factor }),
        (None | Some("linear"), Some(factor)) => {
            return Err(Fault::new(format!("scales its rotary embedding by {factor}"), REMEDY));
        }
        (Some(other), _) => {
            return Err(Fault::new(format!("scales its rotary embedding by {other:?}, which is not read"), REMEDY));
        }
    };
    let Some(frequencies) = frequencies.filter(|factors| factors.iter().any(|factor| *factor != 1.0)) else {
        return Ok(stated);
    };
    if !stated.is_null() {
        return Err(Fault::new("scales its rotary embedding twice, by a setting and by `rope_freqs.weight`", REMEDY));
    }
    llama3(frequencies, theta, head_dim, metadata.count(&architecture.key("rope.scaling.original_context_length"))?)
}

fn llama3(frequencies: &[f32], theta: f64, head_dim: usize, stated: Option<usize>) -> Result<Value, Fault> {
    // The slowest frequency is scaled whole.
    let factor = frequencies.last().map_or(f64::NAN, |last| f64::from(*last));
    let fits = |context: &usize| {
        frequencies.len() * 2 == head_dim
            && frequencies.iter().enumerate().all(|(i, found)| {
                let expected = llama3_factor(i, theta, head_dim, factor, *context as f64);
                (f64::from(*found) - expected).abs() <= TOLERANCE * expected.abs()
            })
    };
    let context = stated.into_iter().chain(ORIGINAL_CONTEXTS).find(fits).ok_or_else(|| {
        Fault::new("scales its rotary embedding by a `rope_freqs.weight` that is not Llama 3.1's kind", REMEDY)
    })?;
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW_FREQUENCY_FACTOR,
        "high_freq_factor": HIGH_FREQUENCY_FACTOR,
        "original_max_position_embeddings": context,
    }))
}

/// By how much the wave of frequency `i` is stretched: short ones not at all, long ones by `factor`, those between in between.
fn llama3_factor(i: usize, theta: f64, head_dim: usize, factor: f64, context: f64) -> f64 {
    let wave = 2.0 * PI * theta.powf(2.0 * i as f64 / head_dim as f64);
    if wave < context / HIGH_FREQUENCY_FACTOR {
        1.0
    } else if wave > context / LOW_FREQUENCY_FACTOR {
        factor
    } else {
        let smooth = (context / wave - LOW_FREQUENCY_FACTOR) / (HIGH_FREQUENCY_FACTOR - LOW_FREQUENCY_FACTOR);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}
