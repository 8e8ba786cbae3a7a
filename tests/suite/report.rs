//! The report: well-formed whatever it is given, complete, deterministic, and in need of nothing but itself.

mod csv;
mod plots;
mod png;
mod sample;
mod xml;

use experiments::report::{
    BarSeries, Bars, Best, Column, Figure, Heatmap, Kind, Lines, Page, Plot, Scale, Section, Series, Table, TableCell,
    common_range,
};
use proptest::prelude::*;
use rstest::rstest;

use self::sample::{confusion, controls, load, losses, sample, scans};
use self::xml::walk;

fn assert_needs_nothing_else(html: &str) {
    let elsewhere = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for sign in
        ["http://", "https://", "//", "src=", "url(", "@import", "<script", "<link", "<image", "<use", "javascript:"]
    {
        assert!(!elsewhere.contains(sign), "the page holds {sign:?}");
    }
}

#[test]
fn a_realistic_page_is_whole_and_needs_nothing_else() {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("sample-report");
    sample().write(&dir).unwrap();
    let html = std::fs::read_to_string(dir.join("report.html")).unwrap();
    let found = walk(&html);
    assert_needs_nothing_else(&html);
    let starts = html.match_indices("<svg");
    let drawings: Vec<&str> = starts.map(|(at, _)| &html[at..at + html[at..].find("</svg>").unwrap() + 6]).collect();
    assert_eq!(drawings.len(), 5 + 1 + 2 + 4 + 2 + 2);
    for svg in drawings {
        walk(svg);
    }
    let expected = [
        "0.84",
        "3.148",
        "2.131",
        "dense 2.131",
        "−0.25",
        "−0.02",
        "group 9",
        "encyclopaedia",
        "no value",
        "unfinished: no values",
        "3.070",
        "layer 3, group 9, expert 99: ",
        "1,228,800",
        "Figure 16.",
        "Table 1.",
    ];
    for text in expected {
        assert!(found.iter().any(|f| f.contains(text)), "{text} is not on the page");
    }
    for section in ["Brain scans", "Routers", "Paths and densities", "Training", "Do the labels help?"] {
        assert_eq!(
            found.iter().filter(|f| *f == section).count(),
            2,
            "{section}: a heading and an entry in the contents"
        );
    }
    assert!(html.len() < 2_000_000, "{} bytes", html.len());
}

/// What stands in backticks is code, wherever text runs; one without its other is itself, and all is escaped.
#[rstest]
#[case("`a<b` and `c`", "<code>a&lt;b</code> and <code>c</code>")]
#[case("a ` b & c", "a ` b &amp; c")]
#[case("`a` b ` c", "<code>a</code> b ` c")]
fn backticks_set_code(#[case] text: &str, #[case] expected: &str) {
    let table = Table { columns: vec![Column { name: text.into(), kind: Kind::Text }], rows: vec![vec![text.into()]] };
    let page = Page {
        title: "t".into(),
        lead: vec![text.into()],
        facts: Vec::new(),
        sections: vec![Section {
            heading: "h".into(),
            prose: vec![text.into()],
            figures: vec![Figure::table(&table, text).unwrap()],
        }],
    };
    assert_eq!(page.html().matches(expected).count(), 5, "{}", page.html());
}

#[test]
fn the_same_values_give_the_same_bytes() {
    assert_eq!(sample().html(), sample().html());
}

/// Maps that share a range print as many decimals, however small their own values are.
#[test]
fn cells_of_one_range_share_their_decimals() {
    let map = Heatmap {
        range: Some((-2.0, 2.0)),
        scale: Scale::Diverging,
        values: vec![vec![0.012_345; confusion().columns.len()]; confusion().rows.len()],
        spread: None,
        ..confusion()
    };
    let svg = map.svg().unwrap().to_string();
    assert_eq!(svg.matches(">0.01</text>").count(), map.rows.len() * map.columns.len());
}

#[test]
fn every_value_is_told_by_its_cell() {
    for map in scans(4, "cells").iter().chain([&load(), &confusion()]) {
        let svg = map.svg().unwrap().to_string();
        assert_eq!(svg.matches("<title>").count(), map.rows.len() * map.columns.len(), "{}", map.title);
    }
}

