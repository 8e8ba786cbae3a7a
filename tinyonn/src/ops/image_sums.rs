//! What imaging sums over tokens in f64, so that scans add up: by neuron a, a², S, S², the Taylor score, its magnitude and the tokens with S > 0;
//! where asked for, by expert and of log1p values a, a², S, S² (DESIGN §3).

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

/// Everything that one pass through one layer adds.
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

impl ImageSums {
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
