//! The parameters of a model, by name.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};

use super::layout::{is_turned, turned};
use crate::{Error, Result};

/// The one owner of a model's parameters: each a [`Var`] under its checkpoint name, sorted by name, on one device. W_d lies
/// in memory with a row a neuron, `[I, d]`, in files with a column: folders turn it as they read and write.
///
/// Models borrow from it through [`ParamStore::builder`]; optimizers write to the same Vars. Integer entries (such as the
/// neurons' experts) are part of a model's structure: they are stored, saved and lent like the rest, and never trained.
///
/// It knows in which type passes over it compute, f32 unless said otherwise ([`ParamStore::passing_in`]): whoever makes a model of it without a say in that takes
/// [`ParamStore::frozen`].
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
///
/// let mut store = ParamStore::new(&Device::Cpu);
/// assert!(store.is_empty() && store.device().is_cpu());
/// store.insert("norm.weight", Tensor::ones(4, DType::F32, &Device::Cpu)?)?;
/// // W_d of a file, [d, I], is [I, d] in memory.
/// store.insert_stored("model.layers.0.mlp.down_proj.weight", Tensor::zeros((4, 6), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(store.get("model.layers.0.mlp.down_proj.weight").map(|w| w.dims().to_vec()), Some(vec![6, 4]));
/// assert_eq!((store.len(), store.parameters()), (2, 4 + 24));
///
/// // Copies of the list see each other's steps; deep copies do not.
/// let (shared, copied) = (store.share(), store.deep_copy()?);
/// store.set("norm.weight", &Tensor::zeros(4, DType::F32, &Device::Cpu)?)?;
/// let first = |store: &ParamStore| store.get("norm.weight").map(|w| w.to_vec1::<f32>().unwrap()[0]);
/// assert_eq!((first(&shared), first(&copied)), (Some(0.0), Some(1.0)));
///
/// let learn: Vec<String> = store.trainable(|name| name.contains("mlp")).into_iter().map(|(name, _)| name).collect();
/// assert_eq!(learn, ["model.layers.0.mlp.down_proj.weight"]);
/// store.remove("norm.weight");
/// assert_eq!((store.names().collect::<Vec<_>>(), store.iter().count()), (vec!["model.layers.0.mlp.down_proj.weight"], 1));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct ParamStore {
    device: Device,
    passes: DType,
    vars: BTreeMap<String, Var>,
}

