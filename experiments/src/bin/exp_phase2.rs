//! (in progress)
fn main() {
    let quick = std::env::args().any(|a| a == "--quick");
    let mut config = if quick { tinyonn::phases::Phase2Config::quick() } else { tinyonn::phases::Phase2Config::default() };
    for a in std::env::args().skip(1) {
        if let Some(p) = a.strip_prefix("--toml=") { let t: toml::Table = toml::from_str(p).unwrap(); let mut v = toml::Table::try_from(&config).unwrap(); for (k, x) in t { match (v.get_mut(&k), x) { (Some(toml::Value::Table(d)), toml::Value::Table(s)) => d.extend(s), (_, x) => { v.insert(k, x); } } } config = v.try_into().unwrap(); }
    }
    let summary = tinyonn::phases::phase2(&config).unwrap_or_else(|e| { eprintln!("error: {e}"); std::process::exit(2) });
    println!("{}", serde_json::to_string_pretty(&summary).unwrap());
}