#[test]
fn cells_are_coloured_by_value_and_negative_ones_marked() {
    let mut map = confusion();
    map.values = vec![vec![-1.0, -0.5, 0.0, 0.5, 1.0]; 5];
    map.scale = Scale::Diverging;
    let colours = |map: &Heatmap| -> Vec<String> {
        let svg = map.svg().unwrap().to_string();
        let cells = svg.lines().filter(|line| line.starts_with("<rect") && line.contains("<title>"));
        cells.map(|cell| cell.split_once("fill=\"").unwrap().1[..7].to_owned()).collect()
    };
    let row = &colours(&map)[..5];
    assert!((0..5).all(|a| (0..a).all(|b| row[a] != row[b])), "{row:?}");
    // On half of the range the ends are reached by half of the values.
    map.range = Some((-0.5, 0.5));
    let clipped = &colours(&map)[..5];
    assert_eq!((&clipped[1], &clipped[3]), (&row[0], &row[4]));
    assert_eq!(clipped[0], clipped[1]);
    let svg = map.svg().unwrap().to_string();
    assert!(svg.contains("≤ −0.5") && svg.contains("≥ 0.5"), "the scale says that values lie beyond");
}

/// Rounding carries a share past 1, and lies not beyond the scale.
#[rstest]
#[case(1.000_000_000_000_45, false)]
#[case(1.000_1, true)]
fn rounding_lies_on_the_end_of_the_scale(#[case] most: f64, #[case] beyond: bool, #[values(false, true)] signed: bool) {
    let mut map = confusion();
    (map.spread, map.range) = (None, Some((if signed { -1.0 } else { 0.0 }, 1.0)));
    map.scale = if signed { Scale::Diverging } else { Scale::Sequential };
    map.values = vec![vec![most, 0.5, 0.25, 0.0, if signed { -most } else { 0.0 }]; map.rows.len()];
    let svg = map.svg().unwrap().to_string();
    assert_eq!((svg.contains("≥ 1"), svg.contains("≤ −1")), (beyond, beyond && signed));
}

#[test]
fn a_common_range_holds_all_maps() {
    let maps = [vec![vec![1.0, f64::NAN]], vec![vec![-3.0], vec![2.0]]];
    assert_eq!(common_range(&maps), Some((-3.0, 2.0)));
    assert_eq!(common_range(&[vec![vec![f64::NAN]]]), None);
}

#[rstest]
#[case::rows(|map: &mut Heatmap| map.rows.push("more".into()))]
#[case::columns(|map: &mut Heatmap| map.columns.push("more".into()))]
#[case::ragged(|map: &mut Heatmap| map.values[3].truncate(4))]
#[case::groups(|map: &mut Heatmap| map.column_groups = Some(vec![("few".into(), 4)]))]
fn a_heatmap_of_the_wrong_shape_is_refused(#[case] spoil: fn(&mut Heatmap)) {
    let mut map = confusion();
    spoil(&mut map);
    assert!(map.svg().unwrap_err().to_string().starts_with("`heatmap`: "));
}

#[test]
fn bars_and_tables_of_the_wrong_shape_are_refused() {
    let mut bars = losses();
    bars.series[0].values.pop();
    assert!(bars.svg().unwrap_err().to_string().contains("4 values, 5 intervals, 5 categories"));
    let mut table = controls();
    table.rows[1].push(1.0.into());
    assert!(table.html().unwrap_err().to_string().contains("5 cells under 4 columns"));
}

