use tinyonn::moe::moe;

#[moe(groups = 10, expert = 10, router = gaussian(din = 8), top_k = [12, 1], route_per = sequence(0))]
pub struct Name {
    pub width: usize,
}

pub fn uses(name: &Name) -> usize {
    name.width
}

fn main() {}
