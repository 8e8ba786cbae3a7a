use tinyonn::moe::moe;

#[moe]
pub enum Cortex {
    #[group(experts = 4)]
    Language(u8),
    #[group(experts = 4)]
    Arithmetic = 3,
}

fn main() {}
