use tinyonn::moe::moe;

#[moe]
pub struct Name;

fn main() {}
