//! The types of a GGUF file's tensors: how many bytes they take, and their values.

use std::borrow::Cow;
use std::fmt;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;

use crate::Result;

/// The type of a tensor, of those that are read.
///
/// ```
/// use candle_core::DType;
/// use tinyonn::checkpoint::gguf::GgmlType;
///
/// assert!(GgmlType::BF16.is_plain() && !GgmlType::Q4K.is_plain());
/// assert_eq!((GgmlType::BF16.computed(), GgmlType::Q4K.computed()), (DType::BF16, DType::F32));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum GgmlType {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE half precision.
    F16,
    /// 16 bits, the upper half of an f32.
    BF16,
    /// 32 weights of 4 bits, a scale.
    Q4_0,
    /// 32 weights of 4 bits, a scale and a minimum.
    Q4_1,
    /// 32 weights of 5 bits, a scale.
    Q5_0,
    /// 32 weights of 5 bits, a scale and a minimum.
    Q5_1,
    /// 32 weights of 8 bits, a scale.
    Q8_0,
    /// 256 weights of 4 bits, scales and minima of 6 bits for 32 each.
    Q4K,
    /// 256 weights of 5 bits, scales and minima of 6 bits for 32 each.
    Q5K,
    /// 256 weights of 6 bits, scales of 8 bits for 16 each.
    Q6K,
}

impl GgmlType {
    /// The type of this number, or what it is that is not read.
    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        match id {
            0 => Ok(Self::F32),
            1 => Ok(Self::F16),
            30 => Ok(Self::BF16),
            2 => Ok(Self::Q4_0),
            3 => Ok(Self::Q4_1),
            6 => Ok(Self::Q5_0),
            7 => Ok(Self::Q5_1),
            8 => Ok(Self::Q8_0),
            12 => Ok(Self::Q4K),
            13 => Ok(Self::Q5K),
            14 => Ok(Self::Q6K),
            other => {
                Err(unread(other).map_or_else(|| format!("the unknown type {other}"), |name| format!("type {name}")))
            }
        }
    }

    /// Bytes of a tensor of these sizes, innermost first.
    pub(super) fn bytes(self, sizes: &[u64]) -> Result<u64, String> {
        let block = self.candle().block_size() as u64;
        if let Some(size) = sizes.iter().find(|size| **size == 0) {
            return Err(format!("has a size of {size}"));
        }
        if let Some(row) = sizes.first().filter(|row| **row % block != 0) {
            return Err(format!("its rows of {row} do not fill blocks of {block} ({self})"));
        }
        let elements = sizes.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        let bytes = elements.and_then(|n| (n / block).checked_mul(self.candle().type_size() as u64));
        // As f32 as well, its elements must be countable.
        let countable = |n: u64| n.checked_mul(4).and_then(|n| isize::try_from(n).ok()).is_some();
        match (elements, bytes) {
            (Some(elements), Some(bytes)) if countable(elements) => Ok(bytes),
            _ => Err(format!("its sizes {sizes:?} have no product")),
        }
    }

    /// Bytes of a block, and its elements: one, where there are no blocks.
    pub(super) fn block(self) -> (usize, usize) {
        (self.candle().type_size(), self.candle().block_size())
    }

    /// Whether it stores one number after the other, and no blocks.
    #[must_use]
    pub fn is_plain(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// The same type in safetensors, f32 for blocks.
    pub(super) fn read_as(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        }
    }

    /// The type of its values as given when nobody asks for another: blocks become f32.
    #[must_use]
    pub fn computed(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
            _ => DType::F32,
        }
    }

    /// The values of a tensor's `bytes`, on the CPU, in the type [`GgmlType::computed`].
    pub(super) fn values(self, bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
        if self.is_plain() {
            return Ok(Tensor::from_raw_buffer(bytes, self.computed(), shape, &Device::Cpu)?);
        }
        let blocks = QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, self.candle())?;
        Ok(QTensor::new(blocks, shape)?.dequantize(&Device::Cpu)?)
    }

    fn candle(self) -> GgmlDType {
        match self {
            Self::F32 => GgmlDType::F32,
            Self::F16 => GgmlDType::F16,
            Self::BF16 => GgmlDType::BF16,
            Self::Q4_0 => GgmlDType::Q4_0,
            Self::Q4_1 => GgmlDType::Q4_1,
            Self::Q5_0 => GgmlDType::Q5_0,
            Self::Q5_1 => GgmlDType::Q5_1,
            Self::Q8_0 => GgmlDType::Q8_0,
            Self::Q4K => GgmlDType::Q4K,
            Self::Q5K => GgmlDType::Q5K,
            Self::Q6K => GgmlDType::Q6K,
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

/// The names of types that ggml knows and that are not read here.
fn unread(id: u32) -> Option<&'static str> {
    const NAMES: [(u32, &str); 25] = [
        (4, "Q4_2"),
        (5, "Q4_3"),
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (24, "I8"),
        (25, "I16"),
        (26, "I32"),
        (27, "I64"),
        (28, "F64"),
        (29, "IQ1_M"),
        (31, "Q4_0_4_4"),
        (32, "Q4_0_4_8"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
    ];
    NAMES.iter().find(|(number, _)| *number == id).map(|(_, name)| *name)
}
