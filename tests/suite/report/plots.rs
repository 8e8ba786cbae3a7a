//! What each kind of plot shows: intervals, shares, Gaussians; and that nothing is told by colour alone.

use std::collections::{BTreeMap, BTreeSet};

use experiments::report::colour::{CATEGORIES, hex};
use experiments::report::{Density, DensityClass, Lines, PathDiagram, Plot, SeriesStyle, TreeLevel};
use rstest::rstest;

use super::sample::{ablation, density, frontier, losses, paths};
use super::xml::walk;

fn drawn(plot: &impl Plot) -> String {
    let svg = plot.svg().unwrap().to_string();
    walk(&svg);
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    svg
}

/// The value of an attribute of an element.
fn attribute<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = element.split_once(&format!(" {name}=\""))?;
    Some(rest.split_once('"').unwrap().0)
}

/// The numbers in a path or in points, in order.
fn numbers(text: &str) -> Vec<f64> {
    let parts = text.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-'));
    parts.filter_map(|part| part.parse().ok()).collect()
}

/// By colour of a category: the shapes of its marks and the dashes of its lines.
fn looks(svg: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut looks: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for element in svg.lines() {
        let mark = attribute(element, "fill").filter(|_| element.starts_with("<path"));
        let mark = mark.zip(attribute(element, "d").and_then(|d| d[1..].find('m').map(|at| &d[at + 1..])));
        let shape = mark.map(|(colour, path)| (colour, path.split(['z', 'M']).next().unwrap().to_owned()));
        let line = attribute(element, "stroke").filter(|_| !element.contains("pointer-events"));
        let dash = line.map(|colour| (colour, attribute(element, "stroke-dasharray").unwrap_or("solid").to_owned()));
        for (colour, look) in shape.into_iter().chain(dash) {
            looks.entry(colour.to_owned()).or_default().insert(look);
        }
    }
    looks.retain(|colour, _| CATEGORIES.iter().any(|category| hex(*category) == *colour));
    looks
}

#[rstest]
#[case::lines(&drawn(&frontier()), 6)]
#[case::paths(&drawn(&paths(1)), 5)]
#[case::classes(&drawn(&density()), 5)]
fn series_differ_without_colour(#[case] svg: &str, #[case] series: usize) {
    let looks = looks(svg);
    assert_eq!(looks.len(), series);
    let distinct: BTreeSet<_> = looks.values().collect();
    assert_eq!(distinct.len(), series, "{looks:?}");
}

#[test]
fn intervals_are_bands_with_whiskers_or_edges_within_the_plot() {
    let bands = |lines: &Lines| drawn(lines).matches("<polygon").count();
    let lines = frontier();
    assert_eq!(bands(&lines), 6);
    for band in drawn(&lines).lines().filter(|line| line.starts_with("<polygon")) {
        let heights = numbers(attribute(band, "points").unwrap()).into_iter().skip(1).step_by(2);
        assert!(heights.into_iter().all(|y| (45.9..=326.1).contains(&y)), "{band}");
    }
    // A gap cuts the band as well.
    let mut gap = lines.clone();
    gap.series[0].interval.as_mut().unwrap()[3].0 = f64::NAN;
    assert_eq!(bands(&gap), 7);
    // Points have whiskers and no band; lines of many points have edges of the same dashes, and no whiskers.
    let mut points = lines.clone();
    points.series.iter_mut().for_each(|series| series.style = SeriesStyle::Points);
    assert_eq!((bands(&points), drawn(&points).matches("<polyline").count()), (0, 0));
    let mut many = lines;
    let series = &mut many.series[0];
    series.points = (0..100).map(|i| (0.02 + 0.005 * f64::from(i), f64::from(i % 7))).collect();
    series.interval = Some(series.points.iter().map(|(_, y)| (y - 1.0, y + 2.0)).collect());
    series.style = SeriesStyle::Line;
    many.series.truncate(1);
    assert_eq!((bands(&many), drawn(&many).matches("<polyline").count()), (1, 3));
    many.series[0].interval.as_mut().unwrap().pop();
    assert!(many.svg().unwrap_err().to_string().contains("100 points, 99 intervals"));
}

#[test]
fn whiskers_may_be_longer_on_one_side() {
    let mut bars = losses();
    bars.reference = None;
    bars.categories.truncate(1);
    bars.series[0].values = vec![2.0];
    bars.series[0].whiskers = Some(vec![(1.5, 4.0)]);
    let svg = drawn(&bars);
    let bar = svg.lines().find(|line| line.contains("<title>")).unwrap();
    let [x, width] = ["x", "width"].map(|name| attribute(bar, name).unwrap().parse::<f64>().unwrap());
    let whisker = svg.lines().rfind(|line| line.starts_with("<path") && line.contains("#1d1f24")).unwrap();
    let path = numbers(attribute(whisker, "d").unwrap());
    // Zero lies at x, 2.0 at x + width; coordinates are rounded to hundredths.
    for (at, value) in [(path[0], 1.5), (path[2], 4.0)] {
        assert!((at - (x + width * value / 2.0)).abs() < 0.03, "{at} for {value}");
    }
}

