//! Horizontal bars from zero, each with its value printed.

use std::fmt::Write;

use super::axis::Axis;
use super::colour::{category, hex};
use super::csv::Csv;
use super::measure::{shorten, widest, width};
use super::number::{decimals, fixed, largest, significant};
use super::plot::Plot;
use super::svg::{Anchor, Area, GRID, INK, MUTED, Stroke, Svg, TextStyle};
use tinyonn::{Error, Result};

const PLOT_WIDTH: f64 = 620.0;
const LABEL: f64 = 12.0;
const TICK: f64 = 11.0;

/// One bar for each category, all of one colour.
#[derive(Debug, Clone)]
pub struct BarSeries {
    /// What the series is; printed only where there are several.
    pub name: String,
    /// A value for each category; one that is not finite has no bar.
    pub values: Vec<f64>,
    /// An interval `(low, high)` for each category.
    pub whiskers: Option<Vec<(f64, f64)>>,
}

impl BarSeries {
    /// The interval that is drawn on a bar.
    fn interval(&self, category: usize) -> Option<(f64, f64)> {
        let interval = self.whiskers.as_ref()?.get(category).copied()?;
        let drawn = [self.values[category], interval.0, interval.1].iter().all(|v| v.is_finite());
        drawn.then_some(interval)
    }
}

/// Bars in groups, one group a category. In the CSV a row a bar: `category`, `series`, the value label, and where a series has intervals
/// `low` and `high`; the reference is a row without a category.
///
/// ```
/// use experiments::report::{BarSeries, Bars, Plot};
///
/// let bars = Bars {
///     title: "Held-out loss".into(),
///     value_label: "nats per token".into(),
///     categories: vec!["dense".into(), "routed".into()],
///     series: vec![BarSeries { name: "loss".into(), values: vec![2.13, 2.91], whiskers: None }],
///     reference: Some(("dense".into(), 2.13)),
/// };
/// assert!(bars.svg()?.to_string().contains(">2.910</text>"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Bars {
    /// What the figure shows.
    pub title: String,
    /// What the values are, with their unit.
    pub value_label: String,
    /// The groups' names, from top to bottom.
    pub categories: Vec<String>,
    /// The bars of each group, from top to bottom.
    pub series: Vec<BarSeries>,
    /// A named value to compare with: a dashed line through all groups.
    pub reference: Option<(String, f64)>,
}

/// Where everything goes.
struct Layout {
    plot: Area,
    axis: Axis,
    /// A bar's thickness, and the height of a group with its margin.
    bar: f64,
    group: f64,
    /// How many decimals values are printed with; none where they need powers of ten.
    decimals: Option<usize>,
    size: (f64, f64),
}

impl Plot for Bars {
    fn svg(&self) -> Result<Svg> {
        self.check()?;
        let layout = self.layout();
        let mut svg = Svg::new(layout.size.0, layout.size.1, &self.title);
        let title = shorten(&self.title, 15.0, layout.size.0);
        svg.text(1.5, 16.0, &title, TextStyle { size: 14.0, anchor: Anchor::Start, fill: INK, bold: true });
        self.draw_legend(&mut svg, &layout);
        self.draw_axis(&mut svg, &layout);
        for (c, name) in self.categories.iter().enumerate() {
            let y = layout.plot.y + (c as f64 + 0.5) * layout.group + 4.0;
            let style = TextStyle { size: LABEL, anchor: Anchor::End, fill: INK, bold: false };
            svg.text(layout.plot.x - 10.0, y, &shorten(name, LABEL, 280.0), style);
            for s in 0..self.series.len() {
                self.draw_bar(&mut svg, &layout, (c, s));
            }
        }
        self.draw_reference(&mut svg, &layout);
        Ok(svg)
    }

    fn csv(&self) -> String {
        let intervals = self.series.iter().any(|series| series.whiskers.is_some());
        let columns = if intervals { 5 } else { 3 };
        let mut csv = Csv::new(&["category", "series", &self.value_label, "low", "high"][..columns]);
        let mut row = |category: &str, series: &str, value: f64, interval: Option<(f64, f64)>| {
            let (low, high) = interval.unzip();
            let fields = [category.into(), series.into(), value.into(), low.into(), high.into()];
            csv.line(fields.into_iter().take(columns));
        };
        for (c, category) in self.categories.iter().enumerate() {
            for series in &self.series {
                let interval = series.whiskers.as_ref().and_then(|all| all.get(c).copied());
                row(category, &series.name, series.values.get(c).copied().unwrap_or(f64::NAN), interval);
            }
        }
        if let Some((name, value)) = &self.reference {
            row("", name, *value, None);
        }
        csv.finish()
    }
}

