use tinyonn::moe::moe;

#[moe(levels = 10)]
pub struct Name;

#[moe(levels = [])]
pub struct Other;

#[moe(levels = [2, 2, 2, 2, 2])]
pub struct Third;

fn main() {}
