//! Classes as Gaussians in a plane, over the points they were fitted to or over those of other classes: what a router sees along
//! its two leading LDA axes, and the densities it holds against that.
//!
//! A class is an ellipse {x : (x − μ)ᵀ Σ⁻¹ (x − μ) = k²} for k = 1 and k = 2. Classes differ in mark and dashes as well as in
//! colour, and each is named at its mean.

use super::axis::Axis;
use super::colour::{category, hex};
use super::csv::{Csv, Field};
use super::mark::mark;
use super::measure::{shorten, width};
use super::number::significant;
use super::plot::Plot;
use super::svg::{Anchor, Area, DASHES, GRID, INK, MUTED, MarkStyle, Point, Stroke, Svg, TextStyle};
use tinyonn::{Error, Result};

const PLOT: Area = Area { x: 52.0, y: 46.0, width: 680.0, height: 480.0 };
const LABEL: f64 = 13.0;
const TICK: f64 = 11.0;
/// At most so many points of a class are drawn.
const POINTS: usize = 400;
/// The plane holds so many standard deviations of every class.
const REACH: f64 = 3.0;
const CORNERS: u32 = 72;
/// The points of a cloud.
const CLOUD: &str = "#8d94a1";

/// A labelled class.
#[derive(Debug, Clone)]
pub struct DensityClass {
    /// Its name, printed at its mean.
    pub name: String,
    /// Its points.
    pub points: Vec<[f64; 2]>,
    /// The Gaussian's mean.
    pub mean: [f64; 2],
    /// The Gaussian's covariance, symmetric.
    pub covariance: [[f64; 2]; 2],
}

/// Points of labelled classes in a plane, with a Gaussian a class; behind them, pale, points of a cloud that has classes of its own.
///
/// Of each class at most 400 points are drawn, evenly taken from all of them; the plane ends three standard deviations from
/// the outermost means. [`Density::caption`] says so in words. In the CSV, `record` is `point` or `mean`, or `cloud` for a point of the cloud; a
/// row holds the class, its place on both axes, and for a mean the variances and the covariance. The points are those that are taken
/// for the picture.
///
/// ```
/// use experiments::report::{Density, DensityClass, Plot};
///
/// let class = |name: &str, x: f64| DensityClass {
///     name: name.into(),
///     points: vec![[x - 0.5, 0.1], [x + 0.5, -0.1]],
///     mean: [x, 0.0],
///     covariance: [[0.5, 0.1], [0.1, 0.3]],
/// };
/// let density = Density {
///     title: "Router density, layer 2".into(),
///     x_label: "first LDA axis".into(),
///     y_label: "second LDA axis".into(),
///     classes: vec![class("code", -1.0), class("prose", 1.5)],
///     cloud: vec![],
/// };
/// assert!(density.svg()?.to_string().contains(">code</text>"));
/// assert!(density.csv().contains("\nprose,mean,1.5,0.0,0.5,0.1,0.3\n"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Density {
    /// What the figure shows.
    pub title: String,
    /// What the first coordinate is.
    pub x_label: String,
    /// What the second coordinate is.
    pub y_label: String,
    /// The classes, in the order of their colours.
    pub classes: Vec<DensityClass>,
    /// Classes whose points and names alone are drawn, in grey.
    pub cloud: Vec<DensityClass>,
}

impl DensityClass {
    /// The points that are drawn, evenly taken.
    fn sample(&self) -> impl Iterator<Item = [f64; 2]> {
        let (count, taken) = (self.points.len(), self.points.len().min(POINTS));
        (0..taken).map(move |i| self.points[i * count / taken])
    }

    fn is_finite(&self) -> bool {
        self.mean.iter().chain(self.covariance.as_flattened()).all(|v| v.is_finite())
    }

    /// Standard deviations along the axes.
    fn deviations(&self) -> [f64; 2] {
        [0, 1].map(|i| self.covariance[i][i].max(0.0).sqrt())
    }

