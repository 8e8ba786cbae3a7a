//! Sums over classes against the loop over rows, in however many pieces and on however many threads.

use proptest::prelude::*;
use rand::Rng;
use tinyonn::ops::ClassSums;
use tinyonn::random;

use crate::models::message;

fn rows(seed: u64, count: usize, classes: u32, width: usize) -> (Vec<f32>, Vec<u32>) {
    let mut rng = random::stream(seed, "tests/class_sums");
    let z = (0..count * width).map(|_| rng.random_range(-3.0f32..5.0)).collect();
    (z, (0..count).map(|_| rng.random_range(0..classes)).collect())
}

fn pushed(z: &[f32], class: &[u32], (classes, width): (u32, usize), piece: usize) -> ClassSums {
    let mut sums = ClassSums::zero(classes as usize, width);
    for (z, class) in z.chunks(piece * width).zip(class.chunks(piece)) {
        sums.push_rows(z, class).unwrap();
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn sums_are_those_of_the_loop(
        seed in any::<u64>(), count in 0usize..400, classes in 1u32..7, width in 1usize..20, piece in 1usize..500,
    ) {
        let (z, class) = rows(seed, count, classes, width);
        let found = pushed(&z, &class, (classes, width), piece);
        let narrow = found.narrow(width.div_ceil(2));
        for own in 0..classes {
            let of: Vec<&[f32]> =
                z.chunks(width).zip(&class).filter(|(_, class)| **class == own).map(|(z, _)| z).collect();
            let own = own as usize;
            prop_assert_eq!(found.count(own), of.len() as f64);
            for j in 0..width {
                let sum = |f: &dyn Fn(f64) -> f64| of.iter().map(|z| f(f64::from(z[j]))).sum::<f64>();
                // At most 400 terms of order 10 in f64, in another order.
                prop_assert!((found.sum(own)[j] - sum(&|z| z)).abs() < 1e-10);
                prop_assert!((found.squares(own)[j] - sum(&|z| z * z)).abs() < 1e-10);
            }
            prop_assert_eq!(narrow.sum(own), &found.sum(own)[..width.div_ceil(2)]);
            prop_assert_eq!(narrow.squares(own), &found.squares(own)[..width.div_ceil(2)]);
        }
        prop_assert_eq!((narrow.width(), narrow.count(0)), (width.div_ceil(2), found.count(0)));
    }
}

/// More rows than one task of the pool takes: the same bits on one thread and on several.
#[test]
fn sums_do_not_depend_on_the_number_of_threads() {
    let (z, class) = rows(1, 40_000, 5, 3);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| pushed(&z, &class, (5, 3), 40_000))
    };
    let one = on(1);
    assert_eq!(one, on(3));
    // In four pieces: 8,000 terms of order 5, each rounded to 1e-16 of a sum of some 1e5.
    let pieces = pushed(&z, &class, (5, 3), 10_000);
    (0..5).for_each(|class| {
        assert_eq!(pieces.count(class), one.count(class));
        (0..3).for_each(|j| {
            approx::assert_relative_eq!(pieces.squares(class)[j], one.squares(class)[j], max_relative = 1e-11);
        });
    });
}

#[test]
fn rows_of_another_width_or_class_are_refused() {
    let mut sums = ClassSums::zero(2, 3);
    for (z, class, words) in
        [(&[1.0; 5][..], &[0, 1][..], "5 numbers for 2 rows of 3"), (&[1.0; 6], &[0, 2], "class 2 of 2")]
    {
        let refused = message(sums.push_rows(z, class).map_err(tinyonn::Error::from));
        assert!(refused.contains(words), "{refused}");
    }
    assert_eq!(sums, ClassSums::zero(2, 3));
}
