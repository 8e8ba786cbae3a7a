//! A [`VarBuilder`] over a [`ParamStore`]: trainable names give the Var, all others its value without a tape.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use candle_nn::Init;
use candle_nn::var_builder::{SimpleBackend, VarBuilder};

use super::store::{ParamStore, misshapen, unknown};

impl ParamStore {
    /// Lends the parameters to a model's constructor, in `dtype`.
    ///
    /// A name that `trainable` picks gives the Var's own tensor: gradients reach the Var. Every other name gives the
    /// detached value on the same storage: it sees updates and takes no gradient. Where the stored type differs from the
    /// one asked for, a trainable value is converted on the tape (so an f32 Var serves a bf16 model with f32 gradients),
    /// a frozen one once, by value, after which it no longer sees updates. Integer entries are given as they are.
    ///
    /// The builder's errors name the tensor that is missing or of another shape.
    pub fn builder(
        &self,
        dtype: DType,
        trainable: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> VarBuilder<'static> {
        let backend = StoreBackend { vars: self.handles(), trainable: Box::new(trainable) };
        VarBuilder::from_backend(Box::new(backend), dtype, self.device().clone())
    }
}

/// A snapshot of the handles: names that the store gains or loses later do not matter, values that it changes do.
struct StoreBackend {
    vars: BTreeMap<String, Var>,
    trainable: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

impl SimpleBackend for StoreBackend {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            return Err(misshapen(name, tensor.dims(), shape.dims()).into());
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let var = self.vars.get(name).ok_or_else(|| unknown(name))?;
        if var.dtype().is_int() {
            return var.as_detached_tensor().to_device(device);
        }
        let tensor = if (self.trainable)(name) { var.as_tensor().clone() } else { var.as_detached_tensor() };
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.vars.contains_key(name)
    }
}
