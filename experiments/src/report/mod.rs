//! The page of a run: figures and tables in one HTML file that needs no script, no network and no particular browser, and every
//! figure as SVG, PNG and CSV beside it.
//!
//! A figure is a plain struct that is a [`Plot`]: `svg()` draws it, `csv()` gives the numbers behind it. Light means little, colours survive colour blindness, nothing is told by colour
//! alone. The same values give the same bytes.
//!
//! ```
//! use experiments::report::{Figure, Heatmap, Page, Scale, Section};
//!
//! let scan = Heatmap {
//!     title: "∫SPS: arithmetic".into(),
//!     row_label: "layer".into(),
//!     column_label: "expert".into(),
//!     rows: (0..2).map(|layer| layer.to_string()).collect(),
//!     columns: (0..3).map(|expert| expert.to_string()).collect(),
//!     values: vec![vec![0.5, -1.0, 0.25], vec![0.0, 2.0, -0.5]],
//!     scale: Scale::Diverging,
//!     column_groups: None,
//!     range: None,
//!     value_label: "∫SPS a token".into(),
//!     spread: None,
//! };
//! let section = Section {
//!     heading: "Brain scan".into(),
//!     prose: vec!["Per token, all experts active.".into()],
//!     figures: vec![Figure::plot("brain-arithmetic", &scan, "Orange: active and unsurprised.")?],
//! };
//! let page = Page { title: "A scan".into(), lead: vec![], facts: vec![], sections: vec![section] };
//! assert!(page.html().contains("layer 1, expert 1: 2"));
//! # Ok::<(), tinyonn::Error>(())
//! ```

mod axis;
mod bars;
pub mod colour;
mod csv;
mod density;
mod figure;
mod heatmap;
mod layers;
mod lines;
mod mark;
mod markup;
mod measure;
mod number;
mod page;
mod path_diagram;
mod plot;
mod raster;
mod svg;
mod table;
mod tree;

pub use bars::{BarSeries, Bars};
pub use density::{Density, DensityClass};
pub use figure::Figure;
pub use heatmap::{Heatmap, Scale, common_range};
pub(crate) use layers::shown_layers;
pub use lines::{Lines, Series, SeriesStyle};
pub use page::{Page, Section};
pub use path_diagram::PathDiagram;
pub use plot::Plot;
pub use svg::{Anchor, Area, Point, Stroke, Svg, TextStyle, escape};
pub use table::{Best, Column, Kind, Table, TableCell};
pub use tree::TreeLevel;
