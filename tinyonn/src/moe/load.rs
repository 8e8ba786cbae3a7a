//! Counts how much work routing gives to each expert while a model runs.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{LayerLoad, LoadFigures, MoeSpec};
use crate::decoder::{Load, Trace};

/// Counts the tokens routed to each expert of each layer while a model runs, and how many experts a token took; tokens that no decision
/// is for count nowhere.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tinyonn::decoder::{Load, Trace};
/// use tinyonn::moe::{LoadMeter, moe};
/// use tinyonn::ops::host;
///
/// #[moe(levels = [2], top_k = 1)]
/// struct Two;
///
/// // Four tokens of one layer took one expert each: three the first, one the second.
/// let tokens_n = Tensor::new(&[3f32, 1.0], &Device::Cpu)?;
/// let counts = Tensor::new(&[0f32, 4.0, 0.0], &Device::Cpu)?;
/// let traces = [Trace { load: Some(Load { tokens_n, counts, neurons_t: None, inputs_t: None }), ..Trace::default() }];
///
/// let mut meter = LoadMeter::new(1, 2);
/// meter.add(&traces, &host::read(&LoadMeter::wanted(&traces))?);
/// assert_eq!((meter.taken(), meter.load()), (vec![vec![3.0, 1.0]], vec![vec![0.75, 0.25]]));
/// assert_eq!((meter.expert_share(), meter.neurons(), meter.inputs()), (0.5, vec![None], vec![None]));
/// // The first expert has two neurons, the second six: ¾ · 2 + ¼ · 6 of 8.
/// assert_eq!(meter.active_share(&[vec![0, 0, 1, 1, 1, 1, 1, 1]]), 0.375);
/// assert_eq!(meter.figures(&Two::SPEC).max_over_mean(), 1.5);
/// // Of padding nothing is said about neurons; here none are chosen at all.
/// meter.add_scored(&traces, &host::read(&LoadMeter::wanted(&traces))?, |at| at < 3);
/// assert_eq!(meter.taken(), [[6.0, 2.0]]);
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LoadMeter {
    layers: Vec<Seen>,
}

/// What one layer's routing took.
#[derive(Clone, Debug)]
struct Seen {
    tokens: u64,
    /// Tokens by expert.
    taken: Vec<f64>,
    /// Tokens by how many experts they took.
    counts: BTreeMap<usize, u64>,
    /// Of tokens that are scored, how many there were and the neurons that they took, where neurons are chosen.
    neurons: Option<(u64, f64)>,
    /// The same of channels that W_g read, where it reads a part.
    inputs: Option<(u64, f64)>,
}

/// Whole numbers below this are exact in f64.
const MOST_COUNTED: f64 = 9_007_199_254_740_992.0;

impl LoadMeter {
    /// For `layers` layers of `experts` experts.
    #[must_use]
    pub fn new(layers: usize, experts: usize) -> Self {
        let nothing =
            Seen { tokens: 0, taken: vec![0.0; experts], counts: BTreeMap::new(), neurons: None, inputs: None };
        Self { layers: vec![nothing; layers] }
    }