impl Bars {
    fn check(&self) -> Result<()> {
        for series in &self.series {
            let intervals = series.whiskers.as_ref().map_or(self.categories.len(), Vec::len);
            if series.values.len() != self.categories.len() || intervals != self.categories.len() {
                let (count, of) = (series.values.len(), self.categories.len());
                let problem =
                    format!("series `{}`: {count} values, {intervals} intervals, {of} categories", series.name);
                return Err(Error::setting("bars", problem, "give one of each per category, NaN where there is none"));
            }
        }
        Ok(())
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        self.series.iter().flat_map(|series| series.values.iter().copied())
    }

    fn layout(&self) -> Layout {
        let intervals = (0..self.categories.len()).flat_map(|c| self.series.iter().filter_map(move |s| s.interval(c)));
        let reference = self.reference.as_ref().map(|(_, value)| *value);
        let all = self.values().chain(intervals.flat_map(|(low, high)| [low, high])).chain(reference);
        let (low, high) = all.filter(|v| v.is_finite()).fold((0.0_f64, 0.0_f64), |(a, b), v| (a.min(v), b.max(v)));
        let decimals = shared_decimals(largest(self.values()));
        let room = self.values().map(|v| width(&printed(v, decimals), LABEL)).fold(0.0, f64::max) + 16.0;
        let named = widest(self.categories.iter().map(String::as_str), LABEL).min(280.0);
        let many = self.series.len() > 1;
        let bar = if many { 15.0 } else { 20.0 };
        let group = bar * self.series.len().max(1) as f64 + if many { 14.0 } else { 8.0 };
        let legend = self.legend();
        let rows = legend.last().map_or(0.0, |(row, _)| f64::from(*row) + 1.0);
        let top = 32.0 + rows * 18.0 + if many { 6.0 } else { 0.0 } + if reference.is_some() { 18.0 } else { 0.0 };
        let plot = Area { x: named + 12.0, y: top, width: PLOT_WIDTH, height: group * self.categories.len() as f64 };
        // Values stand outside their bars' ends, so the bars leave them room where there are any.
        let start = plot.x + if low < 0.0 { room } else { 0.0 };
        let end = plot.right() - if high > 0.0 { room } else { 0.0 };
        let axis = Axis::exact(low, if high > low { high } else { 1.0 }, 6, (start, end));
        Layout { plot, axis, bar, group, decimals, size: (plot.right() + 8.0, plot.bottom() + 40.0) }
    }

    /// Where each series is named: a row, and how far into it. A single series is not.
    fn legend(&self) -> Vec<(u32, f64)> {
        let (mut row, mut x) = (0, 0.0);
        let place = |series: &BarSeries| {
            let room = 16.0 + width(&shorten(&series.name, LABEL, 200.0), LABEL);
            if x > 0.0 && x + room > PLOT_WIDTH {
                (row, x) = (row + 1, 0.0);
            }
            let place = (row, x);
            x += room + 18.0;
            place
        };
        if self.series.len() < 2 { vec![] } else { self.series.iter().map(place).collect() }
    }

    fn draw_legend(&self, svg: &mut Svg, layout: &Layout) {
        for (s, ((row, x), series)) in self.legend().into_iter().zip(&self.series).enumerate() {
            let (x, y) = (layout.plot.x + x, 31.0 + 18.0 * f64::from(row));
            let style = TextStyle { size: LABEL, anchor: Anchor::Start, fill: INK, bold: false };
            svg.rect(Area { x, y, width: 11.0, height: 11.0 }, &hex(category(s)), None);
            svg.text(x + 16.0, y + 10.0, &shorten(&series.name, LABEL, 200.0), style);
        }
    }

