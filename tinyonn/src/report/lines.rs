//! Lines over a common axis: loss curves and their like.
//!
//! Each series is named at its end rather than in a legend, and differs from the next in dashes as well as in colour.

use super::axis::Axis;
use super::colour::{category, hex};
use super::measure::{shorten, widest};
use super::number::significant;
use super::svg::{Anchor, Area, GRID, INK, MUTED, Stroke, Svg, TextStyle};

const PLOT: Area = Area { x: 58.0, y: 46.0, width: 780.0, height: 280.0 };
const LABEL: f64 = 12.0;
const TICK: f64 = 11.0;
const DASHES: [&str; 5] = ["", "7 3", "2 2.5", "9 3 2 3", "4 2"];
/// Up to so many points, each gets a dot and a tooltip.
const FEW: usize = 24;

/// A named line.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name, printed at its end.
    pub name: String,
    /// Points `(x, y)`, x ascending. What is not finite (or, on a logarithmic axis, not positive) leaves a gap.
    pub points: Vec<(f64, f64)>,
}

/// Several series over one x.
///
/// ```
/// use tinyonn::report::{Lines, Series};
///
/// let loss = Series { name: "loss".into(), points: vec![(0.0, 5.5), (100.0, 3.0), (200.0, 2.5)] };
/// let lines = Lines {
///     title: "Pretraining".into(),
///     x_label: "step".into(),
///     y_label: "nats per token".into(),
///     series: vec![loss],
///     log_x: false,
/// };
/// assert!(lines.svg().to_string().contains("<polyline"));
/// ```
#[derive(Debug, Clone)]
pub struct Lines {
    /// What the figure shows.
    pub title: String,
    /// What x is, with its unit.
    pub x_label: String,
    /// What y is, with its unit.
    pub y_label: String,
    /// The lines, in the order of their colours.
    pub series: Vec<Series>,
    /// A logarithmic x axis.
    pub log_x: bool,
}

impl Lines {
    /// Draws the lines; series without a single point are named as such.
    pub fn svg(&self) -> Svg {
        let names = self.end_names();
        let right = widest(names.iter().map(String::as_str), LABEL) + 40.0;
        let mut svg = Svg::new(PLOT.right() + right, PLOT.bottom() + 42.0, &self.title);
        let (x, y) = self.axes();
        self.draw_frame(&mut svg, &x, &y);
        let mut ends = Vec::new();
        for (i, series) in self.series.iter().enumerate() {
            if let Some(end) = self.draw_series(&mut svg, i, series, &x, &y) {
                ends.push((i, end));
            }
        }
        draw_names(&mut svg, &names, &ends);
        svg
    }

    fn end_names(&self) -> Vec<String> {
        let name = |series: &Series| {
            let name = shorten(&series.name, LABEL, 200.0);
            let last = series.points.iter().rev().find(|point| self.drawn(point));
            last.map_or_else(|| format!("{name}: no values"), |(_, y)| format!("{name} {}", significant(*y, 4)))
        };
        self.series.iter().map(name).collect()
    }

    fn drawn(&self, &(x, y): &(f64, f64)) -> bool {
        x.is_finite() && y.is_finite() && (!self.log_x || x > 0.0)
    }

    fn axes(&self) -> (Axis, Axis) {
        let points = || self.series.iter().flat_map(|series| &series.points).filter(|point| self.drawn(point));
        let range = |pick: fn(&(f64, f64)) -> f64, empty| {
            let range =
                points().map(pick).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (v.min(low), v.max(high)));
            if range.0 <= range.1 { range } else { empty }
        };
        let (left, right) = range(|p| p.0, (1.0, 10.0));
        let (low, high) = range(|p| p.1, (0.0, 1.0));
        let across = (PLOT.x, PLOT.right());
        let x = if self.log_x { Axis::log(left, right, across) } else { Axis::exact(left, right, 8, across) };
        (x, Axis::linear(low, high, 5, (PLOT.bottom(), PLOT.y)))
    }

    fn draw_frame(&self, svg: &mut Svg, x: &Axis, y: &Axis) {
        let title = shorten(&self.title, 15.0, svg.width());
        svg.text(0.0, 16.0, &title, TextStyle { size: 14.0, anchor: Anchor::Start, fill: INK, bold: true });
        let style = TextStyle { size: TICK, anchor: Anchor::End, fill: MUTED, bold: false };
        let mut grid = Vec::new();
        for (place, label) in y.ticks() {
            grid.push(((PLOT.x, place), (PLOT.right(), place)));
            svg.text(PLOT.x - 7.0, place + 4.0, &label, style);
        }
        svg.strokes(&grid, Stroke::solid(GRID, 1.0));
        let middle = TextStyle { anchor: Anchor::Middle, ..style };
        let mut ticks = vec![((PLOT.x, PLOT.bottom()), (PLOT.right(), PLOT.bottom()))];
        for (place, label) in x.ticks() {
            ticks.push(((place, PLOT.bottom()), (place, PLOT.bottom() + 4.0)));
            svg.text(place, PLOT.bottom() + 17.0, &label, middle);
        }
        svg.strokes(&ticks, Stroke::solid(MUTED, 1.0));
        svg.text(PLOT.x + PLOT.width / 2.0, PLOT.bottom() + 35.0, &self.x_label, middle);
        svg.text(0.0, PLOT.y - 12.0, &self.y_label, TextStyle { anchor: Anchor::Start, ..style });
    }

    /// Draws the runs of points between gaps; gives where the last one ended.
    fn draw_series(&self, svg: &mut Svg, index: usize, series: &Series, x: &Axis, y: &Axis) -> Option<(f64, f64)> {
        let (colour, dash) = look(index);
        let shown = |(px, py): (f64, f64)| {
            format!("{}: {} at {} {}", series.name, significant(py, 5), self.x_label, significant(px, 6))
        };
        let mut end = None;
        for run in series.points.split(|point| !self.drawn(point)).filter(|run| !run.is_empty()) {
            let places: Vec<(f64, f64)> = run.iter().map(|&(px, py)| (x.place(px), y.place(py))).collect();
            if let [place] = places[..] {
                svg.dot(place, 3.0, &colour, Some(&shown(run[0])));
            } else {
                svg.polyline(&thin(&places), Stroke { colour: &colour, width: 1.75, dash });
            }
            if places.len() > 1 && series.points.len() <= FEW {
                for (&place, &point) in places.iter().zip(run) {
                    svg.dot(place, 2.5, &colour, Some(&shown(point)));
                }
            }
            end = places.last().copied();
        }
        end
    }
}

