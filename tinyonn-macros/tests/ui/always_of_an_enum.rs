use tinyonn::moe::moe;

#[moe(always = 2)]
pub enum Name {
    #[group(experts = 4)]
    A,
    #[group(experts = 4)]
    B,
}

fn main() {}
