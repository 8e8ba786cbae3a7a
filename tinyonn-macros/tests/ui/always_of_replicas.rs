use tinyonn::moe::moe;

#[moe(experts_are = replicate)]
pub enum Cortex {
    #[group(experts = 4)]
    Language,
    #[group(experts = 4, always)]
    Shared,
}

fn main() {}
