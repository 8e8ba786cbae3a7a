//! Which tokens may be drawn, and how often.

use rstest::rstest;
use serde_json::Value;
use tinyonn::decoder::Sampling;
use tinyonn::random;

use super::fixture;
use crate::models::message;

fn sampling(setting: &Value) -> Sampling {
    let number = |key: &str| setting[key].as_f64();
    Sampling {
        temperature: number("temperature").unwrap(),
        top_k: setting["top_k"].as_u64().map(|k| k as usize),
        top_p: number("top_p"),
        min_p: number("min_p"),
        repetition_penalty: number("repetition_penalty").unwrap_or(1.0),
    }
}

/// The shares of 4000 draws lie within five standard deviations of the probabilities that transformers' processors leave; what these leave out is never drawn.
#[test]
fn draws_follow_what_transformers_leaves() {
    const DRAWS: usize = 4000;
    for (number, case) in fixture("choices.json").as_array().unwrap().iter().enumerate() {
        let numbers = |key: &str| case[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
        let logits: Vec<f32> = numbers("logits").into_iter().map(|x| x as f32).collect();
        let text: Vec<u32> = numbers("text").into_iter().map(|x| x as u32).collect();
        let sampling = sampling(&case["setting"]);
        let mut rng = random::stream(number as u64, "tests/draws");
        let mut drawn = vec![0usize; logits.len()];
        (0..DRAWS).for_each(|_| drawn[sampling.choose(&logits, &text, &mut rng).unwrap() as usize] += 1);
        for (token, (count, p)) in drawn.iter().zip(numbers("probabilities")).enumerate() {
            let deviation = (p * (1.0 - p) / DRAWS as f64).sqrt();
            let share = *count as f64 / DRAWS as f64;
            assert!((share - p).abs() <= 5.0 * deviation, "{case}: token {token} was drawn {count} times, p = {p}");
            assert!(p > 0.0 || *count == 0, "{case}: token {token}");
        }
    }
}

/// With equal logits the lower ids stay, and a cut of one takes the best.
#[test]
fn ties_go_to_the_lower_id() {
    let mut rng = random::stream(0, "tests/ties");
    let logits = [1.0, 2.0, 2.0, 2.0, 0.0];
    assert_eq!(Sampling::GREEDY.choose(&logits, &[], &mut rng).unwrap(), 1);
    for cut in [Sampling { top_k: Some(2), ..Sampling::at(1.0) }, Sampling { top_p: Some(0.5), ..Sampling::at(1.0) }] {
        let drawn: std::collections::BTreeSet<u32> =
            (0..200).map(|_| cut.choose(&logits, &[], &mut rng).unwrap()).collect();
        assert_eq!(drawn, [1, 2].into());
    }
}

/// However extreme the logits: something is drawn, and never what cannot be.
#[rstest]
#[case::infinite(&[0.0, f32::INFINITY, 1.0], 1)]
#[case::ruled_out(&[f32::NEG_INFINITY, f32::NEG_INFINITY, -3e38], 2)]
#[case::not_a_number(&[f32::NAN, -1.0, f32::NEG_INFINITY], 1)]
#[case::far(&[-1e30, 1e30, 0.0], 1)]
fn extreme_logits_choose_the_best(
    #[case] logits: &[f32],
    #[case] best: u32,
    #[values(0.0, 1e-9, 1.0)] temperature: f64,
) {
    let mut rng = random::stream(0, "tests/extreme");
    let cut = Sampling { top_p: (temperature > 0.0).then_some(0.9), ..Sampling::at(temperature) };
    assert!((0..20).all(|_| cut.choose(logits, &[], &mut rng).unwrap() == best));
}

#[rstest]
#[case(Sampling::at(-1.0), "`temperature`: -1")]
#[case(Sampling::at(f64::NAN), "`temperature`: NaN")]
#[case(Sampling { top_k: Some(0), ..Sampling::at(1.0) }, "`top_k`: 0")]
#[case(Sampling { top_p: Some(0.0), ..Sampling::at(1.0) }, "`top_p`: 0")]
#[case(Sampling { top_p: Some(1.1), ..Sampling::at(1.0) }, "`top_p`: 1.1")]
#[case(Sampling { min_p: Some(-0.1), ..Sampling::at(1.0) }, "`min_p`: -0.1")]
#[case(Sampling { repetition_penalty: 0.0, ..Sampling::GREEDY }, "`repetition_penalty`: 0")]
#[case(Sampling { top_p: Some(0.9), ..Sampling::GREEDY }, "`temperature`: is 0")]
fn numbers_that_choose_nothing_are_refused(#[case] sampling: Sampling, #[case] says: &str) {
    let error = message(sampling.choose(&[1.0, 2.0], &[], &mut random::stream(0, "tests")));
    assert!(error.starts_with(says), "{error}");
    assert!(Sampling::GREEDY.choose(&[f32::NAN; 3], &[], &mut random::stream(0, "tests")).is_err());
}
