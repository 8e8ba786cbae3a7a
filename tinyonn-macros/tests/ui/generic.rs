use tinyonn::moe::moe;

#[moe(groups = 10, experts = 10)]
pub struct Name<const N: usize>;

#[moe(groups = 10, experts = 10)]
pub struct Bounded
where
    u8: Copy;

fn main() {}
