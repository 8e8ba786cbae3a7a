use tinyonn::moe::moe;

#[moe(levels = [4u8], z_loss = 0.1f32)]
pub struct Name;

fn main() {}
