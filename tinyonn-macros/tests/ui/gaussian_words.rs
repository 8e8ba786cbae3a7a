use tinyonn::moe::moe;

#[moe(levels = [4], router = gaussian(reduce = max, covariance = full, project = pca))]
pub struct Name;

fn main() {}
