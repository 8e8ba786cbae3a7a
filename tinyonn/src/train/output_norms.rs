//! What a router's score is fitted to in closed form: the output of a choice is the sum of the outputs of the experts below it, y_c = W_d[:, c] h[c], all active;
//! the target √‖y_c‖ or ln ‖y_c‖.
//!
//! ‖y_c‖² = h[c]ᵀ (W_d[:, c]ᵀ W_d[:, c]) h[c]: the products of rows of W_d with each other are formed once a layer, and no output is.
//!
//! Legend: t tokens, d hidden, i neurons, w neurons of a choice, c choices of all levels.

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::moe::MoeLayer;
use crate::ops::host;
use crate::{Error, Result};

/// The power of a choice's norm that its score is fitted to.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::train::RouterTarget;
///
/// let norms = Tensor::new(&[[4f32, 9.0]], &Device::Cpu)?;
/// assert_eq!(RouterTarget::Sqrt.of(&norms)?.to_vec2::<f32>()?, [[2.0, 3.0]]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterTarget {
    /// Its root.
    #[default]
    Sqrt,
    /// Its logarithm; of norms below a millionth that of a millionth.
    Log,
}

impl RouterTarget {
    /// Whether it is what goes without saying.
    // Serde asks by reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(crate) fn is_sqrt(&self) -> bool {
        *self == Self::Sqrt
    }

    /// The targets of norms.
    ///
    /// # Errors
    /// What the device reports.
    pub fn of(self, norms_tc: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Sqrt => norms_tc.sqrt()?,
            Self::Log => norms_tc.maximum(1e-6)?.log()?,
        })
    }
}

/// How much each choice of a layer's routers would add to a token: the norms of the outputs of the experts below it.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::{ParamStore, upcycle};
/// use tinyonn::decoder::CausalLm;
/// use tinyonn::gallery::Mixtral;
/// use tinyonn::moe::{MoeLayer, variant};
/// use tinyonn::phases::RunConfig;
/// use tinyonn::train::OutputNorms;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let dense = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let owners = vec![(0..cfg.intermediate_size).map(|i| i as u32 % 8).collect(); cfg.num_hidden_layers];
/// let store = upcycle(dense, &cfg, variant("Mixtral")?, &owners, 0)?;
/// let vb = store.builder(DType::F32, |_| false).pp("model.layers.0.mlp");
/// let layer = MoeLayer::new(Mixtral::SPEC, &[], &cfg, 0, &vb)?;
/// let x_td = Tensor::rand(-1f32, 1.0, (3, cfg.hidden_size), &Device::Cpu)?;
/// assert_eq!(OutputNorms::new(&layer)?.of(&x_td)?.dims(), [3, 8]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug)]
pub struct OutputNorms<'a> {
    layer: &'a MoeLayer,
    /// Of every node of all levels, its neurons, u32, and the products of their rows of W_d with each other.
    nodes: Vec<(Tensor, Tensor)>,
}

impl<'a> OutputNorms<'a> {
    /// Of the choices of `layer`, level by level.
    ///
    /// # Errors
    /// Experts that are no slices; what the device reports.
    pub fn new(layer: &'a MoeLayer) -> Result<Self> {
        let (spec, weights) = (layer.spec(), layer.experts().weights());
        let owners = layer.experts().neuron_expert().ok_or_else(|| {
            Error::variant(spec.name.clone(), "its experts are replicas, whose outputs are alike", "declare slices")
        })?;
        let (owners, device) = (host::ids(owners)?, weights.down.device());
        let down_id = weights.down.detach().to_dtype(DType::F32)?;
        let mut nodes = Vec::new();
        for level in 0..spec.levels.len() {
            for experts in spec.experts_under(level) {
                let below = |owner: &u32| experts.contains(&(*owner as usize));
                let own: Vec<u32> = (0u32..).zip(&owners).filter(|(_, owner)| below(owner)).map(|(at, _)| at).collect();
                let own_w = Tensor::new(own.as_slice(), device)?;
                let rows_wd = down_id.index_select(&own_w, 0)?;
                nodes.push((own_w, rows_wd.matmul(&rows_wd.t()?)?));
            }
        }
        Ok(Self { layer, nodes })
    }

    /// ‖y_c‖ `[t, c]`, f32, of rows x `[t, d]`, all active.
    ///
    /// # Errors
    /// What the device reports.
    pub fn of(&self, x_td: &Tensor) -> Result<Tensor> {
        let weights = self.layer.experts().weights();
        let [g_ti, u_ti] = [weights.gate, weights.up].map(|w_id| x_td.matmul(&w_id.detach().t()?));
        let h_ti = weights.activation.forward(&g_ti?, &u_ti?)?.to_dtype(DType::F32)?;
        let of_node = |(own_w, gram_ww): &(Tensor, Tensor)| {
            let h_tw = h_ti.index_select(own_w, 1)?;
            (h_tw.matmul(gram_ww)? * &h_tw)?.sum_keepdim(D::Minus1)
        };
        let squares = self.nodes.iter().map(of_node).collect::<candle_core::Result<Vec<_>>>()?;
        // A sum of squares that roundings made less than nothing is nothing.
        Ok(Tensor::cat(&squares, 1)?.maximum(0.0)?.sqrt()?)
    }
}
