use tinyonn::moe::moe;

#[moe(levels = [4], pfag = entropi)]
pub struct Name;

#[moe(levels = [4], pfag = entropy(3))]
pub struct Other;

fn main() {}
