//! A [`VarBuilder`] over a [`ParamStore`]: names that learn give the Var, all others its value without a tape.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use candle_nn::Init;
use candle_nn::var_builder::{SimpleBackend, VarBuilder};

use super::store::{ParamStore, misshapen, unknown};

impl ParamStore {
    /// Lends the parameters to a model's constructor, in `dtype`.
    ///
    /// A name that `trainable` picks gives the Var's own tensor, by which gradients know it. Every other name gives the
    /// detached value on the same storage: it sees updates and takes no gradient (of what lies in the host's memory, [`keep_on_host`](Self::keep_on_host), a copy). Where the stored type differs from the
    /// one asked for, a frozen value is converted once, by value, after which it no longer sees updates; one that learns is refused: take
    /// [`work_weights`](Self::work_weights). Integer entries are given as they are.
    ///
    /// The builder's errors name the tensor that is missing or of another shape.
    pub fn builder(
        &self,
        dtype: DType,
        trainable: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> VarBuilder<'static> {
        let lend = |(name, var): (String, Var)| {
            let lent = if trainable(&name) { Lent::Learning(var) } else { Lent::Frozen(var) };
            (name, lent)
        };
        builder_of(self.handles().into_iter().map(lend).collect(), dtype, self.device())
    }

    /// All of them, frozen, in the type that passes over this store compute in ([`passing_in`](Self::passing_in)).
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use tinyonn::checkpoint::ParamStore;
    ///
    /// let mut store = ParamStore::new(&Device::Cpu);
    /// store.insert("w", Tensor::new(&[0.5f32], &Device::Cpu)?)?;
    /// assert_eq!(store.frozen().get(1, "w")?.dtype(), store.passes());
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn frozen(&self) -> VarBuilder<'static> {
        self.builder(self.passes(), |_| false)
    }
}

/// What a name gives.
pub(super) enum Lent {
    /// The Var's own tensor.
    Learning(Var),
    /// Its value.
    Frozen(Var),
}

pub(super) fn builder_of(lent: BTreeMap<String, Lent>, dtype: DType, device: &Device) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(StoreBackend { lent }), dtype, device.clone())
}

/// A snapshot of the handles: names that the store gains or loses later do not matter, values that it changes do.
struct StoreBackend {
    lent: BTreeMap<String, Lent>,
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
        match self.lent.get(name).ok_or_else(|| unknown(name))? {
            Lent::Learning(var) | Lent::Frozen(var) if var.dtype().is_int() => {
                var.as_detached_tensor().to_device(device)
            }
            Lent::Learning(var) if var.dtype() != dtype => {
                let problem = format!("is stored as {:?} and would learn as {dtype:?}", var.dtype());
                Err(crate::Error::tensor(name, problem, "take the store's `work_weights`, which keep masters").into())
            }
            Lent::Learning(var) if !var.device().same_device(device) => {
                let problem = "lies in the host's memory and would learn on a card";
                Err(crate::Error::tensor(name, problem, "take the store's `work_weights`, which keep masters").into())
            }
            Lent::Learning(var) => Ok(var.as_tensor().clone()),
            Lent::Frozen(var) => var.as_detached_tensor().to_device(device)?.to_dtype(dtype),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.lent.contains_key(name)
    }
}
