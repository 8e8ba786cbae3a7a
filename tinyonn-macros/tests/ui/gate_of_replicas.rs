use tinyonn::moe::moe;

#[moe(levels = [4], experts_are = replicate, gate = scaled)]
pub struct Name;

fn main() {}
