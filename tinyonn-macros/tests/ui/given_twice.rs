use tinyonn_macros::moe;

#[moe(groups = 10, experts = 10, groups = 5)]
pub struct Name;

fn main() {}
