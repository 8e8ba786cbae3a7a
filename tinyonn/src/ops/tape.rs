//! Hand-written derivatives on candle's tape.
//!
//! `record` puts an already computed value on the tape with a `Backward`. Inputs are of three kinds: *constants*
//! (nothing upstream learns: no gradient is formed), *edges* (results of earlier operations: their gradients travel on
//! the tape) and *leaves* (variables: their gradients go to a collector of [`backward`], summed, once each). Only edges
//! count towards candle's limit of three inputs a custom operation.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Error, InplaceOp1, Layout, Result, Shape, Storage,
    Tensor, TensorId, Var,
};

thread_local! {
    /// Gradients of leaves, while a [`backward`] of this thread runs.
    static LEAVES: RefCell<Option<HashMap<TensorId, Tensor>>> = const { RefCell::new(None) };
}

/// The gradients of `loss` (any shape; seeded with ones) with respect to every variable it depends on.
///
/// A variable has an entry iff a gradient was formed for it: frozen parameters have none. `Tensor::backward` on a graph
/// that holds this crate's operations fails and names this function as the remedy.
///
/// # Errors
/// Whatever a derivative reports, and a call from inside another `backward`.
pub fn backward(loss: &Tensor) -> Result<GradStore> {
    let collecting = Collecting::begin()?;
    let mut grads = loss.backward()?;
    for (id, grad) in collecting.end() {
        let sum = match grads.get_id(id) {
            Some(other) => (other + &grad)?,
            None => grad,
        };
        grads.insert_id(id, sum);
    }
    Ok(grads)
}

/// While it lives, leaves' gradients are collected. Its end, be it a panic's, leaves nothing behind for the next backward.
struct Collecting;

impl Collecting {
    fn begin() -> Result<Self> {
        if LEAVES.with_borrow(Option::is_some) {
            return Err(Error::msg("ops::backward was called from inside a derivative; detach the inner loss"));
        }
        LEAVES.set(Some(HashMap::new()));
        Ok(Self)
    }

    // By value: it ends with its guard.
    #[allow(clippy::unused_self)]
    fn end(self) -> HashMap<TensorId, Tensor> {
        LEAVES.take().unwrap_or_default()
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        LEAVES.set(None);
    }
}

/// A derivative written by hand.
pub(crate) trait Backward: Send + Sync + 'static {
    /// The operation's name, for errors.
    fn name(&self) -> &'static str;

    /// The gradient of each input of [`record`], in its order, given that of the output.
    /// Where `needs` is false the entry is not looked at and should be `None`.
    fn backward(&self, output: &Tensor, grad: &Tensor, needs: &[bool]) -> Result<Vec<Option<Tensor>>>;

    /// True if the derivative must run even when no input learns (it is being observed).
    fn observed(&self) -> bool {
        false
    }
}

/// Puts `output`, a fresh tensor that nobody else holds, on the tape as a function of `inputs`.
///
/// Without a learning input (and unless observed) the output is returned as it is: inference records nothing.
pub(crate) fn record(inputs: &[&Tensor], output: Tensor, derivative: impl Backward) -> Result<Tensor> {
    let edges: Vec<&Tensor> = inputs.iter().copied().filter(|t| t.track_op() && !t.is_variable()).collect();
    let leaf = inputs.iter().find(|t| t.is_variable());
    if edges.is_empty() && leaf.is_none() && !derivative.observed() {
        return Ok(output);
    }
    let kinds = inputs
        .iter()
        .map(|t| match (t.is_variable(), t.track_op()) {
            (true, _) => Input::Leaf(t.id()),
            (false, true) => Input::Edge,
            (false, false) => Input::Constant,
        })
        .collect();
    let shape = output.shape().clone();
    let value = Mutex::new(Some(take_storage(output)?));
    let node = Node { value, shape, kinds, derivative: Box::new(derivative) };
    match (edges.as_slice(), leaf) {
        ([a, b, c], _) => a.apply_op3(b, c, node),
        ([a, b], _) => a.apply_op2(b, node),
        ([a], _) => a.apply_op1(node),
        ([], Some(leaf)) => leaf.apply_op1(node),
        // Candle records only what depends on a variable, so an observed derivative of constants brings its own.
        ([], None) => Var::zeros((), candle_core::DType::F32, &node.device()?)?.apply_op1(node),
        _ => Err(Error::msg(format!("{}: more than three inputs that learn", node.derivative.name()))),
    }
}

