//! Paths: which groups and experts each task takes, layer by layer.
//!
//! A panel a layer: tasks at the left, then a column a level of the hierarchy, the experts at the right. A line's width is the share
//! of the task that takes the node it leads to. Experts stand below one another in the order of the hierarchy, a group amid its experts.
//! Tasks differ in mark and dashes as well as in colour, and pass every node in the same order.

use super::colour::{category, hex};
use super::csv::Csv;
use super::mark::mark;
use super::measure::{shorten, widest, width};
use super::number::significant;
use super::plot::Plot;
use super::svg::{Anchor, Area, DASHES, INK, MUTED, MarkStyle, Point, Stroke, Svg, TextStyle};
use super::tree::{Tree, TreeLevel};
use crate::{Error, Result};

const WIDTH: f64 = 1060.0;
const LABEL: f64 = 11.0;
const SMALL: f64 = 8.5;
/// Room at the right of a panel for the names of experts.
const NAMES: f64 = 40.0;
const COLUMNS: usize = 4;
/// At most so many layers have a panel.
const PANELS: usize = 8;
/// Lesser shares are not drawn.
const LEAST: f64 = 0.02;
/// The width of a share of one.
const WIDEST: f64 = 4.5;
const IDLE: &str = "#c3c8d0";

/// Which nodes of a hierarchy each task takes.
///
/// Of more than eight layers eight are drawn, evenly spaced from the first to the last, and no share below 2 % is; a note below the
/// panels says so. Nodes that nobody takes are pale dots. The CSV has all layers and shares: `layer`, `task`, `level`, `node` and the share label.
///
/// ```
/// use tinyonn::report::{PathDiagram, Plot, TreeLevel};
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
    columns: usize,
    size: (f64, f64),
}

