//! Fits to what routers see once they route.

use std::sync::Arc;

use rstest::rstest;
use tinyonn::data::TokenSet;
use tinyonn::decoder::Pass;
use tinyonn::imaging::inputs::{Samples, Thinning, Window};
use tinyonn::imaging::{Labels, RouterInputs, ScanOptions};
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::train::{RouterFitConfig, RouterFitter, refit};

use super::CLOSED;
use crate::models::CPU;
use crate::routing::upcycled;
use crate::tiny;

const VOCAB: u32 = 40;

fn set() -> TokenSet {
    tiny::tokens(1, &[260, 260], VOCAB)
}

/// What the routers of single tokens see under `ctx`.
fn seen(model: &TinyOnnForCausalLm, ctx: &Pass) -> Vec<Samples> {
    let mut inputs = RouterInputs::new(2, Thinning::one_in(1, Window::First(2)));
    let options = ScanOptions { length: 16, batch: 4, tokens_per_task: usize::MAX };
    inputs.collect(model.lm(), &set(), options, ctx, &CPU).unwrap();
    let [tokens, _] = inputs.into_samples();
    tokens
}

fn fitter(inputs: &[Samples]) -> RouterFitter<'_> {
    RouterFitter::new(inputs, inputs, 2, 64).unwrap()
}

/// In closed form each layer's routers depend on its inputs alone. The first layer's are not routed: its routers stay. The second's are those of
/// the routed pass, and settle after one round, since the first layer has.
#[test]
fn rounds_fit_to_the_inputs_of_the_routed_pass() {
    let fitted = |refit_rounds: usize| {
        let (cfg, variant, store) = upcycled("Identity3x4");
        let (labels, config) = (Labels::random(2, 2, &variant.spec, 3), RouterFitConfig { refit_rounds, ..CLOSED });
        let model = (&store, &cfg, variant);
        let dense = seen(&tiny::sparse(&cfg, variant, &store), &Pass::all());
        fitter(&dense).fit(model, &labels, &config, 0).unwrap();
        let mut rounds = 0;
        refit(model, config.refit_rounds, |routed| {
            rounds += 1;
            let routed = seen(routed, &Pass::routed());
            assert_eq!((&routed[0].values, &routed[0].documents), (&dense[0].values, &dense[0].documents));
            assert!(routed[1].values != dense[1].values);
            fitter(&routed).fit(model, &labels, &config, 0)
        })
        .unwrap();
        assert_eq!(rounds, refit_rounds);
        let routed = seen(&tiny::sparse(&cfg, variant, &store), &Pass::routed());
        (tiny::bits(&store), routed)
    };
    let [(none, routed), (one, _), (two, _)] = [0, 1, 2].map(fitted);
    assert_eq!(one, two);
    let mut moved = 0;
    for ((name, before), (_, after)) in none.iter().zip(&one) {
        assert!(name.starts_with("model.layers.1.mlp.") && name.contains("_router.") || before == after, "{name}");
        moved += usize::from(before != after);
    }
    assert!(moved > 0);
    // By hand: a fit to the inputs that the once fitted routers make.
    let (cfg, variant, store) = upcycled("Identity3x4");
    fitter(&routed).fit((&store, &cfg, variant), &Labels::random(2, 2, &variant.spec, 3), &CLOSED, 0).unwrap();
    assert_eq!(tiny::bits(&store), one);
}

/// Whatever shares a decision, and whatever it reads, a routed pass can be collected.
#[rstest]
fn routed_inputs_of_every_kind_are_collected(
    #[values("Linear3x4", "Cortex", "SegmentOf3", "SequenceOf2", "ByTask", "BySurprisal")] name: &str,
) {
    let (cfg, variant, store) = upcycled(name);
    let model = tiny::sparse(&cfg, variant, &store);
    let paths = Some(Arc::new(Labels::random(2, 2, &variant.spec, 8).paths));
    let all = seen(&model, &Pass::all());
    let routed = seen(&model, &Pass { paths, ..Pass::routed() });
    assert_eq!(routed[0].values, all[0].values);
    assert!(routed[1].values != all[1].values && routed[1].tasks == all[1].tasks);
}
