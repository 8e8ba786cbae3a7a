//! Text on a page.

use maud::{Markup, PreEscaped, html};

use super::svg::escape;

/// Text as it stands, without the characters that XML has no place for: a page reads as XML too.
pub(super) fn plain(text: &str) -> Markup {
    PreEscaped(escape(text))
}

/// Text as it runs: what stands between two backticks is set as code.
pub(super) fn inline(text: &str) -> Markup {
    let parts: Vec<&str> = text.split('`').collect();
    // A backtick without its other is a backtick.
    let paired = parts.len() % 2 == 1;
    html! {
        @for (at, part) in parts.iter().enumerate() {
            @match (at % 2, paired || at + 1 < parts.len()) {
                (1, true) => code { (plain(part)) },
                (1, false) => { "`" (plain(part)) },
                _ => (plain(part)),
            }
        }
    }
}
