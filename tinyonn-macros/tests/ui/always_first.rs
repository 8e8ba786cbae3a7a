use tinyonn::moe::moe;

#[moe]
pub enum Cortex {
    #[group(experts = 4, always)]
    Shared,
    #[group(experts = 4)]
    Language,
}

fn main() {}
