//! What imaging sums over tokens in f64, so that scans add up: by neuron a, a², S, S², the Taylor score, its magnitude and the tokens with S > 0;
//! where asked for, by expert and of log1p values a, a², S, S² (DESIGN §3). On the device they are rows of matrices ([`ImageTensors`]), which a
//! scan adds up there and reads once a task.
//!
//! ```
//! use candle_core::Device;
//! use tinyonn::ops::{ImageSums, ImageTensors, NeuronSums, UnitSums};
//!
//! // What a pass of one token saw of two neurons, and of one expert.
//! let (mut neurons, mut experts) = (NeuronSums::zero(2), UnitSums::zero(1));
//! neurons.each_mut()[0].copy_from_slice(&[1.0, 3.0]);
//! experts.each_mut()[0][0] = 10f64.sqrt();
//! assert_eq!((NeuronSums::NAMES[0], neurons.each()[0]), ("activation", &vec![1.0, 3.0]));
//! assert_eq!((UnitSums::NAMES[0], experts.each()[0].len()), ("activation", 1));
//! let one = ImageSums { neurons, experts: Some(experts), log1p_neurons: None, log1p_experts: None };
//!
//! // Two such passes, added on the device, and read back by one copy.
//! let on_device = ImageTensors::new(&one, &Device::Cpu)?;
//! let sum = on_device.add(&on_device)?;
//! let mut two = one.clone();
//! two.read(&mut sum.flat()?.to_vec1::<f64>()?.into_iter());
//! let mut added = one.clone();
//! added.add(&one);
//! assert_eq!(two.neurons.activation, added.neurons.activation);
//! # Ok::<(), candle_core::Error>(())
//! ```

use candle_core::{Device, Result, Tensor};

/// Σ over tokens, by neuron.
#[derive(Clone, Debug, PartialEq)]
pub struct NeuronSums {
    /// Σ a.
    pub activation: Vec<f64>,
    /// Σ a².
    pub activation_squared: Vec<f64>,
    /// Σ S.
    pub surprise: Vec<f64>,
    /// Σ S².
    pub surprise_squared: Vec<f64>,
    /// Σ taylor.
    pub taylor: Vec<f64>,
    /// Σ |taylor|.
    pub taylor_magnitude: Vec<f64>,
    /// Tokens with S > 0.
    pub surprised: Vec<f64>,
}

impl NeuronSums {
    /// The names of [`each`](Self::each).
    pub const NAMES: [&str; 7] =
        ["activation", "activation_squared", "surprise", "surprise_squared", "taylor", "taylor_magnitude", "surprised"];

    /// Nothing seen, for `width` neurons.
    #[must_use]
    pub fn zero(width: usize) -> Self {
        let zeros = || vec![0.0; width];
        Self {
            activation: zeros(),
            activation_squared: zeros(),
            surprise: zeros(),
            surprise_squared: zeros(),
            taylor: zeros(),
            taylor_magnitude: zeros(),
            surprised: zeros(),
        }
    }

    /// The seven sums, in the order of the fields.
    #[must_use]
    pub fn each(&self) -> [&Vec<f64>; 7] {
        [
            &self.activation,
            &self.activation_squared,
            &self.surprise,
            &self.surprise_squared,
            &self.taylor,
            &self.taylor_magnitude,
            &self.surprised,
        ]
    }

    /// As [`each`](Self::each), to change.
    pub fn each_mut(&mut self) -> [&mut Vec<f64>; 7] {
        [
            &mut self.activation,
            &mut self.activation_squared,
            &mut self.surprise,
            &mut self.surprise_squared,
            &mut self.taylor,
            &mut self.taylor_magnitude,
            &mut self.surprised,
        ]
    }

    /// Adds what another pass over other tokens saw.
    pub fn add(&mut self, other: &Self) {
        add_each(self.each_mut(), other.each());
    }
}

/// Σ over tokens of a and S and of their squares, by unit: of an expert's norms, or of log1p values.
#[derive(Clone, Debug, PartialEq)]
pub struct UnitSums {
    /// Σ a.
    pub activation: Vec<f64>,
    /// Σ a².
    pub activation_squared: Vec<f64>,
    /// Σ S.
    pub surprise: Vec<f64>,
    /// Σ S².
    pub surprise_squared: Vec<f64>,
}

impl UnitSums {
    /// The names of [`each`](Self::each).
    pub const NAMES: [&str; 4] = ["activation", "activation_squared", "surprise", "surprise_squared"];

    /// Nothing seen, of `count` units.
    #[must_use]
    pub fn zero(count: usize) -> Self {
        let zeros = || vec![0.0; count];
        Self { activation: zeros(), activation_squared: zeros(), surprise: zeros(), surprise_squared: zeros() }
    }

    /// The four sums, in the order of the fields.
    #[must_use]
    pub fn each(&self) -> [&Vec<f64>; 4] {
        [&self.activation, &self.activation_squared, &self.surprise, &self.surprise_squared]
    }