#[rstest]
#[case::none(vec![])]
#[case::empty(vec![vec![]])]
#[case::one_point(vec![vec![(5.0, 5.0)]])]
#[case::not_a_number(vec![vec![(f64::NAN, 1.0), (1.0, f64::INFINITY)]])]
#[case::nothing_positive(vec![vec![(0.0, 1.0), (-1.0, 2.0)]])]
#[case::constant(vec![vec![(1.0, 2.0), (2.0, 2.0)], vec![(1.0, 2.0)]])]
fn odd_series_still_make_a_figure(#[case] series: Vec<Vec<(f64, f64)>>, #[values(false, true)] log_x: bool) {
    let series = series.into_iter().map(|points| Series::line("s", points)).collect();
    let lines = Lines { title: "t".into(), x_label: "x".into(), y_label: "y".into(), series, log_x };
    let svg = lines.svg().unwrap().to_string();
    walk(&svg);
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn a_gap_cuts_a_line() {
    let line = |points: Vec<(f64, f64)>| {
        let series = vec![Series::line("s", points)];
        let lines = Lines { title: "t".into(), x_label: "x".into(), y_label: "y".into(), series, log_x: false };
        lines.svg().unwrap().to_string().matches("<polyline").count()
    };
    assert_eq!(line((0..9).map(|i| (f64::from(i), 1.0)).collect()), 1);
    assert_eq!(line((0..9).map(|i| (f64::from(i), if i == 4 { f64::NAN } else { 1.0 })).collect()), 2);
}

#[test]
fn the_best_of_a_column_is_set_in_bold_and_ties_share_it() {
    let mut table = controls();
    table.rows.push(vec!["tie".into(), 3.0701.into(), TableCell::Number(f64::NAN), 0.0.into()]);
    let html = table.html().unwrap();
    walk(&html);
    assert_eq!(html.matches("<strong>3.070</strong>").count(), 2);
    assert_eq!(html.matches("<strong>").count(), 3);
    assert!(html.contains("<strong>0.67</strong>") && html.contains(">−0.02<") && html.contains(">–<"));
}

/// A page of two drawings and a table.
fn small() -> Page {
    let figures = vec![
        Figure::plot("confusion", &confusion(), "Rows sum to 1.").unwrap(),
        Figure::plot("losses", &losses(), "Whiskers: bootstrap over documents.").unwrap(),
        Figure::table(&controls(), "Controls.").unwrap(),
    ];
    let sections = vec![Section { heading: "Routers".into(), prose: vec![], figures }];
    Page { title: "Small".into(), lead: vec![], facts: vec![], sections }
}

#[test]
fn a_page_replaces_the_former_one_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("report.html"), "the former page").unwrap();
    std::fs::create_dir(folder.path().join("figures")).unwrap();
    std::fs::write(folder.path().join("figures/former.svg"), "").unwrap();
    small().write(folder.path()).unwrap();
    assert_eq!(std::fs::read_to_string(folder.path().join("report.html")).unwrap(), small().html());
    assert_eq!(names(folder.path()), ["figures", "report.html"]);
    let expected = ["confusion.csv", "confusion.png", "confusion.svg", "losses.csv", "losses.png", "losses.svg"];
    assert_eq!(names(&folder.path().join("figures")), expected);
}

#[test]
fn the_page_links_to_every_file_and_shows_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    small().write(folder.path()).unwrap();
    let html = small().html();
    let figures = folder.path().join("figures");
    for file in names(&figures) {
        assert_eq!(html.matches(&format!("href=\"figures/{file}\"")).count(), 1, "{file}");
    }
    let read = |file: &str| std::fs::read_to_string(figures.join(file)).unwrap();
    walk(&read("losses.svg"));
    assert!(html.contains(&read("losses.svg")));
    assert_eq!(read("losses.csv"), losses().csv());
    assert_eq!(std::fs::read(figures.join("losses.png")).unwrap(), losses().svg().unwrap().png().unwrap());
}

fn names(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_page_that_cannot_be_written_leaves_the_former_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    // A folder of that name cannot be replaced by a file.
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("kept"), "").unwrap();
    let error = small().write(folder.path()).unwrap_err().to_string();
    assert!(error.contains("report.html: "), "{error}");
    assert!(path.join("kept").exists());
    assert_eq!(names(folder.path()), ["figures", "report.html"], "no partial page is left");
    assert!(small().write(path.join("kept")).is_err(), "a file is no folder");
}

