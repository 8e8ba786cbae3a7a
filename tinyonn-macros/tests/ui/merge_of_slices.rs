use tinyonn::moe::moe;

#[moe(levels = [4], combine = merge)]
pub struct Name;

fn main() {}
