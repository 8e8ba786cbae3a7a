//! The frontier's pictures: recovery against active share, and what a given share recovers.

use crate::frontier::{Frontier, FrontierPoint, HowMany, SAME, SHARES, times};
use crate::report::{Column, Figure, Lines, Section, Series, SeriesStyle, Table, TableCell};
use tinyonn::Result;
use tinyonn::metrics::Interval;

/// A space that lines do not break at.
const UNBROKEN: &str = "\u{a0}";

/// The frontier.
pub(super) fn frontier(frontier: &Frontier) -> Result<Section> {
    let caption = format!(
        "At most {} test tokens a task; 95 % intervals over documents, paired with the dense model. The CSV holds every point with its numbers of \
         choices and its cost.",
        frontier.tokens
    );
    let plot = Figure::plot("frontier", &curves(frontier), caption)?.with_numbers(&points(frontier))?;
    let mut figures = vec![plot];
    if !frontier.points.is_empty() {
        figures.push(Figure::table(
            &at_shares(frontier),
            "What a given share of the experts recovers: of the fixed numbers of choices that meet it, the best on this very text, beside the adaptive form that \
             takes nearest to as many. Where no k meets a share, layers take two numbers in turn; where these cannot either, the nearest stands here. \
             Cost: the neurons that a token uses over all passes.",
        )?);
    }
    let adaptive = adaptive(frontier);
    if !adaptive.rows.is_empty() {
        figures.push(Figure::table(
            &adaptive,
            "How many of its experts a token takes in a layer where the router's certainty or the token's surprisal decides, over all layers and test tokens, and the load: the most \
             loaded expert's tokens over the mean expert's in the most uneven layer; experts without a token; the load's entropy over ln N.",
        )?);
    }
    Ok(Section {
        heading: "How much must be active?".into(),
        prose: vec![
            format!(
                "Each point routes the test split with another number of groups and of experts in each, or lets the routers' own certainty decide how many \
                 (PFAG), with routers as they were fitted. Recovery is (L without MLPs − L)/(L without MLPs − L dense): {:.3} nats a token without \
                 any MLP, {:.3} with all. The best fixed k are picked among these very points.",
                frontier.without, frontier.dense
            ),
            "The axis shows what is active in the pass that is routed. That is the whole cost of all forms but `surprisal`: over whole sequences, as here, it \
             needs a first pass with everything active to learn how surprising each token is, so it costs 100 % more than the axis shows. When text \
             is generated, each token's surprisal is known from the step before, and that pass falls away."
                .into(),
        ],
        figures,
    })
}

fn curves(frontier: &Frontier) -> Lines {
    let worth = |point: &&FrontierPoint| Some((100.0 * point.active_share, point.recovery?));
    let series = |name: &str, style: SeriesStyle, points: &[&FrontierPoint]| Series {
        name: name.into(),
        points: points.iter().filter_map(worth).map(|(share, recovery)| (share, 100.0 * recovery.mean)).collect(),
        interval: Some(points.iter().filter_map(worth).map(|(_, r)| (100.0 * r.low, 100.0 * r.high)).collect()),
        style,
    };
    let fixed: Vec<&FrontierPoint> = frontier.points.iter().filter(|point| point.is_fixed()).collect();
    let mut drawn = vec![
        series("best fixed k", SeriesStyle::Marked, &leading(&fixed)),
        // Their intervals, over one another, would hide them.
        Series { interval: None, ..series("all fixed k", SeriesStyle::Points, &fixed) },
    ];
    for form in [HowMany::Nucleus, HowMany::Entropy, HowMany::Surprisal] {
        let points: Vec<&FrontierPoint> = frontier.points.iter().filter(|point| point.form == form).collect();
        if !points.is_empty() {
            drawn.push(series(form.name(), SeriesStyle::Points, &points));
        }
    }
    Lines {
        title: "What the MLPs are worth, by how much of them is active".into(),
        x_label: "active neurons, %".into(),
        y_label: "recovery, %".into(),
        series: drawn,
        log_x: false,
    }
}

/// The points that no other one beats at as many active neurons or fewer.
fn leading<'a>(points: &[&'a FrontierPoint]) -> Vec<&'a FrontierPoint> {
    let mut best: Vec<&FrontierPoint> = Vec::new();
    for point in points {
        if best.last().is_none_or(|last| point.loss.mean < last.loss.mean) {
            // Of one number of experts, whose neurons differ by a few, only the better one leads.
            best.pop_if(|last| (last.expert_share - point.expert_share).abs() <= SAME);
            best.push(point);
        }
    }
    best
}