    /// The tensors of a pass that [`add`](Self::add) wants read: of every layer, whatever it was asked.
    #[must_use]
    pub fn wanted<'a>(traces: &'a [Trace]) -> Vec<&'a Tensor> {
        let of_layer =
            |load: &'a Load| [&load.tokens_n, &load.counts].into_iter().chain(&load.neurons_t).chain(&load.inputs_t);
        traces.iter().flat_map(|trace| trace.load.iter().flat_map(of_layer)).collect()
    }

    /// Adds the values of [`wanted`](Self::wanted) of the same pass.
    pub fn add(&mut self, traces: &[Trace], values: &[Vec<f64>]) {
        self.add_scored(traces, values, |_| true);
    }

    /// The same of a pass of which not every token is scored; only those that are, `scored(at)` of `[B·T]`, say how many neurons a token takes.
    pub fn add_scored(&mut self, traces: &[Trace], values: &[Vec<f64>], scored: impl Fn(usize) -> bool) {
        let mut values = values.iter();
        for (seen, load) in
            self.layers.iter_mut().zip(traces).filter_map(|(seen, trace)| Some((seen, trace.load.as_ref()?)))
        {
            let (Some(tokens), Some(counts)) = (values.next(), values.next()) else { return };
            seen.taken.iter_mut().zip(tokens).for_each(|(sum, tokens)| *sum += tokens);
            for (count, tokens) in counts.iter().enumerate().filter(|(_, tokens)| **tokens > 0.0) {
                seen.tokens += *tokens as u64;
                *seen.counts.entry(count).or_default() += *tokens as u64;
            }
            for (is_there, sums) in
                [(load.neurons_t.is_some(), &mut seen.neurons), (load.inputs_t.is_some(), &mut seen.inputs)]
            {
                if is_there {
                    let (count, sum) = sums.get_or_insert((0, 0.0));
                    let taken = values.next().into_iter().flatten().enumerate().filter(|(at, _)| scored(*at));
                    taken.for_each(|(_, taken)| (*count, *sum) = (*count + 1, *sum + taken));
                }
            }
        }
    }

    /// All it has counted, by layer: the tokens of each expert; the tokens that took 0, 1, .. experts; whether neurons are chosen, of how many tokens, and
    /// how many; the same of channels.
    pub(crate) fn numbers(&self) -> Vec<Vec<f64>> {
        let of_layer = |seen: &Seen| {
            let counts =
                (0..=seen.taken.len()).map(|count| seen.counts.get(&count).map_or(0.0, |tokens| *tokens as f64));
            let [neurons, inputs] =
                [seen.neurons, seen.inputs].map(|sums| sums.map_or([0.0; 3], |(count, sum)| [1.0, count as f64, sum]));
            seen.taken.iter().copied().chain(counts).chain(neurons).chain(inputs).collect()
        };
        self.layers.iter().map(of_layer).collect()
    }

    /// Adds the [`numbers`](Self::numbers) that another has counted in a layer; `None` where they are not of as many experts, or no counts.
    pub(crate) fn add_numbers(&mut self, layer: usize, numbers: &[f64]) -> Option<()> {
        if !numbers.iter().all(|number| (0.0..MOST_COUNTED).contains(number)) {
            return None;
        }
        let seen = self.layers.get_mut(layer)?;
        let (taken, rest) = numbers.split_at_checked(seen.taken.len())?;
        let (counts, sums) = rest.split_at_checked(taken.len() + 1)?;
        let (neurons, inputs) = sums.split_first_chunk::<3>()?;
        let inputs: &[f64; 3] = inputs.try_into().ok()?;
        seen.taken.iter_mut().zip(taken).for_each(|(sum, tokens)| *sum += tokens);
        for (count, tokens) in counts.iter().enumerate().filter(|(_, tokens)| **tokens > 0.0) {
            seen.tokens = seen.tokens.saturating_add(*tokens as u64);
            let own = seen.counts.entry(count).or_default();
            *own = own.saturating_add(*tokens as u64);
        }
        for (sums, [is_there, count, sum]) in [(&mut seen.neurons, neurons), (&mut seen.inputs, inputs)] {
            if *is_there > 0.0 {
                let own = sums.get_or_insert((0, 0.0));
                *own = (own.0.saturating_add(*count as u64), own.1 + sum);
            }
        }
        Some(())
    }

    /// Tokens by layer and expert.
    #[must_use]
    pub fn taken(&self) -> Vec<Vec<f64>> {
        self.layers.iter().map(|seen| seen.taken.clone()).collect()
    }

    /// The share of tokens that each expert of each layer took, `[layer][expert]`.
    #[must_use]
    pub fn load(&self) -> Vec<Vec<f64>> {
        let share = |seen: &Seen| seen.taken.iter().map(|count| count / (seen.tokens as f64).max(1.0)).collect();
        self.layers.iter().map(share).collect()
    }

    /// What the load looks like, by layer.
    #[must_use]
    pub fn figures(&self, spec: &MoeSpec) -> LoadFigures {
        let figures =
            |seen: &Seen| LayerLoad { experts_taken: seen.counts.clone(), ..LayerLoad::new(spec, &seen.taken) };
        LoadFigures { layers: self.layers.iter().map(figures).collect() }
    }

    /// Neurons that a token took, by layer, mean over the tokens that are scored; `None` where none are chosen.
    #[must_use]
    pub fn neurons(&self) -> Vec<Option<f64>> {
        self.layers.iter().map(|seen| seen.neurons.map(|(count, sum)| sum / (count as f64).max(1.0))).collect()
    }

    /// Channels of x that W_g read for a token, likewise; `None` where it reads all.
    #[must_use]
    pub fn inputs(&self) -> Vec<Option<f64>> {
        self.layers.iter().map(|seen| seen.inputs.map(|(count, sum)| sum / (count as f64).max(1.0))).collect()
    }

    /// The share of the experts that a token takes, mean over tokens and layers.
    #[must_use]
    pub fn expert_share(&self) -> f64 {
        let load = self.load();
        let of_layer = |layer: &Vec<f64>| layer.iter().sum::<f64>() / layer.len().max(1) as f64;
        load.iter().map(of_layer).sum::<f64>() / load.len().max(1) as f64
    }

    /// The share of a layer's neurons that a token uses, mean over tokens and layers; `units[layer][i]` is the expert of neuron i.
    #[must_use]
    pub fn active_share(&self, units: &[Vec<u32>]) -> f64 {
        let of_layer = |((load, units), taken): ((&Vec<f64>, &Vec<u32>), Option<f64>)| match taken {
            Some(taken) => taken / units.len() as f64,
            None => units.iter().map(|expert| load[*expert as usize]).sum::<f64>() / units.len() as f64,
        };
        let load = self.load();
        load.iter().zip(units).zip(self.neurons()).map(of_layer).sum::<f64>() / load.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::Result;
    use crate::ops::host;

    /// One after the other, the loads of two batches are what their numbers add up to.
    #[test]
    fn numbers_add_up() -> Result<()> {
        let cpu = &Device::Cpu;
        let [mut whole, mut sum] = [LoadMeter::new(1, 2), LoadMeter::new(1, 2)];
        for (tokens, counts, neurons) in
            [([3f32, 1.0], [0f32, 4.0, 0.0], [5f32, 7.0]), ([2.0, 2.0], [1.0, 0.0, 2.0], [1.0, 0.0])]
        {
            let load = Load {
                tokens_n: Tensor::new(&tokens, cpu)?,
                counts: Tensor::new(&counts, cpu)?,
                neurons_t: Some(Tensor::new(&neurons, cpu)?),
                inputs_t: Some(Tensor::new(&[neurons[0] + 1.0, 2.0], cpu)?),
            };
            let traces = [Trace { load: Some(load), ..Trace::default() }];
            let values = host::read(&LoadMeter::wanted(&traces))?;
            let mut batch = LoadMeter::new(1, 2);
            whole.add(&traces, &values);
            batch.add(&traces, &values);
            assert_eq!(sum.add_numbers(0, &batch.numbers()[0]), Some(()));
        }
        assert_eq!(sum.numbers(), whole.numbers());
        assert_eq!((sum.neurons(), sum.inputs(), sum.load()), (whole.neurons(), whole.inputs(), whole.load()));
        for none in [f64::NAN, -1.0, 1e300] {
            assert_eq!(sum.add_numbers(0, &[none; 11]), None);
        }
        // Of another number of experts, or of a layer that is not.
        assert_eq!([sum.add_numbers(0, &[1.0; 8]), sum.add_numbers(0, &[]), sum.add_numbers(1, &[0.0; 11])], [None; 3]);
        Ok(())
    }
}
