use tinyonn::moe::moe;

#[moe(levels = [2, 3], router = [linear, missing::Router])]
pub struct Name;

fn main() {}
