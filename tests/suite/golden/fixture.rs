//! Fixtures, a file a section, and the machine that they were made on.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::figures::{By, Figure, Figures, Tolerance, differences};

/// Set to [`WRITE`], tests write their fixtures instead of reading them.
const VARIABLE: &str = "TINYONN_GOLDEN";
const WRITE: &str = "write";
/// Differences that a message tells, at most.
const TOLD: usize = 12;

/// How a section is compared. `Exact` asks for equal bits on a machine like the fixture's, and elsewhere for the tolerance.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    Exact(Tolerance),
    Within(Tolerance),
}

impl Rule {
    /// On a machine like the fixture's, or on another.
    pub(super) fn by(&self, alike: bool) -> By<'_> {
        match self {
            Self::Exact(_) if alike => By::Bits,
            Self::Exact(tolerance) | Self::Within(tolerance) => By::Tolerance(tolerance),
        }
    }
}

/// What decides the bits of a sum of products in f32: the instructions that vectorised loops and products find at run time, and
/// the cache of the first level, by which the products' sums are cut; the system for its library of functions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Machine {
    arch: String,
    system: String,
    features: Vec<String>,
    l1_data: String,
}

impl Machine {
    pub(super) fn this() -> Self {
        Self {
            arch: std::env::consts::ARCH.to_owned(),
            system: std::env::consts::OS.to_owned(),
            features: features(),
            l1_data: l1_data(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<String> {
    macro_rules! detected {
        ($($name:tt),*) => { [$(($name, std::arch::is_x86_feature_detected!($name))),*] };
    }
    let all =
        detected!("avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl");
    all.into_iter().filter(|(_, found)| *found).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<String> {
    macro_rules! detected {
        ($($name:tt),*) => { [$(($name, std::arch::is_aarch64_feature_detected!($name))),*] };
    }
    let all = detected!("neon", "fp16", "sve", "sve2", "bf16");
    all.into_iter().filter(|(_, found)| *found).map(|(name, _)| name.to_owned()).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<String> {
    Vec::new()
}

fn l1_data() -> String {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index0/{name}"));
    match (read("size"), read("ways_of_associativity")) {
        (Ok(size), Ok(ways)) => format!("{} in {} ways", size.trim(), ways.trim()),
        _ => "unknown".to_owned(),
    }
}

/// The fixture of a section.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixture {
    made_on: Machine,
    figures: Map<String, Value>,
}

pub(super) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden")
}

fn file(section: &str) -> PathBuf {
    folder().join(format!("{section}.json"))
}

fn how_to_write(section: &str) -> String {
    format!("{VARIABLE}={WRITE} cargo test --release -p tests --test suite golden::{section}")
}

/// Compares the figures of a section with its fixture, or writes them there if the environment says so.
pub(super) fn check(section: &str, rule: &Rule, tell: fn(&mut Figures)) {
    let write = match std::env::var(VARIABLE) {
        Ok(word) if word == WRITE => true,
        Ok(word) => panic!("{VARIABLE} is {word:?}; `{WRITE}` is all it can be"),
        Err(_) => false,
    };
    let mut figures = Figures::default();
    tell(&mut figures);
    let path = file(section);
    if write {
        std::fs::create_dir_all(folder()).unwrap();
        std::fs::write(&path, text(&Machine::this(), &figures)).unwrap();
        eprintln!("section `{section}`: {} figures written to {}", figures.0.len(), path.display());
        return;
    }
    let Ok(text) = std::fs::read_to_string(&path) else {
        panic!("section `{section}` has no fixture {}: make it by\n    {}", path.display(), how_to_write(section))
    };
    let fixture: Fixture = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{}: {error}; make it again by\n    {}", path.display(), how_to_write(section)));
    let here = Machine::this();
    let alike = here == fixture.made_on;
    let by = rule.by(alike);
    if !alike {
        eprintln!("section `{section}`: within its tolerance only: made on {:?}, this is {here:?}", fixture.made_on);
    }
    let expected: Vec<(String, Figure)> = fixture
        .figures
        .into_iter()
        .map(|(name, value)| match serde_json::from_value(value) {
            Ok(figure) => (name, figure),
            Err(error) => panic!("{}: figure `{name}`: {error}", path.display()),
        })
        .collect();
    let found = all_differences(&figures.0, &expected, by);
    assert!(found.is_empty(), "{}", message(section, &found, by));
}

/// In words, of every figure that is missing, new or different.
pub(super) fn all_differences(found: &[(String, Figure)], expected: &[(String, Figure)], by: By<'_>) -> Vec<String> {
    let of = |figures: &[(String, Figure)], name: &str| -> Option<Figure> {
        figures.iter().find(|(known, _)| known == name).map(|(_, figure)| figure.clone())
    };
    let mut all = Vec::new();
    for (name, expected) in expected {
        match of(found, name) {
            None => all.push(format!("figure `{name}`: is in the fixture, and nothing computes it")),
            Some(found) => {
                all.extend(
                    differences(&found, expected, by).into_iter().map(|words| format!("figure `{name}`{words}")),
                );
            }
        }
    }
    let new = found.iter().filter(|(name, _)| of(expected, name).is_none());
    all.extend(new.map(|(name, _)| format!("figure `{name}`: is not in the fixture")));
    all
}

fn message(section: &str, found: &[String], by: By<'_>) -> String {
    let mut message = format!("section `{section}` is not what it was, in {} places:\n", found.len());
    found.iter().take(TOLD).for_each(|words| writeln!(message, "  {words}").unwrap());
    if found.len() > TOLD {
        writeln!(message, "  ..").unwrap();
    }
    match by {
        By::Bits => message.push_str(
            "Equal bits are asked for. If another order of rounding is meant, write `Within` for this section's `Exact` in tests/suite/golden.rs.\n",
        ),
        By::Tolerance(tolerance) => {
            writeln!(message, "The tolerance is relative {:e}, absolute {:e}: {}.", tolerance.relative, tolerance.absolute, tolerance.why)
                .unwrap();
        }
    }
    write!(
        message,
        "If other figures are meant, write them anew and say why in the commit:\n    {}",
        how_to_write(section)
    )
    .unwrap();
    message
}

/// JSON with a figure a line, so that a difference of two fixtures says what changed.
fn text(machine: &Machine, figures: &Figures) -> String {
    let json = |value: Result<String, serde_json::Error>| value.unwrap();
    let line = |(name, figure): &(String, Figure)| {
        format!("    {}: {}", json(serde_json::to_string(name)), json(serde_json::to_string(figure)))
    };
    let lines: Vec<String> = figures.0.iter().map(line).collect();
    let machine = json(serde_json::to_string(machine));
    format!("{{\n  \"made_on\": {machine},\n  \"figures\": {{\n{}\n  }}\n}}\n", lines.join(",\n"))
}
