use tinyonn::moe::moe;

#[moe(levels = [4], router = linear(8))]
pub struct Name;

#[moe(levels = [4], router = Mine(8))]
pub struct Other;

#[moe(levels = [4], router = gaussian(8))]
pub struct Third;

fn main() {}
