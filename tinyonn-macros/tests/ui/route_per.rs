use tinyonn::moe::moe;

#[moe(groups = 10, experts = 10, route_per = tokens)]
pub struct Name;

#[moe(groups = 10, experts = 10, route_per = sequence(first = 8))]
pub struct Other;

fn main() {}
