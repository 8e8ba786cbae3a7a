//! Heatmaps: a colour per (row, column).
//!
//! Cells grow with the room there is. Where they are large enough their values are printed in them, above the half widths of their
//! intervals if these are given; everywhere a tooltip tells the value. On a diverging scale negative cells carry a minus, so that the sign survives a grey printer.

use super::axis::Axis;
use super::colour::{self, Rgb, ink_on};
use super::csv::Csv;
use super::measure::{shorten, widest, width};
use super::number::{decimals, fixed, largest, significant};
use super::plot::Plot;
use super::svg::{Anchor, Area, INK, MUTED, Stroke, Svg, TextStyle};
use tinyonn::{Error, Result};

const PLOT_WIDTH: f64 = 960.0;
const LABEL: f64 = 11.0;
const SMALL: f64 = 9.5;
const TITLE: f64 = 14.0;
const BAR: f64 = 200.0;
const EMPTY: &str = "#fbfbfc";
/// A value that passes an end of the colours by less than this share of the larger end lies on it: shares are sums of many terms.
const ROUNDING: f64 = 1e-9;

/// How values become colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From light (least) to dark (most). It starts at 0 when no value is negative and the least is below half the most.
    Sequential,
    /// From blue (negative) over a neutral 0 to orange (positive), equally far both ways.
    Diverging,
}

/// A matrix as colours. In the CSV a row a cell: the row label, the column label, `group` if columns are grouped, the value label, and
/// `half width` if there is a spread.
///
/// ```
/// use experiments::report::{Heatmap, Plot, Scale};
///
/// let confusion = Heatmap {
///     title: "Router confusion".into(),
///     row_label: "true task".into(),
///     column_label: "predicted group".into(),
///     rows: vec!["code".into(), "prose".into()],
///     columns: vec!["0".into(), "1".into()],
///     values: vec![vec![0.9, 0.1], vec![0.25, 0.75]],
///     scale: Scale::Sequential,
///     column_groups: None,
///     range: None,
///     value_label: "share of tokens".into(),
///     spread: Some(vec![vec![0.02, 0.02], vec![0.05, 0.05]]),
/// };
/// let drawn = confusion.svg()?.to_string();
/// assert!(drawn.contains(">0.750</text>") && drawn.contains(">± 0.050</text>"));
/// assert!(confusion.csv().starts_with("true task,predicted group,share of tokens,half width\ncode,0,0.9,0.02\n"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Heatmap {
    /// What the figure shows.
    pub title: String,
    /// What a row is.
    pub row_label: String,
    /// What a column is.
    pub column_label: String,
    /// The rows' names, from top to bottom.
    pub rows: Vec<String>,
    /// The columns' names, from left to right.
    pub columns: Vec<String>,
    /// `[rows][columns]`; a value that is not finite leaves its cell crossed out.
    pub values: Vec<Vec<f64>>,
    /// How values become colours.
    pub scale: Scale,
    /// Names of neighbouring columns that belong together, and how many each has.
    pub column_groups: Option<Vec<(String, usize)>>,
    /// Least and most of the colours, for maps that are to be compared; by default those of the values. Values beyond take the
    /// colour of the end.
    pub range: Option<(f64, f64)>,
    /// What the values are, with their unit.
    pub value_label: String,
    /// Half the width of each value's interval, `[rows][columns]`; one that is not finite is not shown.
    pub spread: Option<Vec<Vec<f64>>>,
}

/// The range that shows all `values`, for [`Heatmap::range`] of several maps that are to be compared.
pub fn common_range<'a>(values: impl IntoIterator<Item = &'a Vec<Vec<f64>>>) -> Option<(f64, f64)> {
    let all = values.into_iter().flatten().flatten().copied();
    all.filter(|v| v.is_finite()).fold(None, |range, v| match range {
        None => Some((v, v)),
        Some((low, high)) => Some((v.min(low), v.max(high))),
    })
}

/// Where everything goes.
struct Layout {
    cell: (f64, f64),
    plot: Area,
    /// Columns' names stand upright, or turned because they are long.
    turned: bool,
    /// Every how manieth column and row has its name printed.
    strides: (usize, usize),
    /// Where the columns' names end and the scale begins.
    foot: f64,
    size: (f64, f64),
}

