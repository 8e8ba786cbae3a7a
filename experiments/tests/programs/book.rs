//! README and book as a reader types them. A page is one session in a shell: its `sh` blocks run against a small model; of those that say `sh,parsed`, which
//! would download something or take minutes, each command line is read by its program's own parser. Rust blocks are doctests of the crate `tests`.
#![cfg(unix)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rayon::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::Place;
use super::benchmark::with_items_of;

macro_rules! programs {
    ($($name:literal)*) => { [$(($name, env!(concat!("CARGO_BIN_EXE_", $name)))),*] };
}

const PROGRAMS: [(&str, &str); 19] = programs!(
    "exp_phase1" "exp_phase2" "exp_compare" "exp_forgetting" "exp_report" "exp_upcycle" "exp_export" "exp_sparsify" "exp_verify" "exp_benchmark" "exp_generate" "exp_eval"
    "exp_variants" "exp_scan" "exp_expand" "exp_growth" "exp_evidence" "exp_directions" "exp_attention"
);

/// What stands in for the book's own settings, so that a run takes a moment.
const SMALL: [(&str, &str); 7] = [
    ("exp_phase1", include_str!("book/run.toml")),
    ("exp_phase2", include_str!("book/run.toml")),
    ("exp_compare", include_str!("book/compare.toml")),
    ("exp_sparsify", include_str!("book/sparsify.toml")),
    ("exp_growth", include_str!("book/growth.toml")),
    ("exp_evidence", include_str!("book/evidence.toml")),
    ("exp_attention", include_str!("book/attention.toml")),
];

/// Commands that are no programs of ours: each says what it stands for.
const TOOLS: [(&str, &str); 9] = [
    ("cargo", include_str!("book/cargo.sh")),
    ("bash", "#!/bin/sh\n# A script of the workspace: it is there.\n[ -f \"$WORKSPACE/$1\" ]\n"),
    ("sbatch", include_str!("book/sbatch.sh")),
    ("parallel", include_str!("book/parallel.sh")),
    ("torchrun", include_str!("book/launcher.sh")),
    ("srun", include_str!("book/launcher.sh")),
    ("mpirun", include_str!("book/launcher.sh")),
    ("tensorboard", "#!/bin/sh\n"),
    ("lm_eval", "#!/bin/sh\n"),
];

/// Files of each text.
const DOCUMENTS: usize = 12;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// README and all chapters.
fn pages() -> Vec<PathBuf> {
    let mut found = vec![workspace().join("README.md")];
    let mut open = vec![workspace().join("docs")];
    while let Some(dir) = open.pop() {
        for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A fenced block: the line it begins at, from 1; what its fence says; its lines.
struct Block {
    line: usize,
    says: String,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let mut found: Vec<Block> = Vec::new();
    let mut inside = false;
    for (number, line) in page.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), inside) {
            (Some(_), true) => inside = false,
            (Some(says), false) => {
                inside = true;
                found.push(Block { line: number + 1, says: says.to_owned(), text: String::new() });
            }
            (None, true) => found.last_mut().unwrap().text.extend([line, "\n"]),
            (None, false) => {}
        }
    }
    assert!(!inside, "a fence is not closed");
    found
}

