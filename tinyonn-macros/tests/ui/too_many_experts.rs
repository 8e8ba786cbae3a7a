use tinyonn::moe::moe;

#[moe(groups = 5000, experts = 5000)]
pub struct Name;

#[moe(levels = [4096, 4096, 2])]
pub struct Other;

fn main() {}
