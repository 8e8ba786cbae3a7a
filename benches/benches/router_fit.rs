//! What the closed form of a whole model costs: a million labelled rows of projected inputs a layer, 28 layers, r = 64, a hundred labels in a
//! 10 × 10 hierarchy, summed and fitted at both levels. One run: seconds against a bound, on as many threads as there are cores.
//!
//! A layer's rows are made before its time is taken: a mean that its label decides, and noise.

use std::time::Instant;

use tinyonn::Result;
use tinyonn::ops::ClassSums;
use tinyonn::train::gda::{self, Gaussians};

const LAYERS: u64 = 28;
const ROWS: usize = 1_000_000;
const WIDTH: usize = 64;
const GROUPS: usize = 10;
const EXPERTS: usize = 10;
/// Seconds on two cores.
const TARGET: f64 = 60.0;

/// Bits that look random, faster than they are summed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Even in −½..½.
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

/// One layer's rows and their labels.
fn rows(layer: u64, z_nr: &mut [f32], label_n: &mut [u32]) {
    let mut noise = Noise(layer + 1);
    let mean: Vec<f32> = (0..GROUPS * EXPERTS * WIDTH).map(|_| 4.0 * noise.value()).collect();
    for (z, label) in z_nr.chunks_exact_mut(WIDTH).zip(label_n) {
        *label = (noise.next() >> 32) as u32 % (GROUPS * EXPERTS) as u32;
        let mean = &mean[*label as usize * WIDTH..][..WIDTH];
        z.iter_mut().zip(mean).for_each(|(z, mean)| *z = mean + noise.value());
    }
}

/// The main router, then each group's.
fn fit(z_nr: &[f32], label_n: &[u32]) -> Result<Vec<Gaussians>> {
    let labels = GROUPS * EXPERTS;
    let mut sums = ClassSums::zero(labels, WIDTH);
    sums.push_rows(z_nr, label_n)?;
    let groups: Vec<Vec<usize>> = (0..labels).map(|label| vec![label / EXPERTS]).collect();
    let below = |group: usize| -> Vec<Vec<usize>> {
        let taken = |label: usize| if label / EXPERTS == group { vec![label % EXPERTS] } else { Vec::new() };
        (0..labels).map(taken).collect()
    };
    let main = gda::fit(&sums, &groups, GROUPS);
    let sub = (0..GROUPS).map(|group| gda::fit(&sums, &below(group), EXPERTS));
    Ok(std::iter::once(main).chain(sub).collect())
}

fn main() -> Result<()> {
    let (mut z_nr, mut label_n) = (vec![0f32; ROWS * WIDTH], vec![0u32; ROWS]);
    let (mut total, mut slowest, mut spread) = (0f64, 0f64, 0f64);
    for layer in 0..LAYERS {
        rows(layer, &mut z_nr, &mut label_n);
        let start = Instant::now();
        let routers = fit(&z_nr, &label_n)?;
        let seconds = start.elapsed().as_secs_f64();
        (total, slowest) = (total + seconds, slowest.max(seconds));
        spread += routers.iter().skip(1).flat_map(|router| router.log_variance.iter().flatten()).sum::<f64>();
    }
    // Of even noise σ is √(1/12) = 0.289, by shrinkage a little more: what was timed is what it should be.
    let deviation = (spread / (LAYERS as usize * GROUPS * EXPERTS * WIDTH) as f64 / 2.0).exp();
    println!(
        "cpu/router-fit: {LAYERS} layers of {ROWS} rows at r = {WIDTH}, {} labels: {total:.2} s (slowest layer {slowest:.3} s); \
         target ≤ {TARGET}; σ = {deviation:.4}\n",
        GROUPS * EXPERTS
    );
    Ok(())
}
