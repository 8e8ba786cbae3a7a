//! What is said of the variant as a whole: what experts are and how they are combined, what decides for what, how load is kept.

use syn::Path;
use tinyonn_spec::{
    AlwaysBy, AttentionSpec, Balance, Combine, ExpertsAre, Gate, MoeSpec, Neurons, PartitionStrategy, Pfag, RoutePer,
};

use super::attention::{STAND_IN, attention};
use super::settings::{Call, Settings, count, real, word};
use crate::errors::Errors;
use crate::parse::{Value, names_a_type};
use crate::variant::snake_case;

/// What can share a decision.
pub(crate) const ROUTE_PER: [&str; 4] = ["token", "segment", "sequence", "task"];
/// What can decide how many are taken.
pub(crate) const PFAG: [&str; 4] = ["off", "entropy", "nucleus", "surprisal"];
/// What can keep load even.
pub(crate) const BALANCE: [&str; 3] = ["none", "loss", "bias"];
/// The activations that have a word.
pub(crate) const ACTIVATIONS: [&str; 2] = ["silu", "gelu"];
/// The weights of a chosen slice. Replicas know but one, which is not written.
pub(crate) const GATES: [Gate; 3] = [Gate::Unit, Gate::Scaled, Gate::StraightThrough];

/// Tokens that a sequence is judged by unless said otherwise.
const FIRST: usize = 64;

/// A specification without a hierarchy, and the activation of the user's.
pub(super) fn behaviour(settings: &Settings, errors: &mut Errors) -> (MoeSpec, Option<Path>) {
    let mut spec = MoeSpec::PLAIN;
    let known = settings.set("experts_are", &mut spec.experts_are, errors, word(&ExpertsAre::ALL));
    if spec.experts_are == ExpertsAre::Replicate {
        (spec.combine, spec.gate) = (Combine::Merge, Gate::Normalised);
    }
    settings.set("combine", &mut spec.combine, errors, word(&Combine::ALL));
    if !known {
        // Whether it suits the experts, nobody can say.
        spec.combine = MoeSpec::PLAIN.combine;
    }
    settings.set("gate", &mut spec.gate, errors, word(&GATES));
    settings.set("neurons", &mut spec.neurons, errors, word(&Neurons::ALL));
    if !settings.set("attention", &mut spec.attention, errors, attention) {
        // Of what cannot be read nobody knows that a hierarchy is missing.
        spec.attention = AttentionSpec::Pairs(STAND_IN);
    }
    settings.set("always_by", &mut spec.always_by, errors, |key, value, errors| {
        word(&AlwaysBy::ALL)(key, value, errors).map(Some)
    });
    settings.set("partition", &mut spec.partition, errors, |key, value, errors| {
        word(&PartitionStrategy::ALL)(key, value, errors).map(Some)
    });
    settings.set("route_per", &mut spec.route_per, errors, route_per);
    settings.set("pfag", &mut spec.pfag, errors, pfag);
    settings.set("balance", &mut spec.balance, errors, balance);
    settings.set("z_loss", &mut spec.z_loss, errors, |key, value, errors| real(key, value, "z_loss = 0.001", errors));
    settings.set("jitter", &mut spec.jitter, errors, |key, value, errors| real(key, value, "jitter = 0.01", errors));
    let mut own = None;
    settings.set("activation", &mut spec.activation, errors, |key, value, errors| {
        if let Value::Path(path) = value {
            own = Some(path.clone());
            return path.segments.last().map(|last| Some(snake_case(&last.ident).into()));
        }
        activation(key, value, errors).map(|word| Some(word.into()))
    });
    (spec, own)
}

fn route_per(key: &str, value: &Value, errors: &mut Errors) -> Option<RoutePer> {
    let call = Call::of(key, value, &ROUTE_PER, errors)?;
    match call.word {
        "segment" => {
            let tokens = call.argument("the tokens of a segment", "segment(256)", errors)?;
            Some(RoutePer::Segment { tokens: count("segment", tokens, errors)? })
        }
        "sequence" if call.arguments.is_empty() => Some(RoutePer::Sequence { first: FIRST }),
        "sequence" => {
            let first = call.argument("the tokens it reads first", "sequence(64)", errors)?;
            Some(RoutePer::Sequence { first: count("sequence", first, errors)? })
        }
        word => {
            call.without_arguments(key, errors)?;
            Some(if word == "task" { RoutePer::Task } else { RoutePer::Token })
        }
    }
}

fn pfag(key: &str, value: &Value, errors: &mut Errors) -> Option<Pfag> {
    let call = Call::of(key, value, &PFAG, errors)?;
    if call.word == "nucleus" {
        let mass = call.argument("the probability that is taken", "nucleus(0.9)", errors)?;
        return Some(Pfag::Nucleus { mass: real("nucleus", mass, "nucleus(0.9)", errors)? });
    }
    call.without_arguments(key, errors)?;
    Some(match call.word {
        "entropy" => Pfag::Entropy,
        "surprisal" => Pfag::Surprisal,
        _ => Pfag::Off,
    })
}

fn balance(key: &str, value: &Value, errors: &mut Errors) -> Option<Balance> {
    let call = Call::of(key, value, &BALANCE, errors)?;
    match call.word {
        "loss" => {
            let coefficient = call.argument("the coefficient of the loss", "loss(0.01)", errors)?;
            Some(Balance::Loss { coefficient: real("loss", coefficient, "loss(0.01)", errors)? })
        }
        "bias" => {
            let rate = call.argument("the step of the bias", "bias(0.001)", errors)?;
            Some(Balance::Bias { rate: real("bias", rate, "bias(0.001)", errors)? })
        }
        _ => call.without_arguments(key, errors).map(|()| Balance::None),
    }
}

/// One of the activations that have a word.
fn activation(key: &str, value: &Value, errors: &mut Errors) -> Option<&'static str> {
    match value {
        Value::Word { name, .. } if names_a_type(name) => {
            errors.on(name, format!("`{name}` is a type, which takes no argument here; write `activation = {name}`"));
            None
        }
        Value::Word { name, .. } if !ACTIVATIONS.iter().any(|known| name == known) => {
            errors.unknown(name, "activation", &[ACTIVATIONS.as_slice(), &["or the path of a type"]].concat());
            None
        }
        _ => {
            let call = Call::of(key, value, &ACTIVATIONS, errors)?;
            call.without_arguments(key, errors)?;
            Some(call.word)
        }
    }
}
