//! Where routers look: test inputs of some layers along two axes, the Gaussian of each task's, and those that the root router itself holds.

mod router;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use tinyonn::Result;
use tinyonn::checkpoint::ParamStore;
use tinyonn::imaging::inputs::Samples;
use tinyonn::moe::MoeSpec;
use tinyonn::phases::{Phase1, Run};
use tinyonn::train::projection::lda;

pub use self::router::RouterDensity;

/// Where the routers of a layer look.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerDensity {
    /// The layer.
    pub layer: usize,
    /// Test inputs by task.
    pub inputs: Vec<InputDensity>,
    /// The root router's own Gaussians along the same axes, where it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterDensity>,
}

/// The test inputs of a task along two axes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputDensity {
    /// The inputs, each at its place.
    pub points: Vec<[f32; 2]>,
    /// Their Gaussian.
    #[serde(flatten)]
    pub gaussian: Gaussian,
}

/// A Gaussian in a plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gaussian {
    /// What it is of.
    pub name: String,
    /// μ.
    pub mean: [f64; 2],
    /// Σ.
    pub covariance: [[f64; 2]; 2],
}

/// Where routers look: test inputs of the first, a middle and the last layer along the two leading LDA axes of the training inputs,
/// and the Gaussians of the fitted routers along the same.
///
/// # Errors
/// Inputs that are no finite numbers; whatever the device reports.
pub fn densities(run: &Run<'_>, found: &Phase1) -> Result<Vec<LayerDensity>> {
    let (train, test) = (found.inputs.own(run.variant), found.held.test.own(run.variant));
    let mut layers = vec![0, train.len() / 2, train.len().saturating_sub(1)];
    layers.dedup();
    let of_layer = |layer: usize| {
        let (axes, r) = lda(&train[layer], 2)?;
        let inputs = inputs(&run.text.tasks, (&axes, r), &test[layer])?;
        let place: (&ParamStore, &MoeSpec, usize) = (&found.store, &run.variant.spec, layer);
        // Of a single dimension there is no plane.
        let router = if r == 2 { RouterDensity::new(place, &axes, &train[layer])? } else { None };
        Ok(LayerDensity { layer, inputs, router })
    };
    layers.into_iter().map(of_layer).collect()
}

/// Test inputs along `axes` `[r, d]`, with the mean and the covariance of each task's.
fn inputs(tasks: &[String], (axes, r): (&[f32], usize), test: &Samples) -> Result<Vec<InputDensity>> {
    let projection = Tensor::from_slice(axes, (r, axes.len() / r), &Device::Cpu)?;
    let z = test.tensor(&Device::Cpu)?.matmul(&projection.t()?)?.to_vec2::<f32>()?;
    let of_task = |(task, name): (usize, &String)| {
        let rows = z.iter().zip(&test.tasks).filter(|(_, of)| **of as usize == task);
        let points: Vec<[f32; 2]> = rows.map(|(z, _)| [0, 1].map(|at| z.get(at).copied().unwrap_or(0.0))).collect();
        let count = points.len().max(1) as f64;
        let at = |point: &[f32; 2], axis: usize| f64::from(point[axis]);
        let mean = [0, 1].map(|axis| points.iter().map(|point| at(point, axis)).sum::<f64>() / count);
        let moment = |a: usize, b: usize| {
            points.iter().map(|point| (at(point, a) - mean[a]) * (at(point, b) - mean[b])).sum::<f64>() / count
        };
        let covariance = [[moment(0, 0), moment(0, 1)], [moment(0, 1), moment(1, 1)]];
        InputDensity { points, gaussian: Gaussian { name: name.clone(), mean, covariance } }
    };
    Ok(tasks.iter().enumerate().map(of_task).filter(|density| !density.points.is_empty()).collect())
}