    /// As [`each`](Self::each), to change.
    pub fn each_mut(&mut self) -> [&mut Vec<f64>; 4] {
        [&mut self.activation, &mut self.activation_squared, &mut self.surprise, &mut self.surprise_squared]
    }

    /// Adds what another pass over other tokens saw.
    pub fn add(&mut self, other: &Self) {
        add_each(self.each_mut(), other.each());
    }

    /// Adds one token's a and S of `unit`.
    #[inline(always)]
    pub(super) fn add_token(&mut self, unit: usize, a: f64, s: f64) {
        self.activation[unit] += a;
        self.activation_squared[unit] += a * a;
        self.surprise[unit] += s;
        self.surprise_squared[unit] += s * s;
    }
}

/// Everything that passes through one layer add up to.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageSums {
    /// By neuron.
    pub neurons: NeuronSums,
    /// By expert, a_n = ‖h restricted to n‖₂ and S_n, if experts were given.
    pub experts: Option<UnitSums>,
    /// By neuron, of log1p(a / scale) and log1p(S / scale), if scales were given.
    pub log1p_neurons: Option<UnitSums>,
    /// By expert of `width` neurons, of log1p(a_n / (√width · scale)) and likewise S_n, if both were given.
    pub log1p_experts: Option<UnitSums>,
}

/// [`ImageSums`] on the device, f64, a sum a row.
#[derive(Clone, Debug)]
pub struct ImageTensors {
    /// `[7, i]`, in the order of [`NeuronSums::NAMES`].
    pub neurons: Tensor,
    /// `[4, n]`, in the order of [`UnitSums::NAMES`].
    pub experts: Option<Tensor>,
    /// `[4, i]`.
    pub log1p_neurons: Option<Tensor>,
    /// `[4, n]`.
    pub log1p_experts: Option<Tensor>,
}

impl ImageTensors {
    /// Moves sums to a device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(sums: &ImageSums, device: &Device) -> Result<Self> {
        let units = |sums: &Option<UnitSums>| sums.as_ref().map(|sums| rows(sums.each(), device)).transpose();
        Ok(Self {
            neurons: rows(sums.neurons.each(), device)?,
            experts: units(&sums.experts)?,
            log1p_neurons: units(&sums.log1p_neurons)?,
            log1p_experts: units(&sums.log1p_experts)?,
        })
    }

    fn kept(&self) -> impl Iterator<Item = &Tensor> {
        std::iter::once(&self.neurons).chain(&self.experts).chain(&self.log1p_neurons).chain(&self.log1p_experts)
    }

    /// Adds what another pass, asked for the same, saw of other tokens.
    ///
    /// # Errors
    /// What the device reports.
    pub fn add(&self, other: &Self) -> Result<Self> {
        let add = |a: &Option<Tensor>, b: &Option<Tensor>| a.as_ref().zip(b.as_ref()).map(|(a, b)| a + b).transpose();
        Ok(Self {
            neurons: (&self.neurons + &other.neurons)?,
            experts: add(&self.experts, &other.experts)?,
            log1p_neurons: add(&self.log1p_neurons, &other.log1p_neurons)?,
            log1p_experts: add(&self.log1p_experts, &other.log1p_experts)?,
        })
    }

    /// All sums in one row, so that one copy brings them to the host: [`ImageSums::read`] takes them apart.
    ///
    /// # Errors
    /// What the device reports.
    pub fn flat(&self) -> Result<Tensor> {
        Tensor::cat(&self.kept().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?, 0)
    }
}

fn rows<const N: usize>(sums: [&Vec<f64>; N], device: &Device) -> Result<Tensor> {
    let width = sums[0].len();
    Tensor::from_vec(sums.into_iter().flatten().copied().collect::<Vec<f64>>(), (N, width), device)
}

impl ImageSums {
    /// Takes the values of [`ImageTensors::flat`] of the same layer off the front of `values`; `self` says which there are.
    pub fn read(&mut self, values: &mut impl Iterator<Item = f64>) {
        let units = [&mut self.experts, &mut self.log1p_neurons, &mut self.log1p_experts].into_iter().flatten();
        let sums = self.neurons.each_mut().into_iter().chain(units.flat_map(UnitSums::each_mut));
        sums.flatten().for_each(|sum| *sum = values.next().unwrap_or(f64::NAN));
    }

    /// Adds what another pass, asked for the same, saw of other tokens.
    pub fn add(&mut self, other: &Self) {
        self.neurons.add(&other.neurons);
        let pairs = [
            (&mut self.experts, &other.experts),
            (&mut self.log1p_neurons, &other.log1p_neurons),
            (&mut self.log1p_experts, &other.log1p_experts),
        ];
        for (sums, other) in pairs {
            if let (Some(sums), Some(other)) = (sums, other) {
                sums.add(other);
            }
        }
    }
}

fn add_each<const N: usize>(sums: [&mut Vec<f64>; N], others: [&Vec<f64>; N]) {
    for (sum, other) in sums.into_iter().zip(others) {
        sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
    }
}
