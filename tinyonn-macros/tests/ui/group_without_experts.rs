use tinyonn::moe::moe;

#[moe]
pub enum Cortex {
    #[group]
    Language,
    Arithmetic,
}

fn main() {}
