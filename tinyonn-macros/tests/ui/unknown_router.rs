use tinyonn::moe::moe;

#[moe(groups = 10, experts = 10, router = gausian)]
pub struct Name;

fn main() {}
