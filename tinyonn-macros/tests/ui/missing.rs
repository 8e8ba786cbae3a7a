use tinyonn_macros::moe;

#[moe]
pub struct Name;

fn main() {}
