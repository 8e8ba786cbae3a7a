//! The page of a run: one HTML file that needs nothing but itself, and beside it the files of its drawings.

use std::fs;
use std::path::Path;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::figure::{self, Figure};
use super::markup::{inline, plain};
use tinyonn::{Error, Result, files};

const STYLE: &str = include_str!("page.css");
/// Elements without an end, closed as XML has it.
const HEAD: &str = r#"<meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light"/>
"#;

/// A part of the page under a heading of its own.
#[derive(Debug, Clone)]
pub struct Section {
    /// The heading, which the table of contents lists.
    pub heading: String,
    /// Paragraphs.
    pub prose: Vec<String>,
    /// What is shown after them.
    pub figures: Vec<Figure>,
}

/// A page: title, lead, facts, contents, sections. All text is escaped; none of it is taken for HTML. What stands in `backticks` is set as code.
///
/// ```
/// use experiments::report::{BarSeries, Bars, Figure, Page, Section};
///
/// # fn main() -> tinyonn::Result<()> {
/// let bars = Bars {
///     title: "Held-out loss".into(),
///     value_label: "nats per token".into(),
///     categories: vec!["dense".into(), "routed".into()],
///     series: vec![BarSeries { name: "loss".into(), values: vec![2.13, 2.91], whiskers: None }],
///     reference: Some(("dense".into(), 2.13)),
/// };
/// let page = Page {
///     title: "Phase 1".into(),
///     lead: vec!["Five tasks, four layers, 100 experts a layer.".into()],
///     facts: vec![("seed".into(), "7".into())],
///     sections: vec![Section {
///         heading: "Does SPS help?".into(),
///         prose: vec!["Lower is better.".into()],
///         figures: vec![Figure::plot("loss", &bars, "Half of the experts active.")?],
///     }],
/// };
/// # let folder = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
/// # let dir = folder.path();
/// page.write(dir)?;
/// for file in ["report.html", "figures/loss.svg", "figures/loss.png", "figures/loss.csv"] {
///     assert!(dir.join(file).exists());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Page {
    /// The title.
    pub title: String,
    /// Opening paragraphs: what was done, what came out.
    pub lead: Vec<String>,
    /// Names and values: seed, corpus, shape, commit, time.
    pub facts: Vec<(String, String)>,
    /// The sections, in order.
    pub sections: Vec<Section>,
}

impl Page {
    /// The whole page. It is HTML that also reads as XML; it runs no script and may fetch nothing (it tells the browser so).
    pub fn html(&self) -> String {
        let mut counts = [0, 0];
        let mut numbered = |figure: &Figure| {
            let count = &mut counts[usize::from(figure.kind() == "Table")];
            *count += 1;
            figure.html(*count)
        };
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    (PreEscaped(HEAD))
                    title { (plain(&self.title)) }
                    style { (PreEscaped(STYLE)) }
                }
                body { main {
                    header { h1 { (plain(&self.title)) } (paragraphs(&self.lead)) }
                    @if !self.facts.is_empty() {
                        dl.facts { @for (name, value) in &self.facts {
                            div { dt { (plain(name)) } dd { (plain(value)) } } "\n"
                        } }
                    }
                    @if !self.sections.is_empty() {
                        nav aria-label="Contents" { ol { @for (section, number) in self.sections.iter().zip(1..) {
                            li { a href={ "#s" (number) } { (plain(&section.heading)) } } "\n"
                        } } }
                    }
                    @for (section, number) in self.sections.iter().zip(1..) {
                        section id={ "s" (number) } {
                            h2 { (plain(&section.heading)) }
                            (paragraphs(&section.prose))
                            @for figure in &section.figures { (numbered(figure)) }
                        }
                    }
                } }
            }
        };
        page.into_string()
    }

    /// Writes `report.html` into the folder `dir` and, of each drawing, `figures/STEM.svg`, `.png` (two pixels a unit, on white) and
    /// `.csv` (the numbers behind it), to which the page links. The folder is made if it is missing; the page and the folder
    /// `figures` are each replaced whole or not at all, whatever interrupts it.
    ///
    /// # Errors
    /// Two drawings of one name; what the system refuses.
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let figures = self.sections.iter().flat_map(|section| &section.figures);
        let drawings: Vec<_> = figures.filter_map(Figure::drawing).collect();
        if !drawings.is_empty() {
            figure::write_files(&drawings, &dir.join(figure::FOLDER))?;
        }
        files::write(dir.join("report.html"), self.html())
    }
}

fn paragraphs(texts: &[String]) -> Markup {
    html! { @for text in texts { p { (inline(text)) } "\n" } }
}