impl Plot for PathDiagram {
    /// Draws the panels. Refused if shares do not match tasks, levels and nodes, or a parent is none.
    fn svg(&self) -> Result<Svg> {
        self.check()?;
        let layout = self.layout();
        let mut svg = Svg::new(layout.size.0, layout.size.1, &self.title);
        let title = shorten(&self.title, 15.0, layout.size.0);
        svg.text(1.5, 16.0, &title, TextStyle { size: 14.0, anchor: Anchor::Start, fill: INK, bold: true });
        for (i, &layer) in layout.layers.iter().enumerate() {
            let (row, column) = (i / layout.columns, i % layout.columns);
            let (x, y) =
                (layout.panel.x + column as f64 * layout.pitch.0, layout.panel.y + row as f64 * layout.pitch.1);
            let panel = Area { x, y, ..layout.panel };
            self.draw_heads(&mut svg, panel, layer);
            self.draw_lines(&mut svg, &layout, panel, layer);
            self.draw_nodes(&mut svg, &layout, panel, layer);
            if column == 0 {
                self.draw_tasks(&mut svg, panel);
            }
            if column + 1 == layout.columns || i + 1 == layout.layers.len() {
                self.draw_groups(&mut svg, &layout, panel);
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
        let layers = evenly(self.shares.len(), PANELS);
        let columns = layers.len().clamp(1, COLUMNS);
        let left = widest(self.tasks.iter().map(String::as_str), LABEL).min(130.0) + 16.0;
        let right = widest(self.groups().map_or(&[][..], |level| &level.nodes).iter().map(String::as_str), LABEL);
        let room = WIDTH - left - right.min(120.0) - 16.0;
        let pitch = (room / columns as f64).clamp(120.0, 330.0);
        let least = self.tasks.len() as f64 * 26.0;
        let height = (tree.height() * (400.0 / tree.height().max(1.0)).clamp(1.5, 24.0)).max(least);
        let panel = Area { x: left, y: 64.0, width: pitch - NAMES - 14.0, height };
        let down = height + 62.0;
        let rows = layers.len().div_ceil(columns).max(1);
        let note = width(&self.note(&layers), LABEL) + 10.0;
        let across = left + pitch * columns as f64 + right.min(120.0) + 16.0;
        let size = (across.max(note).max(520.0), panel.y + down * (rows - 1) as f64 + height + 58.0);
        Layout { tree, layers, panel, pitch: (pitch, down), columns, size }
    }

    /// The level above the last: its names stand at the right.
    fn groups(&self) -> Option<&TreeLevel> {
        self.levels.len().checked_sub(2).map(|level| &self.levels[level])
    }

    /// Where a task stands in a panel.
    fn task_place(&self, panel: Area, task: usize) -> Point {
        (panel.x, panel.y + (task as f64 + 0.5) / self.tasks.len() as f64 * panel.height)
    }

    /// Where a node stands in a panel.
    fn node_place(&self, layout: &Layout, panel: Area, level: usize, node: usize) -> Point {
        let x = panel.x + panel.width * (level + 1) as f64 / self.levels.len() as f64;
        (x, panel.y + layout.tree.place(level, node) * panel.height)
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

    /// How far apart tasks pass a node of a level.
    fn slot(&self, layout: &Layout, level: usize) -> f64 {
        (layout.tree.least_gap(level) * layout.panel.height * 0.7 / self.tasks.len().max(1) as f64).min(WIDEST)
    }

    /// A line for each share, tasks side by side where they meet in a node.
    fn draw_lines(&self, svg: &mut Svg, layout: &Layout, panel: Area, layer: usize) {
        let middle = (self.tasks.len() as f64 - 1.0) / 2.0;
        let place = |level: usize, node: usize, task: usize| {
            let (x, y) = self.node_place(layout, panel, level, node);
            (x, y + (task as f64 - middle) * self.slot(layout, level))
        };
        for (task, levels) in self.shares[layer].iter().enumerate() {
            let colour = hex(category(task));
            for (level, shares) in levels.iter().enumerate() {
                for (node, &share) in shares.iter().enumerate().filter(|(_, share)| **share >= LEAST) {
                    let from = match level {
                        0 => self.task_place(panel, task),
                        _ => place(level - 1, self.levels[level].parents[node], task),
                    };
                    let (name, node_name) = (&self.levels[level].name, &self.levels[level].nodes[node]);
                    let told =
                        format!("layer {layer}, {}: {name} {node_name} {}", self.tasks[task], significant(share, 3));
                    let width = (share.min(1.0) * WIDEST).max(0.5);
                    let stroke = Stroke { colour: &colour, width, dash: DASHES[task % DASHES.len()] };
                    svg.curve(from, place(level, node, task), stroke, &told);
                }
            }
        }
    }

    /// Nodes, as high as all tasks side by side and pale where nobody comes, the tasks' marks, and the names of the experts that
    /// are taken most, as far as there is room.
    fn draw_nodes(&self, svg: &mut Svg, layout: &Layout, panel: Area, layer: usize) {
        let most = |level: usize, node: usize| {
            self.shares[layer].iter().map(|levels| levels[level][node]).filter(|v| v.is_finite()).fold(0.0, f64::max)
        };
        for (l, level) in self.levels.iter().enumerate() {
            let half = (self.slot(layout, l) * self.tasks.len() as f64 / 2.0).max(0.8);
            for taken in [false, true] {
                let nodes = (0..level.nodes.len()).filter(|&node| (most(l, node) >= LEAST) == taken);
                let places = nodes.map(|node| self.node_place(layout, panel, l, node));
                let bars: Vec<_> = places.map(|(x, y)| ((x, y - half), (x, y + half))).collect();
                svg.strokes(&bars, Stroke::solid(if taken { INK } else { IDLE }, if taken { 2.0 } else { 1.5 }));
            }
        }
        for task in 0..self.tasks.len() {
            let colour = hex(category(task));
            let look = MarkStyle { mark: mark(task), radius: 4.5, fill: &colour, opacity: 1.0 };
            svg.marks(&[self.task_place(panel, task)], look, Some(&self.tasks[task]));
        }
        let Some(last) = self.levels.len().checked_sub(1) else { return };
        let mut experts: Vec<usize> = (0..self.levels[last].nodes.len()).filter(|&n| most(last, n) >= LEAST).collect();
        experts.sort_by(|&a, &b| most(last, b).total_cmp(&most(last, a)).then(a.cmp(&b)));
        let mut taken: Vec<f64> = Vec::new();
        for expert in experts {
            let (x, y) = self.node_place(layout, panel, last, expert);
            if taken.iter().all(|other| (other - y).abs() >= SMALL) {
                let style = TextStyle { size: SMALL, anchor: Anchor::Start, fill: INK, bold: false };
                svg.text(x + 6.0, y + 3.0, &shorten(&self.levels[last].nodes[expert], SMALL, NAMES - 8.0), style);
                taken.push(y);
            }
        }
    }

    fn draw_tasks(&self, svg: &mut Svg, panel: Area) {
        let style = TextStyle { size: LABEL, anchor: Anchor::End, fill: INK, bold: false };
        for (task, name) in self.tasks.iter().enumerate() {
            let (x, y) = self.task_place(panel, task);
            svg.text(x - 9.0, y + 4.0, &shorten(name, LABEL, 130.0), style);
        }
    }

    /// Brackets at the right of a row: which experts belong to which group.
    fn draw_groups(&self, svg: &mut Svg, layout: &Layout, panel: Area) {
        let Some(level) = self.levels.len().checked_sub(2) else { return };
        let x = panel.right() + NAMES;
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
            svg.strokes(&[((x, y), (x + 30.0, y))], Stroke::solid(MUTED, share * WIDEST));
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

/// At most `most` of `0..count`, evenly spaced, with both ends.
fn evenly(count: usize, most: usize) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    (0..most).map(|i| (i * (count - 1) + (most - 1) / 2) / (most - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case(3, &[0, 1, 2])]
    #[case(8, &[0, 1, 2, 3, 4, 5, 6, 7])]
    #[case(28, &[0, 4, 8, 12, 15, 19, 23, 27])]
    #[case(9, &[0, 1, 2, 3, 5, 6, 7, 8])]
    fn layers_are_thinned_evenly(#[case] count: usize, #[case] shown: &[usize]) {
        assert_eq!(evenly(count, 8), shown);
    }
}
