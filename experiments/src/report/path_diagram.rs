//! Paths: which groups and experts each task takes, layer by layer.
//!
//! A row a task and a column a layer: in each panel the task's root at the left, then a column a level of the hierarchy, the experts at
//! the right. A line's width is the share of the task that takes the node it leads to. Experts stand below one another in the order of the
//! hierarchy, a group amid its experts: a node has the same place in all panels, so tasks are compared down a column. Where half of
//! all experts are taken, the lines of several tasks in one panel would hide one another.

use super::colour::{category, hex};
use super::csv::Csv;
use super::layers::shown_layers;
use super::mark::mark;
use super::measure::{shorten, widest, width};
use super::number::significant;
use super::plot::Plot;
use super::svg::{Anchor, Area, INK, MUTED, MarkStyle, Point, Stroke, Svg, TextStyle};
use super::tree::{Tree, TreeLevel};
use tinyonn::{Error, Result};

const WIDTH: f64 = 1060.0;
const LABEL: f64 = 11.0;
const SMALL: f64 = 8.5;
/// Room at the right of a panel for the names of experts.
const NAMES: f64 = 40.0;
/// Room at the right of a panel without them.
const GAP: f64 = 20.0;
/// Room below a panel.
const BELOW: f64 = 20.0;
/// The height of all panels of a layer, if none gets too low or too high to read.
const HEIGHT: f64 = 950.0;
/// Lesser shares are not drawn.
const LEAST: f64 = 0.02;
/// The width of a share of one, where nodes lie far enough apart.
const WIDEST: f64 = 4.5;
const IDLE: &str = "#c3c8d0";

/// Which nodes of a hierarchy each task takes.
///
/// Of more than eight layers eight are drawn, evenly spaced from the first to the last, and no share below 2 % is; a note below the
/// panels says so. Nodes that a task does not take are pale. The CSV has all layers and shares: `layer`, `task`, `level`, `node` and the share label.
///
/// ```
/// use experiments::report::{PathDiagram, Plot, TreeLevel};
///
/// let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
/// let paths = PathDiagram {
///     title: "Where the tasks go".into(),
///     tasks: names(&["code", "prose"]),
///     levels: vec![
///         TreeLevel { name: "group".into(), nodes: names(&["A", "B"]), parents: vec![] },
///         TreeLevel { name: "expert".into(), nodes: names(&["A.0", "A.1", "B.0"]), parents: vec![0, 0, 1] },
///     ],
///     share_label: "share of tokens".into(),
///     shares: vec![vec![
///         vec![vec![0.9, 0.1], vec![0.9, 0.0, 0.1]],
///         vec![vec![0.0, 1.0], vec![0.0, 0.0, 1.0]],
///     ]],
/// };
/// assert!(paths.svg()?.to_string().contains("<title>layer 0, code: expert A.0 0.9</title>"));
/// assert!(paths.csv().contains("\n0,prose,group,B,1.0\n"));
/// # Ok::<(), tinyonn::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PathDiagram {
    /// What the figure shows.
    pub title: String,
    /// The tasks' names.
    pub tasks: Vec<String>,
    /// The levels of the hierarchy, from the root's children to the experts.
    pub levels: Vec<TreeLevel>,
    /// What the shares are shares of.
    pub share_label: String,
    /// `[layer][task][level][node]`: the share of the task that takes the node, from 0 to 1.
    pub shares: Vec<Vec<Vec<Vec<f64>>>>,
}

/// Where everything goes.
struct Layout {
    tree: Tree,
    /// The layers that are drawn.
    layers: Vec<usize>,
    /// The first panel; the others follow `pitch` apart.
    panel: Area,
    pitch: (f64, f64),
    /// The width of a share of one.
    widest: f64,
    size: (f64, f64),
}

impl Layout {
    fn panel(&self, column: usize, task: usize) -> Area {
        let (x, y) = (self.panel.x + column as f64 * self.pitch.0, self.panel.y + task as f64 * self.pitch.1);
        Area { x, y, ..self.panel }
    }
}

impl Plot for PathDiagram {
    /// Draws the panels. Refused if shares do not match tasks, levels and nodes, or a parent is none.
    fn svg(&self) -> Result<Svg> {
        self.check()?;
        let layout = self.layout();
        let mut svg = Svg::new(layout.size.0, layout.size.1, &self.title);
        let title = shorten(&self.title, 15.0, layout.size.0);
        svg.text(1.5, 16.0, &title, TextStyle { size: 14.0, anchor: Anchor::Start, fill: INK, bold: true });
        for (column, &layer) in layout.layers.iter().enumerate() {
            self.draw_heads(&mut svg, layout.panel(column, 0), layer);
            for task in 0..self.tasks.len() {
                let panel = layout.panel(column, task);
                self.draw_lines(&mut svg, &layout, panel, (layer, task));
                self.draw_nodes(&mut svg, &layout, panel, (layer, task));
                if column == 0 {
                    self.draw_task(&mut svg, panel, task);
                }
                if column + 1 == layout.layers.len() {
                    self.draw_groups(&mut svg, &layout, panel);
                }
            }
        }
        self.draw_note(&mut svg, &layout);
        Ok(svg)
    }

