//! The numbers behind every drawing come back from its CSV: to the bit, whatever the names hold.

use experiments::report::{
    BarSeries, Bars, Column, Density, DensityClass, Heatmap, Lines, PathDiagram, Plot, Scale, Series, SeriesStyle,
    Table, TreeLevel,
};
use proptest::prelude::*;

/// The records of a file, all of one length.
fn read(text: &str) -> Vec<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
    reader.records().map(|record| record.unwrap().iter().map(str::to_owned).collect()).collect()
}

/// A field of the wrong text, or whose number has other bits, is told.
#[derive(Debug, Clone)]
enum Expected {
    Text(String),
    Number(f64),
    Empty,
}

fn text(text: &str) -> Expected {
    Expected::Text(text.into())
}

fn assert_holds(csv: &str, header: &[&str], rows: &[Vec<Expected>]) {
    let records = read(csv);
    assert_eq!(records[0], header);
    assert_eq!(records.len() - 1, rows.len());
    for (record, row) in records[1..].iter().zip(rows) {
        assert_eq!(record.len(), row.len());
        for (field, expected) in record.iter().zip(row) {
            match expected {
                Expected::Text(text) => assert_eq!(field, text),
                Expected::Empty => assert_eq!(field, ""),
                Expected::Number(number) if number.is_nan() => assert!(field.parse::<f64>().unwrap().is_nan()),
                Expected::Number(number) => assert_eq!(field.parse::<f64>().unwrap().to_bits(), number.to_bits()),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn csv_gives_back_every_number_and_name(
        name in "([a-z,\"\r\n \u{e9}∫]){0,12}",
        other in "([a-z,\"\r\n ]){0,12}",
        v in prop::collection::vec(any::<f64>(), 6),
    ) {
        use Expected::{Empty, Number};
        let names = [name.clone(), other.clone()];
        let map = Heatmap {
            title: name.clone(), row_label: "row".into(), column_label: name.clone(),
            rows: names.to_vec(), columns: names.to_vec(), values: vec![v[..2].to_vec(), v[2..4].to_vec()],
            scale: Scale::Sequential, column_groups: Some(vec![(other.clone(), 2)]), range: None,
            value_label: "nats".into(), spread: Some(vec![v[3..5].to_vec(), v[4..6].to_vec()]),
        };
        let cell = |r: usize, c: usize| {
            vec![text(&names[r]), text(&names[c]), text(&other), Number(v[2 * r + c]), Number(v[3 + r + c])]
        };
        let cells = [cell(0, 0), cell(0, 1), cell(1, 0), cell(1, 1)];
        assert_holds(&map.csv(), &["row", &name, "group", "nats", "half width"], &cells);

        let points = vec![(v[0], v[1]), (v[2], v[3])];
        let interval = vec![(v[4], v[5]), (v[5], v[4])];
        let series = Series { name: name.clone(), points, interval: Some(interval), style: SeriesStyle::Marked };
        let lines = Lines {
            title: "t".into(), x_label: other.clone(), y_label: "y".into(), log_x: false,
            series: vec![series, Series::line(other.clone(), vec![(v[5], v[0])])],
        };
        let rows = [
            vec![text(&name), Number(v[0]), Number(v[1]), Number(v[4]), Number(v[5])],
            vec![text(&name), Number(v[2]), Number(v[3]), Number(v[5]), Number(v[4])],
            vec![text(&other), Number(v[5]), Number(v[0]), Empty, Empty],
        ];
        assert_holds(&lines.csv(), &["series", &other, "y", "low", "high"], &rows);

        let bars = Bars {
            title: "t".into(), value_label: name.clone(), categories: names.to_vec(),
            series: vec![
                BarSeries { name: "a".into(), values: v[..2].to_vec(), whiskers: Some(vec![(v[2], v[3]), (v[4], v[5])]) },
                BarSeries { name: "b".into(), values: v[4..].to_vec(), whiskers: None },
            ],
            reference: Some((other.clone(), v[3])),
        };
        let rows = [
            vec![text(&name), text("a"), Number(v[0]), Number(v[2]), Number(v[3])],
            vec![text(&name), text("b"), Number(v[4]), Empty, Empty],
            vec![text(&other), text("a"), Number(v[1]), Number(v[4]), Number(v[5])],
            vec![text(&other), text("b"), Number(v[5]), Empty, Empty],
            vec![text(""), text(&other), Number(v[3]), Empty, Empty],
        ];
        assert_holds(&bars.csv(), &["category", "series", &name, "low", "high"], &rows);

        let paths = PathDiagram {
            title: "t".into(), tasks: vec![name.clone()], share_label: "share".into(),
            levels: vec![
                TreeLevel { name: "group".into(), nodes: vec![other.clone()], parents: vec![] },
                TreeLevel { name: "expert".into(), nodes: names.to_vec(), parents: vec![0, 0] },
            ],
            shares: vec![vec![vec![vec![v[0]], vec![v[1], v[2]]]], vec![vec![vec![v[3]], vec![v[4], v[5]]]]],
        };
        let row = |layer: usize, level: &str, node: &str, share: f64| {
            vec![text(&layer.to_string()), text(&name), text(level), text(node), Number(share)]
        };
        let rows = [0, 1].into_iter().flat_map(|layer| [
            row(layer, "group", &other, v[3 * layer]),
            row(layer, "expert", &name, v[3 * layer + 1]),
            row(layer, "expert", &other, v[3 * layer + 2]),
        ]);
        assert_holds(&paths.csv(), &["layer", "task", "level", "node", "share"], &rows.collect::<Vec<_>>());

        let class = DensityClass {
            name: name.clone(), points: vec![[v[0], v[1]]], mean: [v[2], v[3]], covariance: [[v[4], v[5]], [v[5], v[0]]],
        };
        let cloud = vec![DensityClass { points: vec![[v[5], v[4]]], name: other.clone(), ..class.clone() }];
        let density = Density { title: "t".into(), x_label: "x".into(), y_label: other.clone(), classes: vec![class], cloud };
        let rows = [
            vec![text(&name), text("mean"), Number(v[2]), Number(v[3]), Number(v[4]), Number(v[5]), Number(v[0])],
            vec![text(&name), text("point"), Number(v[0]), Number(v[1]), Empty, Empty, Empty],
            vec![text(&other), text("cloud"), Number(v[5]), Number(v[4]), Empty, Empty, Empty],
        ];
        let header = ["class", "record", "x", &other, "x variance", "x y covariance", "y variance"];
        assert_holds(&density.csv(), &header, &rows);
    }
}

#[test]
fn columns_that_nobody_fills_are_left_out() {
    let mut lines = super::sample::frontier();
    assert_eq!(read(&lines.csv())[0].len(), 5);
    lines.series.iter_mut().for_each(|series| series.interval = None);
    assert_eq!(read(&lines.csv())[0], ["series", "active share", "recovery"]);
    assert_eq!(read(&super::sample::confusion().csv())[0], ["true task", "predicted group", "share of tokens"]);
}

/// A line without anything on it would be read as none.
#[test]
fn a_column_alone_keeps_its_empty_cells() {
    let table = Table { columns: vec![Column::text("note")], rows: vec![vec!["".into()], vec!["b".into()]] };
    assert_eq!(read(&table.csv().unwrap()), [["note"], [""], ["b"]]);
}