enum Input {
    Constant,
    Edge,
    Leaf(TensorId),
}

struct Node {
    /// The value, until candle's forward asks for it; the operation has already run.
    value: Mutex<Option<Storage>>,
    shape: Shape,
    kinds: Vec<Input>,
    derivative: Box<dyn Backward>,
}

impl Node {
    fn device(&self) -> Result<candle_core::Device> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        value.as_ref().map(Storage::device).ok_or_else(|| self.spent())
    }

    fn spent(&self) -> Error {
        Error::msg(format!("{}: the value was already taken", self.derivative.name()))
    }

    fn take(&self) -> Result<(Storage, Shape)> {
        let storage = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok((storage.ok_or_else(|| self.spent())?, self.shape.clone()))
    }

    fn take_cpu(&self) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => Err(Error::msg(format!("{}: inputs are on the CPU, the value is not", self.derivative.name()))),
        }
    }

    fn take_cuda(&self) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => Err(Error::msg(format!("{}: inputs are on a GPU, the value is not", self.derivative.name()))),
        }
    }

    /// Runs the derivative; leaves' gradients are collected, the edges' returned in order.
    fn differentiate(&self, output: &Tensor, grad: &Tensor) -> Result<std::vec::IntoIter<Option<Tensor>>> {
        let collecting = LEAVES.with_borrow(Option::is_some);
        if !collecting {
            return Err(Error::msg(format!(
                "{}: differentiate this loss with tinyonn::ops::backward, not Tensor::backward",
                self.derivative.name()
            )));
        }
        let needs: Vec<bool> = self.kinds.iter().map(|kind| !matches!(kind, Input::Constant)).collect();
        let grads = self.derivative.backward(&output.detach(), &grad.contiguous()?, &needs)?;
        let mut edges = Vec::with_capacity(3);
        for (kind, grad) in self.kinds.iter().zip(grads) {
            match (kind, grad) {
                (Input::Constant, _) | (Input::Leaf(_), None) => {}
                (Input::Edge, grad) => edges.push(grad),
                (Input::Leaf(id), Some(grad)) => collect(*id, grad)?,
            }
        }
        Ok(edges.into_iter())
    }
}

/// Adds `grad` to the gradient of the leaf `id`.
fn collect(id: TensorId, grad: Tensor) -> Result<()> {
    LEAVES.with_borrow_mut(|slot| {
        let Some(leaves) = slot else { return Ok(()) };
        let sum = match leaves.remove(&id) {
            Some(earlier) => (earlier + grad)?,
            None => grad,
        };
        leaves.insert(id, sum);
        Ok(())
    })
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        self.derivative.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take_cuda()
    }

    fn bwd(&self, _: &Tensor, output: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.differentiate(output, grad)?.next().flatten())
    }
}

impl CustomOp2 for Node {
    fn name(&self) -> &'static str {
        self.derivative.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take_cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, output: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut edges = self.differentiate(output, grad)?;
        Ok((edges.next().flatten(), edges.next().flatten()))
    }
}

impl CustomOp3 for Node {
    fn name(&self) -> &'static str {
        self.derivative.name()
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.take_cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take_cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut edges = self.differentiate(output, grad)?;
        Ok((edges.next().flatten(), edges.next().flatten(), edges.next().flatten()))
    }
}

/// Moves the storage out of a tensor without copying it, by way of candle's in-place operation.
// By value, because whoever gives it away must not read it again.
#[allow(clippy::needless_pass_by_value)]
fn take_storage(tensor: Tensor) -> Result<Storage> {
    let tensor = tensor.contiguous()?;
    let slot = Slot(Mutex::new(None));
    tensor.inplace_op1(&slot)?;
    slot.0.into_inner().unwrap_or_else(PoisonError::into_inner).ok_or_else(|| Error::msg("no storage was taken"))
}

struct Slot(Mutex<Option<Storage>>);

impl Slot {
    fn put(&self, storage: Storage) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(storage);
    }
}

impl InplaceOp1 for Slot {
    fn name(&self) -> &'static str {
        "take-storage"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let whole = layout.start_offset() == 0;
        let empty = storage.device().zeros_impl(&Shape::from(0), storage.dtype())?;
        self.put(Storage::Cpu(if whole { std::mem::replace(storage, empty) } else { storage.try_clone(layout)? }));
        Ok(())
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.put(Storage::Cuda(storage.try_clone(layout)?));
        Ok(())
    }
}
