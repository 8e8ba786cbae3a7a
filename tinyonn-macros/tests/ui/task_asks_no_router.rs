use tinyonn::moe::moe;

#[moe(levels = [4], route_per = task, gate = scaled, pfag = entropy, balance = loss(0.01), z_loss = 0.1, jitter = 0.1)]
pub struct Name;

fn main() {}
