use tinyonn::moe::moe;

#[moe(groups = 10, experts = 10, top_k = [1, 12])]
pub struct Name;

fn main() {}