/// The colours' ends, and whether values lie beyond them.
struct Ends {
    low: f64,
    high: f64,
    below: bool,
    above: bool,
}

impl Plot for Heatmap {
    fn svg(&self) -> Result<Svg> {
        self.check()?;
        let layout = self.layout();
        let ends = self.ends();
        let mut svg = Svg::new(layout.size.0, layout.size.1, &self.title);
        let title = shorten(&self.title, TITLE * 1.08, layout.size.0);
        svg.text(1.5, 16.0, &title, TextStyle { size: TITLE, anchor: Anchor::Start, fill: INK, bold: true });
        svg.rect(layout.plot, EMPTY, None);
        self.draw_cells(&mut svg, &layout, &ends);
        self.draw_groups(&mut svg, &layout);
        svg.frame(layout.plot, Stroke::solid(MUTED, 0.75));
        self.draw_names(&mut svg, &layout);
        self.draw_scale(&mut svg, &layout, &ends);
        Ok(svg)
    }

    fn csv(&self) -> String {
        let columns = |group, half_width| {
            let all = [(true, &*self.row_label), (true, &*self.column_label), (group, "group")];
            let all = all.into_iter().chain([(true, &*self.value_label), (half_width, "half width")]);
            all.filter_map(|(shown, name)| shown.then_some(name)).collect::<Vec<_>>()
        };
        let mut csv = Csv::new(&columns(self.column_groups.is_some(), self.spread.is_some()));
        for (r, (row, values)) in self.rows.iter().zip(&self.values).enumerate() {
            for (c, (column, &value)) in self.columns.iter().zip(values).enumerate() {
                let group = self.column_groups.as_ref().map(|_| self.group_of(c).unwrap_or_default().into());
                let half = self.spread.as_ref().map(|_| self.half_width(r, c).into());
                let fields = [Some(row.as_str().into()), Some(column.as_str().into()), group, Some(value.into()), half];
                csv.line(fields.into_iter().flatten());
            }
        }
        csv.finish()
    }
}

impl Heatmap {
    fn check(&self) -> Result<()> {
        let refuse = |problem: String| Err(Error::setting("heatmap", problem, "give one value per row and column"));
        if self.values.len() != self.rows.len() {
            return refuse(format!("{} rows of values for {} names", self.values.len(), self.rows.len()));
        }
        if let Some(row) = self.values.iter().find(|row| row.len() != self.columns.len()) {
            return refuse(format!("a row of {} values for {} columns", row.len(), self.columns.len()));
        }
        let shape = self.values.iter().map(Vec::len);
        if self.spread.as_ref().is_some_and(|spread| !spread.iter().map(Vec::len).eq(shape)) {
            return refuse("the spread has not the shape of the values".into());
        }
        if let Some(groups) = &self.column_groups {
            let covered: usize = groups.iter().map(|(_, count)| count).sum();
            if covered != self.columns.len() {
                return refuse(format!("column groups cover {covered} of {} columns", self.columns.len()));
            }
        }
        Ok(())
    }

    /// Half the width of a cell's interval.
    fn half_width(&self, row: usize, column: usize) -> Option<f64> {
        self.spread.as_ref().and_then(|spread| spread.get(row)?.get(column)).copied()
    }

    /// The room that the widest of the values takes in a cell, with its margin.
    fn printed_width(&self) -> f64 {
        let values = self.values.iter().flatten().filter(|v| v.is_finite()).map(|&v| width(&self.printed(v), LABEL));
        let halves = self.spread.iter().flatten().flatten().filter(|v| v.is_finite());
        (values.chain(halves.map(|&v| width(&self.plus_minus(v), SMALL))).fold(0.0, f64::max) + 6.0).max(34.0)
    }

    /// A value as its cell prints it: to the decimals that show three digits of the largest, which all cells, and all maps of one range, share.
    fn printed(&self, value: f64) -> String {
        let ends = self.range.map_or([0.0; 2], |(low, high)| [low, high]);
        match largest(self.values.iter().flatten().copied().chain(ends)) {
            most if (1e-4..1e7).contains(&most) => fixed(value, decimals(most, 3)),
            _ => significant(value, 3),
        }
    }