/// All points with all that is known of them.
fn points(frontier: &Frontier) -> Table {
    let layers = |point: &FrontierPoint| point.by_layer.iter().map(|k| times(k)).collect::<Vec<_>>().join("; ");
    let row = |point: &FrontierPoint| {
        let text = [point.form.name().to_owned(), times(&point.top_k), layers(point)].map(TableCell::from);
        let shares = [point.expert_share, point.active_share, point.cost_share].map(|share| 100.0 * share);
        let recovery = point.recovery.map_or([f64::NAN; 3], |r| [r.mean, r.low, r.high].map(|x| 100.0 * x));
        let loss = [point.loss.mean, point.loss.low, point.loss.high];
        let numbers = [point.mass.unwrap_or(f64::NAN)].into_iter().chain(shares).chain(loss).chain(recovery);
        let numbers = numbers.chain(load(point));
        text.into_iter().chain(numbers.map(TableCell::from)).collect()
    };
    let numbers = [
        "mass",
        "active experts, %",
        "active neurons, %",
        "cost, %",
        "loss, nats a token",
        "loss, low",
        "loss, high",
        "recovery, %",
        "recovery, low",
        "recovery, high",
        "fewest experts",
        "experts a token",
        "most experts",
        "load, max / mean",
        "dead experts a layer",
        "evenness",
    ];
    let columns =
        ["form", "k", "k by layer"].map(Column::text).into_iter().chain(numbers.map(|name| Column::number(name, 1)));
    Table { columns: columns.collect(), rows: frontier.points.iter().map(row).collect() }
}

/// Fewest, mean and most experts that a token takes; and how evenly it falls out on them.
fn load(point: &FrontierPoint) -> [f64; 6] {
    let load = &point.load;
    let [fewest, mean, most] =
        load.taken().map_or([f64::NAN; 3], |taken| [taken.fewest as f64, taken.mean, taken.most as f64]);
    [fewest, mean, most, load.max_over_mean(), load.dead(), load.evenness()]
}

/// What the adaptive forms take, and how even that is.
fn adaptive(frontier: &Frontier) -> Table {
    let points = frontier.points.iter().filter(|point| !point.is_fixed());
    let row = |point: &FrontierPoint| {
        let recovery = recovered(Some(point));
        std::iter::once(choice(point).into()).chain(load(point).map(TableCell::from)).chain([recovery]).collect()
    };
    Table {
        columns: vec![
            Column::text("form"),
            Column::number("fewest experts", 0),
            Column::number("mean", 1),
            Column::number("most", 0),
            Column::number("load, max / mean", 2),
            Column::number("dead experts a layer", 1),
            Column::number("evenness", 3),
            Column::text("recovery, %"),
        ],
        rows: points.map(row).collect(),
    }
}

/// The asked shares: fixed and adaptive.
fn at_shares(frontier: &Frontier) -> Table {
    let row = |percent: usize| -> Vec<TableCell> {
        let share = percent as f64 / 100.0;
        let (fixed, adaptive) = (frontier.best_fixed_at(share), frontier.adaptive_near(share));
        let nearest = fixed.filter(|point| (point.expert_share - share).abs() > SAME);
        let nearest = nearest.map(|point| format!(" (nearest: {:.1} %)", 100.0 * point.expert_share));
        let choice = fixed.map_or("–".into(), |point| choice(point) + &nearest.unwrap_or_default());
        let measured =
            |point: Option<&FrontierPoint>| [point.map_or(f64::NAN, |p| p.loss.mean).into(), recovered(point)];
        let of = |share: fn(&FrontierPoint) -> f64| adaptive.map_or(f64::NAN, |point| 100.0 * share(point)).into();
        let head: [TableCell; 2] = [percent.to_string().into(), choice.into()];
        let form: [TableCell; 3] = [
            adaptive.map_or("–".into(), self::choice).into(),
            of(|point| point.expert_share),
            of(|point| point.cost_share),
        ];
        head.into_iter().chain(measured(fixed)).chain(form).chain(measured(adaptive)).collect()
    };
    Table {
        columns: vec![
            Column::text("asked, %"),
            Column::text("best fixed k"),
            Column::number("loss", 3),
            Column::text("recovery, %"),
            Column::text("adaptive form"),
            Column::number("its experts, %", 1),
            Column::number("its cost, %", 1),
            Column::number("its loss", 3),
            Column::text("its recovery, %"),
        ],
        rows: SHARES.into_iter().map(row).collect(),
    }
}

/// `7 × 10`; `7 × 10 in 2 layers, 8 × 10 in 2`; `nucleus 0.75`.
fn choice(point: &FrontierPoint) -> String {
    if !point.is_fixed() {
        let form = point.form.name();
        return point.mass.map_or_else(|| form.to_owned(), |mass| format!("{form} {mass}"));
    }
    let mut kinds: Vec<(&Vec<usize>, usize)> = Vec::new();
    for top_k in &point.by_layer {
        match kinds.iter_mut().find(|(kind, _)| *kind == top_k) {
            Some((_, count)) => *count += 1,
            None => kinds.push((top_k, 1)),
        }
    }
    let said = kinds.iter().enumerate().map(|(at, (top_k, count))| {
        let layers = if at > 0 {
            ""
        } else if *count == 1 {
            " layer"
        } else {
            " layers"
        };
        format!("{} in {count}{layers}", times(top_k)).replace(' ', UNBROKEN)
    });
    if kinds.is_empty() { times(&point.top_k) } else { said.collect::<Vec<_>>().join(", ") }
}

/// `91.2 [88.0, 94.1]`, never on two lines.
fn recovered(point: Option<&FrontierPoint>) -> TableCell {
    let said = |r: Interval| {
        let text = format!("{:.1} [{:.1}, {:.1}]", 100.0 * r.mean, 100.0 * r.low, 100.0 * r.high);
        text.replace('-', "−").replace(' ', UNBROKEN)
    };
    point.and_then(|point| point.recovery).map_or("–".into(), said).into()
}
