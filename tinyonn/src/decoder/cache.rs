//! Keys and values of the positions already read, for generation.

use candle_core::Tensor;

use crate::Result;

/// Keys and values `[B, S, K, D]` of every layer.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tinyonn::checkpoint::ParamStore;
/// use tinyonn::decoder::{CausalLm, KvCache, Pass};
/// use tinyonn::phases::RunConfig;
///
/// let cfg = RunConfig::default().dense.arch(64, "silu");
/// let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
/// let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
///
/// let mut cache = KvCache::with_room(cfg.num_hidden_layers, 8);
/// model.logits(&Tensor::new(&[[3u32, 1]], &Device::Cpu)?, &Pass::all(), Some(&mut cache))?;
/// let next = model.logits(&Tensor::new(&[[4u32]], &Device::Cpu)?, &Pass::all(), Some(&mut cache))?;
/// assert_eq!((cache.positions(), cache.room(), next.dims()), (3, 8, &[1, 1, 64][..]));
/// // The whole text at once says the same of its last token, up to rounding.
/// let mut other = KvCache::new(cfg.num_hidden_layers);
/// let whole = model.logits(&Tensor::new(&[[3u32, 1, 4]], &Device::Cpu)?, &Pass::all(), Some(&mut other))?.narrow(1, 2, 1)?;
/// assert!((next - whole)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-4);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<Option<Layer>>,
    /// Positions that room is made for at first.
    first: usize,
}

/// Room for keys and values `[B, room, K, D]`, and for what an index reads of the keys, `[B, K, r, room]`, where one does; the first positions are taken.
#[derive(Clone, Debug)]
struct Layer {
    held: Held,
    positions: usize,
}

/// Of so many positions, of each layer.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// `[B, S, K, D]`.
    pub(super) keys: Tensor,
    /// `[B, S, K, D]`.
    pub(super) values: Tensor,
    /// `[B, K, r, S]`.
    pub(super) indexed: Option<Tensor>,
}

impl Held {
    /// Each of them through `f`, which is told in which of its dimensions positions lie.
    fn map(&self, f: impl Fn(&Tensor, usize) -> candle_core::Result<Tensor>) -> candle_core::Result<Self> {
        let indexed = self.indexed.as_ref().map(|indexed| f(indexed, 3)).transpose()?;
        Ok(Self { keys: f(&self.keys, 1)?, values: f(&self.values, 1)?, indexed })
    }

    /// Writes others behind the first `positions`.
    fn append(&self, new: &Self, positions: usize) -> candle_core::Result<()> {
        let pairs = [(&self.keys, &new.keys, 1), (&self.values, &new.values, 1)];
        let indexed = self.indexed.iter().zip(&new.indexed).map(|(room, new)| (room, new, 3));
        pairs
            .into_iter()
            .chain(indexed)
            .try_for_each(|(room, new, axis)| room.slice_set(&new.detach().contiguous()?, axis, positions))
    }
}

/// Room is made for so many positions at first, where nobody says how many there will be.
const ROOM: usize = 128;

impl KvCache {
    /// Empty, for a model of `layers` layers.
    #[must_use]
    pub fn new(layers: usize) -> Self {
        Self::with_room(layers, ROOM)
    }

    /// Empty, for a model of `layers` layers; room is made once for `positions` positions, and doubled only beyond.
    #[must_use]
    pub fn with_room(layers: usize, positions: usize) -> Self {
        Self { layers: vec![None; layers], first: positions }
    }

    /// Positions that it has room for.
    #[must_use]
    pub fn room(&self) -> usize {
        self.layers
            .first()
            .and_then(Option::as_ref)
            .map_or(0, |layer| layer.held.keys.dims().get(1).copied().unwrap_or(0))
    }

    /// Positions held.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.layers.first().and_then(Option::as_ref).map_or(0, |layer| layer.positions)
    }

    /// What it holds of each sequence, so many times: so many sequences begin like it.
    pub(super) fn repeated(&self, counts: &[usize]) -> Result<Self> {
        let rows: Vec<u32> = (0u32..).zip(counts).flat_map(|(row, count)| std::iter::repeat_n(row, *count)).collect();
        let times = |held: &Tensor, axis, positions| {
            let rows = Tensor::new(rows.as_slice(), held.device())?;
            held.narrow(axis, 0, positions)?.contiguous()?.index_select(&rows, 0)
        };
        let layer = |layer: &Layer| {
            let held = layer.held.map(|held, axis| times(held, axis, layer.positions))?;
            Ok::<_, candle_core::Error>(Layer { held, positions: layer.positions })
        };
        let layers = self.layers.iter().map(|held| held.as_ref().map(layer).transpose());
        Ok(Self { layers: layers.collect::<Result<_, _>>()?, first: self.first })
    }

    /// Keys and values of every layer, the whole room of each; `None` while it is empty, or when no other position has room.
    #[cfg(feature = "cuda")]
    pub(super) fn with_room_for_one(&self) -> Option<Vec<[&Tensor; 2]>> {
        let fits = self.positions() < self.room();
        let layers = self
            .layers
            .iter()
            .map(|layer| layer.as_ref().filter(|_| fits).map(|layer| [&layer.held.keys, &layer.held.values]));
        layers.collect()
    }

    /// Counts a position that was written in its place already.
    #[cfg(feature = "cuda")]
    pub(super) fn count_one(&mut self) {
        self.layers.iter_mut().flatten().for_each(|layer| layer.positions += 1);
    }

    /// Keeps these sequences of its batch, in this order.
    pub(super) fn keep(&mut self, rows: &[u32]) -> Result<()> {
        for layer in self.layers.iter_mut().flatten() {
            let rows = Tensor::new(rows, layer.held.keys.device())?;
            layer.held = layer.held.map(|held, _| held.index_select(&rows, 0))?;
        }
        Ok(())
    }

    /// Appends what is new of a layer; returns the room with all of it, and how many positions are taken.
    pub(super) fn extend(&mut self, layer: usize, new: &Held) -> Result<(Held, usize)> {
        let slot = &mut self.layers[layer];
        let before = slot.as_ref().map_or(0, |layer| layer.positions);
        let positions = before + new.keys.dim(1)?;
        let room = slot.as_ref().map_or(Ok(0), |layer| layer.held.keys.dim(1))?;
        let held = match slot.take() {
            Some(layer) if positions <= room => layer.held,
            full => {
                let room = if positions <= self.first { self.first } else { positions.next_power_of_two() };
                let empty = |new: &Tensor, axis: usize| {
                    let mut shape = new.dims().to_vec();
                    shape[axis] = room;
                    Tensor::zeros(shape, new.dtype(), new.device())
                };
                let grown = new.map(empty)?;
                if let Some(full) = full {
                    grown.append(&full.held.map(|held, axis| held.narrow(axis, 0, before))?, 0)?;
                }
                grown
            }
        };
        held.append(new, before)?;
        *slot = Some(Layer { held: held.clone(), positions });
        Ok((held, positions))
    }
}