#[test]
fn an_ablation_matrix_prints_values_and_half_widths_in_its_cells() {
    let map = ablation();
    let found = walk(&map.svg().unwrap().to_string());
    for text in ["0.412", "± 0.012", "−0.030", "Δ loss, nats a token"] {
        assert!(found.iter().any(|f| f == text), "{text} is not in {found:?}");
    }
    let mut odd = map.clone();
    odd.spread.as_mut().unwrap()[2].pop();
    assert!(odd.svg().unwrap_err().to_string().starts_with("`heatmap`: the spread"));
    let mut unknown = map;
    unknown.spread.as_mut().unwrap()[0][0] = f64::NAN;
    assert_eq!(drawn(&unknown).matches(">± ").count(), 24);
}

/// `(layer and task, node, from, to, width)` of every line of a path diagram.
type Edge = (String, String, [f64; 2], [f64; 2], f64);

fn edges(svg: &str) -> Vec<Edge> {
    let lines = svg.lines().filter(|line| line.starts_with("<path") && line.contains("<title>layer"));
    let edge = |line: &str| {
        let told = line.split_once("<title>").unwrap().1.split_once("</title>").unwrap().0;
        let (who, node) = told.split_once(": ").unwrap();
        let d = numbers(attribute(line, "d").unwrap());
        let width = attribute(line, "stroke-width").unwrap().parse().unwrap();
        (who.into(), node.rsplit_once(' ').unwrap().0.into(), [d[0], d[1]], [d[6], d[7]], width)
    };
    lines.map(edge).collect()
}

#[test]
fn a_path_goes_on_where_it_came_and_is_as_wide_as_its_share() {
    let paths = paths(4);
    let edges = edges(&drawn(&paths));
    let shares = paths.shares.iter().flatten().flatten().flatten();
    assert_eq!(edges.len(), shares.filter(|share| **share >= 0.02).count(), "what is not taken is not drawn");
    let to_experts = edges.iter().filter(|edge| edge.1.starts_with("expert"));
    for (who, node, from, ..) in to_experts {
        let group = format!("group group {}", node["expert ".len()..].split_once(':').unwrap().0);
        let before = edges.iter().find(|edge| edge.0 == *who && edge.1 == group);
        // A group's share is the sum of its experts' here, so whoever reaches an expert has been drawn to its group.
        assert_eq!(before.unwrap().3, *from, "{who} to {node}");
    }
    let width = |share: f64| {
        let mut one = paths.clone();
        one.shares.truncate(1);
        one.shares[0].iter_mut().flatten().flatten().for_each(|share| *share = 0.0);
        one.shares[0][0][0][0] = share;
        self::edges(&drawn(&one))[0].4
    };
    assert!((width(1.0) - 2.0 * width(0.5)).abs() < 0.02 && width(0.5) > 0.5);
}

#[test]
fn of_many_layers_some_are_drawn_and_the_note_says_so() {
    let paths = paths(28);
    let found = walk(&paths.svg().unwrap().to_string());
    let panels: Vec<_> = found.iter().filter(|text| text.starts_with("layer ") && !text.contains(':')).collect();
    assert_eq!(panels.len(), 8);
    assert_eq!((panels[0].as_str(), panels[7].as_str()), ("layer 0", "layer 27"));
    assert!(found.iter().any(|text| text.starts_with("8 of 28 layers are drawn")));
    assert_eq!(paths.csv().lines().count(), 1 + 28 * 5 * 110, "the CSV has them all");
}

#[rstest]
#[case::no_layers(|p: &mut PathDiagram| p.shares.clear())]
#[case::not_a_number(|p: &mut PathDiagram| p.shares.iter_mut().flatten().flatten().flatten().for_each(|s| *s = f64::NAN))]
#[case::more_than_all(|p: &mut PathDiagram| p.shares.iter_mut().flatten().flatten().flatten().for_each(|s| *s = 1e9))]
#[case::no_tasks(|p: &mut PathDiagram| { p.tasks.clear(); p.shares.iter_mut().for_each(Vec::clear); })]
#[case::flat(|p: &mut PathDiagram| {
    p.levels.truncate(1);
    p.shares.iter_mut().flatten().for_each(|levels| levels.truncate(1));
})]
#[case::no_levels(|p: &mut PathDiagram| { p.levels.clear(); p.shares.iter_mut().flatten().for_each(Vec::clear); })]
#[case::names(|p: &mut PathDiagram| { p.tasks[0] = "<&\"'>".repeat(20); p.levels[1].nodes[3] = "]]>&".into(); })]
fn odd_paths_still_make_a_figure(#[case] spoil: fn(&mut PathDiagram)) {
    let mut paths = paths(2);
    spoil(&mut paths);
    drawn(&paths);
}

