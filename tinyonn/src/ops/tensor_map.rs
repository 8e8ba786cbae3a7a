//! How Hopper's copy engine finds the rows of a tensor: what `wgmma.cu` calls a `Map`.

use std::ptr::from_mut;

use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::{Result, Tensor};

use super::kernel::address;

/// Heads in bf16, by boxes of 64 positions and 64 values of a head.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// Of `[B, room, H, D]`, of which each sequence has `positions` positions: behind them zeros are read, and nothing is written.
    ///
    /// # Errors
    /// What the driver reports.
    #[allow(unsafe_code)]
    pub(super) fn of(heads_bthd: &Tensor, positions: usize) -> Result<Self> {
        let (batch, room, heads, head_dim) = heads_bthd.dims4()?;
        let sizes = [head_dim, heads, positions, batch].map(|n| n as u64);
        let strides = [head_dim, heads * head_dim, room * heads * head_dim].map(|n| 2 * n as u64);
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: four sizes, three strides and four edges of a box, as the rank says; the driver reads them and writes the map.
        let made = unsafe {
            sys::cuTensorMapEncodeTiled(
                from_mut(&mut map),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                4,
                address(heads_bthd)? as *mut std::ffi::c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                [64, 1, 64, 1].as_ptr(),
                [1; 4].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        made.result().map_err(candle_core::Error::wrap)?;
        Ok(Self(map))
    }
}
