use tinyonn::moe::moe;

#[moe(levels = [4, 5], groups = 4)]
pub struct Name;

fn main() {}
