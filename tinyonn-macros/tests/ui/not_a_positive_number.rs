use tinyonn::moe::moe;

#[moe(groups = 0, experts = -3, top_k = ["1", 2.0])]
pub struct Name;

fn main() {}