fn program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A place with what the pages name: a model that stands in for SmolLM2, texts, benchmark items; and under `.book` two folders of programs, those that run
/// and those that only read their flags.
fn place() -> Place {
    let place = Place::new();
    place.configure("max_position_embeddings", json!(1024));
    let template = "{% for m in messages %}({{ m.content }}){% endfor %}:";
    fs::write(place.path("dense/chat_template.jinja"), template).unwrap();
    with_items_of(&place, |_| true);
    for folder in ["models", "material/model"] {
        fs::create_dir_all(place.path(folder)).unwrap();
        symlink(place.path("dense"), place.path(folder).join("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    }
    let texts = [
        ("docs", "a.txt"),
        ("tinyonn/src", "b.txt"),
        ("material/text/english", "a.txt"),
        ("material/text/rust", "b.txt"),
    ];
    for (folder, text) in texts.into_iter().chain([("material/held_out_text/handbook", "a.txt")]) {
        fs::create_dir_all(place.path(folder)).unwrap();
        let text = fs::read_to_string(place.path(text)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (number, document) in lines.chunks(lines.len().div_ceil(DOCUMENTS)).enumerate() {
            fs::write(place.path(folder).join(format!("{number}.md")), document.join("\n") + "\n").unwrap();
        }
    }
    for folder in ["run", "parsed", "tools"] {
        fs::create_dir_all(place.path(".book").join(folder)).unwrap();
    }
    for name in ["Cargo.lock", "rust-toolchain.toml"] {
        fs::copy(workspace().join(name), place.path(name)).unwrap();
    }
    symlink(".", place.path("clone")).unwrap();
    fs::create_dir(place.path("target")).unwrap();
    symlink(place.path(".book/parsed"), place.path("target/release")).unwrap();
    let at = |name: String| place.path(".book").join(name);
    for (name, text) in SMALL {
        fs::write(at(format!("{name}.toml")), text).unwrap();
    }
    for (name, path) in PROGRAMS {
        let small = SMALL.iter().any(|(of, _)| *of == name).then(|| at(format!("{name}.toml")));
        let config = small.map_or_else(String::new, |file| format!("--config {}", file.display()));
        let own = "*' --config '*|*' --dry-run '*|*' --from '*|*' --report '*";
        program(
            &at(format!("run/{name}")),
            &format!("#!/bin/sh\ncase \" $* \" in {own}) exec {path} \"$@\";; esac\nexec {path} \"$@\" {config}\n"),
        );
        program(&at(format!("parsed/{name}")), &format!("#!/bin/sh\nexec {path} \"$@\" --help > /dev/null\n"));
    }
    for (name, text) in TOOLS {
        program(&at(format!("tools/{name}")), text);
    }
    place
}

/// Types what a page says: `Err` holds what the shell said, the line of the block at its end.
fn typed(page: &str) -> Result<(), String> {
    // The clone is a link to the place itself, so that what is put beside it stays in the place.
    let mut script = "set -eo pipefail\ncd clone\nouter=$PATH\n".to_owned();
    for Block { line, says, text } in blocks(page) {
        let programs = match says.as_str() {
            "sh" => "run",
            "sh,parsed" => "parsed",
            _ => continue,
        };
        let path = format!("PATH=$BOOK/{programs}:$BOOK/tools:$outer");
        writeln!(script, "echo '== the block at line {line}' >&2\n{path}\n{text}").unwrap();
    }
    let place = place();
    let mut shell = Command::new("/bin/bash");
    shell.arg("-c").arg(script).current_dir(place.dir.path()).stdin(Stdio::null());
    shell.env("BOOK", place.path(".book")).env("WORKSPACE", workspace()).env("HF_HUB_OFFLINE", "1");
    // What a job of an array would have; `sbatch` gives each its own.
    shell.env("SLURM_ARRAY_TASK_ID", "0");
    let output = shell.output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn what_the_pages_say_can_be_typed() {
    let failed = |path: &PathBuf| {
        let said = typed(&fs::read_to_string(path).unwrap()).err()?;
        let last: Vec<&str> = said.lines().rev().take(12).collect();
        Some(format!("{}:\n{}", path.display(), last.into_iter().rev().collect::<Vec<_>>().join("\n")))
    };
    let failed: Vec<String> = pages().par_iter().filter_map(failed).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

/// So can the examples behind each program's --help.
#[test]
fn what_help_shows_can_be_typed() {
    for (name, path) in PROGRAMS {
        let help = Command::new(path).arg("--help").output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let (_, examples) = help.split_once("Examples:\n").unwrap_or_else(|| panic!("{name} has none"));
        // A command, and behind some blanks what it does.
        let lines = examples
            .lines()
            .take_while(|line| line.starts_with("  "))
            .filter_map(|line| line.trim().split("   ").next());
        let page = format!("```sh,parsed\n{}\n```", lines.collect::<Vec<_>>().join("\n"));
        assert!(page.contains(name), "{page}");
        typed(&page).unwrap_or_else(|said| panic!("{name}: {said}"));
    }
}

/// The rules above are ones that a page can break.
#[rstest]
#[case::runs("```sh\nexp_variants --json > /dev/null\n```", None)]
#[case::runs_through_cargo("```sh\ncargo run --release --bin exp_variants -- --json > /dev/null\n```", None)]
#[case::is_read("```sh,parsed\nexp_upcycle --model Qwen/Qwen3-0.6B --variant \\\n  TinyOnn --out sparse\n```", None)]
#[case::a_flag_that_is_not("```sh,parsed\nexp_upcycle --modell Qwen/Qwen3-0.6B\n```", Some("--modell"))]
#[case::a_word_that_is_not("```sh,parsed\nexp_export --format gguf\n```", Some("gguf"))]
#[case::a_flag_through_cargo(
    "```sh,parsed\ncargo run --release --bin exp_scan -- --sharing 0/2\n```",
    Some("--sharing")
)]
#[case::a_model_that_is_not_there("```sh\nexp_verify dense nothing\n```", Some("nothing"))]
#[case::a_script_that_is_not_there("```sh\nbash scripts/fetch_nothing.sh\n```", Some("line 1"))]
#[case::a_flag_in_a_batch_job(
    "```sh\nprintf '#SBATCH --array=0-1\\nexp_variants --josn\\n' > job.sh\nsbatch job.sh\n```",
    Some("--josn")
)]
#[case::a_flag_behind_parallel("```sh\nparallel exp_variants --josn={} ::: 1 2\n```", Some("--josn"))]
fn a_page_that_cannot_be_typed_is_told(#[case] page: &str, #[case] says: Option<&str>) {
    let said = typed(page).err();
    match says {
        None => assert_eq!(said, None),
        Some(word) => assert!(said.as_ref().is_some_and(|said| said.contains(word)), "{said:?}"),
    }
}

/// No block escapes: it is typed, compiled as a doctest, a file of the user's crate that CI builds and runs, read by Python, or what a program prints.
#[test]
fn every_block_is_of_a_kind_that_is_tested() {
    let users = workspace().join("tests/user_crate/src");
    for path in pages() {
        for Block { line, says, text } in blocks(&fs::read_to_string(&path).unwrap()) {
            let at = format!("{}:{line}", path.display());
            match says.as_str() {
                "sh" | "sh,parsed" | "text" | "rust" | "rust,standalone_crate" => {}
                "rust,ignore" => {
                    let is_file = |name: &str| fs::read_to_string(users.join(name)).unwrap() == text;
                    assert!(["main.rs", "mine.rs"].into_iter().any(is_file), "{at}: copy it from tests/user_crate/src");
                }
                "python" => {
                    let mut python = Command::new("python3");
                    let parsed =
                        python.args(["-c", "import ast, sys; ast.parse(sys.argv[1])", &text]).output().unwrap();
                    assert!(parsed.status.success(), "{at}: {}", String::from_utf8_lossy(&parsed.stderr));
                }
                other => panic!("{at}: `{other}` is tested by nothing"),
            }
        }
    }
}
