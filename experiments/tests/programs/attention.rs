//! The study of attention as a user starts it, on a model that takes a moment.

use std::fs;

use serde_json::Value;

use super::{Place, assert_done, assert_refused};

const ATTENTION: &str = env!("CARGO_BIN_EXE_exp_attention");
const FLAGS: &str = "--model dense --out study --config small.toml";

fn place() -> Place {
    let place = Place::new();
    place.configure("max_position_embeddings", serde_json::json!(512));
    let settings = "shares = [0.25]\nnear = 4\nfirst = 2\ncalibration_tokens = 200\ntexts = [{ length = 256, documents = 2, facts = 3 }]";
    fs::write(place.path("small.toml"), settings).unwrap();
    for (folder, text) in [("text/sums", "a.txt"), ("text/orders", "b.txt")] {
        let folder = place.path("material").join(folder);
        fs::create_dir_all(&folder).unwrap();
        let text = fs::read_to_string(place.path(text)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (number, document) in lines.chunks(lines.len().div_ceil(6)).enumerate() {
            fs::write(folder.join(format!("{number}.md")), document.join("\n") + "\n").unwrap();
        }
    }
    place
}

/// Each method makes a record at the share that was asked for; what is made is not made again, and the page says what is missing.
#[test]
fn cells_are_made_once_and_told() {
    let place = place();
    let names = [
        "dense-100",
        "components_8_head-25",
        "directions_16_kv_head-25",
        "block_means_16-25",
        "min_max_16-25",
        "largest_mass_16-25",
        "window-25",
        "largest_logits_head-25",
        "sparq_8-25",
        "h2o-25",
        "cache_of_8_bits-100",
    ];
    // Heads of eight values have no sixteen directions.
    let (fit, wide): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| !name.starts_with("directions"));
    let asked: String = fit.iter().map(|name| format!(" --cell {name}-sparse-256")).collect();
    assert_done(&place.run(ATTENTION, &format!("{FLAGS}{asked}")));
    assert!(place.path("study/key_directions.safetensors").is_file());
    let file = |name: &str| place.path("study/cells").join(format!("{name}-sparse-256.json"));
    let record = |name: &str| -> Value { serde_json::from_slice(&fs::read(file(name)).unwrap()).unwrap() };
    for name in fit {
        let found = record(name);
        let kept = found["kept"].as_f64().unwrap();
        let share = if name.ends_with("25") { 0.25 } else { 1.0 };
        assert!((kept - share).abs() < 0.02, "{name}: {kept}"); // n(t) is rounded up
        let documents = |kind: &Value| kind["documents"].as_array().unwrap().len();
        assert_eq!(found["text"].as_array().unwrap().iter().map(documents).collect::<Vec<_>>(), [2, 2], "{name}");
        assert!(found["facts"][0].as_array().unwrap().iter().all(|asked| asked["nats"].as_f64().unwrap() > 0.0));
    }
    let refused = place.run(ATTENTION, &format!("{FLAGS} --cell {}-sparse-256", wide[0]));
    assert_refused(&refused, &["`attention`", "16", "heads that have 8"]);
    let before = fs::metadata(file("window-25")).unwrap().modified().unwrap();
    assert_done(&place.run(ATTENTION, &format!("{FLAGS}{asked}")));
    assert_eq!(fs::metadata(file("window-25")).unwrap().modified().unwrap(), before);

    let told = place.run(ATTENTION, "--report --out study");
    assert_done(&told);
    assert!(String::from_utf8_lossy(&told.stdout).contains("missing"), "{told:?}");
    let page = fs::read_to_string(place.path("study/RESULTS.md")).unwrap();
    for row in ["| 256 | sparq_8 | 25 % | sparse |", "| 256 | cache of 8 bits | – | sparse |", "## Facts by distance"]
    {
        assert!(page.contains(row), "{row}\n{page}");
    }
}

#[test]
fn what_cannot_be_is_said_before_any_work() {
    let place = place();
    assert_refused(&place.run(ATTENTION, &format!("{FLAGS} --cell window-51")), &["--cell", "window-51"]);
    let planned = place.run(ATTENTION, &format!("{FLAGS} --dry-run"));
    assert_done(&planned);
    let said = String::from_utf8_lossy(&planned.stdout).into_owned();
    assert!(said.contains("window-25-sparse-256") && said.contains("multiply-adds"), "{said}");
    assert!(!place.path("study").exists());
    fs::write(place.path("small.toml"), "texts = [{ length = 1024, documents = 1, facts = 0 }]").unwrap();
    assert_refused(&place.run(ATTENTION, FLAGS), &["`texts`", "1024", "512 positions"]);
}
