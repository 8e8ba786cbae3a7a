//! Just enough XML to tell whether a page is well-formed.

/// Walks XML and gives its texts and attribute values as they are written; panics where it is not well-formed.
pub(super) fn walk(xml: &str) -> Vec<String> {
    let (mut open, mut found, mut rest) = (Vec::new(), Vec::new(), xml.trim());
    while let Some(at) = rest.find('<') {
        let text = &rest[..at];
        assert!(!text.contains('>'), "a stray `>` in {text:?}");
        check_references(text);
        if !text.trim().is_empty() {
            assert!(!open.is_empty(), "text outside the root: {text:?}");
            found.push(text.to_owned());
        }
        let end = at + rest[at..].find('>').expect("a tag without end");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if tag == "!DOCTYPE html" {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed in the wrong order");
            continue;
        }
        let (tag, alone) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric()) && !name.is_empty(), "a tag called {name:?}");
        found.extend(attribute_values(attributes));
        if !alone {
            open.push(name);
        }
        assert!(!open.is_empty() || rest.trim().is_empty(), "something after the root");
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "left open: {open:?}");
    found
}

fn attribute_values(mut attributes: &str) -> Vec<String> {
    let mut names: Vec<&str> = Vec::new();
    let mut values = Vec::new();
    while let Some((name, rest)) = attributes.split_once("=\"") {
        let name = name.trim();
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "an attribute called {name:?}");
        assert!(!names.contains(&name), "attribute {name} twice");
        names.push(name);
        let (value, rest) = rest.split_once('"').expect("a value without end");
        check_references(value);
        values.push(value.to_owned());
        attributes = rest;
    }
    assert_eq!(attributes.trim(), "", "an attribute without value");
    values
}

fn check_references(text: &str) {
    for after in text.split('&').skip(1) {
        let name = after.split_once(';').expect("a bare ampersand").0;
        assert!(["amp", "lt", "gt", "quot", "#39"].contains(&name), "an unknown reference {name:?}");
    }
    assert!(!text.chars().any(|c| c < ' ' && !"\t\r\n".contains(c)), "a control character");
}
