//! Weights that are NaN or infinite.

use std::fs;

use candle_core::DType;
use rstest::rstest;

use super::{EXPORT, Place, UPCYCLE, VERIFY, assert_done, assert_failed, assert_refused};

const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";

fn spoilt(value: f64, dtype: DType) -> Place {
    let place = Place::new();
    // A single row: the rest are numbers.
    place.change(WEIGHT, |weight| {
        let row = (weight.narrow(0, 3, 1).unwrap().ones_like().unwrap() * value).unwrap();
        let weight = weight.slice_scatter(&row, 0, 3).unwrap();
        Some(weight.to_dtype(dtype).unwrap())
    });
    place
}

#[rstest]
fn are_refused_by_name_unless_they_are_asked_for(
    #[values(f64::NAN, f64::INFINITY, f64::NEG_INFINITY)] value: f64,
    #[values(DType::F32, DType::BF16, DType::F16)] dtype: DType,
) {
    let place = spoilt(value, dtype);
    let before = place.files();
    let arguments = "--model dense --variant TinyOnn --out out";
    let tensors = format!("1 tensors: `{WEIGHT}` (16)");
    assert_refused(&place.run(UPCYCLE, arguments), &["dense", &tensors, "--allow-not-finite"]);
    assert_eq!(place.files(), before);
    assert_done(&place.run(UPCYCLE, &format!("{arguments} --allow-not-finite")));
    assert_refused(&place.run(EXPORT, "--model out --format dense --out back"), &["out", &tensors]);

    let compared = place.run(VERIFY, "dense out");
    let (printed, said) = (String::from_utf8_lossy(&compared.stdout), String::from_utf8_lossy(&compared.stderr));
    assert_eq!((compared.status.code(), said.lines().count()), (Some(1), 2), "{said}");
    assert!(said.contains(&tensors), "{said}");
    // NaN agrees with nothing; what is infinite came to be NaN on its way.
    assert!(printed.contains("top-1 agreement  0.00 %") && printed.contains("max |Δlogit|     NaN"), "{printed}");
    assert_done(&place.run(VERIFY, "dense out --allow-not-finite"));
    assert_eq!(place.run(VERIFY, "dense out --allow-not-finite --tolerance 9").status.code(), Some(1));
}

/// Without a look at what was written the program says so; the files are the same.
#[rstest]
#[case::by_flag("--no-verify", true)]
#[case::by_file("--config settings.toml", true)]
#[case::not_at_all("", false)]
fn what_was_not_verified_is_said_to_be_so(#[case] flag: &str, #[case] given: bool) {
    let place = Place::new();
    fs::write(place.path("settings.toml"), "no_verify = true").unwrap();
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out plain"));
    let output = place.run(UPCYCLE, &format!("--model dense --variant TinyOnn --out out {flag}"));
    assert_done(&output);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.contains("not verified"), given, "{said}");
    assert_eq!(said.contains("byte-equal"), !given, "{said}");
    assert!(said.contains("written     0.") && said.contains("GB of memory"), "{said}");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let [plain, out] = ["plain", "out"].map(|dir| fs::read(place.path(dir).join(name)).unwrap());
        assert_eq!(plain, out, "{name}");
    }
    assert_done(&place.run(EXPORT, &format!("--model out --format dense --out back {flag}")));
    assert_done(&place.run(VERIFY, "dense back --tolerance 0"));
}

#[test]
fn a_model_of_numbers_is_taken_as_ever() {
    let place = Place::new();
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out out"));
    assert_done(&place.run(VERIFY, "dense out --tolerance 0"));
    assert_failed(&place.run(VERIFY, "dense nowhere"), &["nowhere"]);
}
