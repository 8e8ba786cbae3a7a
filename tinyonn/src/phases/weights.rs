//! How a run holds the weights of a checkpoint, by what its passes compute in (`--dtype`).

use std::collections::BTreeSet;

use candle_core::{DType, Device};

use crate::Result;
use crate::checkpoint::{ModelFolder, ParamStore, variant_params};
use crate::decoder::Arch;
use crate::moe::Variant;
use crate::train::Precision;
use crate::train::smk::learning_role;

/// The type that weights are held in for passes in `dtype`; `None`: each as it is stored.
///
/// For f32 all are held in it. For bf16 nothing is converted before a model is made of it: what does not learn is written as it was read, byte for
/// byte, masters begin with all that is stored, and of weights that are stored in bf16 there is one copy.
pub(super) fn held_in(dtype: Precision) -> Option<DType> {
    dtype.is_f32().then_some(DType::F32)
}

/// The weights of `folder`.
///
/// # Errors
/// As of [`ModelFolder::load`].
pub(super) fn load(folder: &ModelFolder, dtype: Precision, device: &Device) -> Result<ParamStore> {
    folder.announce(held_in(dtype));
    Ok(folder.load(device, held_in(dtype))?.passing_in(dtype.dtype()))
}

/// Holds what is to learn of a model of `variant` in f32, and nothing else that is not; where each of several ranks steps a share of these masters (`shared`), in the host's
/// memory.
///
/// # Errors
/// What the device reports.
pub(super) fn give_masters(store: &mut ParamStore, cfg: &Arch, variant: &Variant, shared: bool) -> Result<()> {
    let role = learning_role(&variant.spec);
    let params = variant_params(cfg, variant)?;
    let learns: BTreeSet<&str> = params.iter().filter(|p| p.role == role).map(|p| p.name.as_str()).collect();
    store.widen(|name| learns.contains(name))?;
    if shared {
        store.keep_on_host(|name| learns.contains(name))?;
    }
    Ok(())
}
