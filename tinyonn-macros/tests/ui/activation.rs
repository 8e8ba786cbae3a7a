use tinyonn::moe::moe;

#[moe(levels = [4], activation = gelo)]
pub struct Name;

#[moe(levels = [4], activation = Mine(2))]
pub struct Other;

fn main() {}
