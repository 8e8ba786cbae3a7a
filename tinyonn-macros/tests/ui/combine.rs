use tinyonn::moe::moe;

#[moe(levels = [4], combine = concatenate)]
pub struct Name;

fn main() {}
