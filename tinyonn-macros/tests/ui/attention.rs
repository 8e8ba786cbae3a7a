use tinyonn::moe::moe;

#[moe(attention = pairs(keep = 1, index = components(8)))]
pub struct One;

#[moe(attention = pairs(keep = 0.0, index = components(0), near = 99999999))]
pub struct Nothing;

#[moe(groups = 2, experts = 2, attention = pairs(keep = keys(0), index = exakt, by = heads))]
pub struct Words;

#[moe(attention = pairs(near = 32))]
pub struct Missing;

#[moe(attention = pairs(keep = 1.5, index = blocks(16)), balance = loss(0.01))]
pub struct Above;

fn main() {}
