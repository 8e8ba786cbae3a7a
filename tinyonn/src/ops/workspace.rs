//! Tensors that a step writes anew each time it is made, where they lay before: decoding makes the same step for every token, and a captured graph writes to the
//! addresses that it was captured with.
//!
//! A step asks for its tensors in one order. The first time they are made, later they are handed out again; whoever writes one overwrites what the step before had there.

use candle_core::{DType, Device, Result, Tensor};

/// The tensors of a step, in the order in which it asks for them.
///
/// ```
/// use candle_core::{DType, Device};
/// use tinyonn::ops::Workspace;
///
/// let mut workspace = Workspace::default();
/// let first = workspace.take(&[2, 3], DType::F32, &Device::Cpu)?;
/// workspace.rewind(); // the next step
/// assert_eq!(workspace.take(&[2, 3], DType::F32, &Device::Cpu)?.id(), first.id());
/// assert!(workspace.take(&[4], DType::U32, &Device::Cpu)?.id() != first.id()); // a second one
/// let made = workspace.made(|| Ok(vec![first.clone()]))?; // what is computed once, in the first step
/// assert_eq!(made.len(), 1);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Workspace {
    taken: Vec<Vec<Tensor>>,
    next: usize,
}

impl Workspace {
    /// Begins another step.
    pub fn rewind(&mut self) {
        self.next = 0;
    }

    /// The tensor that the step before had here; at first zeros.
    ///
    /// # Errors
    /// What the device reports; a step that asks for other tensors than the first one.
    pub fn take(&mut self, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let taken = self.made(|| Ok(vec![Tensor::zeros(shape, dtype, device)?]))?;
        match taken.first() {
            Some(tensor) if (tensor.dims(), tensor.dtype()) == (shape, dtype) => Ok(tensor.clone()),
            other => candle_core::bail!("workspace: {shape:?} in {dtype:?} where the first step had {other:?}"),
        }
    }

    /// What the first step has made here.
    ///
    /// # Errors
    /// What `make` reports.
    pub fn made(&mut self, make: impl FnOnce() -> Result<Vec<Tensor>>) -> Result<Vec<Tensor>> {
        if self.next == self.taken.len() {
            self.taken.push(make()?);
        }
        let made = self.taken[self.next].clone();
        self.next += 1;
        Ok(made)
    }
}
