use tinyonn::moe::moe;

#[derive(Debug)]
pub struct Mine;

#[moe(levels = [3], activation = Mine)]
pub struct Name;

fn main() {}
