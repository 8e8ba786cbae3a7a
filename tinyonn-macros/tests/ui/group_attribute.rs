use tinyonn::moe::moe;

#[moe]
pub enum Cortex {
    #[group(experts = 4)]
    #[group(top_k = 2)]
    Language,
    #[group = 4]
    Arithmetic,
}

fn main() {}
