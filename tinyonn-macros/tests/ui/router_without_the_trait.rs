use tinyonn::moe::moe;

#[derive(Debug)]
pub struct Mine;

#[moe(levels = [2, 3], router = [linear, Mine])]
pub struct Name;

fn main() {}
