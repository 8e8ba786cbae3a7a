//! What the programs that run a phase print of its figures.

use std::path::Path;

use tinyonn::metrics::size;
use tinyonn::phases::{Phase1Summary, Plan};
use tinyonn::ranks::Launched;

use crate::say;

/// Whether the decomposition is lossless, and how well routers find their labels.
pub fn lossless_and_routers(summary: &Phase1Summary) {
    let router = &summary.router;
    let equal = if summary.lossless.bit_equal { "bit-equal" } else { "NOT equal" };
    say!("lossless  {equal} (largest |Δ logit| {})", summary.lossless.max_abs_diff);
    say!(
        "routers   {:.1} % of groups (chance {:.1} %), {:.1} % of experts (chance {:.1} %) on held-out text",
        100.0 * router.group_accuracy,
        100.0 * router.chance,
        100.0 * router.expert_accuracy,
        100.0 * router.expert_chance
    );
    say!("          {:.1} % of groups when a sequence shares one decision", 100.0 * router.sequence.group_accuracy);
}

/// The losses that routing must beat.
pub fn controls(summary: &Phase1Summary) {
    let loss = &summary.loss;
    say!(
        "controls  random paths {:.3}, other tasks' paths {:.3}",
        loss.routed_random_labels,
        loss.routed_permuted_labels
    );
}

/// The ranks that have met.
pub fn ranks(of: &Launched) {
    say!("ranks     {} have met, {} of them on this host, started by {}", of.ranks, of.local_ranks, of.launcher);
}

/// What a run would do.
pub fn plan(plan: &Plan) {
    for (task, [train, validation, test]) in &plan.tasks {
        say!("task      {task}: {train} tokens to learn from, {validation} to stop by, {test} to report");
    }
    if plan.tasks.is_empty() {
        say!("task      none counted: a configuration alone has no tokenizer");
    }
    say!("model     {}: {:.1} M weights", plan.shape, plan.parameters as f64 / 1e6);
    let by_role = plan.by_role.iter().map(|(role, count)| format!("{} {:.1} M", role.words(), *count as f64 / 1e6));
    say!("          {}", by_role.collect::<Vec<_>>().join(", "));
    if plan.scanned > 0 {
        say!("scan      of {} tokens", plan.scanned);
    }
    for stage in &plan.stages {
        let mut parts = vec![format!("{} of weights", size(stage.weights))];
        if stage.values > 0 {
            parts.push(format!("about {} kept by passes", size(stage.values)));
        }
        parts.push(format!("{} of what routers see", size(stage.inputs)));
        say!("memory    {}: {}", stage.name, parts.join(", "));
    }
    for training in &plan.trainings {
        say!(
            "training  {}: {} steps of {} tokens; {:.1} M weights learn",
            training.name,
            training.steps,
            training.tokens,
            training.learning as f64 / 1e6
        );
        say!(
            "memory    {} of weights, gradients and moments, about {} kept by passes; a state is {} on disk",
            size(training.weights),
            size(training.values),
            size(training.state)
        );
    }
    if plan.trainings.is_empty() {
        say!("training  none: the dense model is there");
    }
    say!("nothing was done (--dry-run)");
}

/// Where the page of a run lies, in the folder `out`.
pub fn page(out: &Path) {
    if cfg!(feature = "pictures") {
        say!("open      {}", out.join("report.html").display());
    } else {
        say!("page      none: this build draws no pages; `exp_report {}` of one that does draws it", out.display());
    }
}
