use tinyonn::moe::moe;

#[moe(levels = [4], route_per = segment)]
pub struct Name;

fn main() {}
