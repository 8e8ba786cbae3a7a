//! Pictures of what phase 1 found: what sets two tasks apart, each task's path, where routers look, and how work is shared out.

mod router_density;

use candle_core::{Device, Tensor};

use self::router_density::router_density;
use super::run::{Held, Inputs, Run};
use super::summary::Phase1Summary;
use crate::Result;
use crate::checkpoint::ParamStore;
use crate::imaging::Labels;
use crate::imaging::inputs::Samples;
use crate::moe::{LayerLoad, MoeSpec, Taken};
use crate::report::{
    Cell, Column, Density, DensityClass, Figure, Heatmap, PathDiagram, Scale, Section, Table, TreeLevel,
};
use crate::train::projection::lda;

/// The contrast of the two tasks whose images differ most, `experts[task][layer][expert]`.
pub(super) fn contrast(tasks: &[String], experts: &[Vec<Vec<f64>>], like: Heatmap) -> Result<Option<Figure>> {
    let differ = |a: usize, b: usize| -> f64 {
        let pairs = experts[a].iter().flatten().zip(experts[b].iter().flatten());
        pairs.map(|(a, b)| (a - b) * (a - b)).sum()
    };
    let pairs = (0..tasks.len()).flat_map(|a| (a + 1..tasks.len()).map(move |b| (a, b)));
    let Some((a, b)) = pairs.max_by(|x, y| differ(x.0, x.1).total_cmp(&differ(y.0, y.1))) else { return Ok(None) };
    let minus = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a - b).collect();
    let heatmap = Heatmap {
        title: format!("∫SPS a token: {} minus {}", tasks[a], tasks[b]),
        values: experts[a].iter().zip(&experts[b]).map(minus).collect(),
        range: None,
        ..like
    };
    let caption = format!("The contrast of the two tasks whose images differ most: {} and {}.", tasks[a], tasks[b]);
    Figure::plot("brain-contrast", &heatmap, caption).map(Some)
}

/// Which groups and experts each task's label takes.
pub(super) fn paths(spec: &MoeSpec, tasks: &[String], labels: &Labels) -> Result<Section> {
    let levels = (0..spec.levels.len()).map(|level| {
        let nodes = spec.levels[level].nodes();
        let parents = spec.levels[level].slots().enumerate();
        TreeLevel {
            name: spec.levels[level].name.to_string(),
            nodes: (0..nodes).map(|node| node_name(spec, level, node)).collect(),
            parents: if level == 0 {
                Vec::new()
            } else {
                parents.flat_map(|(parent, slot)| std::iter::repeat_n(parent, slot.nodes.len())).collect()
            },
        }
    });
    let layers = labels.paths.experts.first().map_or(0, Vec::len);
    let share = |layer: usize, task: usize, level: usize| {
        let taken = labels.nodes(task, layer, level, spec);
        let nodes = 0..spec.levels[level].nodes();
        nodes.map(|node| f64::from(u8::from(taken.binary_search(&node).is_ok()))).collect()
    };
    let of_task = |layer: usize, task: usize| (0..spec.levels.len()).map(|level| share(layer, task, level)).collect();
    let diagram = PathDiagram {
        title: "Each task's path".into(),
        tasks: tasks.to_vec(),
        levels: levels.collect(),
        share_label: "taken".into(),
        shares: (0..layers).map(|layer| (0..tasks.len()).map(|task| of_task(layer, task)).collect()).collect(),
    };
    Ok(Section {
        heading: "Paths".into(),
        prose: vec![
            "What routers are fitted to: the groups and the experts that each task takes in each layer.".into(),
        ],
        figures: vec![Figure::plot(
            "paths",
            &diagram,
            "Task → group → expert: a row a task, a column a layer; a node has the same place in every panel.",
        )?],
    })
}

/// `3` of a numbered group, `3:1` of its experts, the name of a named one.
fn node_name(spec: &MoeSpec, level: usize, node: usize) -> String {
    if level == 0 {
        let name = spec.node_name(0, node);
        return name.strip_prefix(&format!("{} ", spec.levels[0].name)).map_or(name.clone(), str::to_owned);
    }
    let of = spec.levels[level].slots().position(|slot| slot.nodes.contains(&node)).unwrap_or(0);
    let first = spec.levels[level].slots().nth(of).map_or(0, |slot| slot.nodes.start);
    format!("{}:{}", node_name(spec, level - 1, of), node - first)
}

/// Where the routers of a layer look.
pub(super) struct LayerDensity {
    layer: usize,
    /// Test inputs, and a Gaussian a task over them.
    inputs: Density,
    /// The root router's own Gaussians over them, where it has any, and their caption.
    router: Option<(Density, String)>,
}

