//! The page of a run: one HTML file that needs nothing but itself.

use std::fmt::Write as _;
use std::path::Path;

use super::svg::{Svg, escape};
use super::table::Table;
use crate::{Result, files};

const STYLE: &str = include_str!("page.css");

/// A drawing or a table, with the words beneath it.
#[derive(Debug, Clone)]
pub struct Figure {
    kind: &'static str,
    body: String,
    caption: String,
}

impl Figure {
    /// A drawing.
    pub fn drawing(svg: &Svg, caption: impl Into<String>) -> Self {
        Self { kind: "Figure", body: svg.to_string(), caption: caption.into() }
    }

    /// A table. Refused where [`Table::html`] refuses it.
    pub fn table(table: &Table, caption: impl Into<String>) -> Result<Self> {
        Ok(Self { kind: "Table", body: table.html()?, caption: caption.into() })
    }
}

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

/// A page: title, lead, facts, contents, sections. All text is escaped; none of it is taken for HTML.
///
/// ```
/// use tinyonn::report::{BarSeries, Bars, Figure, Page, Section};
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
///         figures: vec![Figure::drawing(&bars.svg()?, "Half of the experts active.")],
///     }],
/// };
/// # let folder = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
/// # let path = folder.path().join("report.html");
/// page.write(&path)?;
/// # let text = std::fs::read_to_string(&path).map_err(|e| tinyonn::Error::io(&path, e))?;
/// assert!(text.contains("<h1>Phase 1</h1>") && text.contains("Does SPS help?"));
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
                let number = &mut numbers[usize::from(figure.kind == "Table")];
                *number += 1;
                write_figure(&mut html, figure, *number);
            }
            html.push_str("</section>\n");
        }
        html.push_str("</main>\n</body>\n</html>\n");
        html
    }

    /// Writes the page to `path`: whole or not at all, whatever interrupts it.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        files::write(path, self.html())
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
        let _ = writeln!(html, "<p>{}</p>", escape(text));
    }
}

fn write_figure(html: &mut String, figure: &Figure, number: usize) {
    let (kind, body) = (figure.kind, &figure.body);
    let caption = format!("<figcaption><b>{kind} {number}.</b> {}</figcaption>", escape(&figure.caption));
    // A wide figure scrolls inside its own frame; the page never does.
    let _ = writeln!(html, "<figure>\n<div class=\"scroll\">{body}</div>\n{caption}\n</figure>");
}
