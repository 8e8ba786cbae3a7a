use tinyonn::moe::moe;

#[moe(levels = [4], gate = Scaled)]
pub struct Name;

fn main() {}
