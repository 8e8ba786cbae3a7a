//! Which outputs an intervention changes, and how much of each: all of it, or so much that what is lost has the norm of other units'.

use super::units::Units;

/// Units by task and layer, in one or several draws, and the share of a factor's change that their outputs take.
pub(super) struct Touch {
    pub(super) name: String,
    pub(super) draws: Vec<Units>,
    /// `[task][layer]`, from 0 to 1.
    strength: Vec<Vec<f64>>,
}

impl Touch {
    pub(super) fn whole(name: String, draws: Vec<Units>) -> Self {
        let all = |units: &Units| units.iter().map(|layers| vec![1.0; layers.len()]).collect();
        Self { name, strength: draws.first().map(all).unwrap_or_default(), draws }
    }

    /// `units` at strength ‖others‖ / ‖units‖ in each layer; whole where `others`, mean over their draws, have as much norm or more.
    pub(super) fn weakened(name: String, units: Units, others: &[Units], power: &[Vec<Vec<f64>>]) -> Self {
        let strength = |task: usize, layer: usize| {
            let power = &power[task][layer];
            let norm = |units: &Units| units[task][layer].iter().map(|u| power[*u]).sum::<f64>().sqrt();
            let drawn = others.iter().map(norm).sum::<f64>() / others.len().max(1) as f64;
            (drawn / norm(&units).max(f64::MIN_POSITIVE)).min(1.0)
        };
        let strength =
            (0..units.len()).map(|task| (0..units[task].len()).map(|layer| strength(task, layer)).collect()).collect();
        Self { name, draws: vec![units], strength }
    }

    /// What the outputs of a task's units are multiplied by, by layer.
    pub(super) fn factors(&self, task: usize, factor: f64) -> Vec<f64> {
        self.strength[task].iter().map(|strength| 1.0 + (factor - 1.0) * strength).collect()
    }

    pub(super) fn mean_strength(&self) -> f64 {
        let all: Vec<f64> = self.strength.iter().flatten().copied().collect();
        all.iter().sum::<f64>() / all.len().max(1) as f64
    }

    /// The norm of what is changed relative to that of `others`, whole; mean over tasks and draws.
    pub(super) fn norm_to(&self, others: &Units, power: &[Vec<Vec<f64>>]) -> f64 {
        let of_task = |units: &Units, task: usize| {
            let layers = units[task].iter().zip(&power[task]).zip(&self.strength[task]);
            let own: f64 = layers.map(|((units, power), s)| s * s * units.iter().map(|u| power[*u]).sum::<f64>()).sum();
            let layers = others[task].iter().zip(&power[task]);
            let other: f64 = layers.map(|(units, power)| units.iter().map(|u| power[*u]).sum::<f64>()).sum();
            own.sqrt() / other.sqrt().max(f64::MIN_POSITIVE)
        };
        let of_draw =
            |units: &Units| (0..units.len()).map(|task| of_task(units, task)).sum::<f64>() / units.len().max(1) as f64;
        self.draws.iter().map(of_draw).sum::<f64>() / self.draws.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_weakened_loses_the_norm_of_others() {
        // Norms: 5 of the first two units, 2.5 of the third, 6 of the fourth; one task, one layer.
        let power = vec![vec![vec![9.0, 16.0, 6.25, 36.0]]];
        let units = |units: &[usize]| vec![vec![units.to_vec()]];
        let own = || units(&[0, 1]);
        let weakened = |others: &[Units]| Touch::weakened("own".into(), own(), others, &power);
        let half = weakened(&[units(&[2])]);
        assert_eq!((half.factors(0, 0.0), half.factors(0, 1.5), half.mean_strength()), (vec![0.5], vec![1.25], 0.5));
        assert_eq!(half.norm_to(&units(&[2]), &power), 1.0);
        assert_eq!(half.norm_to(&own(), &power), 0.5);
        assert_eq!(weakened(&[units(&[3])]).factors(0, 0.0), [0.0], "others that have more leave nothing");
        assert_eq!(weakened(&[units(&[2]), own()]).mean_strength(), 0.75, "the mean of the draws");
        let whole = Touch::whole("others".into(), vec![units(&[2]), own()]);
        assert_eq!((whole.factors(0, 0.0), whole.norm_to(&own(), &power)), (vec![0.0], 0.75));
    }
}
