use tinyonn::moe::moe;

#[moe]
pub enum Cortex {
    #[group(experts = 4, topk = 2)]
    Language,
    #[group(experts = 4, always = true)]
    Shared,
}

fn main() {}
