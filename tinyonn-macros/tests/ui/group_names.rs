use tinyonn::moe::moe;

#[moe]
pub enum Cortex {
    #[group(experts = 4)]
    Group,
    #[group(experts = 4)]
    TwoWords,
    #[group(experts = 4)]
    Two_Words,
}

fn main() {}
