//! Lines over a common axis: loss curves, frontiers, scatters.
//!
//! Each series is named at its end rather than in a legend, and differs from the next in dashes or marks as well as in colour.

use super::axis::Axis;
use super::colour::{category, hex};
use super::csv::Csv;
use super::mark::mark;
use super::measure::{shorten, widest};
use super::number::significant;
use super::plot::Plot;
use super::svg::{Anchor, Area, DASHES, GRID, INK, MUTED, MarkStyle, Point, Stroke, Svg, TextStyle};
use tinyonn::{Error, Result};

const PLOT: Area = Area { x: 58.0, y: 46.0, width: 780.0, height: 280.0 };
const LABEL: f64 = 12.0;
const TICK: f64 = 11.0;
/// Up to so many points, each gets a dot and a tooltip, and its interval a whisker.
const FEW: usize = 24;

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeriesStyle {
    /// A line.
    Line,
    /// A line with a mark of the series' own shape at each point.
    Marked,
    /// Marks alone: a scatter, whose x need not ascend.
    Points,
}

/// Named points.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name, printed at its end, of a plain line with the last value.
    pub name: String,
    /// Points `(x, y)`, x ascending. What is not finite (or, on a logarithmic axis, not positive) leaves a gap.
    pub points: Vec<(f64, f64)>,
    /// An interval `(low, high)` of y for each point: a light band, with whiskers or, for many points, edges. One that is not
    /// finite leaves a gap in the band.
    pub interval: Option<Vec<(f64, f64)>>,
    /// How it is drawn.
    pub style: SeriesStyle,
}

impl Series {
    /// A plain line without intervals.
    pub fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, interval: None, style: SeriesStyle::Line }
    }
}

/// Several series over one x. In the CSV a row a point: `series`, the x label, the y label, and where a series has intervals `low` and
/// `high`.
///
/// ```
/// use experiments::report::{Lines, Plot, Series, SeriesStyle};
///
/// let routed = Series {
///     name: "routed".into(),
///     points: vec![(0.25, 0.61), (0.5, 0.83), (1.0, 1.0)],
///     interval: Some(vec![(0.55, 0.66), (0.8, 0.86), (1.0, 1.0)]),
///     style: SeriesStyle::Marked,
/// };
/// let lines = Lines {
///     title: "Frontier".into(),
///     x_label: "active share".into(),
///     y_label: "recovery".into(),
///     series: vec![routed, Series::line("random", vec![(0.25, 0.2), (1.0, 1.0)])],
///     log_x: false,
/// };
/// assert!(lines.svg()?.to_string().contains("<polyline"));
/// assert!(lines.csv().contains("\nrouted,0.5,0.83,0.8,0.86\n") && lines.csv().contains("\nrandom,0.25,0.2,,\n"));
/// # Ok::<(), tinyonn::Error>(())
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

impl Plot for Lines {
    /// Draws the lines; series without a single point are named as such. Refused if a series has not one interval a point.
    fn svg(&self) -> Result<Svg> {
        self.check()?;
        let names = self.end_names();
        let right = widest(names.iter().map(String::as_str), LABEL) + 40.0;
        let mut svg = Svg::new(PLOT.right() + right, PLOT.bottom() + 42.0, &self.title);
        let (x, y) = self.axes();
        self.draw_frame(&mut svg, &x, &y);
        for (i, series) in self.series.iter().enumerate() {
            self.draw_intervals(&mut svg, i, series, (&x, &y));
        }
        let mut ends = Vec::new();
        for (i, series) in self.series.iter().enumerate() {
            if let Some(end) = self.draw_series(&mut svg, i, series, &x, &y) {
                ends.push((i, end));
            }
        }
        self.draw_names(&mut svg, &names, &ends);
        Ok(svg)
    }

    fn csv(&self) -> String {
        let intervals = self.series.iter().any(|series| series.interval.is_some());
        let columns = if intervals { 5 } else { 3 };
        let mut csv = Csv::new(&["series", &self.x_label, &self.y_label, "low", "high"][..columns]);
        for series in &self.series {
            for (i, &(x, y)) in series.points.iter().enumerate() {
                let (low, high) = series.interval.as_ref().and_then(|all| all.get(i).copied()).unzip();
                let fields = [series.name.as_str().into(), x.into(), y.into(), low.into(), high.into()];
                csv.line(fields.into_iter().take(columns));
            }
        }
        csv.finish()
    }
}

