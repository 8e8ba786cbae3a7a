use tinyonn::moe::moe;

#[moe(groups = , experts, top_k [1, 2])]
pub struct Name;

fn main() {}
