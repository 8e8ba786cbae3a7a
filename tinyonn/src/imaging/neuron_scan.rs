//! What a scan saw: f64 sums over tokens, by layer and task, of every neuron, and where asked for of every expert and of log1p
//! values. Sums are linear, so scans of parts of a corpus add up to the scan of the whole (1e-12; DESIGN §3).

use crate::ops::{GradSite, ImageSums, Log1pScale, NeuronSums, UnitSums};
use crate::{Error, Result};

/// Which expert each neuron belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Units {
    /// The expert of neuron i, `[layer][i]`.
    pub neuron_expert: Vec<Vec<u32>>,
    /// Experts a layer.
    pub count: usize,
}

/// Sums of experts' norms: a_n = ‖h restricted to n‖₂ and S_n.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertScan {
    /// Whose.
    pub units: Units,
    /// `sums[layer][task]`.
    pub sums: Vec<Vec<UnitSums>>,
}

/// Sums of log1p(x / scale).
#[derive(Clone, Debug, PartialEq)]
pub struct Log1pScan {
    /// By layer.
    pub scales: Vec<Log1pScale>,
    /// Of neurons' a and S, `[layer][task]`.
    pub neurons: Vec<Vec<UnitSums>>,
    /// Of experts' a_n/√width and S_n/√width, `[layer][task]`, where experts were scanned.
    pub experts: Option<Vec<Vec<UnitSums>>>,
}

/// What a scan saw: for every layer and task the sums over tokens.
///
/// ```
/// use tinyonn::imaging::neuron_scan::{ExpertScan, Log1pScan, NeuronScan, Units};
/// use tinyonn::ops::{GradSite, Log1pScale};
///
/// // Two layers of four neurons, two experts of two.
/// let units = Units { neuron_expert: vec![vec![0, 0, 1, 1]; 2], count: 2 };
/// let scales = vec![Log1pScale { activation: 1.0, surprise: 0.1 }; 2];
/// let nothing = NeuronScan::zero(vec!["a".into()], 2, 4).measuring(GradSite::Weight, Some(&units), Some(&scales));
/// let (experts, log1p): (Option<&ExpertScan>, Option<&Log1pScan>) = (nothing.experts.as_ref(), nothing.log1p.as_ref());
/// assert_eq!((nothing.width(), experts.map(|scan| scan.units.count), log1p.map(|scan| scan.scales.len())), (4, Some(2), Some(2)));
///
/// let mut sum = nothing.clone();
/// sum.tokens[0] = 3;
/// sum.merge(&nothing)?;
/// assert_eq!((sum.tokens[0], sum.gradient_nonzero_share()), (3, 0.0));
/// assert!(sum.check_gradients().is_err()); // three tokens, and not one gradient: nothing can be read from it
/// assert!(sum.merge(&NeuronScan::zero(vec!["b".into()], 2, 4)).is_err());
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct NeuronScan {
    /// The tasks' names.
    pub tasks: Vec<String>,
    /// Tokens counted, by task.
    pub tokens: Vec<u64>,
    /// Σ of the tokens' losses in nats, by task.
    pub loss: Vec<f64>,
    /// Where surprise was measured.
    pub grad_site: GradSite,
    /// Of neurons, `sums[layer][task]`.
    pub sums: Vec<Vec<NeuronSums>>,
    /// Of experts, if the partition was given.
    pub experts: Option<ExpertScan>,
    /// Of log1p values, if asked for.
    pub log1p: Option<Log1pScan>,
}

impl NeuronScan {
    /// Nothing seen.
    #[must_use]
    pub fn zero(tasks: Vec<String>, layers: usize, width: usize) -> Self {
        let count = tasks.len();
        Self {
            tokens: vec![0; count],
            loss: vec![0.0; count],
            grad_site: GradSite::Weight,
            sums: vec![vec![NeuronSums::zero(width); count]; layers],
            experts: None,
            log1p: None,
            tasks,
        }
    }

    /// Nothing seen yet of what `units` and `scales` ask for as well.
    #[must_use]
    pub fn measuring(mut self, grad_site: GradSite, units: Option<&Units>, scales: Option<&[Log1pScale]>) -> Self {
        let (layers, tasks) = (self.sums.len(), self.tasks.len());
        let zeros = |count: usize| vec![vec![UnitSums::zero(count); tasks]; layers];
        self.grad_site = grad_site;
        self.experts = units.map(|units| ExpertScan { units: units.clone(), sums: zeros(units.count) });
        self.log1p = scales.map(|scales| Log1pScan {
            scales: scales.to_vec(),
            neurons: zeros(self.width()),
            experts: units.map(|units| zeros(units.count)),
        });
        self
    }