impl Lines {
    fn check(&self) -> Result<()> {
        let odd = |series: &&Series| series.interval.as_ref().is_some_and(|all| all.len() != series.points.len());
        let Some(series) = self.series.iter().find(odd) else { return Ok(()) };
        let (points, intervals) = (series.points.len(), series.interval.as_ref().map_or(0, Vec::len));
        let problem = format!("series `{}`: {points} points, {intervals} intervals", series.name);
        Err(Error::setting("lines", problem, "give one interval per point, NaN where there is none"))
    }

    fn end_names(&self) -> Vec<String> {
        let name = |series: &Series| {
            let name = shorten(&series.name, LABEL, 200.0);
            let last = series.points.iter().rev().find(|point| self.drawn(point));
            match last {
                None => format!("{name}: no values"),
                // A number behind marks reads as one of them: `best fixed k 100`.
                Some(_) if series.style != SeriesStyle::Line => name,
                Some((_, y)) => format!("{name} {}", significant(*y, 4)),
            }
        };
        self.series.iter().map(name).collect()
    }

    fn drawn(&self, &(x, y): &(f64, f64)) -> bool {
        x.is_finite() && y.is_finite() && (!self.log_x || x > 0.0)
    }

    /// The points of a series that have an interval, in runs between gaps: `(x, low, high)`.
    fn interval_runs(&self, series: &Series) -> Vec<Vec<(f64, f64, f64)>> {
        let intervals = series.interval.iter().flatten();
        let all: Vec<Option<(f64, f64, f64)>> = series
            .points
            .iter()
            .zip(intervals)
            .map(|(point, &(low, high))| {
                (self.drawn(point) && low.is_finite() && high.is_finite()).then_some((point.0, low, high))
            })
            .collect();
        let runs = all.split(Option::is_none).filter(|run| !run.is_empty());
        runs.map(|run| run.iter().copied().flatten().collect()).collect()
    }

