//! A small SVG writer: shapes, text and tooltips, everything escaped, every coordinate printed the same way each time.
//!
//! The result is well-formed XML. It refers to nothing outside itself, holds no script and no ids (so that many drawings can
//! stand in one page), and carries its label for readers who cannot see it.

use std::fmt::Write;

use super::mark::Mark;
use super::number::coordinate;

const FONT: &str = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', sans-serif";

/// Ink for text and axes.
pub(super) const INK: &str = "#1d1f24";
/// Ink for what stands back: ticks, units, notes.
pub(super) const MUTED: &str = "#5a606b";
/// Hairlines behind the data.
pub(super) const GRID: &str = "#dfe2e7";

/// What tells lines apart where colour cannot: dashes and gaps of the first, second … series.
pub(super) const DASHES: [&str; 5] = ["", "7 3", "2 2.5", "9 3 2 3", "4 2"];

/// A rectangle on paper; y grows downwards.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Area {
    /// The left edge.
    pub x: f64,
    /// The upper edge.
    pub y: f64,
    /// The width.
    pub width: f64,
    /// The height.
    pub height: f64,
}

impl Area {
    /// The right edge.
    pub fn right(&self) -> f64 {
        self.x + self.width
    }

    /// The lower edge.
    pub fn bottom(&self) -> f64 {
        self.y + self.height
    }
}

/// Which part of a text lies at its x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// Its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// How a text looks.
#[derive(Debug, Clone, Copy)]
pub struct TextStyle<'a> {
    /// The font size.
    pub size: f64,
    /// Where its x lies.
    pub anchor: Anchor,
    /// Its colour.
    pub fill: &'a str,
    /// Heavier than the rest.
    pub bold: bool,
}

/// A place on paper, `(x, y)`.
pub type Point = (f64, f64);

/// How a line looks.
#[derive(Debug, Clone, Copy)]
pub struct Stroke<'a> {
    /// Its colour.
    pub colour: &'a str,
    /// Its width.
    pub width: f64,
    /// Lengths of dashes and gaps (`"6 3"`), empty for a solid line.
    pub dash: &'a str,
}

impl<'a> Stroke<'a> {
    /// A solid line.
    pub fn solid(colour: &'a str, width: f64) -> Self {
        Self { colour, width, dash: "" }
    }

    fn attributes(&self) -> String {
        let mut text = format!(" stroke=\"{}\" stroke-width=\"{}\"", escape(self.colour), coordinate(self.width));
        if !self.dash.is_empty() {
            let _ = write!(text, " stroke-dasharray=\"{}\"", escape(self.dash));
        }
        text
    }
}

/// How marks look.
#[derive(Debug, Clone, Copy)]
pub(super) struct MarkStyle<'a> {
    pub(super) mark: Mark,
    /// Half its size.
    pub(super) radius: f64,
    pub(super) fill: &'a str,
    /// From 0 (nothing) to 1.
    pub(super) opacity: f64,
}

/// A drawing.
///
/// ```
/// use experiments::report::{Anchor, Area, Svg, TextStyle};
///
/// let mut svg = Svg::new(120.0, 40.0, "a box & its name");
/// svg.rect(Area { x: 0.0, y: 0.0, width: 20.0, height: 20.0 }, "#0072b2", Some("7 < 8"));
/// svg.text(24.0, 14.0, "a box", TextStyle { size: 12.0, anchor: Anchor::Start, fill: "#000", bold: false });
/// let text = svg.to_string();
/// assert!(text.contains("<title>7 &lt; 8</title>"));
/// assert!(text.ends_with("</svg>"));
/// ```
#[derive(Debug, Clone)]
pub struct Svg {
    width: f64,
    height: f64,
    label: String,
    body: String,
}

impl Svg {
    /// An empty drawing; `label` says what it shows.
    pub fn new(width: f64, height: f64, label: &str) -> Self {
        Self { width, height, label: escape(label), body: String::new() }
    }

    /// The width.
    pub fn width(&self) -> f64 {
        self.width
    }

    /// The height.
    pub fn height(&self) -> f64 {
        self.height
    }

    /// A line of text whose baseline is at `y`.
    pub fn text(&mut self, x: f64, y: f64, text: &str, style: TextStyle) {
        self.open_text(style, &format!(" x=\"{}\" y=\"{}\"", coordinate(x), coordinate(y)), text);
    }

    /// A line of text turned by `degrees` clockwise about its anchor.
    pub fn turned_text(&mut self, (x, y): (f64, f64), degrees: f64, text: &str, style: TextStyle) {
        let (x, y, turn) = (coordinate(x), coordinate(y), coordinate(degrees));
        self.open_text(style, &format!(" transform=\"translate({x} {y}) rotate({turn})\""), text);
    }

    /// A line of text that stays readable on data: its letters have an edge of paper.
    pub(super) fn text_on_data(&mut self, x: f64, y: f64, text: &str, style: TextStyle) {
        let edge = "stroke=\"#ffffff\" stroke-width=\"3.5\" stroke-linejoin=\"round\" paint-order=\"stroke\"";
        self.open_text(style, &format!(" x=\"{}\" y=\"{}\" {edge}", coordinate(x), coordinate(y)), text);
    }

