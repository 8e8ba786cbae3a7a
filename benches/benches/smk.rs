//! The backward of a layer of 10 × 10 slices where ten of them learn beside that where all do: 1024 tokens of d channels, 3d neurons, in a pass with
//! all experts active and in a routed one. Both give ∂L/∂x; the forward is not timed.

use benches::{BATCH, LENGTH, Side, compare, config, run, values, weights};
use candle_core::{DType, Device};
use criterion::Criterion;
use tinyonn::checkpoint::upcycle;
use tinyonn::decoder::{Arch, Experts, FeedForward, Learn, Pass, Smk};
use tinyonn::imaging::{Partition, PartitionSources, partition};
use tinyonn::ops::Grads;
use tinyonn::{Error, Result, moe};

/// Of a hundred.
const MIN_K: usize = 10;

fn bench(criterion: &mut Criterion, device: &Device, d: usize) -> Result<()> {
    let cfg = Arch { num_hidden_layers: 1, ..config(d, 3 * d) };
    let variant = moe::variant("TinyOnn")?;
    let units = partition::assign(Partition::Random, &variant.spec, (1, 3 * d), PartitionSources::default(), 0)?;
    let store = upcycle(weights(&cfg, device)?, &cfg, variant, &units, 0)?;
    let vb = store.builder(DType::F32, |name| name.contains("_proj.weight"));
    let layer = (variant.build)(&cfg, 0, vb.pp("model.layers.0.mlp"))?;
    let [x, dy] = [1, 2].map(|seed| values(seed, &[BATCH, LENGTH, d], device));
    let (x, dy) = (x?, dy?);
    let own = layer.experts().weights();
    let places = || Grads::new([own.gate, own.up, own.down].map(|weight| (weight, 0)));
    for (name, pass) in [("all-active", Pass::all().kept()), ("routed", Pass::routed().kept())] {
        let side = |name, experts| -> Result<Side<'_>> {
            let (pass, layer, x, dy, mut grads) = (&pass, &layer, &x, &dy, places()?);
            let learn = Learn { experts, ..Learn::default() };
            let forward = move || {
                let (_, _, saved) = layer.forward(x, pass)?;
                saved.ok_or_else(|| Error::setting("keep", "nothing was kept of the forward pass", "use Pass::kept()"))
            };
            let backward = move |saved| {
                grads.begin();
                layer.backward(saved, dy, &learn, true, &mut grads).map(drop)
            };
            Ok(Side::prepared(name, forward, backward))
        };
        let min_k = Experts::Smk(Smk { min_k: MIN_K, ..Smk::DEFAULT });
        let sides = [side("10-learn", min_k)?, side("100-learn", Experts::All)?];
        compare(criterion, device, &format!("smk/backward/{name}/{d}"), sides, Some(0.72))?;
    }
    Ok(())
}

fn main() -> Result<()> {
    run(|criterion, device| [512, 1024].into_iter().try_for_each(|d| bench(criterion, device, d)))
}
