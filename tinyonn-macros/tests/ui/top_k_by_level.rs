use tinyonn::moe::moe;

#[moe(levels = [2, 3, 4], top_k = 2)]
pub struct Name;

#[moe(levels = [10], top_k = 11)]
pub struct Other;

fn main() {}
