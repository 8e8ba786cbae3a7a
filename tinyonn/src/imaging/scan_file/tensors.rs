//! The tensors of a scan's file, read back.

use std::path::Path;

use safetensors::Dtype;

use super::{DAMAGED, Record, SUMS};
use crate::checkpoint::MappedSafetensors;
use crate::imaging::{NeuronScan, Units};
use crate::ops::{Log1pScale, NeuronSums, UnitSums};
use crate::{Error, Result};

/// A file whose digest was right.
pub(super) struct Contents<'a> {
    pub(super) file: &'a MappedSafetensors,
    pub(super) path: &'a Path,
    pub(super) tasks: usize,
}

impl Contents<'_> {
    pub(super) fn scan(&self, record: &Record) -> Result<NeuronScan> {
        let layers = (0..).take_while(|layer| self.file.info(&format!("layers.{layer}.neurons.activation")).is_some());
        let layers = layers.count();
        let width = self.file.info("layers.0.neurons.activation").and_then(|info| info.shape.get(1)).copied();
        let width = width.ok_or_else(|| self.damaged("layers.0.neurons.activation"))?;
        if !record.is_possible() || width == 0 {
            return Err(Error::file(self.path, "its record contradicts itself", DAMAGED));
        }
        self.check_sums((layers, width), record)?;
        let units = record.partition.as_ref().map(|(_, count)| self.units(layers, (width, *count))).transpose()?;
        let scales = (record.log1p != "off").then(|| self.scales(layers)).transpose()?;
        let zero = NeuronScan::zero(record.tasks.clone(), layers, width);
        let mut scan = zero.measuring(record.grad_site, units.as_ref(), scales.as_deref());
        scan.tokens.clone_from(&record.tokens);
        scan.loss = self.sums("loss", &[self.tasks])?;
        let at = |layer: usize, what: &str| format!("layers.{layer}.{what}");
        for (layer, sums) in scan.sums.iter_mut().enumerate() {
            for (which, name) in NeuronSums::NAMES.into_iter().enumerate() {
                let values = self.sums(&format!("{}.{name}", at(layer, "neurons")), &[self.tasks, width])?;
                let rows = sums.iter_mut().zip(values.chunks_exact(width.max(1)));
                rows.for_each(|(sums, row)| *sums.each_mut()[which] = row.to_vec());
            }
        }
        for layer in 0..layers {
            if let Some(experts) = &mut scan.experts {
                self.unit_sums(&at(layer, "experts"), &mut experts.sums[layer])?;
            }
            if let Some(log1p) = &mut scan.log1p {
                self.unit_sums(&at(layer, "log1p.neurons"), &mut log1p.neurons[layer])?;
                if let Some(experts) = &mut log1p.experts {
                    self.unit_sums(&at(layer, "log1p.experts"), &mut experts[layer])?;
                }
            }
        }
        Ok(scan)
    }

    /// Refuses sums that are not there before memory is taken for them: the sizes in a record are no more than claims.
    fn check_sums(&self, (layers, width): (usize, usize), record: &Record) -> Result<()> {
        let experts = record.partition.as_ref().map(|(_, count)| *count);
        let log1p = (record.log1p != "off").then_some(width);
        let units = [("experts", experts), ("log1p.neurons", log1p), ("log1p.experts", log1p.and(experts))];
        for layer in 0..layers {
            let check = |what: &str, names: &[&str], count: usize| {
                let there =
                    |name: &&str| self.bytes(&format!("layers.{layer}.{what}.{name}"), SUMS, &[self.tasks, count]);
                names.iter().try_for_each(|name| there(name).map(drop))
            };
            check("neurons", &NeuronSums::NAMES, width)?;
            units
                .into_iter()
                .try_for_each(|(what, count)| count.map_or(Ok(()), |count| check(what, &UnitSums::NAMES, count)))?;
        }
        Ok(())
    }

    fn unit_sums(&self, at: &str, sums: &mut [UnitSums]) -> Result<()> {
        let count = sums.first().map_or(0, |sums| sums.activation.len());
        for (which, name) in UnitSums::NAMES.into_iter().enumerate() {
            let values = self.sums(&format!("{at}.{name}"), &[self.tasks, count])?;
            let rows = sums.iter_mut().zip(values.chunks_exact(count.max(1)));
            rows.for_each(|(sums, row)| *sums.each_mut()[which] = row.to_vec());
        }
        Ok(())
    }

    fn units(&self, layers: usize, (width, count): (usize, usize)) -> Result<Units> {
        let of_layer = |layer: usize| {
            let name = format!("layers.{layer}.neuron_expert");
            let (words, _) = self.bytes(&name, Dtype::U32, &[width])?.as_chunks::<4>();
            let experts: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
            let fits = experts.iter().all(|expert| (*expert as usize) < count);
            if fits { Ok(experts) } else { Err(self.damaged(&name)) }
        };
        Ok(Units { neuron_expert: (0..layers).map(of_layer).collect::<Result<_>>()?, count })
    }

    fn scales(&self, layers: usize) -> Result<Vec<Log1pScale>> {
        let values = self.sums("log1p.scales", &[layers, 2])?;
        let (pairs, _) = values.as_chunks::<2>();
        Ok(pairs
            .iter()
            .map(|[activation, surprise]| Log1pScale { activation: *activation, surprise: *surprise })
            .collect())
    }

    fn sums(&self, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
        let (words, _) = self.bytes(name, SUMS, shape)?.as_chunks::<8>();
        Ok(words.iter().map(|word| f64::from_le_bytes(*word)).collect())
    }

    fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8]> {
        let fits = self.file.info(name).is_some_and(|info| info.dtype == dtype && info.shape == shape);
        if fits { self.file.bytes(name) } else { Err(self.damaged(name)) }
    }

    fn damaged(&self, name: &str) -> Error {
        Error::file(self.path, format!("tensor `{name}` is missing or not as its record says"), DAMAGED)
    }
}