    fn plus_minus(&self, half_width: f64) -> String {
        format!("± {}", self.printed(half_width))
    }

    fn layout(&self) -> Layout {
        let (rows, columns) = (self.rows.len().max(1) as f64, self.columns.len().max(1) as f64);
        let longest = widest(self.columns.iter().map(String::as_str), LABEL);
        let cell_width = (longest + 12.0).clamp(52.0, 110.0).max(self.printed_width()).min(PLOT_WIDTH / columns);
        let tall = match cell_width {
            wide if wide >= 40.0 && self.spread.is_some() => 40.0,
            wide if wide >= 40.0 => 34.0,
            _ => 26.0,
        };
        let cell_height = (420.0 / rows).clamp(5.0, tall);
        let named = widest(self.rows.iter().map(String::as_str), LABEL).min(200.0);
        let left = named.max(width(&self.row_label, LABEL)) + 10.0;
        let top = 48.0;
        let plot = Area { x: left, y: top, width: cell_width * columns, height: cell_height * rows };
        // `7`, `0:5`: regular rows, of which some stand for all.
        let numeric = self.columns.iter().all(|name| !name.contains(char::is_alphabetic));
        let turned = longest + 6.0 > cell_width && !numeric && cell_width >= 12.0;
        // Names that are skipped in part need air, or their regular row is hard to read.
        let room = if longest + 6.0 > cell_width { longest * 1.6 + 6.0 } else { longest };
        let names = if turned { longest.min(140.0) * 0.72 + 14.0 } else { 18.0 };
        let foot = plot.bottom() + names;
        let strides = (if turned { 1 } else { stride(room, cell_width) }, stride(LABEL + 1.0, cell_height));
        let scale = width(&self.value_label, LABEL) + 34.0 + BAR + 60.0;
        let below = left + width(&self.column_label, LABEL) + 24.0 + scale;
        let size = ((plot.right() + 14.0).max(below).max(width(&self.title, TITLE * 1.08).min(480.0)), foot + 36.0);
        Layout { cell: (cell_width, cell_height), plot, turned, strides, foot, size }
    }

    fn ends(&self) -> Ends {
        let (least, most) = common_range([&self.values]).unwrap_or((0.0, 1.0));
        let (low, high) = self.range.filter(|(low, high)| low.is_finite() && high.is_finite()).unwrap_or((least, most));
        let (low, high) = match self.scale {
            Scale::Sequential if low >= 0.0 && low < high / 2.0 => (0.0, high),
            Scale::Sequential => (low, high),
            Scale::Diverging => (-largest([low, high]), largest([low, high])),
        };
        let slack = ROUNDING * largest([low, high]);
        Ends { low, high, below: least < low - slack, above: most > high + slack }
    }

    fn colour(&self, value: f64, ends: &Ends) -> Rgb {
        let part = if ends.high > ends.low { (value - ends.low) / (ends.high - ends.low) } else { 0.0 };
        match self.scale {
            Scale::Sequential => colour::sequential(part),
            Scale::Diverging if ends.high > ends.low => colour::diverging(part * 2.0 - 1.0),
            Scale::Diverging => colour::diverging(0.0),
        }
    }

