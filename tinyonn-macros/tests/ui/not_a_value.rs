use tinyonn::moe::moe;

#[moe(groups = 2 + 2, experts = 2, 7)]
pub struct Name;

fn main() {}
