use tinyonn::moe::moe;

#[moe(levels = [4], experts_are = replicate, partition = sps)]
pub struct Name;

fn main() {}
