//! The book in `docs/`: it builds, its links lead somewhere, every chapter is told of and its Rust is compiled. What its pages say in a shell is typed by the
//! tests of the package `experiments`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use mdbook_driver::MDBook;
use rstest::rstest;
use tempfile::TempDir;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The files below `dir` whose names end in `.extension`, as paths from there.
fn files(dir: &Path, extension: &str) -> BTreeSet<PathBuf> {
    let (mut found, mut open) = (BTreeSet::new(), vec![dir.to_path_buf()]);
    while let Some(next) = open.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|given| given == extension) {
                found.insert(path.strip_prefix(dir).unwrap().to_path_buf());
            }
        }
    }
    found
}

/// What stands in quotation marks behind each `before` of `page`.
fn quoted<'a>(page: &'a str, before: &str) -> Vec<&'a str> {
    page.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// `a/../b` is `b`.
fn plain(path: &Path) -> PathBuf {
    let mut parts: Vec<Component<'_>> = Vec::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir => {}
            part => parts.push(part),
        }
    }
    parts.into_iter().collect()
}

/// The links of the page `name` under `dir` that lead nowhere: to a file that is not there, or to no place in it.
fn dead_links(dir: &Path, name: &Path) -> Vec<String> {
    let page = fs::read_to_string(dir.join(name)).unwrap();
    let dead = |link: &&str| {
        if link.contains("://") || link.starts_with("mailto:") || link.starts_with("data:") {
            return false;
        }
        let (path, place) = link.split_once('#').unwrap_or((link, ""));
        let target = if path.is_empty() { name.to_path_buf() } else { plain(&name.parent().unwrap().join(path)) };
        let Ok(text) = fs::read(dir.join(target)) else { return true };
        let text = String::from_utf8_lossy(&text);
        !place.is_empty() && !quoted(&text, "id=\"").contains(&place)
    };
    let links = quoted(&page, "href=\"").into_iter().chain(quoted(&page, "src=\""));
    links.filter(dead).map(|link| format!("{}: {link}", name.display())).collect()
}

#[test]
fn the_book_builds_and_its_links_lead_somewhere() {
    let out = TempDir::new().unwrap();
    let mut book = MDBook::load(workspace().join("docs")).unwrap();
    book.config.build.build_dir = out.path().to_path_buf();
    book.build().unwrap();
    let pages = files(out.path(), "html");
    for chapter in files(&workspace().join("docs"), "md").iter().filter(|chapter| !chapter.ends_with("SUMMARY.md")) {
        assert!(pages.contains(&chapter.with_extension("html")), "{} is not in SUMMARY.md", chapter.display());
    }
    let dead: Vec<String> = pages.iter().flat_map(|page| dead_links(out.path(), page)).collect();
    assert!(dead.is_empty(), "{}", dead.join("\n"));
    // What is included was found: mdBook leaves the words where it was not.
    for page in &pages {
        assert!(!fs::read_to_string(out.path().join(page)).unwrap().contains("{{#"), "{}", page.display());
    }
}

#[rstest]
#[case::a_page("<a href=\"b.html\">", 0)]
#[case::a_place("<a href=\"b.html#here\">", 0)]
#[case::above("<a href=\"deep/../b.html\">", 0)]
#[case::elsewhere("<a href=\"https://example.org\">", 0)]
#[case::its_own_place("<h1 id=\"top\"><a href=\"#top\">", 0)]
#[case::no_page("<a href=\"c.html\">", 1)]
#[case::no_place("<a href=\"b.html#there\">", 1)]
#[case::no_picture("<img src=\"c.svg\">", 1)]
fn a_link_that_leads_nowhere_is_found(#[case] page: &str, #[case] expected: usize) {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a.html"), page).unwrap();
    fs::write(dir.path().join("b.html"), "<h2 id=\"here\">").unwrap();
    assert_eq!(dead_links(dir.path(), Path::new("a.html")).len(), expected);
}

/// GitHub shows these as they are.
#[rstest]
#[case("README.md")]
#[case("docs/DESIGN.md")]
fn links_in_markdown_lead_somewhere(#[case] name: &str) {
    let (root, page) = (workspace(), fs::read_to_string(workspace().join(name)).unwrap());
    let links: Vec<&str> = page.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    for link in links.iter().filter(|link| !link.contains("://") && !link.starts_with('#')) {
        let path = link.split('#').next().unwrap();
        assert!(root.join(name).parent().unwrap().join(path).exists(), "{name}: {link}");
    }
}

/// The crate's doctests are those of every page that has Rust to compile.
#[test]
fn the_rust_of_every_page_is_compiled() {
    let tested = fs::read_to_string(workspace().join("tests/lib.rs")).unwrap();
    let docs = files(&workspace().join("docs"), "md").into_iter().map(|page| Path::new("docs").join(page));
    for page in docs.chain([PathBuf::from("README.md")]) {
        let text = fs::read_to_string(workspace().join(&page)).unwrap();
        let compiles = text.lines().any(|line| line.trim_start().starts_with("```rust") && !line.contains("ignore"));
        let is_tested = tested.contains(&format!("\"../{}\"", page.display()));
        assert_eq!(compiles, is_tested, "{}: name it in tests/lib.rs, if it has Rust to compile", page.display());
    }
}
