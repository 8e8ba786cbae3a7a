//! What exp_variants lists, and what it counts on a model.

use std::fs;

use candle_core::Device;
use serde_json::{Value, json};
use tinyonn::checkpoint::{ModelFolder, ParamStore};
use tinyonn::decoder::{Arch, CausalLm};

use super::{Place, UPCYCLE, VARIANTS, VERIFY, assert_done, assert_refused, config, printed};

#[test]
fn variants_are_listed_by_name_with_what_they_declare() {
    let table = printed(&Place::new().run(VARIANTS, ""));
    let names: Vec<&str> = table.lines().skip(1).map(|line| line.split(' ').next().unwrap()).collect();
    assert!(names.is_sorted() && names.len() >= 12 && names.contains(&"TinyOnn"), "{table}");
    let row = table.lines().find(|line| line.starts_with("TinyOnn ")).unwrap();
    for word in ["10 × 10", " 2 ", "gaussian(64)", "token, concat, unit", "64 of 100"] {
        assert!(row.contains(word), "{word} is not in {row}");
    }
    let all: Vec<Value> = serde_json::from_str(&printed(&Place::new().run(VARIANTS, "--json"))).unwrap();
    assert_eq!(all.iter().map(|row| row["name"].as_str().unwrap()).collect::<Vec<_>>(), names);
    assert!(all.iter().all(|row| row["pdd"] == row["spec"]["levels"].as_array().unwrap().len()));
}

/// What is counted is what an upcycled checkpoint holds.
#[test]
fn on_a_model_parameters_are_counted_and_what_does_not_fit_says_why() {
    let place = Place::new();
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out sparse"));
    let store = ModelFolder::open(place.path("sparse")).unwrap().load(&Device::Cpu, None).unwrap();
    let routers: usize =
        store.iter().filter(|(name, _)| name.contains("_router.")).map(|(_, var)| var.elem_count()).sum();
    for model in ["dense", "sparse"] {
        let rows = printed(&place.run(VARIANTS, &format!("--model {model} --json")));
        let rows: Vec<Value> = serde_json::from_str(&rows).unwrap();
        let row = rows.iter().find(|row| row["name"] == "TinyOnn").unwrap();
        let expected = json!({ "dense": config().parameters(), "routers": routers, "total": store.parameters() });
        assert_eq!(row["parameters"], expected);
        assert_eq!(row["active_share"], 0.64);
    }
    assert!(printed(&place.run(VARIANTS, "--model sparse")).ends_with("sparse is a TinyOnn.\n"));

    // Attention to some pairs is counted too, at as many positions as the model reads.
    let rows: Vec<Value> = serde_json::from_str(&printed(&place.run(VARIANTS, "--model dense --json"))).unwrap();
    let row = rows.iter().find(|row| row["name"] == "LongContext").unwrap();
    let (share, positions) = (row["attention"]["operations"].as_f64().unwrap(), config().max_position_embeddings);
    // Of heads as narrow as the index is wide it may be more than all.
    assert!(share > 0.0 && row["attention"]["positions"] == positions, "{row}");
    assert!(rows.iter().all(|row| row["attention"].is_object() == (row["spec"]["attention"].is_object())), "{rows:?}");

    // Narrower than a hundred experts: said in their rows, and no reason to fail.
    let narrow = Arch { intermediate_size: 60, ..config() };
    let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&narrow, &vb).map(drop)).unwrap();
    ModelFolder::save(place.path("narrow"), &narrow.to_json(), &store, None).unwrap();
    let table = printed(&place.run(VARIANTS, "--model narrow"));
    for line in table.lines().skip(1) {
        let refused = line.contains("60 neurons for 100 experts");
        assert_eq!(refused, line.contains("of 100 "), "{line}");
    }
}

#[test]
fn a_checkpoint_of_another_declaration_is_refused_with_the_difference() {
    let place = Place::new();
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out sparse"));
    let path = place.path("sparse/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["tinyonn"]["spec"]["levels"][1]["routers"][0]["top_k"] = json!(2);
    fs::write(&path, config.to_string()).unwrap();
    let words = ["TinyOnn", "`spec.levels[1].routers[0].top_k` is 2 in the file, 8 as declared", "upcycle"];
    for (program, arguments) in [(VARIANTS, "--model sparse"), (VERIFY, "dense sparse")] {
        assert_refused(&place.run(program, arguments), &words);
    }
    config["tinyonn"]["variant"] = json!("Elsewhere");
    fs::write(&path, config.to_string()).unwrap();
    assert_refused(&place.run(VARIANTS, "--model sparse"), &["`Elsewhere`", "known: ", "use my_variants as _;"]);
}
