//! What is said of the variant as a whole: what experts are and how they are combined, what decides for what, how load is kept.

use proc_macro2::Ident;

use super::settings::{Call, Settings, count, real, word};
use crate::errors::Errors;
use crate::keywords::{Combine, ExpertsAre, Gate};
use crate::parse::{Value, names_a_type};
use crate::variant::{Activation, Balance, Behaviour, FIRST, Pfag, RoutePer};

/// What can share a decision.
pub(crate) const ROUTE_PER: [&str; 4] = ["token", "segment", "sequence", "task"];
/// What can decide how many are taken.
pub(crate) const PFAG: [&str; 4] = ["off", "entropy", "nucleus", "surprisal"];
/// What can keep load even.
pub(crate) const BALANCE: [&str; 3] = ["none", "loss", "bias"];
/// The activations that have a word.
pub(crate) const ACTIVATIONS: [&str; 2] = ["silu", "gelu"];

/// All but the hierarchy; `always` are the flags of groups that always take part.
pub(super) fn behaviour(settings: &Settings, always: &[&Ident], errors: &mut Errors) -> Option<Behaviour> {
    let experts_are = settings.or("experts_are", ExpertsAre::Slice, errors, word);
    let default = if experts_are == Some(ExpertsAre::Replicate) { Combine::Merge } else { Combine::Concat };
    let combine = settings.or("combine", default, errors, word);
    let gate = settings.or("gate", Gate::Unit, errors, word);
    let partition = settings.or("partition", None, errors, |key, value, errors| word(key, value, errors).map(Some));
    let activation =
        settings.or("activation", None, errors, |key, value, errors| activation(key, value, errors).map(Some));
    let route_per = settings.or("route_per", RoutePer::Token, errors, route_per);
    let pfag = settings.or("pfag", Pfag::Off, errors, pfag);
    let balance = settings.or("balance", Balance::None, errors, balance);
    let z_loss = settings
        .or("z_loss", 0.0, errors, |key, value, errors| real(key, value, COEFFICIENT, "z_loss = 0.001", errors));
    let jitter = settings.or("jitter", 0.0, errors, |key, value, errors| {
        real(key, value, (|value| value < 1.0, "0 or more, and less than 1"), "jitter = 0.01", errors)
    });
    match experts_are {
        Some(ExpertsAre::Slice) => slices(settings, combine, errors),
        Some(ExpertsAre::Replicate) => replicas(settings, combine, always, errors),
        None => (),
    }
    if let Some(RoutePer::Task) = route_per {
        let asks = [
            ("gate", gate.is_some_and(|gate| gate != Gate::Unit)),
            ("pfag", pfag.as_ref().is_some_and(|pfag| !matches!(pfag, Pfag::Off))),
            ("balance", balance.as_ref().is_some_and(|balance| !matches!(balance, Balance::None))),
            ("z_loss", z_loss.is_some_and(|z_loss| z_loss > 0.0)),
            ("jitter", jitter.is_some_and(|jitter| jitter > 0.0)),
        ];
        no_router_is_asked(settings, asks, errors);
    }
    Some(Behaviour {
        experts_are: experts_are?,
        combine: combine?,
        gate: (experts_are? == ExpertsAre::Slice).then_some(gate?),
        partition: partition?,
        activation: activation?,
        route_per: route_per?,
        pfag: pfag?,
        balance: balance?,
        z_loss: z_loss?,
        jitter: jitter?,
    })
}

/// A number that multiplies a loss, or a step.
const COEFFICIENT: (fn(f64) -> bool, &str) = (|value| value >= 0.0, "a finite number, 0 or more");

fn slices(settings: &Settings, combine: Option<Combine>, errors: &mut Errors) {
    if combine == Some(Combine::Merge) {
        let problem = "slices of one MLP have no common weights to merge";
        let remedy = "write `combine = concat` or `combine = dispatch`, or add `experts_are = replicate`";
        errors.on(settings.value("combine"), format!("{problem}; {remedy}"));
    }
}

fn replicas(settings: &Settings, combine: Option<Combine>, always: &[&Ident], errors: &mut Errors) {
    let or_slices = "or write `experts_are = slice`";
    if combine == Some(Combine::Concat) {
        let problem = "replicas are whole MLPs, not parts of one";
        let remedy = format!("write `combine = merge` or `combine = dispatch`, {or_slices}");
        errors.on(settings.value("combine"), format!("{problem}; {remedy}"));
    }
    if let Some(gate) = settings.key("gate") {
        let problem = "replicas are weighted by their probabilities, which add up to one";
        errors.on(gate, format!("{problem}; remove `gate`, {or_slices}"));
    }
    if let Some(partition) = settings.key("partition") {
        let problem = "replicas are whole MLPs: no neurons are shared out";
        errors.on(partition, format!("{problem}; remove `partition`, {or_slices}"));
    }
    for flag in always {
        let problem =
            "replicas share one weight of 1 among the chosen, which leaves none for experts that always take part";
        errors.on(flag, format!("{problem}; remove `always`, {or_slices}"));
    }
}

/// Under `route_per = task`, what asks for the scores of routers gets none.
fn no_router_is_asked(settings: &Settings, asks: [(&str, bool); 5], errors: &mut Errors) {
    for key in asks.iter().filter(|(_, asks)| *asks).filter_map(|(key, _)| settings.key(key)) {
        let problem = format!("`{key}` needs the scores of routers, and `route_per = task` asks none");
        errors.on(key, format!("{problem}; remove `{key}`, or write `route_per = sequence`"));
    }
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
        let range = (|mass| mass > 0.0 && mass <= 1.0, "more than 0, and at most 1");
        return Some(Pfag::Nucleus { mass: real("nucleus", mass, range, "nucleus(0.9)", errors)? });
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
            Some(Balance::Loss { coefficient: real("loss", coefficient, COEFFICIENT, "loss(0.01)", errors)? })
        }
        "bias" => {
            let rate = call.argument("the step of the bias", "bias(0.001)", errors)?;
            Some(Balance::Bias { rate: real("bias", rate, COEFFICIENT, "bias(0.001)", errors)? })
        }
        _ => call.without_arguments(key, errors).map(|()| Balance::None),
    }
}

fn activation(key: &str, value: &Value, errors: &mut Errors) -> Option<Activation> {
    match value {
        Value::Path(path) => Some(Activation::Custom(path.clone())),
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
            Some(Activation::Known(call.word))
        }
    }
}