    fn draw_axis(&self, svg: &mut Svg, layout: &Layout) {
        let style = TextStyle { size: TICK, anchor: Anchor::Middle, fill: MUTED, bold: false };
        let mut grid = Vec::new();
        for (x, label) in layout.axis.ticks() {
            grid.push(((x, layout.plot.y), (x, layout.plot.bottom())));
            svg.text(x, layout.plot.bottom() + 15.0, &label, style);
        }
        svg.strokes(&grid, Stroke::solid(GRID, 1.0));
        let style = TextStyle { anchor: Anchor::Start, ..style };
        svg.text(layout.plot.x, layout.plot.bottom() + 33.0, &self.value_label, style);
        let zero = layout.axis.place(0.0);
        svg.strokes(&[((zero, layout.plot.y), (zero, layout.plot.bottom()))], Stroke::solid(MUTED, 1.0));
    }

    fn draw_bar(&self, svg: &mut Svg, layout: &Layout, (category_, s): (usize, usize)) {
        let series = &self.series[s];
        let value = series.values[category_];
        let inset = (layout.group - layout.bar * self.series.len() as f64) / 2.0;
        let y = layout.plot.y + category_ as f64 * layout.group + inset + s as f64 * layout.bar;
        let style = TextStyle { size: LABEL, anchor: Anchor::Start, fill: INK, bold: false };
        let zero = layout.axis.place(0.0);
        let baseline = y + layout.bar / 2.0 + 4.2;
        if !value.is_finite() {
            svg.text(zero + 6.0, baseline, "no value", TextStyle { fill: MUTED, ..style });
            return;
        }
        let end = layout.axis.place(value);
        let mut tooltip = format!("{}, {}: {}", self.categories[category_], series.name, significant(value, 6));
        let interval = series.interval(category_);
        if let Some((low, high)) = interval {
            let _ = write!(tooltip, " ({} to {})", significant(low, 6), significant(high, 6));
        }
        let area = Area { x: zero.min(end), y: y + 1.0, width: (end - zero).abs(), height: layout.bar - 2.0 };
        svg.rect(area, &hex(category(s)), Some(&tooltip));
        let (mut left, mut right) = (end, end);
        if let Some((low, high)) = interval {
            let (low, high, middle) = (layout.axis.place(low), layout.axis.place(high), y + layout.bar / 2.0);
            let whisker = [
                ((low, middle), (high, middle)),
                ((low, middle - 4.0), (low, middle + 4.0)),
                ((high, middle - 4.0), (high, middle + 4.0)),
            ];
            // Paper under the ink keeps the whisker visible on dark bars.
            svg.strokes(&whisker, Stroke::solid("#ffffff", 3.5));
            svg.strokes(&whisker, Stroke::solid(INK, 1.25));
            (left, right) = (left.min(low), right.max(high));
        }
        let printed = printed(value, layout.decimals);
        if value < 0.0 {
            svg.text(left - 6.0, baseline, &printed, TextStyle { anchor: Anchor::End, ..style });
        } else {
            svg.text(right + 6.0, baseline, &printed, style);
        }
    }

    fn draw_reference(&self, svg: &mut Svg, layout: &Layout) {
        let Some((name, value)) = self.reference.as_ref().filter(|(_, value)| value.is_finite()) else { return };
        let x = layout.axis.place(*value);
        let line = [((x, layout.plot.y - 4.0), (x, layout.plot.bottom()))];
        svg.strokes(&line, Stroke { colour: INK, width: 1.25, dash: "5 3" });
        let name = format!("{} {}", shorten(name, TICK, 240.0), printed(*value, layout.decimals));
        let half = width(&name, TICK) / 2.0;
        // The name stays on the paper, wherever the line is.
        let middle = x.clamp(half, (layout.size.0 - half).max(half));
        let style = TextStyle { size: TICK, anchor: Anchor::Middle, fill: INK, bold: false };
        svg.text(middle, layout.plot.y - 9.0, &name, style);
    }
}

/// Decimals that all values share: thousandths, or three digits of the largest where even that is less.
fn shared_decimals(largest: f64) -> Option<usize> {
    match largest {
        0.0 => Some(0),
        small if (1e-4..0.01).contains(&small) => Some(decimals(small, 3)),
        usual if (0.01..1e7).contains(&usual) => Some(decimals(usual, 4).min(3)),
        _ => None,
    }
}

fn printed(value: f64, decimals: Option<usize>) -> String {
    decimals.map_or_else(|| significant(value, 4), |decimals| fixed(value, decimals))
}
