use tinyonn::moe::moe;

#[moe(levels = [4], always_by = rate)]
pub struct Name;

fn main() {}
