use tinyonn::moe::moe;

#[moe(levels = [4], z_loss = -0.1)]
pub struct Name;

#[moe(levels = [4], z_loss = small)]
pub struct Other;

fn main() {}