    fn open_text(&mut self, style: TextStyle, place: &str, text: &str) {
        let anchor = match style.anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let weight = if style.bold { " font-weight=\"600\"" } else { "" };
        let (size, fill, text) = (coordinate(style.size), escape(style.fill), escape(text));
        let _ = writeln!(self.body, "<text{place} font-size=\"{size}\" fill=\"{fill}\"{anchor}{weight}>{text}</text>");
    }

    /// A filled rectangle, with a tooltip if `tooltip` is given.
    pub fn rect(&mut self, area: Area, fill: &str, tooltip: Option<&str>) {
        let [x, y, width, height] = [area.x, area.y, area.width.max(0.0), area.height.max(0.0)].map(coordinate);
        let fill = escape(fill);
        let _ = write!(self.body, "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{fill}\"");
        self.close(tooltip, "rect");
    }

    /// The outline of a rectangle.
    pub fn frame(&mut self, area: Area, stroke: Stroke) {
        let [x, y, width, height] = [area.x, area.y, area.width.max(0.0), area.height.max(0.0)].map(coordinate);
        let stroke = stroke.attributes();
        let _ = writeln!(
            self.body,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"none\" pointer-events=\"none\"{stroke}/>"
        );
    }

    /// A filled dot, with a tooltip if `tooltip` is given.
    pub fn dot(&mut self, (x, y): (f64, f64), radius: f64, fill: &str, tooltip: Option<&str>) {
        let ([x, y, radius], fill) = ([x, y, radius].map(coordinate), escape(fill));
        let _ = write!(self.body, "<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" fill=\"{fill}\"");
        self.close(tooltip, "circle");
    }

    /// Marks of one shape and colour: one element, whatever their number, with a tooltip if `tooltip` is given.
    pub(super) fn marks(&mut self, places: &[Point], look: MarkStyle, tooltip: Option<&str>) {
        if places.is_empty() {
            return;
        }
        let outline = look.mark.outline(look.radius);
        let path: String =
            places.iter().map(|&(x, y)| format!("M{} {}{outline}", coordinate(x), coordinate(y))).collect();
        let (fill, opacity) = (escape(look.fill), coordinate(look.opacity));
        let _ = write!(self.body, "<path d=\"{path}\" fill=\"{fill}\" fill-opacity=\"{opacity}\"");
        self.close(tooltip, "path");
    }

    /// An area of colour within an outline, through which what lies below is seen. The mouse does not see it.
    pub(super) fn wash(&mut self, outline: &[Point], fill: &str, opacity: f64) {
        let (places, fill, opacity) = (places(outline), escape(fill), coordinate(opacity));
        let _ = writeln!(
            self.body,
            "<polygon points=\"{places}\" fill=\"{fill}\" fill-opacity=\"{opacity}\" pointer-events=\"none\"/>"
        );
    }

    /// Lines from point to point.
    pub fn polyline(&mut self, points: &[(f64, f64)], stroke: Stroke) {
        let (places, stroke) = (places(points), stroke.attributes());
        let _ = writeln!(self.body, "<polyline points=\"{places}\" fill=\"none\" stroke-linejoin=\"round\"{stroke}/>");
    }

    /// A curve that leaves `from` and reaches `to` level, with a tooltip.
    pub(super) fn curve(&mut self, from: Point, to: Point, stroke: Stroke, tooltip: &str) {
        let middle = f64::midpoint(from.0, to.0);
        let [x1, y1, x2, y2, middle] = [from.0, from.1, to.0, to.1, middle].map(coordinate);
        let stroke = stroke.attributes();
        let _ = write!(
            self.body,
            "<path d=\"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}\" fill=\"none\" stroke-opacity=\"0.8\"{stroke}"
        );
        self.close(Some(tooltip), "path");
    }

    /// Many separate lines of one look: one element, whatever their number. The mouse does not see them.
    pub fn strokes(&mut self, lines: &[(Point, Point)], stroke: Stroke) {
        if lines.is_empty() {
            return;
        }
        let mut path = String::new();
        for &((x1, y1), (x2, y2)) in lines {
            let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(coordinate);
            let _ = write!(path, "M{x1} {y1}L{x2} {y2}");
        }
        let stroke = stroke.attributes();
        let _ = writeln!(self.body, "<path d=\"{path}\" fill=\"none\" pointer-events=\"none\"{stroke}/>");
    }

    fn close(&mut self, tooltip: Option<&str>, name: &str) {
        let _ = match tooltip {
            Some(text) => writeln!(self.body, "><title>{}</title></{name}>", escape(text)),
            None => writeln!(self.body, "/>"),
        };
    }
}

fn places(points: &[Point]) -> String {
    let place = |&(x, y): &Point| format!("{},{}", coordinate(x), coordinate(y));
    points.iter().map(place).collect::<Vec<_>>().join(" ")
}

impl std::fmt::Display for Svg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (width, height) = (coordinate(self.width), coordinate(self.height));
        writeln!(
            f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\" aria-label=\"{}\" font-family=\"{FONT}\">",
            self.label
        )?;
        write!(f, "{}</svg>", self.body)
    }
}

/// `text` as XML and HTML hold it, in content and in attributes. Characters that XML has no place for become U+FFFD.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(c),
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            _ => escaped.push(c),
        }
    }
    escaped
}
