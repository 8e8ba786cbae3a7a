use tinyonn::moe::moe;

#[moe(levels = [4], balance = switch)]
pub struct Name;

#[moe(levels = [4], balance = loss)]
pub struct Other;

#[moe(levels = [4], balance = bias(1e999))]
pub struct Third;

fn main() {}
