//! Rows that a pass over text makes, each of a batch of it. Those of several shards of the batches, put in order by batch, are the rows of the whole, in its
//! order: a batch is read by one shard, and its rows stay as they were.

use std::collections::BTreeMap;

use safetensors::Dtype;

use crate::checkpoint::MappedSafetensors;
use crate::checkpoint::recorded::StoredTensor;

/// The batches of the rows, among the columns of a file.
const BATCHES: &str = "batches";

/// Rows with columns of numbers of 32 bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DealtRows {
    /// The batch of each row, of all batches of the text.
    batches: Vec<u32>,
    columns: BTreeMap<String, Column>,
}

/// So many numbers a row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    is_float: bool,
    width: usize,
    /// f32 as their bits.
    words: Vec<u32>,
}

impl DealtRows {
    pub(super) fn new(batches: Vec<u32>) -> Self {
        Self { batches, columns: BTreeMap::new() }
    }

    pub(super) fn count(&self) -> usize {
        self.batches.len()
    }

    /// Adds a column of f32, as many of each row.
    pub(super) fn add_floats(&mut self, name: String, values: &[f32]) {
        self.add(name, true, values.iter().map(|value| value.to_bits()).collect());
    }

    /// Adds a column of whole numbers, as many of each row.
    pub(super) fn add_words(&mut self, name: String, words: Vec<u32>) {
        self.add(name, false, words);
    }

    /// Adds a column of f64, as many of each row, each as two whole numbers: the lower half of its bits and the upper one.
    pub(super) fn add_doubles(&mut self, name: String, values: &[f64]) {
        let halves = |value: &f64| {
            let bits = value.to_bits();
            [bits as u32, (bits >> 32) as u32]
        };
        self.add(name, false, values.iter().flat_map(halves).collect());
    }

    fn add(&mut self, name: String, is_float: bool, words: Vec<u32>) {
        let width = words.len() / self.count().max(1);
        self.columns.insert(name, Column { is_float, width, words });
    }

    /// Takes a column of f32 out.
    pub(super) fn take_floats(&mut self, name: &str) -> Option<Vec<f32>> {
        let column = self.columns.remove(name).filter(|column| column.is_float)?;
        Some(column.words.into_iter().map(f32::from_bits).collect())
    }

    /// Takes a column of whole numbers out, with how many a row has.
    pub(super) fn take_words(&mut self, name: &str) -> Option<(usize, Vec<u32>)> {
        let column = self.columns.remove(name).filter(|column| !column.is_float)?;
        Some((column.width, column.words))
    }

    /// Takes a column of f64 out, with how many a row has.
    pub(super) fn take_doubles(&mut self, name: &str) -> Option<(usize, Vec<f64>)> {
        let (width, words) = self.take_words(name).filter(|(width, _)| width.is_multiple_of(2))?;
        let (halves, _) = words.as_chunks::<2>();
        let value = |[lower, upper]: &[u32; 2]| f64::from_bits(u64::from(*lower) | u64::from(*upper) << 32);
        Some((width / 2, halves.iter().map(value).collect()))
    }

    /// Adds the rows of another shard behind these; false where they have other columns.
    #[must_use]
    pub(super) fn append(&mut self, other: Self) -> bool {
        if other.batches.is_empty() {
            return true;
        }
        if self.batches.is_empty() {
            *self = other;
            return true;
        }
        let alike = self.columns.len() == other.columns.len()
            && self.columns.iter().zip(&other.columns).all(|((name, own), (others_name, others))| {
                (name, own.is_float, own.width) == (others_name, others.is_float, others.width)
            });
        if alike {
            self.batches.extend(other.batches);
            self.columns.values_mut().zip(other.columns.into_values()).for_each(|(own, others)| {
                own.words.extend(others.words);
            });
        }
        alike
    }

