//! How wide a text will be, before anything has drawn it.
//!
//! System fonts differ, so widths are estimates on the generous side: enough to keep labels apart, never used to align.

/// The likely width of `text` in a system sans-serif of `size`.
pub(super) fn width(text: &str, size: f64) -> f64 {
    text.chars().map(em).sum::<f64>() * size
}

fn em(c: char) -> f64 {
    match c {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' => 0.30,
        ' ' | 'f' | 't' | 'r' | '(' | ')' | '[' | ']' | '-' | '/' => 0.40,
        'm' | 'w' | 'M' | 'W' | '@' | '%' => 0.92,
        'A'..='Z' | '+' | '=' | '<' | '>' | '−' | '∫' | '∞' | '≤' | '≥' => 0.70,
        // From here on scripts are mostly of full-width forms.
        '\u{2E80}'.. => 1.05,
        _ => 0.59,
    }
}

/// `text` if it fits into `room`, else its beginning and an ellipsis.
pub(super) fn shorten(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        kept.push(c);
        if width(&kept, size) + size > room {
            kept.pop();
            break;
        }
    }
    kept.truncate(kept.trim_end().len());
    kept + "…"
}

/// The width of the widest of `texts`.
pub(super) fn widest<'a>(texts: impl IntoIterator<Item = &'a str>, size: f64) -> f64 {
    texts.into_iter().map(|text| width(text, size)).fold(0.0, f64::max)
}
