//! Fresh parameters: a model's constructor run against a backend that makes each tensor when it is first asked for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::Init;
use candle_nn::init::NormalOrUniform;
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use rand::Rng as _;

use super::layout::{turned, turned_shape};
use super::store::{ParamStore, misshapen, unknown};
use crate::{Error, Result, random};

impl ParamStore {
    /// The parameters that `construct` asks for, in f32, drawn as its [`Init`] hints say.
    ///
    /// Each tensor has a random stream of its own, `random::stream(seed, name)`: its values depend on seed and name
    /// alone, not on the order of construction nor on other tensors.
    ///
    /// # Errors
    /// A name asked for in two shapes, one asked for without a shape before it exists, or an error of `construct`.
    ///
    /// ```
    /// use candle_core::Device;
    /// use tinyonn::checkpoint::ParamStore;
    /// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| {
    ///     candle_nn::linear(4, 2, vb.pp("proj"))?;
    ///     Ok(())
    /// })?;
    /// assert_eq!(store.names().collect::<Vec<_>>(), ["proj.bias", "proj.weight"]);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    pub fn initialise(
        device: &Device,
        seed: u64,
        construct: impl FnOnce(VarBuilder<'static>) -> Result<()>,
    ) -> Result<Self> {
        let vars = Arc::new(Mutex::new(BTreeMap::new()));
        let backend = InitBackend { seed, vars: Arc::clone(&vars) };
        construct(VarBuilder::from_backend(Box::new(backend), DType::F32, device.clone()))?;
        let vars = lock(&vars).clone();
        Ok(Self::from_handles(device, vars))
    }
}

type SharedVars = Arc<Mutex<BTreeMap<String, Var>>>;

struct InitBackend {
    seed: u64,
    vars: SharedVars,
}

/// The map is whole at every moment, so a thread that panicked while holding it does no harm.
fn lock(vars: &SharedVars) -> MutexGuard<'_, BTreeMap<String, Var>> {
    vars.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimpleBackend for InitBackend {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let mut vars = lock(&self.vars);
        if let Some(var) = vars.get(name) {
            if var.shape() != &shape {
                return Err(misshapen(name, var.dims(), shape.dims()).into());
            }
            return lend(var, dtype);
        }
        let var = Var::from_tensor(&draw(&shape, name, init, dtype, self.seed)?.to_device(device)?)?;
        vars.insert(name.to_owned(), var.clone());
        lend(&var, dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        lend(lock(&self.vars).get(name).ok_or_else(|| unknown(name))?, dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        lock(&self.vars).contains_key(name)
    }
}

fn lend(var: &Var, dtype: DType) -> candle_core::Result<Tensor> {
    if var.dtype().is_int() { Ok(var.as_tensor().clone()) } else { var.as_tensor().to_dtype(dtype) }
}

/// Values on the CPU: f32, or the integer type asked for.
fn draw(shape: &Shape, name: &str, init: Init, dtype: DType, seed: u64) -> Result<Tensor> {
    if dtype.is_int() {
        let Init::Const(value) = init else {
            return Err(Error::tensor(
                name,
                format!("is an integer tensor ({dtype:?}) with the random initialisation {init:?}"),
                "initialise it with Init::Const",
            ));
        };
        return Ok(Tensor::full(value, shape.clone(), &Device::Cpu)?.to_dtype(dtype)?);
    }
    // Drawn as files have it, so that a seed gives the weights it always gave.
    let shape = &Shape::from(turned_shape(name, shape.dims().to_vec()));
    let mut rng = random::stream(seed, name);
    let count = shape.elem_count();
    let values = match init {
        Init::Const(value) => vec![value as f32; count],
        Init::Uniform { lo, up } => uniform(count, lo, up, &mut rng),
        Init::Randn { mean, stdev } => random::normal(count, mean, stdev, &mut rng),
        Init::Kaiming { dist, fan, non_linearity } => {
            let stdev = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            let bound = stdev * 3f64.sqrt();
            match dist {
                NormalOrUniform::Uniform => uniform(count, -bound, bound, &mut rng),
                NormalOrUniform::Normal => random::normal(count, 0.0, stdev, &mut rng),
            }
        }
    };
    turned(name, Tensor::from_vec(values, shape.clone(), &Device::Cpu)?)
}

fn uniform(count: usize, lo: f64, up: f64, rng: &mut random::Rng) -> Vec<f32> {
    (0..count).map(|_| (lo + (up - lo) * rng.random::<f64>()) as f32).collect()
}