    fn csv(&self) -> String {
        let mut csv = Csv::new(&["layer", "task", "level", "node", &self.share_label]);
        for (layer, tasks) in self.shares.iter().enumerate() {
            let layer = layer.to_string();
            for (task, levels) in self.tasks.iter().zip(tasks) {
                for (level, shares) in self.levels.iter().zip(levels) {
                    for (node, &share) in level.nodes.iter().zip(shares) {
                        let names = [&layer, task, &level.name, node].map(|name| name.as_str().into());
                        csv.line(names.into_iter().chain([share.into()]));
                    }
                }
            }
        }
        csv.finish()
    }
}

impl PathDiagram {
    fn check(&self) -> Result<()> {
        Tree::check(&self.levels)?;
        let nodes: Vec<usize> = self.levels.iter().map(|level| level.nodes.len()).collect();
        let fits = |levels: &Vec<Vec<f64>>| levels.iter().map(Vec::len).eq(nodes.iter().copied());
        for (layer, tasks) in self.shares.iter().enumerate() {
            if tasks.len() != self.tasks.len() || !tasks.iter().all(fits) {
                let problem = format!("the shares of layer {layer} do not match the tasks and the nodes of each level");
                return Err(Error::setting("paths", problem, "give one share for each task, level and node"));
            }
        }
        Ok(())
    }

    fn layout(&self) -> Layout {
        let tree = Tree::new(&self.levels);
        let layers = shown_layers(self.shares.len());
        let (rows, columns) = (self.tasks.len().max(1) as f64, layers.len().max(1) as f64);
        let least = (HEIGHT / rows).clamp(90.0, 190.0);
        let height = tree.height() * (least / tree.height()).clamp(1.2, 24.0);
        let gap = (0..self.levels.len()).map(|level| tree.least_gap(level)).fold(1.0, f64::min) * height;
        let named =
            |layer: &usize| (0..self.tasks.len()).any(|task| !self.named(&tree, height, (*layer, task)).is_empty());
        let names = if layers.iter().any(named) { NAMES } else { GAP };
        let left = widest(self.tasks.iter().map(String::as_str), LABEL).min(130.0) + 16.0;
        let right = widest(self.groups().map_or(&[][..], |level| &level.nodes).iter().map(String::as_str), LABEL);
        let room = WIDTH - left - right.min(120.0) - 16.0;
        let pitch = (room / columns).clamp(100.0, 330.0);
        let panel = Area { x: left, y: 64.0, width: pitch - names - 14.0, height };
        let across = left + pitch * columns + right.min(120.0) + 16.0;
        let size =
            (across.max(width(&self.note(&layers), LABEL) + 10.0).max(520.0), panel.y + (height + BELOW) * rows + 38.0);
        Layout { tree, layers, panel, pitch: (pitch, height + BELOW), widest: (0.9 * gap).clamp(1.0, WIDEST), size }
    }

    /// The level above the last: its names stand at the right.
    fn groups(&self) -> Option<&TreeLevel> {
        self.levels.len().checked_sub(2).map(|level| &self.levels[level])
    }

    /// Where a node stands in a panel.
    fn place(&self, layout: &Layout, panel: Area, level: usize, node: usize) -> Point {
        let x = panel.x + panel.width * (level + 1) as f64 / self.levels.len() as f64;
        (x, panel.y + layout.tree.place(level, node) * panel.height)
    }

