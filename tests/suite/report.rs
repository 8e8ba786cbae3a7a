//! The report: well-formed whatever it is given, complete, deterministic, and in need of nothing but itself.

use proptest::prelude::*;
use rand::Rng;
use rstest::rstest;
use tinyonn::random;
use tinyonn::report::{
    BarSeries, Bars, Best, Cell, Column, Figure, Heatmap, Kind, Lines, Page, Scale, Section, Series, Table,
    common_range,
};

/// Walks XML and gives its texts and attribute values, unescaped not at all; panics where it is not well-formed.
fn walk(xml: &str) -> Vec<String> {
    let (mut open, mut found, mut rest) = (Vec::new(), Vec::new(), xml.trim());
    while let Some(at) = rest.find('<') {
        let text = &rest[..at];
        assert!(!text.contains('>'), "a stray `>` in {text:?}");
        check_references(text);
        if !text.trim().is_empty() {
            assert!(!open.is_empty(), "text outside the root: {text:?}");
            found.push(text.to_owned());
        }
        let end = at + rest[at..].find('>').expect("a tag without end");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if tag == "!DOCTYPE html" {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed in the wrong order");
            continue;
        }
        let (tag, alone) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric()) && !name.is_empty(), "a tag called {name:?}");
        found.extend(attribute_values(attributes));
        if !alone {
            open.push(name);
        }
        assert!(!open.is_empty() || rest.trim().is_empty(), "something after the root");
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "left open: {open:?}");
    found
}

fn attribute_values(mut attributes: &str) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    let mut values = Vec::new();
    while let Some((name, rest)) = attributes.split_once("=\"") {
        let name = name.trim();
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "an attribute called {name:?}");
        assert!(!names.contains(&name), "attribute {name} twice");
        names.push(name);
        let (value, rest) = rest.split_once('"').expect("a value without end");
        check_references(value);
        values.push(value.to_owned());
        attributes = rest;
    }
    assert_eq!(attributes.trim(), "", "an attribute without value");
    values
}

fn check_references(text: &str) {
    for after in text.split('&').skip(1) {
        let name = after.split_once(';').expect("a bare ampersand").0;
        assert!(["amp", "lt", "gt", "quot", "#39"].contains(&name), "an unknown reference {name:?}");
    }
    assert!(!text.chars().any(|c| c < ' ' && !"\t\r\n".contains(c)), "a control character");
}

fn assert_needs_nothing_else(html: &str) {
    let elsewhere = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for sign in
        ["http://", "https://", "//", "src=", "url(", "@import", "<script", "<link", "<image", "<use", "javascript:"]
    {
        assert!(!elsewhere.contains(sign), "the page holds {sign:?}");
    }
}

const TASKS: [&str; 5] = ["arithmetic", "code", "dialogue", "encyclopaedia", "verse"];

fn names(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| i.to_string()).collect()
}

fn groups() -> Option<Vec<(String, usize)>> {
    Some((0..10).map(|g| (format!("group {g}"), 10)).collect())
}

fn scans(layers: usize, purpose: &str) -> Vec<Heatmap> {
    let mut rng = random::stream(3, purpose);
    let mut values = || -> Vec<Vec<f64>> {
        (0..layers).map(|_| (0..100).map(|_| (0..4).map(|_| rng.random_range(-0.6..0.6)).sum()).collect()).collect()
    };
    let values: Vec<_> = TASKS.iter().map(|_| values()).collect();
    let range = common_range(&values);
    let scan = |(task, values): (&str, Vec<Vec<f64>>)| Heatmap {
        title: format!("∫SPS per token: {task}"),
        row_label: "layer".into(),
        column_label: "expert".into(),
        rows: names(0..layers),
        columns: names(0..100),
        values,
        scale: Scale::Diverging,
        column_groups: groups(),
        range,
    };
    TASKS.into_iter().zip(values).map(scan).collect()
}

fn confusion() -> Heatmap {
    let share = |r: usize, c: usize| if r == c { 0.84 } else { 0.04 };
    Heatmap {
        title: "Router confusion, layer 2".into(),
        row_label: "true task".into(),
        column_label: "predicted group".into(),
        rows: TASKS.map(String::from).to_vec(),
        columns: TASKS.map(String::from).to_vec(),
        values: (0..5).map(|r| (0..5).map(|c| share(r, c)).collect()).collect(),
        scale: Scale::Sequential,
        column_groups: None,
        range: None,
    }
}

fn load() -> Heatmap {
    let mut rng = random::stream(3, "load");
    let mut row = || (0..100).map(|_| rng.random_range(0.0_f64..1.0).powi(3) * 0.08).collect();
    Heatmap {
        title: "Share of tokens by expert".into(),
        row_label: "task".into(),
        column_label: "expert".into(),
        rows: TASKS.map(String::from).to_vec(),
        columns: names(0..100),
        values: (0..5).map(|_| row()).collect(),
        scale: Scale::Sequential,
        column_groups: groups(),
        range: None,
    }
}