fn look(index: usize) -> (String, &'static str) {
    (hex(category(index)), DASHES[index % DASHES.len()])
}

/// Names beside the lines' ends, pushed apart where they would overlap, each behind a sample of its line.
fn draw_names(svg: &mut Svg, names: &[String], ends: &[(usize, (f64, f64))]) {
    let mut order: Vec<(usize, Option<(f64, f64)>)> = ends.iter().map(|&(i, end)| (i, Some(end))).collect();
    order.sort_by(|a, b| a.1.map_or(0.0, |p| p.1).total_cmp(&b.1.map_or(0.0, |p| p.1)));
    order.extend((0..names.len()).filter(|i| !ends.iter().any(|(j, _)| i == j)).map(|i| (i, None)));
    let wanted: Vec<f64> = order.iter().map(|(_, end)| end.map_or(PLOT.bottom(), |(_, y)| y)).collect();
    let levels = spread(&wanted, LABEL + 4.0, (PLOT.y + 4.0, PLOT.bottom() - 4.0));
    for (&(index, end), level) in order.iter().zip(levels) {
        let (colour, dash) = look(index);
        let x = PLOT.right() + 8.0;
        if let Some((end_x, end_y)) = end {
            let edge = (PLOT.right(), end_y);
            svg.strokes(&[((end_x, end_y), edge), (edge, (x, level))], Stroke::solid("#b3b8c1", 0.75));
            svg.strokes(&[((x, level), (x + 20.0, level))], Stroke { colour: &colour, width: 2.5, dash });
        }
        let fill = if end.is_some() { INK } else { MUTED };
        svg.text(
            x + 25.0,
            level + 4.0,
            &names[index],
            TextStyle { size: LABEL, anchor: Anchor::Start, fill, bold: false },
        );
    }
}

/// The nearest places to `wanted` (ascending) that are `gap` apart and, as far as all fit, within `low..=high`.
fn spread(wanted: &[f64], gap: f64, (low, high): (f64, f64)) -> Vec<f64> {
    let mut places: Vec<f64> = Vec::with_capacity(wanted.len());
    for &want in wanted {
        let least = places.last().map_or(low, |last| last + gap);
        places.push(want.max(least));
    }
    let mut most = high;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - gap;
    }
    // Too many for the room: keep them apart and let them run over the lower end.
    let missing = low - places.first().copied().unwrap_or(low);
    if missing > 0.0 {
        for place in &mut places {
            *place += missing;
        }
    }
    places
}

/// What can be seen of many points: of each half unit of paper the first, least, greatest and last.
fn thin(places: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut seen = Vec::new();
    let column = |place: &(f64, f64)| (place.0 * 2.0).floor() as i64;
    for bucket in places.chunk_by(|a, b| column(a) == column(b)) {
        if bucket.len() <= 4 {
            seen.extend_from_slice(bucket);
            continue;
        }
        let by_y = |a: &usize, b: &usize| bucket[*a].1.total_cmp(&bucket[*b].1);
        let least = (0..bucket.len()).min_by(by_y).unwrap_or(0);
        let greatest = (0..bucket.len()).max_by(by_y).unwrap_or(0);
        let mut kept = [0, least, greatest, bucket.len() - 1];
        kept.sort_unstable();
        seen.extend(kept.map(|i| bucket[i]));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(&[10.0, 10.0, 10.0], &[10.0, 26.0, 42.0])]
    #[case(&[10.0, 95.0, 99.0], &[10.0, 84.0, 100.0])]
    #[case(&[20.0, 50.0, 80.0], &[20.0, 50.0, 80.0])]
    fn names_keep_apart(#[case] wanted: &[f64], #[case] places: &[f64]) {
        assert_eq!(spread(wanted, 16.0, (0.0, 100.0)), places);
    }

    #[test]
    fn too_many_names_still_keep_apart() {
        let places = spread(&[50.0; 20], 16.0, (0.0, 100.0));
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= 15.999) && places[0] >= 0.0);
    }

    #[test]
    fn thinning_keeps_ends_and_extremes() {
        let places: Vec<(f64, f64)> =
            (0..100_000).map(|i| (f64::from(i) * 0.001, f64::from((i * 7919) % 1009))).collect();
        let thinned = thin(&places);
        assert!(thinned.len() <= 4 * 201, "{}", thinned.len());
        assert_eq!((thinned[0], thinned[thinned.len() - 1]), (places[0], places[99_999]));
        let extremes =
            |points: &[(f64, f64)]| points.iter().fold((1e9_f64, -1e9_f64), |(a, b), p| (a.min(p.1), b.max(p.1)));
        assert_eq!(extremes(&thinned), extremes(&places));
        assert!(thinned.windows(2).all(|pair| pair[0].0 <= pair[1].0));
    }
}