    /// Adds a scan of other text of the same tasks through the same model.
    ///
    /// # Errors
    /// Other tasks, layers or widths; other measures: grad site, partition, scales of log1p.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.check_like(other)?;
        for task in 0..self.tasks.len() {
            self.tokens[task] += other.tokens[task];
            self.loss[task] += other.loss[task];
        }
        for (layer, other) in self.sums.iter_mut().zip(&other.sums) {
            layer.iter_mut().zip(other).for_each(|(sums, other)| sums.add(other));
        }
        let pairs = self.unit_sums_mut().into_iter().zip(other.unit_sums());
        for (sums, other) in pairs {
            for (layer, other) in sums.iter_mut().zip(other) {
                layer.iter_mut().zip(other).for_each(|(sums, other)| sums.add(other));
            }
        }
        Ok(())
    }

    fn check_like(&self, other: &Self) -> Result<()> {
        let unlike = |problem: &str, remedy: &str| Err(Error::setting("scan", problem, remedy));
        let shape = |scan: &Self| (scan.sums.len(), scan.width());
        if self.tasks != other.tasks || shape(self) != shape(other) {
            return unlike("the scans are of different tasks or models", "merge scans of the same model and tasks");
        }
        if self.grad_site != other.grad_site {
            return unlike("the scans measured surprise at different places", "scan all parts with one grad_site");
        }
        let units = |scan: &Self| scan.experts.as_ref().map(|experts| experts.units.clone());
        if units(self) != units(other) {
            return unlike("the scans are of different partitions", "scan all parts with one partition, or without");
        }
        let scales = |scan: &Self| scan.log1p.as_ref().map(|log1p| log1p.scales.clone());
        if scales(self) != scales(other) {
            let remedy = "give every part the scales of the first, or scan shares of one text";
            return unlike("the scans' log1p values are over different scales", remedy);
        }
        Ok(())
    }

    /// The sums that are kept of experts and of log1p values, in a fixed order.
    pub(super) fn unit_sums(&self) -> Vec<&Vec<Vec<UnitSums>>> {
        let experts = self.experts.iter().map(|experts| &experts.sums);
        let log1p = self.log1p.iter().flat_map(|log1p| std::iter::once(&log1p.neurons).chain(&log1p.experts));
        experts.chain(log1p).collect()
    }

    /// As [`unit_sums`](Self::unit_sums), to change.
    pub(super) fn unit_sums_mut(&mut self) -> Vec<&mut Vec<Vec<UnitSums>>> {
        let experts = self.experts.iter_mut().map(|experts| &mut experts.sums);
        let log1p =
            self.log1p.iter_mut().flat_map(|log1p| std::iter::once(&mut log1p.neurons).chain(&mut log1p.experts));
        experts.chain(log1p).collect()
    }

    /// What was seen of `task` in `layer`.
    pub(super) fn image(&self, layer: usize, task: usize) -> ImageSums {
        let experts = |log1p: &Log1pScan| log1p.experts.as_ref().map(|sums| sums[layer][task].clone());
        ImageSums {
            neurons: self.sums[layer][task].clone(),
            experts: self.experts.as_ref().map(|scan| scan.sums[layer][task].clone()),
            log1p_neurons: self.log1p.as_ref().map(|log1p| log1p.neurons[layer][task].clone()),
            log1p_experts: self.log1p.as_ref().and_then(experts),
        }
    }

    /// The same, to be that.
    pub(super) fn set(&mut self, layer: usize, task: usize, seen: ImageSums) {
        self.sums[layer][task] = seen.neurons;
        if let (Some(scan), Some(sums)) = (&mut self.experts, seen.experts) {
            scan.sums[layer][task] = sums;
        }
        if let Some(scan) = &mut self.log1p {
            if let Some(sums) = seen.log1p_neurons {
                scan.neurons[layer][task] = sums;
            }
            if let (Some(scan), Some(sums)) = (&mut scan.experts, seen.log1p_experts) {
                scan[layer][task] = sums;
            }
        }
    }

    /// Neurons of a layer.
    #[must_use]
    pub fn width(&self) -> usize {
        self.sums.first().and_then(|layer| layer.first()).map_or(0, |sums| sums.activation.len())
    }

    /// The share of (layer, token, neuron) with a surprise above zero; 0 of a scan without tokens.
    #[must_use]
    pub fn gradient_nonzero_share(&self) -> f64 {
        let surprised: f64 = self.sums.iter().flatten().flat_map(|sums| &sums.surprised).sum();
        let seen = self.tokens.iter().sum::<u64>() as f64 * self.width() as f64 * self.sums.len() as f64;
        if seen > 0.0 { surprised / seen } else { 0.0 }
    }

    /// Refuses a scan that read tokens without a single gradient.
    ///
    /// # Errors
    /// Every surprise is zero.
    pub fn check_gradients(&self) -> Result<()> {
        if self.tokens.iter().all(|tokens| *tokens == 0) || self.gradient_nonzero_share() > 0.0 {
            return Ok(());
        }
        let problem = "every surprise of the scan is zero: no gradient reached the experts";
        Err(Error::setting("scan", problem, "scan text that has targets, through an unquantised model"))
    }
}