fn curves() -> Lines {
    let mut rng = random::stream(3, "curves");
    let mut curve = |name: &str, floor: f64, noise: f64| Series {
        name: name.into(),
        points: (1..=2000_u32)
            .map(|i| (f64::from(i), floor + 7.0 / f64::from(i).sqrt() + noise * rng.random_range(-1.0..1.0)))
            .collect(),
    };
    Lines {
        title: "Pretraining".into(),
        x_label: "step".into(),
        y_label: "cross-entropy, nats per token".into(),
        series: vec![curve("train", 2.0, 0.15), curve("validation", 2.1, 0.0)],
        log_x: true,
    }
}

fn forgetting() -> Lines {
    let points = |k: u32| (0..12).map(|i| (f64::from(i * 50), 2.1 + f64::from(k * i) * 0.012)).collect();
    let mut series: Vec<Series> = ["smk", "random_k", "max_k", "min_load", "all"]
        .iter()
        .zip([1, 1, 3, 2, 8])
        .map(|(name, k)| Series { name: (*name).into(), points: points(k) })
        .collect();
    series[2].points[5].1 = f64::NAN;
    series.push(Series { name: "unfinished".into(), points: vec![] });
    Lines {
        title: "Forgetting of the first task".into(),
        x_label: "step".into(),
        y_label: "nats per token".into(),
        series,
        log_x: false,
    }
}

fn losses() -> Bars {
    let values = vec![2.131, 3.574, 3.342, 3.377, 3.148];
    let whiskers = values.iter().map(|v| (v - 0.08, v + 0.09)).collect();
    Bars {
        title: "Held-out loss at half of the experts active".into(),
        value_label: "nats per token, 95 % interval over documents".into(),
        categories: ["dense", "routed, before", "random labels", "permuted labels", "after the fit"]
            .map(String::from)
            .to_vec(),
        series: vec![BarSeries { name: "loss".into(), values, whiskers: Some(whiskers) }],
        reference: Some(("dense".into(), 2.131)),
    }
}

fn changes() -> Bars {
    let series =
        |name: &str, values: [f64; 5]| BarSeries { name: name.into(), values: values.to_vec(), whiskers: None };
    Bars {
        title: "Change of the loss by task".into(),
        value_label: "nats per token, negative is better".into(),
        categories: TASKS.map(String::from).to_vec(),
        series: vec![
            series("SPS", [-0.21, -0.05, 0.02, -0.11, f64::NAN]),
            series("permuted", [0.01, 0.12, 0.09, 0.0, 0.04]),
            series("taylor", [-0.25, -0.09, -0.01, -0.14, -0.02]),
        ],
        reference: None,
    }
}

fn controls() -> Table {
    let number = |decimals, best| Kind::Number { decimals, best };
    let column = |name: &str, kind| Column { name: name.into(), kind };
    let row = |name: &str, loss: f64, recovery: f64, seconds: f64| {
        vec![name.into(), loss.into(), recovery.into(), seconds.into()]
    };
    Table {
        columns: vec![
            column("labels", Kind::Text),
            column("loss, nats", number(3, Some(Best::Lowest))),
            column("recovery", number(2, Some(Best::Highest))),
            column("seconds", number(1, None)),
        ],
        rows: vec![
            row("SPS", 3.148, 0.61, 12.31),
            row("activation + surprise", 3.081, 0.66, 12.29),
            row("taylor", 3.070, 0.67, 12.42),
            row("permuted", 3.377, -0.02, f64::NAN),
        ],
    }
}

fn sample() -> Page {
    let drawing = |map: &Heatmap, caption: &str| Figure::drawing(&map.svg().unwrap(), caption);
    let section =
        |heading: &str, prose: &str, figures| Section { heading: heading.into(), prose: vec![prose.into()], figures };
    let scans_of = |layers, caption: &str| -> Vec<Figure> {
        scans(layers, "scan").iter().map(|map| drawing(map, caption)).collect()
    };
    Page {
        title: "Tiny-ONN, phase 1 & phase 2: a sample of the run's page".into(),
        lead: vec![
            "A sample with invented numbers. Five tasks, four layers, ten groups of ten experts: does a router that was fitted to \
             ∫SPS labels choose better experts than one fitted to permuted labels?"
                .into(),
            "Every number is a loss on text that was seen neither by the scan nor by the fit.".into(),
        ],
        facts: vec![
            ("seed".into(), "3".into()),
            ("model".into(), "33 M parameters, 4 layers".into()),
            ("corpus".into(), "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".into()),
            ("active".into(), "50 of 100 experts".into()),
            ("tokens".into(), "1,228,800".into()),
            ("time".into(), "scan 12.3 s, fit 0.4 s".into()),
        ],
        sections: vec![
            section("Brain scans", "One map a task; all share one scale.", scans_of(4, "Orange: active, unsurprised.")),
            section("Brain scans of a deep model", "The same for 28 layers.", scans_of(28, "28 layers.").split_off(4)),
            section(
                "Routers",
                "Where the routers send the tokens of each task.",
                vec![drawing(&confusion(), "Rows sum to 1."), drawing(&load(), "A share of 0.01 is even load.")],
            ),
            section(
                "Training",
                "Losses while training.",
                vec![
                    Figure::drawing(&curves().svg(), "Steps on a logarithmic axis."),
                    Figure::drawing(&forgetting().svg(), "A gap where a value is missing."),
                ],
            ),
            section(
                "Do the labels help?",
                "Lower is better.",
                vec![
                    Figure::drawing(&losses().svg().unwrap(), "Whiskers: bootstrap over documents."),
                    Figure::drawing(&changes().svg().unwrap(), "Grouped bars."),
                    Figure::table(&controls(), "Controls; the best is bold.").unwrap(),
                ],
            ),
        ],
    }
}