impl ParamStore {
    /// An empty store on `device`.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), passes: DType::F32, vars: BTreeMap::new() }
    }

    /// Where the parameters lie, but for those that [`keep_on_host`](Self::keep_on_host) has moved.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same parameters, each in the type that it is held in, for passes that compute in `dtype`.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use tinyonn::checkpoint::ParamStore;
    ///
    /// let mut store = ParamStore::new(&Device::Cpu).passing_in(DType::BF16);
    /// store.insert("w", Tensor::new(&[1.001f32], &Device::Cpu)?)?;
    /// assert_eq!(store.frozen().get(1, "w")?.to_dtype(DType::F32)?.to_vec1::<f32>()?, [1.0]);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    #[must_use]
    pub fn passing_in(self, dtype: DType) -> Self {
        Self { passes: dtype, ..self }
    }

    /// What passes over it compute in.
    ///
    /// ```
    /// use candle_core::{DType, Device};
    /// use tinyonn::checkpoint::ParamStore;
    ///
    /// let store = ParamStore::new(&Device::Cpu);
    /// assert_eq!((store.passes(), store.passing_in(DType::BF16).passes()), (DType::F32, DType::BF16));
    /// ```
    pub fn passes(&self) -> DType {
        self.passes
    }

    /// Adds a parameter, copied to the store's device.
    ///
    /// # Errors
    /// The name is taken.
    // By value, because the store becomes the owner.
    #[allow(clippy::needless_pass_by_value)]
    pub fn insert(&mut self, name: impl Into<String>, value: Tensor) -> Result<()> {
        let name = name.into();
        if self.vars.contains_key(&name) {
            return Err(Error::tensor(
                name,
                "is already in the store",
                "change its value with `set`, or remove it first",
            ));
        }
        // Detached, or a caller's own Var would be shared instead of copied.
        let var = Var::from_tensor(&value.detach().to_device(&self.device)?)?;
        self.vars.insert(name, var);
        Ok(())
    }

    /// As [`insert`](Self::insert), of a value that lies as files have it: W_d as `[d, I]`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn insert_stored(&mut self, name: &str, value: Tensor) -> Result<()> {
        self.insert(name, turned(name, value)?)
    }

    /// As [`insert_stored`](Self::insert_stored), of a parameter that nobody else has: what need not be turned is not copied.
    ///
    /// # Errors
    /// The name is taken.
    pub(super) fn keep_stored(&mut self, name: &str, var: Var) -> Result<()> {
        if is_turned(name) || self.vars.contains_key(name) {
            return self.insert_stored(name, var.into_inner());
        }
        self.vars.insert(name.to_owned(), var);
        Ok(())
    }

    /// The parameter `name`.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.vars.get(name)
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.vars.keys().map(String::as_str)
    }

    /// Names and parameters, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.vars.len()
    }

    /// Whether the store holds nothing.
    pub fn is_empty(&self) -> bool {
        self.vars.is_empty()
    }

    /// The number of weights: elements of all entries but the integer ones.
    pub fn parameters(&self) -> usize {
        self.vars.values().filter(|var| var.dtype().is_float()).map(|var| var.elem_count()).sum()
    }

    /// Replaces the value of `name` in place: models built from the store see it at once.
    ///
    /// # Errors
    /// The name is unknown, or shape or type differ.
    pub fn set(&self, name: &str, value: &Tensor) -> Result<()> {
        let var = self.vars.get(name).ok_or_else(|| unknown(name))?;
        if var.shape() != value.shape() {
            return Err(misshapen(name, value.dims(), var.dims()));
        }
        if var.dtype() != value.dtype() {
            return Err(Error::tensor(
                name,
                format!("is {:?}, the new value {:?}", var.dtype(), value.dtype()),
                "convert the value with `to_dtype`",
            ));
        }
        Ok(var.set(&value.to_device(var.device())?).map_err(|e| e.context(format!("tensor `{name}`")))?)
    }

    /// Takes a parameter out. Models built before keep it alive.
    pub fn remove(&mut self, name: &str) -> Option<Var> {
        self.vars.remove(name)
    }

    /// The parameters that `pred` picks by name, sorted by name; never an integer entry.
    pub fn trainable(&self, pred: impl Fn(&str) -> bool) -> Vec<(String, Var)> {
        let picked = self.vars.iter().filter(|(name, var)| var.dtype().is_float() && pred(name));
        picked.map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// Holds the parameters that `pred` picks in f32 from now on, where they are floats of less: what is to be stepped, in which small steps are not lost. Their
    /// values stay; models built before keep the narrower ones.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use tinyonn::checkpoint::ParamStore;
    ///
    /// let mut store = ParamStore::new(&Device::Cpu);
    /// for name in ["learns", "stays"] {
    ///     store.insert(name, Tensor::ones(1, DType::BF16, &Device::Cpu)?)?;
    /// }
    /// store.widen(|name| name == "learns")?;
    /// let dtypes: Vec<DType> = store.iter().map(|(_, var)| var.dtype()).collect();
    /// assert_eq!(dtypes, [DType::F32, DType::BF16]);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the device reports.
    pub fn widen(&mut self, pred: impl Fn(&str) -> bool) -> Result<()> {
        let is_less = |var: &Var| matches!(var.dtype(), DType::BF16 | DType::F16);
        for (_, var) in self.vars.iter_mut().filter(|(name, var)| is_less(var) && pred(name)) {
            *var = Var::from_tensor(&var.as_detached_tensor().to_dtype(DType::F32)?)?;
        }
        Ok(())
    }

    /// Holds the parameters that `pred` picks in the host's memory from now on, where they lie on a card: masters of which each of several ranks steps its share alone, on
    /// its card ([`TrainState::among`](crate::train::TrainState::among)). Models are lent copies on the store's device.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use tinyonn::checkpoint::ParamStore;
    ///
    /// # fn card() -> Device { Device::Cpu }
    /// let mut store = ParamStore::new(&card());
    /// store.insert("w", Tensor::ones(1, DType::F32, &Device::Cpu)?)?;
    /// store.keep_on_host(|name| name == "w")?;
    /// assert!(store.get("w").is_some_and(|master| master.device().is_cpu()));
    /// assert!(store.frozen().get(1, "w")?.device().same_device(store.device()));
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// What the device reports.
    pub fn keep_on_host(&mut self, pred: impl Fn(&str) -> bool) -> Result<()> {
        for (_, var) in self.vars.iter_mut().filter(|(name, var)| !var.device().is_cpu() && pred(name)) {
            *var = Var::from_tensor(&var.as_detached_tensor().to_device(&Device::Cpu)?)?;
        }
        Ok(())
    }

    /// A store of the same Vars, without a copy of any: what trains one trains the other, what is inserted into one is not in the other.
    #[must_use]
    pub fn share(&self) -> Self {
        Self { device: self.device.clone(), passes: self.passes, vars: self.vars.clone() }
    }

    /// A copy that shares no storage with this store.
    pub fn deep_copy(&self) -> Result<Self> {
        let copy = |(name, var): (&String, &Var)| Ok((name.clone(), Var::from_tensor(&var.as_detached_tensor())?));
        Ok(Self {
            device: self.device.clone(),
            passes: self.passes,
            vars: self.vars.iter().map(copy).collect::<Result<_>>()?,
        })
    }

    /// The Vars themselves, by name.
    pub(crate) fn handles(&self) -> BTreeMap<String, Var> {
        self.vars.clone()
    }

    /// A store of these Vars, whose storage it shares with whoever has them.
    pub(crate) fn from_handles(device: &Device, vars: BTreeMap<String, Var>) -> Self {
        Self { device: device.clone(), passes: DType::F32, vars }
    }
}

/// No parameter of that name.
pub(super) fn unknown(name: &str) -> Error {
    Error::tensor(
        name,
        "is not in the store",
        "check that the checkpoint is of this model and variant, or initialise the parameter first",
    )
}

/// A parameter of another shape than asked for.
pub(super) fn misshapen(name: &str, found: &[usize], expected: &[usize]) -> Error {
    Error::tensor(
        name,
        format!("has shape {found:?}, expected {expected:?}"),
        "check that config.json and the weights belong to the same model",
    )
}