#[rstest]
#[case::tasks(|p: &mut PathDiagram| p.tasks.push("more".into()))]
#[case::nodes(|p: &mut PathDiagram| p.shares[1][4][0].push(0.0))]
#[case::levels(|p: &mut PathDiagram| p.levels.truncate(1))]
#[case::parents(|p: &mut PathDiagram| p.levels[1].parents[0] = 10)]
fn paths_of_the_wrong_shape_are_refused(#[case] spoil: fn(&mut PathDiagram)) {
    let mut paths = paths(2);
    spoil(&mut paths);
    assert!(paths.svg().is_err());
}

#[test]
fn three_levels_have_three_columns() {
    let level = |name: &str, count: usize, parents: Vec<usize>| TreeLevel {
        name: name.into(),
        nodes: (0..count).map(|n| format!("{name} {n}")).collect(),
        parents,
    };
    let paths = PathDiagram {
        title: "t".into(),
        tasks: vec!["a".into()],
        levels: vec![
            level("x", 2, vec![]),
            level("y", 4, vec![0, 0, 1, 1]),
            level("z", 8, (0..8).map(|n| n / 2).collect()),
        ],
        share_label: "share".into(),
        shares: vec![vec![vec![vec![1.0; 2], vec![1.0; 4], vec![1.0; 8]]]],
    };
    let edges = edges(&drawn(&paths));
    let columns: BTreeSet<u64> = edges.iter().map(|edge| edge.3[0].to_bits()).collect();
    assert_eq!((edges.len(), columns.len()), (14, 3));
    assert!(edges.iter().all(|edge| edge.2[0] < edge.3[0]), "from left to right");
}

#[test]
fn a_large_class_is_thinned_evenly_and_the_caption_says_so() {
    let mut density = density();
    density.classes.truncate(1);
    density.classes[0].points = (0..10_000).map(|i| [f64::from(i) / 5000.0 - 1.0, 0.0]).collect();
    density.classes[0].mean = [0.0, 0.0];
    density.classes[0].covariance = [[0.5, 0.0], [0.0, 0.5]];
    let svg = drawn(&density);
    let marks = svg.lines().find(|line| line.contains("fill-opacity=\"0.4\"")).unwrap();
    assert_eq!(attribute(marks, "d").unwrap().matches('M').count(), 400);
    assert_eq!(density.csv().lines().count(), 1 + 1 + 400);
    assert!(density.caption().contains(" 400 of 10000 points "), "{}", density.caption());
    density.classes[0].points.truncate(300);
    assert!(!density.caption().contains("points"), "{}", density.caption());
    density.classes[0].points[7] = [99.0, 0.0];
    assert!(density.caption().ends_with(" 1 of them lie beyond the picture."), "{}", density.caption());
}

#[rstest]
#[case::none(|d: &mut Density| d.classes.clear())]
#[case::no_points(|d: &mut Density| d.classes.iter_mut().for_each(|c| c.points.clear()))]
#[case::one_place(|d: &mut Density| d.classes.iter_mut().for_each(|c| { c.mean = [1.0; 2]; c.covariance = [[0.0; 2]; 2]; }))]
#[case::a_line(|d: &mut Density| d.classes[0].covariance = [[1.0, 1.0], [1.0, 1.0]])]
#[case::not_positive(|d: &mut Density| d.classes[0].covariance = [[1.0, 2.0], [2.0, 1.0]])]
#[case::not_a_number(|d: &mut Density| { d.classes[0].mean[0] = f64::NAN; d.classes[1].points[0] = [f64::INFINITY, 0.0]; })]
#[case::names(|d: &mut Density| d.classes.iter_mut().for_each(|c| c.name = "<&\"'>".repeat(9)))]
fn odd_classes_still_make_a_figure(#[case] spoil: fn(&mut Density)) {
    let mut density = density();
    spoil(&mut density);
    drawn(&density);
}

#[test]
fn names_of_classes_never_overlap() {
    let class = |i: u32| DensityClass {
        name: format!("class {i}"),
        points: vec![],
        mean: [f64::from(i) * 0.01, 0.0],
        covariance: [[1.0, 0.0], [0.0, 1.0]],
    };
    let density = Density {
        title: "t".into(),
        x_label: "x".into(),
        y_label: "y".into(),
        classes: (0..8).map(class).collect(),
        cloud: vec![],
    };
    let svg = drawn(&density);
    let names = svg.lines().filter(|line| line.contains("paint-order"));
    let places: Vec<[f64; 2]> =
        names.map(|line| ["x", "y"].map(|name| attribute(line, name).unwrap().parse().unwrap())).collect();
    assert_eq!(places.len(), 8);
    // Names of 13 units are some 45 wide and 13 high.
    let apart = |a: &[f64; 2], b: &[f64; 2]| (a[0] - b[0]).abs() > 44.0 || (a[1] - b[1]).abs() > 13.0;
    assert!((0..8).all(|a| (0..a).all(|b| apart(&places[a], &places[b]))), "{places:?}");
}

#[test]
fn an_asymmetric_covariance_is_refused() {
    let mut density = density();
    density.classes[2].covariance[0][1] += 0.1;
    assert!(density.svg().unwrap_err().to_string().contains("not symmetric"));
}
