//! What a page shows: drawings, each with its files, and tables.

use std::path::Path;

use maud::{Markup, PreEscaped, html};
use rayon::prelude::*;

use super::markup::inline;
use super::plot::Plot;
use super::svg::Svg;
use super::table::Table;
use tinyonn::files::{self, StagedFolder};
use tinyonn::{Error, Result};

/// The folder of the drawings' files, beside the page.
pub(super) const FOLDER: &str = "figures";

/// A drawing or a table, with the words beneath it.
#[derive(Debug, Clone)]
pub struct Figure {
    content: Content,
    caption: String,
}

#[derive(Debug, Clone)]
enum Content {
    Drawing(Drawing),
    Table(String),
}

/// A drawing and the numbers behind it.
#[derive(Debug, Clone)]
pub(super) struct Drawing {
    pub(super) stem: String,
    svg: Svg,
    csv: String,
}

impl Figure {
    /// A drawing, which [`Page::write`](super::Page::write) also writes to `figures/STEM.svg`, `.png` and `.csv`.
    ///
    /// # Errors
    /// Where [`Plot::svg`] refuses; a stem that is no plain file name (letters, digits, `-`, `_`, and `.` but in front).
    pub fn plot(stem: impl Into<String>, plot: &impl Plot, caption: impl Into<String>) -> Result<Self> {
        let stem = stem.into();
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        if stem.is_empty() || stem.starts_with('.') || !stem.chars().all(plain) {
            let problem = format!("`{stem}` cannot name its files");
            return Err(Error::setting("figure", problem, "use letters, digits, `-` and `_`"));
        }
        let drawing = Drawing { stem, svg: plot.svg()?, csv: plot.csv() };
        Ok(Self { content: Content::Drawing(drawing), caption: caption.into() })
    }

    /// The drawing with `numbers` in its CSV, in place of what is drawn: where there is more to know than a drawing shows.
    ///
    /// # Errors
    /// Where [`Table::csv`] refuses.
    pub fn with_numbers(mut self, numbers: &Table) -> Result<Self> {
        if let Content::Drawing(drawing) = &mut self.content {
            drawing.csv = numbers.csv()?;
        }
        Ok(self)
    }

    /// A table. Refused where [`Table::html`] refuses it.
    pub fn table(table: &Table, caption: impl Into<String>) -> Result<Self> {
        Ok(Self { content: Content::Table(table.html()?), caption: caption.into() })
    }

    /// Writes its drawing, if it is one, as `STEM.svg` into `folder`; returns that name.
    pub(crate) fn write_svg(&self, folder: &Path) -> Result<Option<String>> {
        let Some(drawing) = self.drawing() else { return Ok(None) };
        let name = format!("{}.svg", drawing.stem);
        files::write(folder.join(&name), drawing.svg.to_string())?;
        Ok(Some(name))
    }

    /// `Figure` or `Table`, which are counted apart.
    pub(super) fn kind(&self) -> &'static str {
        if self.drawing().is_some() { "Figure" } else { "Table" }
    }

    pub(super) fn drawing(&self) -> Option<&Drawing> {
        match &self.content {
            Content::Drawing(drawing) => Some(drawing),
            Content::Table(_) => None,
        }
    }

    /// The figure on the page, as the `number`-th of its kind.
    pub(super) fn html(&self, number: usize) -> Markup {
        let (body, files) = match &self.content {
            Content::Drawing(drawing) => (drawing.svg.to_string(), Some(&drawing.stem)),
            Content::Table(table) => (table.clone(), None),
        };
        html! {
            // A wide figure scrolls inside its own frame; the page never does.
            figure {
                div.scroll { (PreEscaped(body)) }
                figcaption {
                    b { (self.kind()) " " (number) "." } " " (inline(&self.caption))
                    @if let Some(stem) = files {
                        " " span.files { @for ending in ["svg", "png", "csv"] {
                            a href={ (FOLDER) "/" (stem) "." (ending) } { (ending.to_uppercase()) } " "
                        } }
                    }
                }
            }
            "\n"
        }
    }
}

/// Writes the files of all `drawings` into `folder`, which they replace: all of them or none.
pub(super) fn write_files(drawings: &[&Drawing], folder: &Path) -> Result<()> {
    let mut stems: Vec<&str> = drawings.iter().map(|drawing| drawing.stem.as_str()).collect();
    stems.sort_unstable();
    if let Some([stem, _]) = stems.array_windows().find(|[a, b]| a == b) {
        let problem = format!("two of the page are called `{stem}`");
        return Err(Error::setting("figure", problem, "give every drawing a file name of its own"));
    }
    if folder.exists() && !folder.is_dir() {
        return Err(Error::file(folder, "is no folder", "move it away: the page's drawings go there"));
    }
    let staged = StagedFolder::replacing(folder)?;
    drawings.par_iter().try_for_each(|drawing| {
        let write = |ending: &str, content: &[u8]| {
            files::write(staged.path().join(format!("{}.{ending}", drawing.stem)), content)
        };
        write("svg", drawing.svg.to_string().as_bytes())?;
        write("png", &drawing.svg.png()?)?;
        write("csv", drawing.csv.as_bytes())
    })?;
    staged.publish()
}
