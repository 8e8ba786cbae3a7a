//! Pictures of what phase 1 found: what sets two tasks apart, each task's path, where routers look, and how work is shared out.

use tinyonn::Result;
use tinyonn::imaging::Labels;
use tinyonn::moe::{LayerLoad, MoeSpec, Taken};
use tinyonn::phases::Phase1Summary;

use crate::densities::{Gaussian, LayerDensity, RouterDensity};
use crate::names::node_name;
use crate::report::{
    Column, Density, DensityClass, Figure, Heatmap, PathDiagram, Scale, Section, Table, TableCell, TreeLevel,
};

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
    Figure::plot("contrast", &heatmap, caption).map(Some)
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

/// What routers of a layer see and what its root looks for, as drawings, the second with its caption.
fn drawings(density: &LayerDensity, spec: &MoeSpec) -> (Density, Option<(Density, String)>) {
    let LayerDensity { layer, inputs, router } = density;
    let class = |Gaussian { name, mean, covariance }: &Gaussian, points: &[[f32; 2]]| DensityClass {
        name: name.clone(),
        points: points.iter().map(|point| point.map(f64::from)).collect(),
        mean: *mean,
        covariance: *covariance,
    };
    let seen = Density {
        title: format!("What routers of layer {layer} see, by task"),
        x_label: "first LDA axis".into(),
        y_label: "second LDA axis".into(),
        classes: inputs.iter().map(|inputs| class(&inputs.gaussian, &inputs.points)).collect(),
        cloud: Vec::new(),
    };
    let own = router.as_ref().map(|router| {
        let choice = &spec.levels[0].name;
        let density = Density {
            title: format!("What the router of layer {layer} looks for: its own Gaussians, one a {choice}"),
            classes: router.gaussians.iter().map(|gaussian| class(gaussian, &[])).collect(),
            cloud: seen.classes.clone(),
            ..seen.clone()
        };
        let caption = router_caption(router, choice, &density);
        (density, caption)
    });
    (seen, own)
}

fn router_caption(router: &RouterDensity, choice: &str, density: &Density) -> String {
    let [x, y] = router.held.map(|share| 100.0 * share);
    let held = router.dim.map_or(String::new(), |dim| {
        format!("Its {dim} dimensions tell {x:.1} % and {y:.1} % of the inputs' variance along the axes. ")
    });
    let few = if router.shown < router.taken {
        format!("The {} likeliest of {} are drawn. ", router.shown, router.taken)
    } else {
        String::new()
    };
    let never = match router.never {
        0 => String::new(),
        none => format!("Of {none} more no label asks; they are never taken and not drawn. "),
    };
    format!(
        "The fitted Gaussians of the root router, one a {choice}, by number or name, along the axes of the figure above; several names at \
         one are of choices that hold the same. In grey the same test inputs, by task; a Gaussian of z also reaches where no input \
         lies, and may be wider than they. {few}{never}{held}A decision takes {:.2} of each log-density, as calibrated, and adds the \
         log-prior. {}",
        router.weight,
        density.caption()
    )
}

/// The densities as figures: of each layer what routers see, then what its root looks for.
pub(super) fn density_figures(densities: &[LayerDensity], spec: &MoeSpec) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for density in densities {
        let (layer, (inputs, router)) = (density.layer, drawings(density, spec));
        let caption = format!(
            "Test inputs along axes found on training inputs. Each Gaussian is that of a task's test inputs, not one of the router's. {}",
            inputs.caption()
        );
        figures.push(Figure::plot(format!("density-layer-{layer}"), &inputs, caption)?);
        if let Some((density, caption)) = router {
            figures.push(Figure::plot(format!("router-density-layer-{layer}"), &density, caption)?);
        }
    }
    Ok(figures)
}

/// How many experts tokens took: the mean, and the least and the most where they differ.
fn taken(load: &LayerLoad) -> TableCell {
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