    /// The corners of the ellipse at `k` standard deviations: μ + k L (cos θ, sin θ), with Σ = L Lᵀ by Cholesky.
    fn ellipse(&self, k: f64) -> impl Iterator<Item = [f64; 2]> {
        let [a, _] = self.deviations();
        let b = if a > 0.0 { self.covariance[0][1] / a } else { 0.0 };
        let c = (self.covariance[1][1] - b * b).max(0.0).sqrt();
        (0..=CORNERS).map(move |i| {
            let (sin, cos) = (std::f64::consts::TAU * f64::from(i % CORNERS) / f64::from(CORNERS)).sin_cos();
            [self.mean[0] + k * a * cos, self.mean[1] + k * (b * cos + c * sin)]
        })
    }
}

impl Plot for Density {
    /// Draws the classes. Refused if a covariance is not symmetric.
    fn svg(&self) -> Result<Svg> {
        let odd = |class: &&DensityClass| {
            let [[a, b], [c, d]] = class.covariance;
            (b - c).abs() > 1e-9 * (a.abs() + d.abs())
        };
        if let Some(class) = self.classes.iter().find(odd) {
            let problem = format!("the covariance of class `{}` is not symmetric", class.name);
            return Err(Error::setting("density", problem, "give Σ with Σ[0][1] = Σ[1][0]"));
        }
        let (x, y) = self.axes();
        let mut svg = Svg::new(PLOT.right() + 24.0, PLOT.bottom() + 42.0, &self.title);
        self.draw_frame(&mut svg, &x, &y);
        let place = |[px, py]: [f64; 2]| (x.place(px), y.place(py));
        let mut points = |i: usize, class: &DensityClass, fill: &str| {
            let look = MarkStyle { mark: mark(i), radius: 2.0, fill, opacity: 0.4 };
            let places: Vec<Point> = class.sample().map(place).filter(|&at| on_paper(at)).collect();
            svg.marks(&places, look, Some(&class.name));
        };
        self.cloud.iter().enumerate().for_each(|(i, class)| points(i, class, CLOUD));
        self.classes.iter().enumerate().for_each(|(i, class)| points(i, class, &hex(category(i))));
        for (i, class) in self.classes.iter().enumerate().filter(|(_, class)| class.is_finite()) {
            let (colour, dash) = (hex(category(i)), DASHES[i % DASHES.len()]);
            for (k, width) in [(1.0, 2.0), (2.0, 1.25)] {
                let corners: Vec<Point> = class.ellipse(k).map(place).collect();
                svg.polyline(&corners, Stroke::solid("#ffffff", width + 1.5));
                svg.polyline(&corners, Stroke { colour: &colour, width, dash });
            }
        }
        self.draw_names(&mut svg, place);
        Ok(svg)
    }

    fn csv(&self) -> String {
        let moments = ["x variance", "x y covariance", "y variance"];
        let mut csv = Csv::new(&["class", "record", &self.x_label, &self.y_label, moments[0], moments[1], moments[2]]);
        for class in &self.classes {
            let mut row = |record: &str, [x, y]: [f64; 2], moments: [Field<'_>; 3]| {
                let place = [class.name.as_str().into(), record.into(), x.into(), y.into()];
                csv.line(place.into_iter().chain(moments));
            };
            let [[a, b], [_, c]] = class.covariance;
            row("mean", class.mean, [a.into(), b.into(), c.into()]);
            class.sample().for_each(|point| row("point", point, [Field::EMPTY, Field::EMPTY, Field::EMPTY]));
        }
        for class in &self.cloud {
            for [x, y] in class.sample() {
                let place = [class.name.as_str().into(), "cloud".into(), x.into(), y.into()];
                csv.line(place.into_iter().chain([Field::EMPTY, Field::EMPTY, Field::EMPTY]));
            }
        }
        csv.finish()
    }
}

