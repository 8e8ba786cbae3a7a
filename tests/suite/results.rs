//! RESULTS.md: made of what studies left in `results/`, or not made at all.

use std::fs;
use std::path::{Path, PathBuf};

use experiments::compare::CompareConfig;
use experiments::fragments::{COMPARE, Declared, Written, declared_beside, write};
use experiments::results::assemble;
use rstest::rstest;
use tempfile::TempDir;

use crate::models::message;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A copy of the workspace's fragments.
struct Fragments(TempDir);

impl Fragments {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["compare.md", "compare.json"] {
            fs::copy(workspace().join("results").join(name), dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Written again as if the grid had asked for less: `keep` tells by text and heading which tables stay, in the page as well.
    fn rewrite(&self, keep: impl Fn(&str, &str) -> bool) {
        let path = self.path("compare.md");
        let page = fs::read_to_string(&path).unwrap();
        let text_of =
            |heading: &str| heading.rsplit_once('(').map_or("", |(_, text)| text.trim_end_matches(')')).to_owned();
        let stays = |part: &&str| part.lines().next().is_none_or(|heading| keep(&text_of(heading), heading));
        let page: Vec<&str> = page
            .split("\n## ")
            .enumerate()
            .filter(|(at, part)| *at == 0 || stays(part))
            .map(|(_, part)| part)
            .collect();
        let kept: Written = serde_json::from_slice(&fs::read(self.path("compare.json")).unwrap()).unwrap();
        let mut declared = kept.declared;
        declared.tables.retain(|table| keep(&text_of(&table.heading), &table.heading));
        write(&path, &page.join("\n## "), declared, Vec::new()).unwrap();
    }

    fn edit(&self, name: &str, change: impl FnOnce(String) -> String) {
        let path = self.path(name);
        fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
    }
}

#[test]
fn the_workspaces_page_is_what_its_fragments_say() {
    let page = fs::read_to_string(workspace().join("RESULTS.md")).unwrap();
    assert!(assemble(&workspace().join("results")).unwrap() == page);
}

/// What lies beside the workspace's fragment is what the grid asks for that made it.
#[test]
fn the_rows_that_are_declared_are_the_grids() {
    let sorted = |mut declared: Declared| {
        declared.tables.iter_mut().for_each(|table| table.rows.sort());
        declared
    };
    let config = CompareConfig { seeds: (0..5).collect(), ..CompareConfig::default() };
    let kept = fs::read(workspace().join("results/compare.json")).unwrap();
    let kept: Written = serde_json::from_slice(&kept).unwrap();
    assert_eq!(sorted(kept.declared), sorted(config.declared()));
}

/// A row that is there is known by its leading cells alone; one that is not is named with its table.
#[test]
fn a_row_that_is_missing_is_named() {
    let fragments = Fragments::new();
    let without = |page: String, row: &str| {
        let kept: Vec<&str> = page.lines().filter(|line| !line.starts_with(row)).collect();
        kept.join("\n") + "\n"
    };
    fragments.edit("compare.md", |page| without(page, "| neurons | highest \\|Taylor\\| |"));
    let said = message(assemble(fragments.0.path()));
    assert!(said.contains("compare.md: lacks the row `neurons, highest |Taylor|` of “Does a task need"), "{said}");
    assert!(said.contains("(workspace)”, and 1 more; run exp_compare again"), "{said}");
    // In another table it would be another row.
    let fragments = Fragments::new();
    fragments.edit("compare.md", |page| page.replacen("| oracle |", "| oracles |", 1));
    let said = message(assemble(fragments.0.path()));
    assert!(said.contains("lacks the row `oracle` of “Whose image knows the path? (workspace)”; run"), "{said}");
}

#[rstest]
#[case::no_fragment(&|at: &Fragments| { fs::remove_file(at.path("compare.md")).unwrap(); }, &["compare.md", "No such file"])]
#[case::none_at_all(
    &|at: &Fragments| ["compare.md", "compare.json"].iter().for_each(|name| fs::remove_file(at.path(name)).unwrap()),
    &["holds none of evidence.md, attention.md, compare.md", "--results"]
)]
#[case::nothing_declared(&|at: &Fragments| { fs::remove_file(at.path("compare.json")).unwrap(); }, &["compare.md", "has no compare.json"])]
#[case::another_title(&|at: &Fragments| at.edit("compare.md", |page| page.replacen("# Does", "# Did", 1)), &["does not begin with its title"])]
#[case::another_study(&|at: &Fragments| at.edit("compare.json", |json| json.replacen("\"compare\"", "\"other\"", 1)), &["compare.json", "is of `other`"])]
#[case::a_table_less(
    &|at: &Fragments| at.edit("compare.json", |json| json.replace("In every form of the image", "In one form")),
    &["compare.md", "lacks the row", "“In one form"]
)]
#[case::a_smaller_grid(
    &|at: &Fragments| at.rewrite(|text, table| text != "toolchain" || !table.starts_with("At every share")),
    &["compare.json", "does not ask for the row", "of “At every share (toolchain)”", "default settings"]
)]
#[case::a_text_less(
    &|at: &Fragments| at.rewrite(|text, _| text != "toolchain"),
    &["compare.json", "does not ask for the row", "(toolchain)”"]
)]
#[case::of_less_text(
    &|at: &Fragments| at.edit("compare.json", |json| json.replacen("\"test_tokens\": 2048", "\"test_tokens\": 200", 1)),
    &["compare.json", "has another `test_tokens`: it is not the whole study", "default settings"]
)]
#[case::of_fewer_seeds(
    &|at: &Fragments| at.edit("compare.json", |json| json.replacen("      1,\n", "", 1)),
    &["compare.json", "has no seed 1: it is not"]
)]
#[case::of_an_unknown_key(&|at: &Fragments| at.edit("compare.json", |json| json.replacen('{', "{\"extra\": 1,", 1)), &["unknown field `extra`"])]
#[case::not_run(
    &|at: &Fragments| at.edit("compare.json", |json| json.replacen("\"not_run\": []", "\"not_run\": [\"workspace-0/x\"]", 1)),
    &["compare.json", "says that 1 of its grid, `workspace-0/x` first, were not run", "again"]
)]
#[case::a_row_cut_behind_its_key(
    &|at: &Fragments| at.edit("compare.md", |page| {
        let cut = |line: &str| if line.starts_with("| sps |") { "| sps |".to_owned() } else { line.to_owned() };
        page.lines().map(cut).collect::<Vec<_>>().join("\n") + "\n"
    }),
    &["compare.md", "is not the page that compare.json was written with"]
)]
#[case::a_figure(&|at: &Fragments| at.edit("compare.md", |page| page.replacen("0.0", "0.1", 1)), &["is not the page that"])]
#[case::a_table(&|at: &Fragments| at.edit("compare.md", |page| page.replacen("## Every setting", "## Some settings", 1)), &["lacks the row `workspace, contiguous, 7 × 7, layer`"])]
#[case::a_stranger(&|at: &Fragments| fs::write(at.path("notes.md"), "# Mine\n").unwrap(), &["notes.md", "is of no study"])]
fn what_is_not_whole_makes_no_page(#[case] change: &dyn Fn(&Fragments), #[case] words: &[&str]) {
    let fragments = Fragments::new();
    change(&fragments);
    let said = message(assemble(fragments.0.path()));
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

#[test]
fn what_is_declared_lies_beside_the_fragment() {
    let fragments = Fragments::new();
    let (path, declared) = (fragments.path("compare.md"), CompareConfig::quick().declared());
    let page = fs::read_to_string(&path).unwrap();
    write(&path, &page, declared.clone(), Vec::new()).unwrap();
    assert_eq!(declared_beside(Path::new("results/compare.md")), Path::new("results/compare.json"));
    assert_eq!(Written::read(&path, &page, &COMPARE).unwrap().declared, declared);
    // A quick comparison is not the study.
    let said = message(assemble(fragments.0.path()));
    assert!(said.contains("has another `") && said.contains("default settings"), "{said}");
}

/// What people wrote stands before what the study found, and is nothing without it.
#[test]
fn an_account_stands_before_its_study() {
    let fragments = Fragments::new();
    let page = assemble(fragments.0.path()).unwrap();
    fs::write(fragments.path("compare.account.md"), "# In short\n").unwrap();
    assert_eq!(assemble(fragments.0.path()).unwrap(), format!("# In short\n\n{page}"));
    for name in ["compare.md", "compare.json"] {
        fs::remove_file(fragments.path(name)).unwrap();
    }
    let said = message(assemble(fragments.0.path()));
    assert!(said.contains("compare.md"), "{said}");
}
