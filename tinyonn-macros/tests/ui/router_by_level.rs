use tinyonn::moe::moe;

#[moe(levels = [2, 3, 4], router = [linear, cosine])]
pub struct Name;

fn main() {}