impl Density {
    /// What is drawn, in a sentence for the figure's caption.
    #[must_use]
    pub fn caption(&self) -> String {
        let (x, y) = self.axes();
        let all: usize = self.all().map(|class| class.points.len()).sum();
        let taken: usize = self.all().map(|class| class.sample().count()).sum();
        let on = |[px, py]: &[f64; 2]| on_paper((x.place(*px), y.place(*py)));
        let drawn: usize = self.all().map(|class| class.sample().filter(on).count()).sum();
        let sample = if taken < all {
            format!(" {taken} of {all} points are taken, evenly from the text, at most {POINTS} a class.")
        } else {
            String::new()
        };
        let beyond = match taken - drawn {
            0 => String::new(),
            beyond => format!(" {beyond} of them lie beyond the picture."),
        };
        format!("Ellipses at 1σ and 2σ of each Gaussian hold 39 % and 86 % of its mass.{sample}{beyond}")
    }

    fn all(&self) -> impl Iterator<Item = &DensityClass> {
        self.classes.iter().chain(&self.cloud)
    }

    fn axes(&self) -> (Axis, Axis) {
        let range = |i: usize| {
            let classes = self.all().filter(|class| class.is_finite());
            let reach = classes.map(|class| (class.mean[i], REACH * class.deviations()[i]));
            let ends = reach.map(|(mean, reach)| (mean - reach, mean + reach));
            ends.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap_or((0.0, 1.0))
        };
        let ((left, right), (low, high)) = (range(0), range(1));
        (Axis::exact(left, right, 8, (PLOT.x, PLOT.right())), Axis::exact(low, high, 6, (PLOT.bottom(), PLOT.y)))
    }

    fn draw_frame(&self, svg: &mut Svg, x: &Axis, y: &Axis) {
        let title = shorten(&self.title, 15.0, svg.width());
        svg.text(1.5, 16.0, &title, TextStyle { size: 14.0, anchor: Anchor::Start, fill: INK, bold: true });
        let style = TextStyle { size: TICK, anchor: Anchor::End, fill: MUTED, bold: false };
        let middle = TextStyle { anchor: Anchor::Middle, ..style };
        let mut grid = Vec::new();
        for (place, label) in y.ticks() {
            grid.push(((PLOT.x, place), (PLOT.right(), place)));
            svg.text(PLOT.x - 7.0, place + 4.0, &label, style);
        }
        for (place, label) in x.ticks() {
            grid.push(((place, PLOT.y), (place, PLOT.bottom())));
            svg.text(place, PLOT.bottom() + 17.0, &label, middle);
        }
        svg.strokes(&grid, Stroke::solid(GRID, 1.0));
        svg.frame(PLOT, Stroke::solid(MUTED, 0.75));
        svg.text(PLOT.x + PLOT.width / 2.0, PLOT.bottom() + 35.0, &self.x_label, middle);
        svg.text(0.0, PLOT.y - 12.0, &self.y_label, TextStyle { anchor: Anchor::Start, ..style });
    }

