use tinyonn::moe::moe;

#[moe(levels = [4], router = gaussian(dim = 8, project = identity))]
pub struct Name;

fn main() {}