    /// The rows by batch, those of a batch as they stand.
    pub(super) fn into_order(mut self) -> Self {
        let mut order: Vec<usize> = (0..self.count()).collect();
        order.sort_by_key(|row| self.batches[*row]);
        self.batches = order.iter().map(|row| self.batches[*row]).collect();
        for column in self.columns.values_mut() {
            let row = |row: &usize| &column.words[row * column.width..][..column.width];
            column.words = order.iter().flat_map(row).copied().collect();
        }
        self
    }

    /// As tensors of a file, whose names begin with `prefix`.
    pub(super) fn tensors(&self, prefix: &str) -> Vec<StoredTensor> {
        let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let batches = StoredTensor::table(format!("{prefix}.{BATCHES}"), Dtype::U32, 1, bytes(&self.batches));
        let column = |(name, column): (&String, &Column)| {
            let dtype = if column.is_float { Dtype::F32 } else { Dtype::U32 };
            StoredTensor::table(format!("{prefix}.{name}"), dtype, column.width, bytes(&column.words))
        };
        [batches].into_iter().chain(self.columns.iter().map(column)).collect()
    }

    /// What [`tensors`](Self::tensors) has written; `None` where it cannot have been.
    pub(super) fn read(file: &MappedSafetensors, prefix: &str) -> Option<Self> {
        let column = |name: &str| {
            let info = file.info(name)?;
            let is_float = match info.dtype {
                Dtype::F32 => true,
                Dtype::U32 => false,
                _ => return None,
            };
            let &[count, width] = info.shape.as_slice() else { return None };
            let (words, _) = file.bytes(name).ok()?.as_chunks::<4>();
            let words = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
            Some((count, Column { is_float, width, words }))
        };
        let (count, batches) = column(&format!("{prefix}.{BATCHES}"))?;
        let mut rows = Self::new(batches.words);
        if rows.count() != count {
            return None;
        }
        for name in file.names() {
            let Some(own) = name.strip_prefix(prefix).and_then(|name| name.strip_prefix('.')) else { continue };
            if own != BATCHES {
                let (there, column) = column(name)?;
                // A width of zero says nothing of how many rows there are.
                if there != count && column.width > 0 {
                    return None;
                }
                rows.columns.insert(own.to_owned(), column);
            }
        }
        Some(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(batches: Vec<u32>) -> DealtRows {
        let mut rows = DealtRows::new(batches);
        let numbers: Vec<u32> = rows.batches.iter().flat_map(|batch| [10 * batch, 10 * batch + 1]).collect();
        rows.add_floats("f".into(), &numbers.iter().map(|n| *n as f32).collect::<Vec<_>>());
        rows.add_words("w".into(), numbers);
        rows
    }

    /// Bit for bit, whatever they are.
    #[test]
    fn doubles_come_back() {
        let values = [0.1, -1e-310, f64::MAX, f64::NEG_INFINITY, 3.0, -0.0];
        let mut rows = DealtRows::new(vec![0, 1, 2]);
        rows.add_doubles("d".into(), &values);
        assert_eq!(rows.take_doubles("d"), Some((2, values.to_vec())));
        assert_eq!(rows.take_doubles("d"), None);
    }

    /// However batches are dealt to shards, and in whatever order these are added.
    #[test]
    fn shards_in_order_are_the_whole() {
        // (shard, rows) of each batch.
        let dealt = [(0, 2), (2, 1), (0, 0), (1, 3), (2, 2), (1, 1), (0, 1)];
        let of = |shard: Option<usize>| {
            let own = dealt.iter().enumerate().filter(|(_, (owner, _))| shard.is_none_or(|shard| shard == *owner));
            rows(own.flat_map(|(batch, (_, count))| std::iter::repeat_n(batch as u32, *count)).collect())
        };
        for turn in 0..4 {
            let mut sum = DealtRows::default();
            // The fourth shard is empty.
            (0..4).for_each(|shard| assert!(sum.append(of(Some((shard + turn) % 4)))));
            assert_eq!(sum.into_order(), of(None));
        }
    }

    #[test]
    fn other_columns_do_not_add_up() {
        let mut other = rows(vec![1]);
        other.add_words("more".into(), vec![5]);
        assert!(!rows(vec![0]).append(other));
    }
}
