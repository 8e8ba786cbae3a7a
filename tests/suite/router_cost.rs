//! What deciding costs beside what it decides about, counted.

use tinyonn::checkpoint::expected_variant_tensors;
use tinyonn::decoder::Arch;
use tinyonn::moe;

use crate::models;

/// Floating-point operations of one token: the products of its hidden state and z with what the constructor asked for.
///
/// z = P x: 2·r·d for each level; the expanded square: z² with σ⁻² and z with μσ⁻², 2·r each for every node.
#[test]
fn routers_of_ten_by_ten_cost_less_than_four_percent_of_their_mlp() {
    let (d, width, r) = (2048, 6144, 64);
    let cfg = Arch { hidden_size: d, num_hidden_layers: 1, ..models::config(width, true) };
    let tensors = expected_variant_tensors(&cfg, moe::variant("TinyOnn").unwrap()).unwrap();
    let of = |name: &str| -> Vec<&Vec<usize>> {
        tensors.iter().filter(|(path, _)| path.ends_with(&format!("_router.{name}"))).map(|(_, shape)| shape).collect()
    };
    let elements = |name: &str| of(name).iter().map(|shape| shape.iter().product::<usize>()).sum::<usize>();
    assert_eq!(of("projection"), [&vec![r, d], &vec![r, d]]);
    assert_eq!(of("mean"), [&vec![10, 10, r], &vec![1, 10, r]]);
    let operations = 2 * elements("projection") + 2 * (elements("mean") + elements("log_variance"));
    assert_eq!(operations, 2 * 2 * r * d + 2 * 2 * r * 110);

    let mlp: usize = tensors
        .iter()
        .filter(|(path, _)| path.ends_with("_proj.weight") && path.contains(".mlp."))
        .map(|(_, shape)| 2 * shape.iter().product::<usize>())
        .sum();
    assert_eq!(mlp, 6 * d * width);
    let share = operations as f64 / mlp as f64;
    assert!(share <= 0.04, "{share}");
}
