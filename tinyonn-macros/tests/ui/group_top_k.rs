use tinyonn::moe::moe;

#[moe(top_k = 3)]
pub enum Cortex {
    #[group(experts = 4, top_k = 5)]
    Language,
    #[group(experts = 4)]
    Arithmetic,
}

fn main() {}
