//! Whether a page reads as XML.

use roxmltree::{Document, ParsingOptions};

/// The texts and attribute values of XML; panics where it is not well-formed.
pub(super) fn walk(xml: &str) -> Vec<String> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml.trim(), options).unwrap_or_else(|e| panic!("{e}"));
    let found = document.descendants().flat_map(|node| {
        let text = node.text().filter(|text| node.is_text() && !text.trim().is_empty());
        text.into_iter().chain(node.attributes().map(|attribute| attribute.value())).map(str::to_owned)
    });
    found.collect()
}