    /// Means, and a name near each, where no other name is; the cloud's names without a mark.
    fn draw_names(&self, svg: &mut Svg, place: impl Fn([f64; 2]) -> Point) {
        let finite = |classes: &'_ [DensityClass]| -> Vec<(usize, Point)> {
            let finite = classes.iter().enumerate().filter(|(_, class)| class.is_finite());
            finite.map(|(i, class)| (i, place(class.mean))).collect()
        };
        let (means, behind) = (finite(&self.classes), finite(&self.cloud));
        let mut taken: Vec<Area> =
            means.iter().map(|&(_, (x, y))| Area { x: x - 6.0, y: y - 6.0, width: 12.0, height: 12.0 }).collect();
        let mut free = |name: &str, at: Point| {
            let name = shorten(name, LABEL, 200.0);
            let area = free_area(at, (width(&name, LABEL), LABEL + 3.0), &taken);
            taken.push(area);
            (name, area)
        };
        let names: Vec<(String, Area)> = means.iter().map(|&(i, at)| free(&self.classes[i].name, at)).collect();
        let style = TextStyle { size: LABEL, anchor: Anchor::Start, fill: INK, bold: true };
        for &(i, at) in &behind {
            let (name, area) = free(&self.cloud[i].name, at);
            lead(svg, at, area, MUTED);
            let style = TextStyle { fill: MUTED, bold: false, ..style };
            svg.text_on_data(area.x, area.y + LABEL - 0.5, &name, style);
        }
        for (&(i, at), (name, area)) in means.iter().zip(&names) {
            lead(svg, at, *area, INK);
            let class = &self.classes[i];
            let [dx, dy] = class.deviations().map(|deviation| significant(deviation, 4));
            let [mx, my] = class.mean.map(|mean| significant(mean, 4));
            let told = format!("{}: mean ({mx}, {my}), standard deviations ({dx}, {dy})", class.name);
            svg.marks(&[at], MarkStyle { mark: mark(i), radius: 6.5, fill: "#ffffff", opacity: 1.0 }, None);
            let colour = hex(category(i));
            svg.marks(&[at], MarkStyle { mark: mark(i), radius: 4.5, fill: &colour, opacity: 1.0 }, Some(&told));
            svg.text_on_data(area.x, area.y + LABEL - 0.5, name, style);
        }
    }
}

/// A line from a mean to its name, where the name lies off it.
fn lead(svg: &mut Svg, (x, y): Point, area: Area, ink: &str) {
    let edge = (x.clamp(area.x, area.right()), y.clamp(area.y, area.bottom()));
    if (edge.0 - x).hypot(edge.1 - y) > 12.0 {
        svg.strokes(&[((x, y), edge)], Stroke::solid("#ffffff", 2.5));
        svg.strokes(&[((x, y), edge)], Stroke::solid(ink, 0.75));
    }
}

fn on_paper((x, y): Point) -> bool {
    (PLOT.x..=PLOT.right()).contains(&x) && (PLOT.y..=PLOT.bottom()).contains(&y)
}

/// The place nearest to `at` for a name of this size that is on the plot and on none of `taken`.
fn free_area((x, y): Point, (width, height): (f64, f64), taken: &[Area]) -> Area {
    let beside = |distance: f64| {
        // Right, left, above, below, and the corners between: unit steps from the mean to the name's own edge.
        let steps =
            [(1.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, -1.0), (-1.0, 1.0)];
        steps.map(|(dx, dy): (f64, f64)| Area {
            x: x + dx * (distance + width / 2.0) - width / 2.0,
            y: y + dy * (distance + height / 2.0) - height / 2.0,
            width,
            height,
        })
    };
    let apart = |a: &Area, b: &Area| a.right() < b.x || b.right() < a.x || a.bottom() < b.y || b.bottom() < a.y;
    let inside = |a: &Area| on_paper((a.x, a.y)) && on_paper((a.right(), a.bottom()));
    let distances = (0..24).map(|i| 8.0 + 8.0 * f64::from(i));
    let mut places = distances.flat_map(beside);
    places.find(|area| inside(area) && taken.iter().all(|other| apart(area, other))).unwrap_or(beside(8.0)[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case([[1.0, 0.0], [0.0, 1.0]])]
    #[case([[2.0, 0.9], [0.9, 0.7]])]
    #[case([[0.01, -0.4], [-0.4, 25.0]])]
    fn an_ellipse_lies_k_deviations_from_its_mean(#[case] covariance: [[f64; 2]; 2], #[values(1.0, 2.0)] k: f64) {
        let class = DensityClass { name: "c".into(), points: vec![], mean: [3.0, -7.0], covariance };
        let [[a, b], [_, d]] = covariance;
        let determinant = a * d - b * b;
        for [x, y] in class.ellipse(k) {
            let (x, y) = (x - 3.0, y + 7.0);
            let distance = (d * x * x - 2.0 * b * x * y + a * y * y) / determinant;
            // Rounding, amplified by the condition of Σ (about 2500 at most).
            assert!((distance - k * k).abs() < 1e-10 * k * k, "{distance}");
        }
    }
}
