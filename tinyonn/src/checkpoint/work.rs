//! Work weights: what passes compute with, where the parameters that are stored and stepped (masters) have another type.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use candle_nn::var_builder::VarBuilder;

use super::builder::{Lent, builder_of};
use super::store::ParamStore;
use crate::{Error, Result};

/// The weights of a store in the type of a model: those that learn as Vars of their own, the others by value.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::{ParamStore, WorkWeights};
///
/// let mut store = ParamStore::new(&Device::Cpu);
/// store.insert("w", Tensor::new(&[0.5f32], &Device::Cpu)?)?;
/// let work: WorkWeights = store.work_weights(DType::F32, |_| Some(DType::F32))?;
/// // Nothing is rounded, so that the stored Var itself is what passes compute with.
/// assert!(work.get("w").is_some_and(|(_, master)| master.is_none()));
/// assert_eq!(work.builder().get(1, "w")?.to_vec1::<f32>()?, [0.5]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub struct WorkWeights {
    /// By name: the Var that passes read and gradients are keyed by, and the master, where that is another.
    learning: BTreeMap<String, (Var, Option<Var>)>,
    builder: VarBuilder<'static>,
}

impl ParamStore {
    /// Work weights in `dtype`; names for which `learns` has a type can learn, in that type (a router computes in f32 whatever the model
    /// does). Where the stored type is that type they are the stored Vars themselves, and updates are seen at once. Elsewhere, and of what lies in the host's
    /// memory ([`keep_on_host`](Self::keep_on_host)), a work weight is its master rounded, which whoever steps the master does again.
    ///
    /// # Errors
    /// A weight that learns and is stored in less than f32; what the device reports.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use tinyonn::checkpoint::ParamStore;
    ///
    /// let mut store = ParamStore::new(&Device::Cpu);
    /// store.insert("w", Tensor::new(&[1.001f32], &Device::Cpu)?)?;
    /// let work = store.work_weights(DType::BF16, |_| Some(DType::BF16))?;
    /// let (var, master) = work.get("w").unwrap();
    /// assert_eq!(var.to_dtype(DType::F32)?.to_vec1::<f32>()?, [1.0]);
    /// assert_eq!(master.unwrap().to_vec1::<f32>()?, [1.001]);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn work_weights(&self, dtype: DType, learns: impl Fn(&str) -> Option<DType>) -> Result<WorkWeights> {
        let (mut lent, mut learning) = (BTreeMap::new(), BTreeMap::new());
        for (name, var) in self.iter() {
            let Some(own) = learns(name).filter(|_| !var.dtype().is_int()) else {
                lent.insert(name.to_owned(), Lent::Frozen(var.clone()));
                continue;
            };
            if !matches!(var.dtype(), DType::F32 | DType::F64) {
                let problem = format!("is stored as {:?}, in which small steps are lost", var.dtype());
                return Err(Error::tensor(name, problem, "load what is to learn in f32"));
            }
            let (work, master) = if var.dtype() == own && var.device().same_device(self.device()) {
                (var.clone(), None)
            } else {
                let rounded = var.as_detached_tensor().to_dtype(own)?.to_device(self.device())?;
                (Var::from_tensor(&rounded)?, Some(var.clone()))
            };
            lent.insert(name.to_owned(), Lent::Learning(work.clone()));
            learning.insert(name.to_owned(), (work, master));
        }
        Ok(WorkWeights { learning, builder: builder_of(lent, dtype, self.device()) })
    }
}

impl WorkWeights {
    /// Lends them to a model's constructor.
    #[must_use]
    pub fn builder(&self) -> &VarBuilder<'static> {
        &self.builder
    }

    /// The Var of a weight that learns, and its master, where that is another.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<(&Var, Option<&Var>)> {
        self.learning.get(name).map(|(work, master)| (work, master.as_ref()))
    }
}

/// `master`, rounded, in the place of its work weight.
///
/// # Errors
/// What the device reports.
pub(crate) fn refresh(work: &Var, master: &Var) -> Result<()> {
    let rounded: Tensor = master.as_detached_tensor().to_dtype(work.dtype())?;
    Ok(work.set(&rounded.to_device(work.device())?)?)
}
