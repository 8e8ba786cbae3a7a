use tinyonn::moe::moe;

#[moe]
pub enum Cortex {
    #[group(experts = 4, always)]
    Shared,
}

#[moe]
pub enum Empty {}

fn main() {}