    fn draw_cells(&self, svg: &mut Svg, layout: &Layout, ends: &Ends) {
        let (width_, height) = layout.cell;
        let prints = width_ >= self.printed_width() && height >= 16.0;
        let halves = prints && height >= 30.0;
        // Hairlines of paper between cells, while cells are large enough to spare it.
        let gap = if width_.min(height) >= 8.0 { 0.5 } else { 0.0 };
        let (mut crossed, mut dark, mut light) = (Vec::new(), Vec::new(), Vec::new());
        for (r, row) in self.values.iter().enumerate() {
            for (c, &value) in row.iter().enumerate() {
                let (x, y) = (layout.plot.x + c as f64 * width_, layout.plot.y + r as f64 * height);
                let cell = Area { x, y, width: width_ - gap, height: height - gap };
                let tooltip = self.tooltip(r, c, value);
                let half = self.half_width(r, c).filter(|half| half.is_finite());
                if !value.is_finite() {
                    svg.rect(cell, EMPTY, Some(&tooltip));
                    crossed.push(((x, y + height), (x + width_, y)));
                    continue;
                }
                let fill = self.colour(value, ends);
                svg.rect(cell, &colour::hex(fill), Some(&tooltip));
                if prints {
                    let style = TextStyle { size: LABEL, anchor: Anchor::Middle, fill: ink_on(fill), bold: false };
                    let (middle, level) = (x + width_ / 2.0, y + height / 2.0 + 4.0);
                    let half = half.filter(|_| halves);
                    svg.text(middle, level - if half.is_some() { 6.0 } else { 0.0 }, &self.printed(value), style);
                    if let Some(half) = half {
                        svg.text(middle, level + 7.5, &self.plus_minus(half), TextStyle { size: SMALL, ..style });
                    }
                } else if self.scale == Scale::Diverging && value < 0.08 * ends.low {
                    let reach = (width_ * 0.24).min(5.0);
                    let (middle, level) = (x + (width_ - gap) / 2.0, y + (height - gap) / 2.0);
                    let marks = if ink_on(fill) == "#ffffff" { &mut light } else { &mut dark };
                    marks.push(((middle - reach, level), (middle + reach, level)));
                }
            }
        }
        svg.strokes(&crossed, Stroke::solid("#a9afb9", 0.75));
        svg.strokes(&dark, Stroke::solid("#1c3f74", 1.0));
        svg.strokes(&light, Stroke::solid("#ffffff", 1.0));
    }

    fn tooltip(&self, row: usize, column: usize, value: f64) -> String {
        let half = self.half_width(row, column).filter(|half| half.is_finite());
        let group = self.group_of(column).map(|name| format!("{name}, ")).unwrap_or_default();
        let (row, column) = (&self.rows[row], &self.columns[column]);
        let value = if value.is_finite() { significant(value, 5) } else { "no value".into() };
        let half = half.map(|half| format!(" ± {}", significant(half, 3))).unwrap_or_default();
        format!("{} {row}, {group}{} {column}: {value}{half}", self.row_label, self.column_label)
    }

    fn group_of(&self, column: usize) -> Option<&str> {
        let mut end = 0;
        self.column_groups.as_ref()?.iter().find_map(|(name, count)| {
            end += count;
            (column < end).then_some(name.as_str())
        })
    }

    /// Brackets above the map, and a line between groups through it.
    fn draw_groups(&self, svg: &mut Svg, layout: &Layout) {
        let Some(groups) = &self.column_groups else { return };
        let (mut first, mut lines, mut brackets) = (0, Vec::new(), Vec::new());
        for (name, count) in groups {
            let start = layout.plot.x + first as f64 * layout.cell.0;
            let end = start + *count as f64 * layout.cell.0;
            if first > 0 {
                lines.push(((start - 0.25, layout.plot.y), (start - 0.25, layout.plot.bottom())));
            }
            brackets.push(((start + 2.0, layout.plot.y - 5.0), (end - 2.5, layout.plot.y - 5.0)));
            let name = shorten(name, LABEL, end - start - 4.0);
            let style = TextStyle { size: LABEL, anchor: Anchor::Middle, fill: MUTED, bold: false };
            svg.text(f64::midpoint(start, end), layout.plot.y - 10.0, &name, style);
            first += count;
        }
        svg.strokes(&lines, Stroke::solid(INK, 1.0));
        svg.strokes(&brackets, Stroke::solid(MUTED, 1.0));
    }

