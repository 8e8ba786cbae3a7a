use tinyonn::moe::moe;

#[moe(groups = 2,, experts = 2)]
pub struct Name;

fn main() {}
