//! `--device cpu|cuda[:n]`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};
use candle_core::Device;
use serde::{Deserialize, Serialize};

/// The name of a device, read before anything is opened.
///
/// ```
/// use tinyonn::phases::DeviceName;
/// let device: DeviceName = "cuda:1".parse()?;
/// assert_eq!(device, DeviceName::Cuda(1));
/// assert!("gpu".parse::<DeviceName>().is_err());
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by ordinal.
    Cuda(usize),
}

impl DeviceName {
    /// Opens the device.
    ///
    /// ```
    /// use tinyonn::phases::DeviceName;
    /// assert!(DeviceName::Cpu.open()?.is_cpu());
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// A GPU asked of a build without CUDA, or one that is not there; a driver that is too old.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => {
                let problem = format!("`{self}` needs a build with CUDA, and this one has none");
                Err(Error::setting("--device", problem, "build with `--features cuda`, or use `--device cpu`"))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(ordinal) => {
                self.check_driver()?;
                crate::ops::card::open(ordinal).map_err(|e| self.not_opened(&e))
            }
        }
    }

    /// Bytes of memory that are free, and all of them; `None` of the processor, whose memory the system lends.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    #[cfg(feature = "cuda")]
    pub(super) fn memory(self) -> Result<Option<[u64; 2]>> {
        let Self::Cuda(ordinal) = self else { return Ok(None) };
        self.check_driver()?;
        crate::ops::card::memory(ordinal).map(Some).map_err(|e| self.not_opened(&e))
    }

    /// A build without CUDA asks nobody: it says so where the device is opened.
    #[cfg(not(feature = "cuda"))]
    #[expect(clippy::unnecessary_wraps, reason = "its twin asks the driver")]
    pub(super) fn memory(self) -> Result<Option<[u64; 2]>> {
        let _ = self;
        Ok(None)
    }

    /// Refuses a driver that speaks an older CUDA than the kernels of this program were compiled for.
    #[cfg(feature = "cuda")]
    fn check_driver(self) -> Result<()> {
        let [driver, needed] = crate::ops::card::versions().map_err(|e| self.not_opened(&e))?;
        check_version(self, driver, needed)
    }

    /// What candle or the driver said, in a line.
    #[cfg(feature = "cuda")]
    fn not_opened(self, e: &candle_core::Error) -> Error {
        let reason = e.to_string();
        let problem = format!("`{self}` cannot be opened: {}", reason.lines().next().unwrap_or_default());
        Error::setting("--device", problem, "see `nvidia-smi` for the GPUs of this machine")
    }
}

/// Refuses a driver of an older version than is needed; of CUDA 13.0 a version is 13000.
#[cfg(any(feature = "cuda", test))]
fn check_version(device: DeviceName, driver: u32, needed: u32) -> Result<()> {
    if driver >= needed {
        return Ok(());
    }
    let words = |version: u32| format!("{}.{}", version / 1000, version % 1000 / 10);
    let problem =
        format!("the driver of `{device}` is of CUDA {}, and this program of {}", words(driver), words(needed));
    Err(Error::setting("--device", problem, "install a newer driver, or build with an older CUDA toolkit"))
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let ordinal = |text: &str| text.parse().ok().map(Self::Cuda);
        let device = match text {
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(ordinal),
        };
        device.ok_or_else(|| {
            Error::setting("--device", format!("there is no `{text}`"), "use cpu, cuda, or cuda:N for the GPU number N")
        })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(device: DeviceName) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_too_old_is_refused() {
        assert!(check_version(DeviceName::Cuda(0), 13000, 13000).is_ok());
        let refused = check_version(DeviceName::Cuda(1), 12080, 13000).map_err(|e| e.to_string()).unwrap_err();
        assert!(refused.contains("`cuda:1` is of CUDA 12.8, and this program of 13.0"), "{refused}");
    }
}
