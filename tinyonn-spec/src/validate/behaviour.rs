//! The rules of what is said of a variant as a whole.

use super::{At, Found, Part};
use crate::{Balance, Combine, ExpertsAre, Gate, MoeSpec, Neurons, Pfag, RoutePer};

pub(super) fn check(spec: &MoeSpec, found: &mut Found) {
    match spec.experts_are {
        ExpertsAre::Slice => slices(spec, found),
        ExpertsAre::Replicate => replicas(spec, found),
    }
    numbers(spec, found);
    neurons(spec, found);
    always_by(spec, found);
    if spec.levels.is_empty() && spec.needs_no_levels() {
        no_router_is_there(spec, found);
    } else if spec.route_per == RoutePer::Task {
        no_router_is_asked(spec, found);
    }
}

fn slices(spec: &MoeSpec, found: &mut Found) {
    if spec.combine == Combine::Merge {
        let remedy = "write `combine = concat` or `combine = dispatch`, or add `experts_are = replicate`";
        found.add(At::Value("combine"), "slices of one MLP have no common weights to merge", remedy);
    }
    if spec.gate == Gate::Normalised {
        let problem = "weights that add up to one shrink what slices add up to";
        found.add(At::Value("gate"), problem, "write `gate = unit` or `gate = scaled`");
    }
}

fn replicas(spec: &MoeSpec, found: &mut Found) {
    let or_slices = "or write `experts_are = slice`";
    if spec.combine == Combine::Concat {
        let remedy = format!("write `combine = merge` or `combine = dispatch`, {or_slices}");
        found.add(At::Value("combine"), "replicas are whole MLPs, not parts of one", remedy);
    }
    if spec.gate != Gate::Normalised {
        let problem = "replicas are weighted by their probabilities, which add up to one";
        found.add(At::Setting("gate"), problem, format!("remove `gate`, {or_slices}"));
    }
    if spec.partition.is_some() {
        let problem = "replicas are whole MLPs: no neurons are shared out";
        found.add(At::Setting("partition"), problem, format!("remove `partition`, {or_slices}"));
    }
    for group in 0..spec.always.len() {
        let problem =
            "replicas share one weight of 1 among the chosen, which leaves none for experts that always take part";
        found.add(At::Always { group, part: Part::Kind }, problem, format!("remove `always`, {or_slices}"));
    }
}

/// Neurons that always take part are found beside others that do not.
fn always_by(spec: &MoeSpec, found: &mut Found) {
    if spec.always_by.is_none() || !(spec.always.is_empty() || spec.levels.is_empty()) {
        return;
    }
    let (problem, remedy) = if spec.levels.is_empty() {
        ("without a hierarchy all neurons are of experts that always take part", "declare groups, experts or levels")
    } else {
        (
            "no expert always takes part whose neurons it could find",
            "add `always = 2` (on an enum a group that is `always`)",
        )
    };
    found.add(At::Setting("always_by"), problem, format!("{remedy}, or remove `always_by`"));
}

/// What chooses neurons has its own way to compute them, and no weight but one.
fn neurons(spec: &MoeSpec, found: &mut Found) {
    if spec.neurons == Neurons::All {
        return;
    }
    let all = format!("or remove `neurons = {}`", spec.neurons.word());
    if spec.experts_are == ExpertsAre::Replicate {
        let problem = "replicas are merged as whole matrices, of which no token takes neurons";
        return found.add(At::Value("neurons"), problem, format!("write `experts_are = slice`, {all}"));
    }
    if spec.gate != Gate::Unit {
        let problem = "a neuron that is chosen takes part whole";
        found.add(At::Value("gate"), problem, format!("write `gate = unit`, {all}"));
    }
    if spec.combine == Combine::Dispatch {
        let problem = "what chooses neurons computes just these, whatever experts they are of";
        found.add(At::Value("combine"), problem, format!("remove `combine`, {all}"));
    }
    match (spec.neurons, spec.route_per) {
        (Neurons::Gate, RoutePer::Segment { .. } | RoutePer::Sequence { .. } | RoutePer::Task) => {
            let problem = "a token's own gate chooses for that token alone";
            found.add(At::Value("route_per"), problem, format!("write `route_per = token`, {all}"));
        }
        (Neurons::Pruned, _) if !spec.levels.is_empty() => {
            let problem = "a fixed set of neurons leaves nothing for routers to choose";
            found.add(At::Value("neurons"), problem, "remove the hierarchy, or write `neurons = gate`");
        }
        _ => {}
    }
}

fn numbers(spec: &MoeSpec, found: &mut Found) {
    let (positive, finite) = ("more than 0, and at most 1", "a finite number, 0 or more");
    let is_size = |value: f64| value.is_finite() && value >= 0.0;
    let mut real = |at, name, value: f64, is_allowed: bool, range| {
        if !is_allowed {
            found.add(At::Value(at), format!("`{name}` is {value}"), format!("use {range}"));
        }
    };
    if let Pfag::Nucleus { mass } = spec.pfag {
        real("pfag", "nucleus", mass, mass > 0.0 && mass <= 1.0, positive);
    }
    match spec.balance {
        Balance::None => (),
        Balance::Loss { coefficient } => real("balance", "loss", coefficient, is_size(coefficient), finite),
        Balance::Bias { rate } => real("balance", "bias", rate, is_size(rate), finite),
    }
    real("z_loss", "z_loss", spec.z_loss, is_size(spec.z_loss), finite);
    real("jitter", "jitter", spec.jitter, (0.0..1.0).contains(&spec.jitter), "0 or more, and less than 1");
    match spec.route_per {
        RoutePer::Token | RoutePer::Task => (),
        RoutePer::Segment { tokens } => found.count(At::Value("route_per"), "segment", tokens),
        RoutePer::Sequence { first } => found.count(At::Value("route_per"), "sequence", first),
    }
}

/// What asks for the scores of routers.
fn asks_of_routers(spec: &MoeSpec) -> impl Iterator<Item = &'static str> {
    let asks = [
        ("pfag", spec.pfag != Pfag::Off),
        ("balance", spec.balance != Balance::None),
        ("z_loss", spec.z_loss > 0.0),
        ("jitter", spec.jitter > 0.0),
    ];
    asks.into_iter().filter(|(_, asks)| *asks).map(|(key, _)| key)
}

/// Without levels nothing is routed: what speaks of routers speaks of nobody.
fn no_router_is_there(spec: &MoeSpec, found: &mut Found) {
    let shares = (spec.neurons != Neurons::Gate && spec.route_per != RoutePer::Token).then_some("route_per");
    // Where neurons are chosen, its own rules speak of these.
    let alone = spec.neurons == Neurons::All;
    let weighs = (alone && spec.gate != Gate::Unit).then_some("gate");
    let sends = (alone && spec.combine == Combine::Dispatch).then_some("combine");
    for key in asks_of_routers(spec).chain(shares).chain(weighs).chain(sends) {
        let problem = format!("`{key}` is for routers, and without a hierarchy there are none");
        found.add(At::Setting(key), problem, format!("remove `{key}`, or declare groups, experts or levels"));
    }
}

/// Under `route_per = task`, what asks for the scores of routers gets none.
fn no_router_is_asked(spec: &MoeSpec, found: &mut Found) {
    let by_weight = (spec.experts_are == ExpertsAre::Slice && spec.gate != Gate::Unit).then_some("gate");
    for key in by_weight.into_iter().chain(asks_of_routers(spec)) {
        let problem = format!("`{key}` needs the scores of routers, and `route_per = task` asks none");
        found.add(At::Setting(key), problem, format!("remove `{key}`, or write `route_per = sequence`"));
    }
}
