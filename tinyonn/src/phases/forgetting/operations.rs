//! How many multiply-adds a run takes, counted from its settings.

use super::{ForgettingConfig, Method};
use crate::decoder::Arch;
use crate::decoder::smk_rule::Select;
use crate::phases::RunConfig;

/// Multiply-adds of a run: of each token that is learnt from a forward pass, the gradients of all layers' inputs and those of the weights that learn; of
/// each held-out token at each look a forward pass; of each token that is scanned as much as of one that all MLPs learn from. `held_out` are the
/// tokens of the old text and of one task that a look reads. Fits of routers, norms and activations are left out.
///
/// `experts` is the number of a layer's experts.
#[must_use]
pub fn multiply_adds(
    cfg: &Arch,
    (run, of): (&RunConfig, &ForgettingConfig),
    experts: usize,
    (old_tasks, held_out): (usize, [usize; 2]),
) -> f64 {
    let forward = forward(cfg, run.length);
    let mlps = (3 * cfg.hidden_size * cfg.intermediate_size * cfg.num_hidden_layers) as f64;
    let chosen = run.smk.min_k.min(experts) as f64 / experts.max(1) as f64;
    let learning = match of.method {
        Method::Experts { select: Select::All, .. } | Method::Replay { .. } | Method::Decay { .. } => mlps,
        Method::Experts { .. } | Method::LeastImportant => chosen * mlps,
        Method::Lora { rank } => (3 * rank * (cfg.hidden_size + cfg.intermediate_size) * cfg.num_hidden_layers) as f64,
    };
    let tasks = of.order.len();
    let learnt = (run.smk.steps as usize * run.smk.batch * run.length * tasks) as f64;
    let looks = if run.smk.look == 0 { 1 } else { run.smk.steps.div_ceil(run.smk.look) } as usize + 1;
    let [old, new] = held_out;
    let read = (tasks * looks * (old + new) + (tasks + 1) * (old + tasks * new)) as f64;
    let scans = if of.method.is_routed() { tasks * (old_tasks + tasks) } else { 0 } + old_tasks;
    let scanned = (scans * run.scan_tokens) as f64;
    learnt * (2.0 * forward + learning) + read * forward + scanned * (2.0 * forward + mlps)
}

/// Multiply-adds of what a pretrained model's knowledge takes besides: a forward pass of the original over the old text at each look, and one over each round of
/// questions, every `every` steps, of `asked` tokens. `held_out` are the tokens of the old text.
///
/// ```
/// use tinyonn::phases::RunConfig;
/// use tinyonn::phases::forgetting::multiply_adds_of_knowledge;
///
/// let config = RunConfig::quick();
/// let arch = config.dense.arch(1000, "silu");
/// let [seldom, often] = [20, 5].map(|every| multiply_adds_of_knowledge(&arch, &config, (2, every), (256, 100)));
/// assert!(often > seldom);
/// ```
#[must_use]
pub fn multiply_adds_of_knowledge(
    cfg: &Arch,
    run: &RunConfig,
    (tasks, every): (usize, u64),
    (held_out, asked): (usize, usize),
) -> f64 {
    let per_task = |every: u64| if every == 0 { 1 } else { run.smk.steps.div_ceil(every) } as usize + 1;
    let read = (tasks * per_task(run.smk.look) + tasks + 1) * held_out + tasks * per_task(every) * asked;
    read as f64 * forward(cfg, run.length)
}

/// Of one token of a sequence of `length`: all matrices, scores and values of the tokens before it (half of the sequence, on average), the head.
fn forward(cfg: &Arch, length: usize) -> f64 {
    let (d, heads) = (cfg.hidden_size, cfg.num_attention_heads * cfg.head_dim);
    let keys = cfg.num_key_value_heads * cfg.head_dim;
    let attention = 2 * d * heads + 2 * d * keys + heads * length;
    let mlp = 3 * d * cfg.intermediate_size;
    (cfg.num_hidden_layers * (attention + mlp) + cfg.vocab_size * d) as f64
}
