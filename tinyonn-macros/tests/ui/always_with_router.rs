use tinyonn::moe::moe;

#[moe]
pub enum Cortex {
    #[group(experts = 4)]
    Language,
    #[group(experts = 4, always, top_k = 1, router = linear)]
    Shared,
}

fn main() {}
