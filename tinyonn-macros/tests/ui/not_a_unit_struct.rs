use tinyonn::moe::moe;

#[moe(groups = 10, experts = 10)]
pub struct Braces {
    pub width: usize,
}

#[moe(groups = 10, experts = 10)]
pub struct Tuple(pub usize);

#[moe(groups = 10, experts = 10)]
pub fn function() {}

// Each item still exists: what uses it brings no further error.
pub fn uses(_: Tuple) -> Braces {
    function();
    Braces { width: 1 }
}

fn main() {}