#[test]
fn a_realistic_page_is_whole_and_needs_nothing_else() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("sample-report.html");
    sample().write(&path).unwrap();
    let html = std::fs::read_to_string(&path).unwrap();
    let found = walk(&html);
    assert_needs_nothing_else(&html);
    let starts = html.match_indices("<svg");
    let drawings: Vec<&str> = starts.map(|(at, _)| &html[at..at + html[at..].find("</svg>").unwrap() + 6]).collect();
    assert_eq!(drawings.len(), 5 + 1 + 2 + 2 + 2);
    drawings.into_iter().for_each(|svg| drop(walk(svg)));
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
        "Figure 12.",
        "Table 1.",
    ];
    for text in expected {
        assert!(found.iter().any(|f| f.contains(text)), "{text} is not on the page");
    }
    for section in ["Brain scans", "Routers", "Training", "Do the labels help?"] {
        assert_eq!(
            found.iter().filter(|f| *f == section).count(),
            2,
            "{section}: a heading and an entry in the contents"
        );
    }
    assert!(html.len() < 2_000_000, "{} bytes", html.len());
}

#[test]
fn the_same_values_give_the_same_bytes() {
    assert_eq!(sample().html(), sample().html());
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

#[test]
fn a_common_range_holds_all_maps() {
    let maps = [vec![vec![1.0, f64::NAN]], vec![vec![-3.0], vec![2.0]]];
    assert_eq!(common_range(&maps), Some((-3.0, 2.0)));
    assert_eq!(common_range(&[vec![vec![f64::NAN]]]), None);
}

#[rstest]
#[case::rows(|map: &mut Heatmap| map.rows.push("more".into()))]
#[case::columns(|map: &mut Heatmap| map.columns.push("more".into()))]
#[case::ragged(|map: &mut Heatmap| drop(map.values[3].pop()))]
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
    let series = series.into_iter().map(|points| Series { name: "s".into(), points }).collect();
    let lines = Lines { title: "t".into(), x_label: "x".into(), y_label: "y".into(), series, log_x };
    let svg = lines.svg().to_string();
    walk(&svg);
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn a_gap_cuts_a_line() {
    let line = |points: Vec<(f64, f64)>| {
        let series = vec![Series { name: "s".into(), points }];
        let lines = Lines { title: "t".into(), x_label: "x".into(), y_label: "y".into(), series, log_x: false };
        lines.svg().to_string().matches("<polyline").count()
    };
    assert_eq!(line((0..9).map(|i| (f64::from(i), 1.0)).collect()), 1);
    assert_eq!(line((0..9).map(|i| (f64::from(i), if i == 4 { f64::NAN } else { 1.0 })).collect()), 2);
}

#[test]
fn the_best_of_a_column_is_set_in_bold_and_ties_share_it() {
    let mut table = controls();
    table.rows.push(vec!["tie".into(), 3.0701.into(), Cell::Number(f64::NAN), 0.0.into()]);
    let html = table.html().unwrap();
    walk(&html);
    assert_eq!(html.matches("<strong>3.070</strong>").count(), 2);
    assert_eq!(html.matches("<strong>").count(), 3);
    assert!(html.contains("<strong>0.67</strong>") && html.contains(">−0.02<") && html.contains(">–<"));
}

#[test]
fn a_page_replaces_the_former_one_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    std::fs::write(&path, "the former page").unwrap();
    sample().write(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), sample().html());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_page_that_cannot_be_written_leaves_the_former_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    // A folder of that name cannot be replaced by a file.
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("kept"), "").unwrap();
    let error = sample().write(&path).unwrap_err().to_string();
    assert!(error.contains("report.html: "), "{error}");
    assert!(path.join("kept").exists());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no partial page is left");
    assert!(sample().write(folder.path().join("missing").join("report.html")).is_err());
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
        };
        let points = values.iter().copied().zip(values.iter().copied().rev()).collect();
        let lines = Lines {
            title: text.clone(), x_label: other.clone(), y_label: text.clone(),
            series: vec![Series { name: text.clone(), points }], log_x,
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
            Figure::drawing(&map.svg().unwrap(), text.clone()),
            Figure::drawing(&lines.svg(), other.clone()),
            Figure::drawing(&bars.svg().unwrap(), text.clone()),
            Figure::table(&table, text.clone()).unwrap(),
        ];
        let page = Page {
            title: text.clone(), lead: vec![text.clone()], facts: vec![(text.clone(), other.clone())],
            sections: vec![Section { heading: text.clone(), prose: vec![other.clone()], figures }],
        };
        walk(&page.html());
    }
}
