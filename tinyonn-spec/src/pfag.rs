//! Parameter-free adaptive gating: how many choices a router takes, by how difficult its decision is (DESIGN §4).
//!
//! `entropy`: k = ⌊exp H(p) + ½⌋, the effective number of choices; `nucleus(mass)`: the fewest whose probabilities add up to `mass`;
//! `surprisal`: the same with mass = σ(clamp(s, 0.1, 5)), s the surprisal of the input token in nats. All are capped at the declared
//! `top_k`, and at least 1. No form has a parameter that learns.

use serde::{Deserialize, Serialize};

/// How many choices a router takes: `top_k`, or as many as its input is difficult (DESIGN §4).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Pfag {
    /// `top_k`.
    Off,
    /// ⌊exp H(p) + ½⌋.
    Entropy,
    /// As few as hold the probability `mass`.
    Nucleus {
        /// Between 0 and 1.
        mass: f64,
    },
    /// As few as hold the probability σ(clamp(s, 0.1, 5)), s the surprisal of the input token.
    Surprisal,
}

impl Pfag {
    /// The probability to gather for an input of surprisal `s`, for the forms that gather any.
    #[must_use]
    pub fn mass(self, surprisal: f32) -> f32 {
        match self {
            Self::Nucleus { mass } => mass as f32,
            Self::Surprisal => 1.0 / (1.0 + (-surprisal.clamp(0.1, 5.0)).exp()),
            Self::Off | Self::Entropy => 1.0,
        }
    }

    /// How many choices one router takes of those with log-probabilities `log_p`, at most `top_k`.
    ///
    /// ```
    /// use tinyonn::moe::Pfag;
    /// let log_p = [0.5f32, 0.3, 0.1, 0.1].map(f32::ln);
    /// assert_eq!(Pfag::Off.count(&log_p, 2, 1.0), 2);
    /// assert_eq!(Pfag::Entropy.count(&log_p, 4, 1.0), 3); // exp H = 3.22
    /// assert_eq!(Pfag::Nucleus { mass: 0.75 }.count(&log_p, 4, 0.75), 2);
    /// assert_eq!(Pfag::Nucleus { mass: 0.75 }.count(&log_p, 1, 0.75), 1);
    /// ```
    #[must_use]
    pub fn count(self, log_p: &[f32], top_k: usize, mass: f32) -> usize {
        self.count_in(&mut Vec::new(), log_p, top_k, mass)
    }

    /// [`count`](Self::count) in a place to sort in, kept from one router to the next.
    ///
    /// ```
    /// use tinyonn::moe::Pfag;
    ///
    /// let (nucleus, mut place) = (Pfag::Nucleus { mass: 0.75 }, Vec::new());
    /// let routers = [[0.5f32, 0.3, 0.2], [0.9, 0.05, 0.05]].map(|p| p.map(f32::ln));
    /// assert_eq!(routers.map(|log_p| nucleus.count_in(&mut place, &log_p, 3, nucleus.mass(0.0))), [2, 1]);
    /// ```
    #[must_use]
    pub fn count_in(self, p: &mut Vec<f32>, log_p: &[f32], top_k: usize, mass: f32) -> usize {
        let most = top_k.min(log_p.len());
        match self {
            Self::Off => most,
            _ if most <= 1 => most,
            Self::Entropy => {
                let entropy: f32 = log_p.iter().map(|l| if l.is_finite() { -l.exp() * l } else { 0.0 }).sum();
                ((entropy.exp() + 0.5) as usize).clamp(1, most)
            }
            Self::Nucleus { .. } | Self::Surprisal => {
                p.clear();
                p.extend(log_p.iter().map(|l| l.exp()));
                p.sort_unstable_by(|a, b| b.total_cmp(a));
                let mut gathered = 0.0;
                let enough = p.iter().position(|p| {
                    gathered += p;
                    gathered >= mass
                });
                enough.map_or(most, |at| at + 1).min(most)
            }
        }
    }
}
