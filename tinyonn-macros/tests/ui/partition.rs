use tinyonn::moe::moe;

#[moe(levels = [4], partition = contiguos)]
pub struct Name;

fn main() {}
