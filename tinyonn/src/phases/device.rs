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
    /// A GPU asked of a build without CUDA, or one that is not there.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda(_) => {
                let problem = format!("`{self}` needs a build with CUDA, and this one has none");
                Err(Error::setting("--device", problem, "build with `--features cuda`, or use `--device cpu`"))
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(ordinal) => crate::ops::card::open(ordinal).map_err(|e| {
                let reason = e.to_string();
                let problem = format!("`{self}` cannot be opened: {}", reason.lines().next().unwrap_or_default());
                Error::setting("--device", problem, "see `nvidia-smi` for the GPUs of this machine")
            }),
        }
    }
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
