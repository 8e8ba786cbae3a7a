use tinyonn_macros::moe;

#[moe(groups = , experts, top_k [1, 2])]
pub struct Name;

fn main() {}
