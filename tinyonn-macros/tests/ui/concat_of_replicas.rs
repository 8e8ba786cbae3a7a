use tinyonn::moe::moe;

#[moe(levels = [4], experts_are = replicate, combine = concat)]
pub struct Name;

fn main() {}
