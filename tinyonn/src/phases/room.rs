//! Whether a run fits on its GPU, asked before anything is put there.
//!
//! What a plan counts of a stage ([`super::plan()`]), and the head's logits, against what is free. A stage that takes more than that would end in the middle, with
//! an error of the driver; one that takes a little less may still, as an allocator's slack is counted nowhere.

use candle_core::DType;

use super::config::hidden_act;
use super::plan::{Plan, Stages, frozen_bytes, held};
use super::{Dense, DeviceName, ImageConfig, RunConfig};
use crate::checkpoint::{ModelFolder, stored_type};
use crate::decoder::Arch;
use crate::metrics::size;
use crate::moe::variant;
use crate::train::{Memory, Precision};
use crate::{Error, Result};

/// Logits that the head holds at once on a GPU, at most.
const LOGITS: u64 = 1 << 32;

/// What a stage of a run takes of the memory of the device that it computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Need {
    /// The stage, in words.
    stage: &'static str,
    /// Bytes of weights and, where they learn, of gradients and moments.
    weights: u64,
    /// Bytes that passes keep.
    values: u64,
    /// What would make it less, besides `--dtype bf16`.
    lower: &'static str,
}

impl Need {
    fn bytes(&self) -> u64 {
        self.weights + self.values
    }
}

/// Refuses a run of phases whose largest stage does not fit on its GPU.
///
/// ```
/// use tinyonn::phases::{RunConfig, Stages, check_room};
///
/// check_room(&RunConfig::quick(), Stages::Both)?; // on a processor memory is the system's
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// The stage, what it takes, what is free, and what to lower; a model that cannot be read.
pub fn check_room(config: &RunConfig, stages: Stages<'_>) -> Result<()> {
    let Some(memory) = config.device.memory()? else { return Ok(()) };
    refuse(&largest(config, stages)?, config.dtype, (config.device, memory))
}

/// The same of an image.
///
/// # Errors
/// As above.
pub(super) fn check_room_for_image(config: &ImageConfig, tokens: u64) -> Result<()> {
    let Some(memory) = config.device.memory()? else { return Ok(()) };
    let folder = ModelFolder::open(&config.model)?;
    let (cfg, dtype) = (folder.arch()?, config.dtype);
    let weights = frozen_bytes(held(dtype, stored_type(&folder)), dtype) * cfg.parameters() as u64;
    let values = Memory::DEFAULT.within(dtype).values(&cfg, tokens) + logits(&cfg, tokens, dtype);
    let need = Need { stage: "the scan", weights, values, lower: "a smaller --batch or --length" };
    refuse(&need, dtype, (config.device, memory))
}

/// The stage that takes most.
fn largest(config: &RunConfig, stages: Stages<'_>) -> Result<Need> {
    let variant = variant(&config.variant)?;
    let (cfg, stored) = match (stages, &config.model) {
        (Stages::From(dir), _) => {
            let (folder, cfg, _) = Dense::open_routed(dir)?;
            (cfg, stored_type(folder.folder()))
        }
        (_, Some(dir)) => {
            let folder = ModelFolder::open(dir)?;
            (folder.arch()?, stored_type(&folder))
        }
        (_, None) => (config.dense.arch(config.dense.vocab_size, hidden_act(variant)), Some(DType::F32)),
    };
    let none = [(); 3].map(|()| vec![0]);
    let model = (&cfg, variant, held(config.dtype, stored));
    let pretrains = config.model.is_none() && !matches!(stages, Stages::From(_));
    let plan = Plan::new(config, stages, model, (pretrains, &none))?;
    let tokens = (config.batch * config.length) as u64;
    let stages = plan.stages.iter().filter(|stage| stage.name != "router fit").map(|stage| Need {
        stage: stage.name,
        weights: stage.weights,
        values: stage.values + logits(&cfg, tokens, config.dtype),
        lower: "a smaller `batch` or `length`",
    });
    let trainings = plan.trainings.iter().map(|training| {
        let (memory, lower) = if training.name == "pretraining" {
            let lower =
                "more `pretrain.memory.micro_batches`, `pretrain.memory.recompute` or a smaller `pretrain.batch`";
            (config.pretrain_in_dtype().memory, lower)
        } else {
            let lower = "more `smk.memory.micro_batches`, `smk.memory.recompute` or a smaller `smk.batch`";
            (config.smk_in_dtype().memory, lower)
        };
        let logits = logits(&cfg, training.tokens / memory.micro_batches as u64, memory.weights);
        Need { stage: training.name, weights: training.weights, values: training.values + logits, lower }
    });
    let none = Need { stage: "nothing", weights: 0, values: 0, lower: "nothing" };
    Ok(stages.chain(trainings).max_by_key(Need::bytes).unwrap_or(none))
}

/// Bytes of the head's logits of `tokens` tokens, which it computes in parts where they are many.
fn logits(cfg: &Arch, tokens: u64, dtype: Precision) -> u64 {
    (tokens * cfg.vocab_size as u64 * dtype.bytes()).min(LOGITS)
}

/// Refuses what takes more than is free.
fn refuse(need: &Need, dtype: Precision, (device, [free, total]): (DeviceName, [u64; 2])) -> Result<()> {
    if need.bytes() <= free {
        return Ok(());
    }
    let problem = format!(
        "{} needs about {} ({} of weights and what learns, {} kept by passes), and {device} has {} free of {}",
        need.stage,
        size(need.bytes()),
        size(need.weights),
        size(need.values),
        size(free),
        size(total)
    );
    let narrower = if dtype.is_f32() { "--dtype bf16, " } else { "" };
    Err(Error::setting("--device", problem, format!("take {narrower}{}", need.lower)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const NEED: Need =
        Need { stage: "Surprise Min-K", weights: 28 << 30, values: 3 << 30, lower: "a smaller `smk.batch`" };

    /// What fits is let through; what does not is refused in one line with what to lower, the type last where it is the narrow one already.
    #[rstest]
    #[case(31 << 30, Precision::F32, &[])]
    #[case((31 << 30) - 1, Precision::F32, &["Surprise Min-K", "cuda:1", "--dtype bf16", "a smaller `smk.batch`"])]
    #[case(0, Precision::Bf16, &["Surprise Min-K", "take a smaller `smk.batch`"])]
    fn what_does_not_fit_is_refused(#[case] free: u64, #[case] dtype: Precision, #[case] words: &[&str]) {
        match refuse(&NEED, dtype, (DeviceName::Cuda(1), [free, 80 << 30])) {
            Ok(()) => assert!(words.is_empty()),
            Err(refused) => {
                let refused = refused.to_string();
                assert!(!words.is_empty() && words.iter().all(|word| refused.contains(word)), "{refused}");
                assert!(!refused.contains('\n'), "{refused}");
            }
        }
    }

    /// Of a model to be pretrained no stage takes more than its trainings do; less is needed in bf16 of the weights that are stored so.
    #[test]
    fn the_largest_stage_is_a_training() -> Result<()> {
        let config = RunConfig::default();
        assert_eq!(largest(&config, Stages::Both)?.stage, "pretraining");
        let after = RunConfig { pretrain: crate::train::PretrainConfig { batch: 1, ..config.pretrain }, ..config };
        assert_eq!(largest(&after, Stages::Both)?.stage, "Surprise Min-K");
        Ok(())
    }
}
