use tinyonn::moe::moe;

#[moe]
pub enum Cortex {
    #[group(experts = 4)]
    Language,
    #[cfg(debug_assertions)]
    #[group(experts = 4)]
    Arithmetic,
}

fn main() {}
