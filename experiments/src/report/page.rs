//! The page of a run: one HTML file that needs nothing but itself, and beside it the files of its drawings.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::figure::{self, Figure};
use super::svg::escape;
use super::table::inline;
use tinyonn::{Error, Result, files};

const STYLE: &str = include_str!("page.css");

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
        let title = escape(&self.title);
        let mut html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
             <meta name=\"color-scheme\" content=\"light\"/>\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{title}</h1>\n"
        );
        paragraphs(&mut html, &self.lead);
        html.push_str("</header>\n");
        self.write_facts(&mut html);
        self.write_contents(&mut html);
        let mut numbers = [0, 0];
        for (i, section) in self.sections.iter().enumerate() {
            let _ = writeln!(html, "<section id=\"s{}\">\n<h2>{}</h2>", i + 1, escape(&section.heading));
            paragraphs(&mut html, &section.prose);
            for figure in &section.figures {
                let number = &mut numbers[usize::from(figure.kind() == "Table")];
                *number += 1;
                figure.write_html(&mut html, *number);
            }
            html.push_str("</section>\n");
        }
        html.push_str("</main>\n</body>\n</html>\n");
        html
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

    fn write_facts(&self, html: &mut String) {
        if self.facts.is_empty() {
            return;
        }
        html.push_str("<dl class=\"facts\">\n");
        for (name, value) in &self.facts {
            let _ = writeln!(html, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
        }
        html.push_str("</dl>\n");
    }

    fn write_contents(&self, html: &mut String) {
        if self.sections.is_empty() {
            return;
        }
        html.push_str("<nav aria-label=\"Contents\">\n<ol>\n");
        for (i, section) in self.sections.iter().enumerate() {
            let _ = writeln!(html, "<li><a href=\"#s{}\">{}</a></li>", i + 1, escape(&section.heading));
        }
        html.push_str("</ol>\n</nav>\n");
    }
}

fn paragraphs(html: &mut String, texts: &[String]) {
    for text in texts {
        let _ = writeln!(html, "<p>{}</p>", inline(text));
    }
}