    /// The experts of a panel that are named, those taken most first: all that there is room for, but none if that is less than half.
    fn named(&self, tree: &Tree, height: f64, (layer, task): (usize, usize)) -> Vec<usize> {
        let Some(last) = self.levels.len().checked_sub(1) else { return Vec::new() };
        let shares = &self.shares[layer][task][last];
        let mut taken: Vec<usize> = (0..shares.len()).filter(|&node| shares[node] >= LEAST).collect();
        taken.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]).then(a.cmp(&b)));
        let count = taken.len();
        let mut named: Vec<usize> = Vec::new();
        for node in taken {
            let apart = |other: &usize| (tree.place(last, *other) - tree.place(last, node)).abs() * height;
            if named.iter().all(|other| apart(other) >= SMALL) {
                named.push(node);
            }
        }
        if 2 * named.len() < count { Vec::new() } else { named }
    }

    fn draw_heads(&self, svg: &mut Svg, panel: Area, layer: usize) {
        let style = TextStyle { size: LABEL, anchor: Anchor::Start, fill: INK, bold: true };
        svg.text(panel.x, panel.y - 28.0, &format!("layer {layer}"), style);
        let style = TextStyle { size: 10.0, anchor: Anchor::Middle, fill: MUTED, bold: false };
        let heads = std::iter::once("task").chain(self.levels.iter().map(|level| level.name.as_str()));
        for (i, head) in heads.enumerate() {
            let x = panel.x + panel.width * i as f64 / self.levels.len() as f64;
            svg.text(x, panel.y - 11.0, &shorten(head, 10.0, panel.width / self.levels.len() as f64), style);
        }
    }

    fn draw_lines(&self, svg: &mut Svg, layout: &Layout, panel: Area, (layer, task): (usize, usize)) {
        let colour = hex(category(task));
        for (level, shares) in self.shares[layer][task].iter().enumerate() {
            for (node, &share) in shares.iter().enumerate().filter(|(_, share)| **share >= LEAST) {
                let from = match level {
                    0 => root(panel),
                    _ => self.place(layout, panel, level - 1, self.levels[level].parents[node]),
                };
                let (name, node_name) = (&self.levels[level].name, &self.levels[level].nodes[node]);
                let told = format!("layer {layer}, {}: {name} {node_name} {}", self.tasks[task], significant(share, 3));
                let stroke = Stroke::solid(&colour, (share.min(1.0) * layout.widest).max(0.4));
                svg.curve(from, self.place(layout, panel, level, node), stroke, &told);
            }
        }
    }

    /// Nodes, pale where the task does not come, the task's mark, and the names of its experts.
    fn draw_nodes(&self, svg: &mut Svg, layout: &Layout, panel: Area, (layer, task): (usize, usize)) {
        for (l, shares) in self.shares[layer][task].iter().enumerate() {
            let half = (layout.tree.least_gap(l) * panel.height * 0.4).clamp(0.6, 4.0);
            for taken in [false, true] {
                let nodes = (0..shares.len()).filter(|&node| (shares[node] >= LEAST) == taken);
                let places = nodes.map(|node| self.place(layout, panel, l, node));
                let bars: Vec<_> = places.map(|(x, y)| ((x, y - half), (x, y + half))).collect();
                svg.strokes(&bars, Stroke::solid(if taken { INK } else { IDLE }, if taken { 2.5 } else { 1.5 }));
            }
        }
        let colour = hex(category(task));
        let look = MarkStyle { mark: mark(task), radius: 4.5, fill: &colour, opacity: 1.0 };
        svg.marks(&[root(panel)], look, Some(&self.tasks[task]));
        let Some(last) = self.levels.len().checked_sub(1) else { return };
        for expert in self.named(&layout.tree, panel.height, (layer, task)) {
            let (x, y) = self.place(layout, panel, last, expert);
            let style = TextStyle { size: SMALL, anchor: Anchor::Start, fill: INK, bold: false };
            svg.text(x + 6.0, y + 3.0, &shorten(&self.levels[last].nodes[expert], SMALL, NAMES - 8.0), style);
        }
    }

    fn draw_task(&self, svg: &mut Svg, panel: Area, task: usize) {
        let style = TextStyle { size: LABEL, anchor: Anchor::End, fill: INK, bold: false };
        let (x, y) = root(panel);
        svg.text(x - 9.0, y + 4.0, &shorten(&self.tasks[task], LABEL, 130.0), style);
    }

    /// Brackets at the right of a row: which experts belong to which group.
    fn draw_groups(&self, svg: &mut Svg, layout: &Layout, panel: Area) {
        let Some(level) = self.levels.len().checked_sub(2) else { return };
        let x = panel.x + layout.pitch.0 - 14.0;
        let style = TextStyle { size: LABEL, anchor: Anchor::Start, fill: MUTED, bold: false };
        let mut brackets = Vec::new();
        let mut below = f64::NEG_INFINITY;
        for (group, name) in self.levels[level].nodes.iter().enumerate() {
            let (top, bottom) = layout.tree.span(level, group);
            let (top, bottom) = (panel.y + top * panel.height, panel.y + bottom * panel.height);
            brackets.push(((x, top - 1.5), (x, bottom + 1.5)));
            let y = f64::midpoint(top, bottom);
            if y - below >= LABEL {
                svg.text(x + 6.0, y + 4.0, &shorten(name, LABEL, 120.0), style);
                below = y;
            }
        }
        svg.strokes(&brackets, Stroke::solid(MUTED, 1.0));
    }

    /// What widths mean, and what is left out.
    fn draw_note(&self, svg: &mut Svg, layout: &Layout) {
        let style = TextStyle { size: LABEL, anchor: Anchor::Start, fill: MUTED, bold: false };
        let y = layout.size.1 - 28.0;
        svg.text(0.0, y + 4.0, &self.share_label, style);
        let mut x = width(&self.share_label, LABEL) + 16.0;
        for share in [0.1, 0.5, 1.0] {
            svg.strokes(&[((x, y), (x + 30.0, y))], Stroke::solid(MUTED, share * layout.widest));
            let text = format!("{} %", significant(100.0 * share, 3));
            svg.text(x + 36.0, y + 4.0, &text, style);
            x += 36.0 + width(&text, LABEL) + 16.0;
        }
        svg.text(0.0, y + 22.0, &self.note(&layout.layers), style);
    }

    fn note(&self, layers: &[usize]) -> String {
        let few = if layers.len() < self.shares.len() {
            format!("{} of {} layers are drawn, evenly spaced. ", layers.len(), self.shares.len())
        } else {
            String::new()
        };
        format!("{few}Shares below {} % are not drawn.", significant(100.0 * LEAST, 3))
    }
}

/// Where a task stands in a panel.
fn root(panel: Area) -> Point {
    (panel.x, panel.y + 0.5 * panel.height)
}
