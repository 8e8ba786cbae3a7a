use tinyonn::moe::moe;

#[moe(groups = 2, levels = [2, 4], top_k = [1, 2])]
pub enum Cortex {
    #[group(experts = 4)]
    Language,
}

fn main() {}
