//! A page such as a run would write, with invented numbers.

use experiments::report::{
    BarSeries, Bars, Best, Column, Density, DensityClass, Figure, Heatmap, Kind, Lines, Page, PathDiagram, Scale,
    Section, Series, SeriesStyle, Table, TreeLevel, common_range,
};
use rand::Rng;
use tinyonn::random;

const TASKS: [&str; 5] = ["arithmetic", "code", "dialogue", "encyclopaedia", "verse"];

fn names(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|i| i.to_string()).collect()
}

fn groups() -> Vec<(String, usize)> {
    (0..10).map(|g| (format!("group {g}"), 10)).collect()
}

pub(super) fn scans(layers: usize, purpose: &str) -> Vec<Heatmap> {
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
        column_groups: Some(groups()),
        range,
        value_label: "∫SPS a token".into(),
        spread: None,
    };
    TASKS.into_iter().zip(values).map(scan).collect()
}

pub(super) fn confusion() -> Heatmap {
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
        value_label: "share of tokens".into(),
        spread: None,
    }
}

pub(super) fn load() -> Heatmap {
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
        column_groups: Some(groups()),
        range: None,
        value_label: "share of tokens".into(),
        spread: None,
    }
}

pub(super) fn curves() -> Lines {
    let mut rng = random::stream(3, "curves");
    let mut curve = |name: &str, floor: f64, noise: f64| {
        let value = |i: u32| floor + 7.0 / f64::from(i).sqrt() + noise * rng.random_range(-1.0..1.0);
        Series::line(name, (1..=2000_u32).map(value).enumerate().map(|(i, y)| (i as f64 + 1.0, y)).collect())
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
        .map(|(name, k)| Series::line(*name, points(k)))
        .collect();
    series[2].points[5].1 = f64::NAN;
    series.push(Series::line("unfinished", vec![]));
    Lines {
        title: "Forgetting of the first task".into(),
        x_label: "step".into(),
        y_label: "nats per token".into(),
        series,
        log_x: false,
    }
}

pub(super) fn losses() -> Bars {
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

pub(super) fn ablation() -> Heatmap {
    let value =
        |r: usize, c: usize| if r == c { 0.412 + 0.1 * r as f64 } else { 0.02 * (c as f64 - r as f64) / 4.0 - 0.025 };
    Heatmap {
        title: "Loss added by ablating a task's best experts".into(),
        row_label: "task ablated".into(),
        column_label: "task measured".into(),
        values: (0..5).map(|r| (0..5).map(|c| value(r, c)).collect()).collect(),
        scale: Scale::Diverging,
        value_label: "Δ loss, nats a token".into(),
        spread: Some((0..5).map(|r| (0..5).map(|c| 0.012 + 0.003 * f64::from(r * c)).collect()).collect()),
        ..confusion()
    }
}

pub(super) fn frontier() -> Lines {
    let shares = [0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0];
    let series = |(k, name): (usize, &&str)| {
        let points: Vec<(f64, f64)> = shares.iter().map(|&x: &f64| (x, x.powf(0.3 + 0.12 * k as f64))).collect();
        let interval = points.iter().map(|(x, y)| (y - 0.04 * (1.1 - x), y + 0.06 * (1.1 - x))).collect();
        Series { name: (*name).into(), points, interval: Some(interval), style: SeriesStyle::Marked }
    };
    Lines {
        title: "Recovery".into(),
        x_label: "active share".into(),
        y_label: "recovery".into(),
        series: ["∫SPS", "activation", "taylor", "permuted", "random", "lowest"]
            .iter()
            .enumerate()
            .map(series)
            .collect(),
        log_x: true,
    }
}

/// Ten groups of ten experts, two of a group.
pub(super) fn paths(layers: usize) -> PathDiagram {
    let mut rng = random::stream(3, "paths");
    let mut levels = |task: usize| {
        let favourite = (task * 2 + rng.random_range(0..3)) % 10;
        let mut groups: Vec<f64> =
            (0..10).map(|g| if g == favourite { 2.0 } else { rng.random_range(0.0_f64..1.0).powi(4) }).collect();
        let sum: f64 = groups.iter().sum();
        groups.iter_mut().for_each(|share| *share /= sum);
        let experts = groups.iter().flat_map(|group| {
            let part = rng.random_range(0.0..1.0);
            let (a, b) = (rng.random_range(0..10), rng.random_range(0..10));
            (0..10)
                .map(move |e| group * (f64::from(u8::from(e == a)) * part + f64::from(u8::from(e == b)) * (1.0 - part)))
        });
        let experts = experts.collect();
        vec![groups, experts]
    };
    PathDiagram {
        title: "Where the tasks go".into(),
        tasks: TASKS.map(String::from).to_vec(),
        shares: (0..layers).map(|_| (0..5).map(&mut levels).collect()).collect(),
        levels: vec![
            TreeLevel {
                name: "group".into(),
                nodes: groups().into_iter().map(|(name, _)| name).collect(),
                parents: vec![],
            },
            TreeLevel {
                name: "expert".into(),
                nodes: (0..100).map(|e| format!("{}:{}", e / 10, e % 10)).collect(),
                parents: (0..100).map(|e| e / 10).collect(),
            },
        ],
        share_label: "share of tokens".into(),
    }
}

pub(super) fn density() -> Density {
    let mut rng = random::stream(3, "density");
    let mut normal = || (0..12).map(|_| rng.random_range(-0.5..0.5)).sum::<f64>();
    let mut class = |(i, name): (usize, &str)| {
        let (sin, cos) = (i as f64 * 1.2566).sin_cos();
        let (mean, a, b, c) = ([3.0 * cos, 2.0 * sin], 0.6 + 0.2 * i as f64, 0.5 - 0.25 * i as f64, 0.7);
        let points = (0..150).map(|_| (normal(), normal())).map(|(u, v)| [mean[0] + a * u, mean[1] + b * u + c * v]);
        let points = points.collect();
        DensityClass { name: name.into(), points, mean, covariance: [[a * a, a * b], [a * b, b * b + c * c]] }
    };
    Density {
        title: "Router density, layer 2".into(),
        x_label: "first LDA axis".into(),
        y_label: "second LDA axis".into(),
        classes: TASKS.into_iter().enumerate().map(&mut class).collect(),
        cloud: vec![],
    }
}

pub(super) fn controls() -> Table {
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

pub(super) fn sample() -> Page {
    let section =
        |heading: &str, prose: &str, figures| Section { heading: heading.into(), prose: vec![prose.into()], figures };
    let scans_of = |layers, caption: &str| -> Vec<Figure> {
        let stem = |task: usize| format!("brain-{layers}-{}", TASKS[task]);
        let scans = scans(layers, "scan");
        scans.iter().enumerate().map(|(task, map)| Figure::plot(stem(task), map, caption).unwrap()).collect()
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
                vec![
                    Figure::plot("confusion", &confusion(), "Rows sum to 1.").unwrap(),
                    Figure::plot("load", &load(), "A share of 0.01 is even load.").unwrap(),
                ],
            ),
            section(
                "Paths and densities",
                "What the routers see, and where they send it.",
                vec![
                    Figure::plot("paths", &paths(4), "Lines as wide as the share of tokens.").unwrap(),
                    Figure::plot("density", &density(), density().caption()).unwrap(),
                    Figure::plot("ablation", &ablation(), "Half widths of 95 % intervals.").unwrap(),
                    Figure::plot("frontier", &frontier(), "Bands: 95 % intervals.").unwrap(),
                ],
            ),
            section(
                "Training",
                "Losses while training.",
                vec![
                    Figure::plot("curves", &curves(), "Steps on a logarithmic axis.").unwrap(),
                    Figure::plot("forgetting", &forgetting(), "A gap where a value is missing.").unwrap(),
                ],
            ),
            section(
                "Do the labels help?",
                "Lower is better.",
                vec![
                    Figure::plot("losses", &losses(), "Whiskers: bootstrap over documents.").unwrap(),
                    Figure::plot("changes", &changes(), "Grouped bars.").unwrap(),
                    Figure::table(&controls(), "Controls; the best is bold.").unwrap(),
                ],
            ),
        ],
    }
}