#[test]
fn files_of_drawings_have_names_of_their_own() {
    let page = |stems: &[&str]| {
        let figures = stems.iter().map(|stem| Figure::plot(*stem, &losses(), "c").unwrap()).collect();
        let sections = vec![Section { heading: "h".into(), prose: vec![], figures }];
        Page { title: "t".into(), lead: vec![], facts: vec![], sections }
    };
    let folder = tempfile::tempdir().unwrap();
    let error = page(&["a", "b", "a"]).write(folder.path()).unwrap_err().to_string();
    assert!(error.contains("`a`"), "{error}");
    assert_eq!(names(folder.path()), [""; 0]);
    page(&["a", "b"]).write(folder.path()).unwrap();
}

#[rstest]
fn a_stem_is_a_plain_file_name(#[values("", "a/b", "..", ".hidden", "a b", "<a>", "a\"b", "a\\b")] stem: &str) {
    assert!(Figure::plot(stem, &losses(), "c").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_text_and_any_number_make_a_well_formed_page(
        text in "(\\PC|[\u{0}-\u{1f}<>&\"'/])*",
        other in "[a-z<&\"' ]{0,40}",
        values in prop::collection::vec(any::<f64>(), 6),
        scale in prop::sample::select(vec![Scale::Sequential, Scale::Diverging]),
        log_x: bool,
    ) {
        let map = Heatmap {
            title: text.clone(), row_label: other.clone(), column_label: text.clone(),
            rows: vec![text.clone(), other.clone()], columns: vec![text.clone(), other.clone(), text.clone()],
            values: values.chunks(3).map(<[f64]>::to_vec).collect(),
            scale, column_groups: Some(vec![(text.clone(), 1), (other.clone(), 2)]), range: None,
            value_label: other.clone(), spread: Some(values.chunks(3).rev().map(<[f64]>::to_vec).collect()),
        };
        let points = values.iter().copied().zip(values.iter().copied().rev()).collect();
        let lines = Lines {
            title: text.clone(), x_label: other.clone(), y_label: text.clone(),
            series: vec![Series::line(text.clone(), points)], log_x,
        };
        let series = |part: &[f64]| BarSeries {
            name: other.clone(), values: part.to_vec(), whiskers: Some(part.iter().map(|v| (*v, v + 1.0)).collect()),
        };
        let bars = Bars {
            title: text.clone(), value_label: other.clone(), categories: vec![text.clone(), other.clone(), text.clone()],
            series: values.chunks(3).map(series).collect(), reference: Some((text.clone(), values[0])),
        };
        let number = Kind::Number { decimals: 2, best: Some(Best::Lowest) };
        let table = Table {
            columns: vec![Column { name: text.clone(), kind: number }, Column { name: other.clone(), kind: Kind::Text }],
            rows: vec![vec![values[0].into(), text.as_str().into()], vec![other.as_str().into(), values[1].into()]],
        };
        let figures = vec![
            Figure::plot("map", &map, text.clone()).unwrap(),
            Figure::plot("lines", &lines, other.clone()).unwrap(),
            Figure::plot("bars", &bars, text.clone()).unwrap(),
            Figure::table(&table, text.clone()).unwrap(),
        ];
        let page = Page {
            title: text.clone(), lead: vec![text.clone()], facts: vec![(text.clone(), other.clone())],
            sections: vec![Section { heading: text.clone(), prose: vec![other.clone()], figures }],
        };
        walk(&page.html());
    }
}

#[rstest]
#[case(&[3.5742, 2.1], &["3.574", "2.100"])]
#[case(&[-0.21, 0.05], &["−0.210", "0.050"])]
#[case(&[41000.0, 12.0], &["41000", "12"])]
#[case(&[0.0021, 0.0004], &["0.00210", "0.00040"])]
#[case(&[3e12, 1e-9], &["3e12", "1e−9"])]
fn values_of_bars_share_their_decimals(#[case] values: &[f64], #[case] printed: &[&str]) {
    let series = BarSeries { name: "loss".into(), values: values.to_vec(), whiskers: None };
    let categories = values.iter().map(|_| "c".into()).collect();
    let bars = Bars { title: "t".into(), value_label: "v".into(), categories, series: vec![series], reference: None };
    let found = walk(&bars.svg().unwrap().to_string());
    assert!(printed.iter().all(|text| found.iter().any(|f| f == text)), "{found:?}");
}
