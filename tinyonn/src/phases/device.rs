//! Where a run computes: `cpu`, `cuda` or `cuda:n`.

use candle_core::Device;

use crate::{Error, Result};

/// The device of that name.
///
/// # Errors
/// A name of another form; a GPU that is not there, or a build without GPU support.
pub fn device(name: &str) -> Result<Device> {
    let ordinal = match name.split_once(':') {
        None if name == "cpu" => return Ok(Device::Cpu),
        None if name == "cuda" => Some(0),
        Some(("cuda", ordinal)) => ordinal.parse::<usize>().ok(),
        _ => None,
    };
    let Some(ordinal) = ordinal else {
        return Err(Error::setting("device", format!("there is no device `{name}`"), "use cpu, cuda or cuda:N"));
    };
    if !cfg!(feature = "cuda") {
        return Err(Error::setting("device", "this build has no GPU support", "build with `--features cuda`"));
    }
    Device::new_cuda(ordinal).map_err(|e| {
        Error::setting("device", format!("GPU {ordinal} cannot be used: {e}"), "check the driver, or use --device cpu")
    })
}
