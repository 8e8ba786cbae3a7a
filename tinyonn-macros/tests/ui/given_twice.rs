use tinyonn::moe::moe;

#[moe(groups = 10, experts = 10, groups = 5)]
pub struct Name;

fn main() {}
