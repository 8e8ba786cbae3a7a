use tinyonn::moe::moe;

#[moe(groups = 10, experts = 10, rooter = gaussian)]
pub struct Name;

fn main() {}
