//! What a variant does, in sentences.

use super::experts;
use crate::{
    Balance, Combine, ExpertsAre, Gate, KeptPairs, MoeSpec, Neurons, PairIndex, PairsBy, PairsSpec, Pfag, Prefill,
    RoutePer,
};

/// How many experts of how many, and what a decision is for.
pub(super) fn heading(spec: &MoeSpec) -> String {
    let (all, active) = (spec.experts(), spec.active_experts());
    let share = trimmed(100.0 * active as f64 / all as f64);
    let bound = if spec.pfag == Pfag::Off { "" } else { "at most " };
    let per = match spec.route_per {
        RoutePer::Token => "each token decides for itself".to_owned(),
        RoutePer::Segment { tokens: 1 } => "each token decides for the next".to_owned(),
        RoutePer::Segment { tokens } => format!("each segment of {tokens} tokens decides for the next"),
        RoutePer::Sequence { first: 1 } => "a sequence decides once, by its first token".to_owned(),
        RoutePer::Sequence { first } => format!("a sequence decides once, by its first {first} tokens"),
        RoutePer::Task => "a sequence takes the path of its task, which the caller names".to_owned(),
    };
    let depth = spec.levels.len();
    format!("{}, {bound}{active} active ({share} %); physical decision depth {depth}; {per}.", experts(all))
}

/// A sentence for each thing that is said of the variant as a whole.
pub(super) fn behaviour(spec: &MoeSpec) -> Vec<String> {
    let MoeSpec { always_by, partition, activation, z_loss, jitter, .. } = spec;
    let mut sentences = vec![combination(spec)];
    sentences.extend(match spec.neurons {
        Neurons::All => None,
        Neurons::Gate => Some(
            "A choice is a neuron: of the neurons of its experts each token takes those whose |h(g, E|u|)|·‖w_down‖ is largest, \
             at the share that the checkpoint was calibrated to."
                .to_owned(),
        ),
        Neurons::Pruned => Some(
            "A choice is a neuron: every token takes the same ones of each layer, those that the checkpoint was calibrated to."
                .to_owned(),
        ),
    });
    sentences.extend(spec.attention.pairs().map(pairs));
    if let Some(by) = always_by {
        sentences.push(format!("The neurons that always take part are found by `always_by = {}`.", by.word()));
    }
    if let Some(partition) = partition {
        sentences.push(format!("Neurons are given to experts by `partition = {}`.", partition.word()));
    }
    sentences.extend(match spec.pfag {
        Pfag::Off => None,
        Pfag::Entropy => Some("A router takes ⌊exp H(p) + ½⌋ choices, H the entropy of its decision.".to_owned()),
        Pfag::Nucleus { mass } => Some(format!("A router takes as few choices as hold the probability {mass}.")),
        Pfag::Surprisal => {
            Some("A router takes as few choices as hold the probability σ(s), s the token's surprisal.".to_owned())
        }
    });
    sentences.extend(match spec.balance {
        Balance::None => None,
        Balance::Loss { coefficient } => {
            Some(format!("Load is evened by the auxiliary loss {coefficient} · N Σ f_n P_n (Fedus et al., 2021)."))
        }
        Balance::Bias { rate } => {
            Some(format!("Load is evened by a bias on selection that steps by {rate} (DeepSeek-AI, 2024)."))
        }
    });
    if *z_loss > 0.0 {
        sentences.push(format!("Router z-loss {z_loss} · mean (log Σ exp ℓ)² (Zoph et al., 2022)."));
    }
    if *jitter > 0.0 {
        sentences.push(format!("In training, the routers' input is multiplied by U(1 − ε, 1 + ε), ε = {jitter}."));
    }
    if let Some(activation) = activation {
        sentences.push(format!("Activation: `{activation}`."));
    }
    sentences
}

/// Which pairs attention computes.
fn pairs(pairs: &PairsSpec) -> String {
    let kept = match pairs.keep {
        KeptPairs::Share(share) => format!("⌈{share} (t + 1)⌉ keys"),
        KeptPairs::Keys(keys) => format!("{keys} keys"),
    };
    let (score, r) = match pairs.index {
        PairIndex::Components(r) => ("the logit of q's largest components alone, r", Some(r)),
        PairIndex::Directions(r) => ("the logit of the keys' main directions alone, r", Some(r)),
        PairIndex::Blocks(size) => ("the logit of the mean key of each block, of positions", Some(size)),
        PairIndex::Window => ("nearness", None),
        PairIndex::Exact => ("the logit itself", None),
    };
    let score = r.map_or(score.to_owned(), |r| format!("{score} = {r}"));
    let whose = match pairs.by {
        PairsBy::Head => "each query head for itself",
        PairsBy::KvHead => "one choice a key head",
    };
    let prefill = match pairs.prefill {
        Prefill::Dense => "what a cache reads first attends to all",
        Prefill::Sparse => "what a cache reads first chooses too",
    };
    format!(
        "Attention: in a routed pass the query at position t keeps {kept}, the {} nearest and the first {} among them, by {score}; {whose}; {prefill}.",
        pairs.near, pairs.first
    )
}

/// What experts are, how they are weighted and combined.
fn combination(MoeSpec { experts_are, combine, gate, .. }: &MoeSpec) -> String {
    let are = match experts_are {
        ExpertsAre::Slice => "Experts are slices of the dense MLP",
        ExpertsAre::Replicate => "Experts are replicas of the dense MLP, one base and a delta each",
    };
    let combined = match combine {
        Combine::Concat => "combined as one bank whose hidden activation is gated",
        Combine::Merge => "combined by merging their weights into one MLP",
        Combine::Dispatch => "combined by dispatching each input to its own",
    };
    let weight = match gate {
        Gate::Unit => "a chosen expert weighs 1",
        Gate::Scaled => "a chosen expert weighs its p, renormalised over the chosen, times their number",
        Gate::StraightThrough => "a chosen expert weighs 1, and its p in the backward pass",
        Gate::Normalised => "a chosen expert weighs its p, renormalised over the chosen",
    };
    format!("{are}, {combined} (`combine = {}`); {weight}.", combine.word())
}

/// At most one decimal, none if it is zero.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}
