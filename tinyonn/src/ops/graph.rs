//! Launches that are made once and repeated as one: a CUDA graph, captured from the stream of a card.
//!
//! What is captured must read nothing by the host, and write only to tensors that outlive the graph (a [`Workspace`](super::Workspace)); tensors that are made and let go within it
//! are the graph's own. Shapes and strides that candle sends to the device are sent beforehand, in a step that is really made while [`sent_once`] is held.

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::CudaGraph;
use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use candle_core::{Device, Error, Result};

/// Launches that were captured.
pub(crate) struct Graph(CudaGraph);

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Graph")
    }
}

fn card(device: &Device) -> Result<&CudaDevice> {
    match device {
        Device::Cuda(device) => Ok(device),
        other => candle_core::bail!("graph: {other:?} is no card"),
    }
}

/// Runs `step` so that what it sends to the device is kept there for [`Graph::capture`].
///
/// # Errors
/// What `step` reports.
pub(crate) fn sent_once<T, E: From<Error>>(
    device: &Device,
    step: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let _kept = card(device)?.enable_cuda_graph_htod_cache();
    step()
}

impl Graph {
    /// What `step` launches, which is not run.
    ///
    /// # Errors
    /// What `step` reports, such as a read by the host; a driver that cannot hold it.
    pub(crate) fn capture<E: From<Error>>(
        device: &Device,
        step: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Self, E> {
        let card = card(device)?;
        let stream = card.cuda_stream();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(Error::wrap)?;
        let made = sent_once(device, step);
        // The stream must leave its capture whatever came of it.
        let graph = stream.end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
        made?;
        match graph.map_err(Error::wrap)? {
            Some(graph) => Ok(Self(graph)),
            None => Err(Error::msg("graph: nothing was launched").into()),
        }
    }

    /// Makes the step once more.
    ///
    /// # Errors
    /// What the driver reports.
    pub(crate) fn launch(&self) -> Result<()> {
        self.0.launch().map_err(Error::wrap)
    }
}