    fn axes(&self) -> (Axis, Axis) {
        let points = || self.series.iter().flat_map(|series| &series.points).filter(|point| self.drawn(point));
        let range = |values: &mut dyn Iterator<Item = f64>, empty| {
            let range = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (v.min(low), v.max(high)));
            if range.0 <= range.1 { range } else { empty }
        };
        let intervals = self.series.iter().flat_map(|series| self.interval_runs(series)).flatten();
        let (left, right) = range(&mut points().map(|p| p.0), (1.0, 10.0));
        let (low, high) =
            range(&mut points().map(|p| p.1).chain(intervals.flat_map(|(_, low, high)| [low, high])), (0.0, 1.0));
        let across = (PLOT.x, PLOT.right());
        let whole = points().all(|(x, _)| x.fract() == 0.0);
        let x = match Axis::exact(left, right, 8, across) {
            _ if self.log_x => Axis::log(left, right, across),
            x if whole && right > left => x.whole(),
            x => x,
        };
        (x, Axis::filled(low, high, (PLOT.bottom(), PLOT.y)))
    }

    fn draw_frame(&self, svg: &mut Svg, x: &Axis, y: &Axis) {
        let title = shorten(&self.title, 15.0, svg.width());
        svg.text(1.5, 16.0, &title, TextStyle { size: 14.0, anchor: Anchor::Start, fill: INK, bold: true });
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

    /// Draws bands, with a whisker for each of few points and edges for many.
    fn draw_intervals(&self, svg: &mut Svg, index: usize, series: &Series, (x, y): (&Axis, &Axis)) {
        let (colour, dash) = look(index);
        let few = series.points.len() <= FEW || series.style == SeriesStyle::Points;
        for run in self.interval_runs(series) {
            let upper: Vec<Point> = run.iter().map(|&(at, _, high)| (x.place(at), y.place(high))).collect();
            let lower: Vec<Point> = run.iter().map(|&(at, low, _)| (x.place(at), y.place(low))).collect();
            if series.style != SeriesStyle::Points && run.len() > 1 {
                let (upper, lower) = (thin(&upper), thin(&lower));
                let outline: Vec<Point> = upper.iter().chain(lower.iter().rev()).copied().collect();
                svg.wash(&outline, &colour, 0.14);
                if !few {
                    svg.polyline(&upper, Stroke { colour: &colour, width: 0.6, dash });
                    svg.polyline(&lower, Stroke { colour: &colour, width: 0.6, dash });
                }
            }
            if few || run.len() == 1 {
                let whisker = |(&high, &low): (&Point, &Point)| {
                    let cap = |(x, y): Point| ((x - 3.0, y), (x + 3.0, y));
                    [(high, low), cap(high), cap(low)]
                };
                let whiskers: Vec<_> = upper.iter().zip(&lower).flat_map(whisker).collect();
                svg.strokes(&whiskers, Stroke::solid(&colour, 1.0));
            }
        }
    }

    /// Draws the runs of points between gaps; gives where the last one ended.
    fn draw_series(&self, svg: &mut Svg, index: usize, series: &Series, x: &Axis, y: &Axis) -> Option<Point> {
        let (colour, dash) = look(index);
        let look = MarkStyle { mark: mark(index), radius: 3.4, fill: &colour, opacity: 1.0 };
        let shown = |i: usize| {
            let (px, py) = series.points[i];
            let interval =
                series.interval.as_ref().map(|all| all[i]).filter(|(low, high)| low.is_finite() && high.is_finite());
            let interval =
                interval.map(|(low, high)| format!(" ({} to {})", significant(low, 5), significant(high, 5)));
            let (at, value) = (significant(px, 6), significant(py, 5));
            format!("{}: {value}{} at {} {at}", series.name, interval.unwrap_or_default(), self.x_label)
        };
        let (mut first, mut end) = (0, None);
        for run in series.points.split(|point| !self.drawn(point)) {
            let places: Vec<Point> = run.iter().map(|&(px, py)| (x.place(px), y.place(py))).collect();
            if places.len() > 1 && series.style != SeriesStyle::Points {
                svg.polyline(&thin(&places), Stroke { colour: &colour, width: 1.75, dash });
            }
            let few = series.points.len() <= FEW;
            match series.style {
                SeriesStyle::Line if few || places.len() == 1 => {
                    let radius = if places.len() == 1 { 3.0 } else { 2.5 };
                    places
                        .iter()
                        .enumerate()
                        .for_each(|(i, &at)| svg.dot(at, radius, &colour, Some(&shown(first + i))));
                }
                SeriesStyle::Line => {}
                _ if few => {
                    places.iter().enumerate().for_each(|(i, &at)| svg.marks(&[at], look, Some(&shown(first + i))));
                }
                _ => svg.marks(&places, MarkStyle { radius: 2.4, ..look }, Some(&series.name)),
            }
            first += run.len() + 1;
            end = places.last().copied().or(end);
        }
        end
    }

    /// Names beside the series' ends, pushed apart where they would overlap, each behind a sample of its line.
    fn draw_names(&self, svg: &mut Svg, names: &[String], ends: &[(usize, Point)]) {
        let mut order: Vec<(usize, Option<Point>)> = ends.iter().map(|&(i, end)| (i, Some(end))).collect();
        order.sort_by(|a, b| a.1.map_or(0.0, |p| p.1).total_cmp(&b.1.map_or(0.0, |p| p.1)));
        order.extend((0..names.len()).filter(|i| !ends.iter().any(|(j, _)| i == j)).map(|i| (i, None)));
        let wanted: Vec<f64> = order.iter().map(|(_, end)| end.map_or(PLOT.bottom(), |(_, y)| y)).collect();
        let levels = spread(&wanted, LABEL + 4.0, (PLOT.y + 4.0, PLOT.bottom() - 4.0));
        for (&(index, end), level) in order.iter().zip(levels) {
            let (colour, dash) = look(index);
            let (x, style) = (PLOT.right() + 8.0, self.series[index].style);
            if let Some((end_x, end_y)) = end {
                let edge = (PLOT.right(), end_y);
                if style != SeriesStyle::Points {
                    svg.strokes(&[((end_x, end_y), edge), (edge, (x, level))], Stroke::solid("#b3b8c1", 0.75));
                    svg.strokes(&[((x, level), (x + 20.0, level))], Stroke { colour: &colour, width: 2.5, dash });
                }
                if style != SeriesStyle::Line {
                    let look = MarkStyle { mark: mark(index), radius: 3.4, fill: &colour, opacity: 1.0 };
                    svg.marks(&[(x + 10.0, level)], look, None);
                }
            }
            let fill = if end.is_some() { INK } else { MUTED };
            let style = TextStyle { size: LABEL, anchor: Anchor::Start, fill, bold: false };
            svg.text(x + 25.0, level + 4.0, &names[index], style);
        }
    }
}

fn look(index: usize) -> (String, &'static str) {
    (hex(category(index)), DASHES[index % DASHES.len()])
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
