use tinyonn_macros::moe;

#[moe(groups = 10, experts = 10)]
pub struct Name<const N: usize>;

fn main() {}
