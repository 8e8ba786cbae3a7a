//! One tensor on its way into a file of weights: out of memory, turned into the order of files as it is written, or out of another file,
//! whose bytes are copied piece by piece, so that a model of any size passes through little memory.

use std::io::{self, Write};

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{TensorInfo, View};

use super::layout::Order;
use super::not_finite::count;
use super::source::WeightSource;
use crate::{Error, Result};

/// A tensor with the type and shape that it has in the file.
#[derive(Clone)]
pub(crate) struct Entry<'a> {
    name: &'a str,
    dtype: Dtype,
    shape: Vec<usize>,
    values: Values<'a>,
}

#[derive(Clone, Copy)]
enum Values<'a> {
    Memory(&'a Tensor, Order),
    File(&'a dyn WeightSource),
}

/// What keeps an entry from being written.
pub(super) enum Failure {
    /// The file that is written.
    Write(io::Error),
    /// What is read.
    Read(Error),
}

impl<'a> Entry<'a> {
    /// A tensor in memory, which the file has in `order`.
    ///
    /// # Errors
    /// A type that checkpoints do not hold.
    pub(crate) fn of_tensor(name: &'a str, tensor: &'a Tensor, order: Order) -> Result<Self> {
        if !matches!(tensor.dtype(), DType::F32 | DType::BF16 | DType::F16 | DType::U32) {
            let problem = format!("is of type {:?}", tensor.dtype());
            return Err(Error::tensor(name, problem, "checkpoints hold F32, BF16, F16 and U32: convert it"));
        }
        let shape = order.written_shape(name, tensor.dims().to_vec());
        let dtype = Tensor::dtype(tensor).into();
        Ok(Self { name, dtype, shape, values: Values::Memory(tensor, order) })
    }

    /// A tensor of `source`, as it is stored there.
    ///
    /// # Errors
    /// A tensor that it does not have, or of a type that models do not compute in.
    pub(crate) fn of_file(name: &'a str, source: &'a dyn WeightSource) -> Result<Self> {
        let missing = || Error::tensor(name, "is missing", "check that the checkpoint is complete");
        let info = source.info(name).ok_or_else(missing)?;
        if info.computed().is_none() {
            let problem = format!("is of type {}", info.dtype);
            return Err(Error::tensor(name, problem, "save the checkpoint in F32, BF16 or F16"));
        }
        Ok(Self { name, dtype: info.dtype, shape: info.shape.clone(), values: Values::File(source) })
    }

    pub(super) fn name(&self) -> &str {
        self.name
    }

    fn element(&self) -> usize {
        self.dtype.bitsize() / 8
    }

    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    pub(super) fn bytes(&self) -> u64 {
        (self.elements() * self.element()) as u64
    }

    /// Wider types first, as readers of a file need for alignment, then by name.
    pub(super) fn place(&self) -> (std::cmp::Reverse<usize>, &str) {
        (std::cmp::Reverse(self.element()), self.name)
    }

    /// Its entry in the header, `start` bytes behind it.
    pub(super) fn info(&self, start: usize) -> TensorInfo {
        let data_offsets = (start, start + self.bytes() as usize);
        TensorInfo { dtype: self.dtype, shape: self.shape.clone(), data_offsets }
    }

    /// Writes the values; of what is copied from a file, how many are no finite numbers.
    pub(super) fn write(&self, out: &mut (dyn Write + Send)) -> Result<usize, Failure> {
        let mut spoilt = 0;
        match self.values {
            Values::Memory(tensor, order) => {
                let tensor = order.written(self.name, tensor).and_then(|t| on_cpu(&t)).map_err(Failure::Read)?;
                out.write_all(&View::data(&tensor)).map_err(Failure::Write)?;
            }
            Values::File(source) => {
                let mut refused = None;
                let copied = source.pieces(self.name, &mut |piece| {
                    // The count is as long as the copy: side by side they take the time of one.
                    let (written, found) = rayon::join(|| out.write_all(piece), || count(piece, self.dtype));
                    spoilt += found;
                    written.map_err(|e| {
                        let said = Error::tensor(self.name(), format!("could not be written: {e}"), "make room there");
                        refused = Some(e);
                        said
                    })
                });
                match (copied, refused) {
                    (_, Some(e)) => return Err(Failure::Write(e)),
                    (Err(e), None) => return Err(Failure::Read(e)),
                    (Ok(()), None) => {}
                }
            }
        }
        Ok(spoilt)
    }
}

/// The bytes of a tensor as a file holds them.
pub(crate) fn raw_bytes(name: &str, tensor: &Tensor) -> Result<Vec<u8>> {
    Entry::of_tensor(name, tensor, Order::Memory)?;
    Ok(View::data(&on_cpu(tensor)?).into_owned())
}

fn on_cpu(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.detach().to_device(&Device::Cpu)?)
}
