use tinyonn::moe::moe;

#[moe(levels = [4], jitter = 1)]
pub struct Name;

fn main() {}
