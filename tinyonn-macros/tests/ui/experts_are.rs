use tinyonn::moe::moe;

#[moe(levels = [4], experts_are = slices)]
pub struct Name;

fn main() {}
