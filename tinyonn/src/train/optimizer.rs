//! AdamW over named variables, whose matrices may learn line by line.
//!
//! A line (a row of W_g or W_u, a column of W_d: one neuron) that does not learn in a step is *skipped*: its moments, its values
//! and its own step count stay as they are, so an idle expert is not moved by momentum or decay (DESIGN §4).

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::{Result, ops};

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamwConfig {
    /// Learning rate.
    pub rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices; vectors and scalars have none.
    pub decay: f64,
    /// The global gradient norm is clipped to this.
    pub clip: f64,
}

impl Default for AdamwConfig {
    fn default() -> Self {
        Self { rate: 3e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, decay: 0.1, clip: 1.0 }
    }
}

/// Which lines of a matrix learn in a step.
#[derive(Clone, Debug)]
pub struct Lines {
    /// 0: rows, 1: columns.
    pub axis: usize,
    /// One entry a line.
    pub learn: Vec<bool>,
}

struct Moments {
    m: Tensor,
    v: Tensor,
    /// Steps taken: one count, or one a line.
    steps: Vec<u64>,
}

/// The optimizer and its state, by the variables' names.
pub struct AdamW {
    /// Constants; the rate may be changed between steps.
    pub config: AdamwConfig,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// Without state.
    #[must_use]
    pub fn new(config: AdamwConfig) -> Self {
        Self { config, moments: BTreeMap::new() }
    }

    /// Updates every variable that has a gradient; `lines(name)` restricts a matrix to some of its lines.
    /// Returns the norm of all gradients before clipping. A norm that is not finite changes nothing: its caller stops there.
    ///
    /// # Errors
    /// Whatever the device reports.
    pub fn step(
        &mut self,
        vars: &[(String, Var)],
        grads: &GradStore,
        lines: impl Fn(&str) -> Option<Lines>,
    ) -> Result<f64> {
        let norm = gradient_norm(vars, grads)?;
        if !norm.is_finite() {
            return Ok(norm);
        }
        let c = self.config;
        let scale = if norm > c.clip { c.clip / norm } else { 1.0 };
        for (name, var) in vars {
            let Some(grad) = grads.get(var) else { continue };
            let matrix = var.rank() >= 2;
            let lines = lines(name);
            let count = lines.as_ref().map_or(1, |lines| lines.learn.len());
            let moments = match self.moments.entry(name.clone()) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let zeros = Tensor::zeros(var.shape(), wide(var.dtype()), var.device())?;
                    entry.insert(Moments { m: zeros.clone(), v: zeros, steps: vec![0; count] })
                }
            };
            let mut now = Vec::with_capacity(count);
            for (line, steps) in moments.steps.iter_mut().enumerate() {
                let learns = lines.as_ref().is_none_or(|lines| lines.learn[line]);
                *steps += u64::from(learns);
                now.push(if learns { *steps } else { 0 });
            }
            let step = ops::AdamwStep {
                rate: c.rate,
                beta1: c.beta1,
                beta2: c.beta2,
                eps: c.eps,
                decay: if matrix { c.decay } else { 0.0 },
                scale,
            };
            let values = [var.as_tensor(), grad, &moments.m, &moments.v].map(Tensor::detach);
            let [p, m, v] = ops::adamw(&step, values.each_ref(), &now, lines.map_or(0, |lines| lines.axis))?;
            var.set(&p)?;
            (moments.m, moments.v) = (m, v);
        }
        Ok(norm)
    }
}

/// √Σ ‖g‖² over the variables that have a gradient.
///
/// # Errors
/// Whatever the device reports.
pub fn gradient_norm(vars: &[(String, Var)], grads: &GradStore) -> Result<f64> {
    let mut total = 0.0;
    for (_, var) in vars {
        if let Some(grad) = grads.get(var) {
            total += grad.to_dtype(wide(grad.dtype()))?.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        }
    }
    Ok(total.sqrt())
}

fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