    fn draw_names(&self, svg: &mut Svg, layout: &Layout) {
        let style = TextStyle { size: LABEL, anchor: Anchor::End, fill: INK, bold: false };
        let (width_, height) = layout.cell;
        for (r, name) in self.rows.iter().enumerate().step_by(layout.strides.1) {
            let y = layout.plot.y + (r as f64 + 0.5) * height + 4.0;
            svg.text(layout.plot.x - 6.0, y, &shorten(name, LABEL, 200.0), style);
        }
        svg.text(layout.plot.x - 6.0, layout.plot.y - 10.0, &self.row_label, TextStyle { fill: MUTED, ..style });
        for (c, name) in self.columns.iter().enumerate().step_by(layout.strides.0) {
            let x = layout.plot.x + (c as f64 + 0.5) * width_;
            if layout.turned {
                let name = shorten(name, LABEL, 140.0);
                svg.turned_text((x + 4.0, layout.plot.bottom() + 11.0), -45.0, &name, style);
            } else {
                let style = TextStyle { anchor: Anchor::Middle, ..style };
                svg.text(x, layout.plot.bottom() + 14.0, name, style);
            }
        }
        let style = TextStyle { anchor: Anchor::Start, fill: MUTED, ..style };
        svg.text(layout.plot.x, layout.foot + 14.0, &self.column_label, style);
    }

    /// The colours with their numbers, below the map at its right.
    fn draw_scale(&self, svg: &mut Svg, layout: &Layout, ends: &Ends) {
        let right = layout.size.0 - 30.0;
        let bar = Area { x: right - BAR, y: layout.foot + 6.0, width: BAR, height: 10.0 };
        let steps = 50;
        let (low, high) = if ends.high > ends.low { (ends.low, ends.high) } else { (ends.low, ends.low + 1.0) };
        for i in 0..steps {
            let value = low + (f64::from(i) + 0.5) / f64::from(steps) * (high - low);
            let x = bar.x + f64::from(i) * BAR / f64::from(steps);
            // A little overlap, or seams of paper show between the steps.
            let step = Area { x, y: bar.y, width: BAR / f64::from(steps) + 0.3, height: bar.height };
            svg.rect(step, &colour::hex(self.colour(value, ends)), None);
        }
        svg.frame(bar, Stroke::solid(MUTED, 0.75));
        let style = TextStyle { size: LABEL, anchor: Anchor::Middle, fill: MUTED, bold: false };
        svg.text(bar.x - 34.0, bar.y + 8.0, &self.value_label, TextStyle { anchor: Anchor::End, ..style });
        for (x, label) in scale_ticks(ends, (bar.x, bar.right())) {
            svg.strokes(&[((x, bar.bottom()), (x, bar.bottom() + 3.0))], Stroke::solid(MUTED, 0.75));
            svg.text(x, bar.bottom() + 14.0, &label, style);
        }
        if self.scale == Scale::Diverging && ends.high > ends.low {
            let level = bar.y + bar.height / 2.0;
            let marks: Vec<_> = (0..4).map(|i| bar.x + 8.0 + 22.0 * f64::from(i)).collect();
            let lines = |xs: &[f64]| xs.iter().map(|&x| ((x, level), (x + 5.0, level))).collect::<Vec<_>>();
            svg.strokes(&lines(&marks[..2]), Stroke::solid("#ffffff", 1.0));
            svg.strokes(&lines(&marks[2..]), Stroke::solid("#1c3f74", 1.0));
        }
    }
}

/// Numbers beside the colours: the ends, and what fits between them.
fn scale_ticks(ends: &Ends, place: (f64, f64)) -> Vec<(f64, String)> {
    if ends.high <= ends.low {
        return vec![(place.0, significant(ends.low, 3))];
    }
    let end =
        |value: f64, beyond: bool, sign: &str| format!("{}{}", if beyond { sign } else { "" }, significant(value, 3));
    let mut ticks = vec![(place.0, end(ends.low, ends.below, "≤ ")), (place.1, end(ends.high, ends.above, "≥ "))];
    // Round numbers between the ends, as far as they keep clear of them.
    let between = Axis::exact(ends.low, ends.high, 5, place).ticks();
    let room = |a: &str, b: &str| f64::midpoint(width(a, LABEL), width(b, LABEL)) + 6.0;
    let clear = |(x, label): &(f64, String)| ticks.iter().all(|(end, name)| (x - end).abs() > room(label, name));
    let between: Vec<_> = between.into_iter().filter(clear).collect();
    ticks.extend(between);
    ticks
}

/// Every how manieth of neighbours `step` apart can be named when a name takes `room`.
fn stride(room: f64, step: f64) -> usize {
    let strides = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000];
    strides.into_iter().find(|&s| s as f64 * step >= room).unwrap_or(1000)
}
