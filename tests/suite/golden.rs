//! Golden figures: what the library computed when the fixtures were made, so that a change of its insides shows that it computes
//! the same. What they are right about other tests say; these say only that nothing moved.
//!
//! A section has a fixture under `tests/fixtures/golden`, which holds the machine it was made on. `Exact` asks for equal bits on
//! such a machine, and elsewhere for its tolerance; a section that is meant to round otherwise from now on gets `Within`, the same
//! tolerance everywhere. What is the same or is not (labels, tokens, partitions) has to be the same under both.
//!
//! `TINYONN_GOLDEN=write cargo test --release -p tests --test suite golden::` makes all fixtures anew, `golden::smk` behind it one.
//! `golden/engine.rs` is all that knows the library's calls.

mod comparison;
mod dense;
mod engine;
mod figures;
mod fixture;
mod variants;

use figures::Tolerance;
use fixture::Rule;

/// Of what is not computed in f32.
const NONE: Tolerance = Tolerance { relative: 0.0, absolute: 0.0, why: "integers alone" };

const FORWARD: Tolerance =
    Tolerance { relative: 5e-5, absolute: 1e-6, why: "some hundred roundings of f32 from the embedding to the head" };

const SUMS: Tolerance = Tolerance {
    relative: 1e-4,
    absolute: 1e-8,
    why: "f64 sums of squares of what f32 passes forward and backward make",
};

/// Without AVX the norm comes out 1.4e-4 apart.
const STEP: Tolerance =
    Tolerance { relative: 5e-4, absolute: 1e-6, why: "the gradient's norm is an f32 sum of a million squares" };

const LEARNT: Tolerance = Tolerance {
    relative: 2e-3,
    absolute: 1e-5,
    why: "AdamW divides by a gradient's own size: where that is rounding alone, a step of the rate goes either way",
};

const FITTED: Tolerance = Tolerance { relative: 3e-2, absolute: 5e-3, why: "as of AdamW, a step at a rate of 5e-3" };

/// The last digit of a projection, which sums in f32 decide, takes refinement elsewhere: 0.036 for a digit once.
const PLANTED: Tolerance = Tolerance { absolute: 8e-2, why: "as of AdamW, four steps at a rate of 2e-2", ..FITTED };

const SMK: Tolerance = Tolerance {
    relative: 2e-2,
    absolute: 1e-3,
    why: "an expert that is taken or wins by a hair in one of 30 steps learns two steps of 5e-4 more or less",
};

const VARIANT: Tolerance = Tolerance {
    relative: 1e-3,
    absolute: 1e-5,
    why: "five steps of AdamW over f32 passes, and no choice so near that it turns",
};

macro_rules! sections {
    ($($name:ident: $rule:expr, $figures:expr;)*) => {
        const SECTIONS: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                fixture::check(stringify!($name), &$rule, $figures);
            }
        )*
    };
}

// `Within`: W_d has a row a neuron in memory, and had a column when the fixtures were made; so the gradient's norm, which clips, sums its
// squares in another order, and its small products round otherwise: a unit in the last place. Figures of it are told in the order of files.
// Of fits the cross-entropy is a loop that sums rows in f64: where a scale's loss is flat, the search along it ends elsewhere, by 0.4 % at most.
sections! {
    text: Rule::Exact(NONE), dense::text;
    first_step: Rule::Within(STEP), dense::first_step;
    pretraining: Rule::Within(LEARNT), dense::pretraining;
    pretrained_logits: Rule::Exact(LEARNT), dense::pretrained_logits;
    pretrained_scan: Rule::Exact(LEARNT), dense::pretrained_scan;
    logits: Rule::Exact(FORWARD), dense::logits;
    scan: Rule::Exact(SUMS), dense::drawn_scan;
    router_inputs: Rule::Exact(FORWARD), dense::router_inputs;
    partitions: Rule::Exact(NONE), dense::partitions;
    labels: Rule::Exact(NONE), dense::labels;
    fits: Rule::Within(FITTED), dense::fits;
    fitted: Rule::Within(FITTED), dense::fitted;
    smk: Rule::Within(SMK), dense::smk;
    fits_of_every_kind: Rule::Within(PLANTED), variants::fits_of_every_kind;
    token: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenToken");
    segment: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenSegment");
    sequence: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenSequence");
    task: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenTask");
    dispatch: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenDispatch");
    bias: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenBias");
    entropy: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenEntropy");
    nucleus: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenNucleus");
    surprisal: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenSurprisal");
    merge: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenMerge");
    merged_sequence: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenMergedSequence");
    replicas: Rule::Exact(VARIANT), |figures| variants::run(figures, "GoldenReplicas");
    deep: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenDeep");
    groups: Rule::Within(VARIANT), |figures| variants::run(figures, "GoldenGroups");
}

/// A fixture that no section reads would be taken for a test.
#[test]
fn every_fixture_is_of_a_section() {
    for entry in std::fs::read_dir(fixture::folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(SECTIONS.contains(&name.as_str()), "{} is of no section: remove it", path.display());
    }
}