impl Run<'_> {
    /// Where routers look: test inputs of the first, a middle and the last layer along the two leading LDA axes of the training inputs,
    /// and the Gaussians of the fitted routers in `store` along the same.
    pub(super) fn densities(&self, store: &ParamStore, inputs: &Inputs, held: &Held) -> Result<Vec<LayerDensity>> {
        let (train, test) = (inputs.own(self.variant), held.test.own(self.variant));
        let mut layers = vec![0, train.len() / 2, train.len().saturating_sub(1)];
        layers.dedup();
        let of_layer = |layer: usize| {
            let (axes, r) = lda(&train[layer], 2)?;
            let inputs = density(&self.text.tasks, layer, (&axes, r), &test[layer])?;
            let place = (store, &self.variant.spec, layer);
            // Of a single dimension there is no plane.
            let router = if r == 2 { router_density(place, &axes, &train[layer], &inputs)? } else { None };
            Ok(LayerDensity { layer, inputs, router })
        };
        layers.into_iter().map(of_layer).collect()
    }
}

/// Test inputs along `axes` `[r, d]`, with the mean and the covariance of each task's.
fn density(tasks: &[String], layer: usize, (axes, r): (&[f32], usize), test: &Samples) -> Result<Density> {
    let projection = Tensor::from_slice(axes, (r, axes.len() / r), &Device::Cpu)?;
    let z = test.tensor(&Device::Cpu)?.matmul(&projection.t()?)?.to_vec2::<f32>()?;
    let class = |(task, name): (usize, &String)| {
        let rows = z.iter().zip(&test.tasks).filter(|(_, of)| **of as usize == task);
        let points: Vec<[f64; 2]> =
            rows.map(|(z, _)| [0, 1].map(|at| z.get(at).map_or(0.0, |z| f64::from(*z)))).collect();
        let count = points.len().max(1) as f64;
        let mean = [0, 1].map(|at| points.iter().map(|point| point[at]).sum::<f64>() / count);
        let moment = |a: usize, b: usize| {
            points.iter().map(|point| (point[a] - mean[a]) * (point[b] - mean[b])).sum::<f64>() / count
        };
        let covariance = [[moment(0, 0), moment(0, 1)], [moment(0, 1), moment(1, 1)]];
        DensityClass { name: name.clone(), points, mean, covariance }
    };
    Ok(Density {
        title: format!("What routers of layer {layer} see, by task"),
        x_label: "first LDA axis".into(),
        y_label: "second LDA axis".into(),
        classes: tasks.iter().enumerate().map(class).filter(|class| !class.points.is_empty()).collect(),
        cloud: Vec::new(),
    })
}

/// The densities as figures: of each layer what routers see, then what its root looks for.
pub(super) fn density_figures(densities: &[LayerDensity]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for LayerDensity { layer, inputs, router } in densities {
        let caption = format!(
            "Test inputs along axes found on training inputs. Each Gaussian is that of a task's test inputs, not one of the router's. {}",
            inputs.caption()
        );
        figures.push(Figure::plot(format!("density-layer-{layer}"), inputs, caption)?);
        if let Some((density, caption)) = router {
            figures.push(Figure::plot(format!("router-density-layer-{layer}"), density, caption)?);
        }
    }
    Ok(figures)
}

/// How many experts tokens took: the mean, and the least and the most where they differ.
fn taken(load: &LayerLoad) -> Cell {
    match load.taken() {
        Some(Taken { fewest, mean, most }) if fewest < most => format!("{mean:.1} ({fewest} to {most})").into(),
        taken => taken.map_or(f64::NAN, |taken| taken.mean).into(),
    }
}

/// How evenly the routers share work out, by layer.
pub(super) fn load_table(s: &Phase1Summary) -> Result<Figure> {
    let (asked, found) = (&s.load.asked.layers, &s.load.before.layers);
    let row = |(layer, (asked, found)): (usize, (&LayerLoad, &LayerLoad))| {
        vec![
            layer.to_string().into(),
            found.max_over_mean.into(),
            asked.max_over_mean.into(),
            found.evenness.into(),
            asked.evenness.into(),
            (found.dead.len() as f64).into(),
            taken(found),
        ]
    };
    let table = Table {
        columns: vec![
            Column::text("layer"),
            Column::number("max/mean", 2),
            Column::number("labels ask", 2),
            Column::number("evenness", 3),
            Column::number("labels ask", 3),
            Column::number("experts without a token", 0),
            Column::number("experts a token", 1),
        ],
        rows: asked.iter().zip(found).enumerate().map(row).collect(),
    };
    Figure::table(
        &table,
        "Load on the test split, routed, beside that of tokens which all take their task's path. Evenness: the load's entropy over ln N, 1 if all experts have as much to do. Experts a token: the mean and, where tokens differ, the least and the most.",
    )
}

/// A heatmap of layers × experts, to be given its title and values.
pub(super) fn layers_by_experts(layers: usize, columns: Vec<String>, groups: Option<Vec<(String, usize)>>) -> Heatmap {
    Heatmap {
        title: String::new(),
        row_label: "layer".into(),
        column_label: "expert".into(),
        rows: (0..layers).map(|layer| layer.to_string()).collect(),
        columns,
        values: Vec::new(),
        scale: Scale::Diverging,
        column_groups: groups,
        range: None,
        value_label: "∫SPS a token".into(),
        spread: None,
    }
}
