use tinyonn::moe::moe;

#[moe(levels = [4], pfag = nucleus)]
pub struct Name;

#[moe(levels = [4], pfag = nucleus(0))]
pub struct Other;

#[moe(levels = [4], pfag = nucleus(1.5))]
pub struct Third;

fn main() {}
