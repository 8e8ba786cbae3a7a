//! The page of a text's paths: which group each token took in each layer, in one file that needs nothing but itself.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::report::colour::{category, hex, ink_on};
use crate::token_paths::{TokenPath, TokenPaths};

const STYLE: &str = "
body { font: 15px/1.5 system-ui, 'Noto Sans', sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #111; background: #fff; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; }
.text span, .key span { border-radius: 3px; padding: 1px 0; }
.key span { padding: 1px 8px; margin-right: 6px; display: inline-block; }
.written { border-bottom: 2px solid #111; }
.scroll { overflow: auto; max-height: 80vh; border: 1px solid #ccc; }
table { border-collapse: collapse; font-size: 12px; }
th, td { padding: 1px 5px; text-align: center; white-space: pre; }
thead th { position: sticky; top: 0; background: #fff; }
tbody th { position: sticky; left: 0; background: #fff; text-align: right; font-weight: normal; font-family: ui-monospace, monospace; }
summary { cursor: pointer; }
";

/// The page: the text by the groups of `layer`, the same of every other layer, and a table of tokens and layers. It runs no script and fetches nothing.
#[must_use]
pub fn page(text: &TokenPaths, layer: usize) -> String {
    let title = format!("Paths through {}", text.variant);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (PreEscaped(r#"<meta charset="utf-8"/><meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/><meta name="viewport" content="width=device-width, initial-scale=1"/>"#))
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                p {
                    "Each token stands on the colour of the group that its largest gate is in; of several, the one that the fewest tokens take in that layer. What the model wrote is underlined; its last token was not read, and took no path. "
                    "A token on no colour took every expert. Point at a token to see its experts."
                }
                p.key { @for (group, name) in text.groups.iter().enumerate() { span style=(paint(Some(group))) { (name) } " " } }
                h2 { "Layer " (layer) }
                (coloured(text, layer, true))
                h2 { "Token by layer" }
                div.scroll { table {
                    thead { tr { th { "token" } @for layer in 0..text.layers() { th { (layer) } } } }
                    tbody { @for (piece, path) in text.pieces.iter().zip(&text.paths) { tr {
                        th { (visible(piece)) }
                        @for taken in path { td style=(paint(taken.group)) title=(experts(taken)) { (name(text, taken)) } }
                    } } }
                } }
                h2 { "Other layers" }
                @for other in (0..text.layers()).filter(|other| *other != layer) {
                    details { summary { "Layer " (other) } (coloured(text, other, false)) }
                }
            }
        }
    };
    page.into_string()
}

/// The text by the groups of a layer; `told`: pointing at a token says its experts.
fn coloured(text: &TokenPaths, layer: usize, told: bool) -> Markup {
    html! { p.text { @for (token, piece) in text.pieces.iter().enumerate() {
        @let taken = text.paths.get(token).and_then(|path| path.get(layer));
        span.written[token >= text.prompt] style=(paint(text.group(token, layer))) title=[told.then(|| taken.map_or("not read".into(), experts))] { (piece) }
    } } }
}

fn paint(group: Option<usize>) -> String {
    group.map_or_else(String::new, |group| {
        let paper = category(group);
        format!("background:{};color:{}", hex(paper), ink_on(paper))
    })
}

fn name<'t>(text: &'t TokenPaths, taken: &TokenPath) -> &'t str {
    taken.group.and_then(|group| text.groups.get(group)).map_or("all", String::as_str)
}

/// `5 experts: 0–3, 7`.
fn experts(taken: &TokenPath) -> String {
    let run = |run: &[u32]| match run {
        [first, .., last] => format!("{first}–{last}"),
        _ => run.iter().map(u32::to_string).collect(),
    };
    let runs: Vec<String> = taken.experts.chunk_by(|a, b| a + 1 == *b).map(run).collect();
    format!("{} experts: {}", taken.experts.len(), runs.join(", "))
}

fn visible(piece: &str) -> String {
    piece.replace('\n', "⏎").replace('\t', "⇥")
}
