//! Tensors by the names that a plain checkpoint has, whatever was wrapped around the model when it was saved.
//!
//! A compiled or sharded model, one that was part of a larger one, or its body alone, has one prefix too many or too few. Which it is, the one
//! embedding tells; where there is none, or more than one, names stay as they are, and what does not fit is refused by them.

use std::collections::BTreeMap;

use super::params::HEAD;

/// What wrappers put anywhere into names.
const WRAPPERS: [&str; 3] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."];
/// The body of a plain checkpoint, and its embedding.
const BODY: &str = "model.";
const EMBEDDING: &str = "embed_tokens.weight";

/// `places` by plain names, each with the name that is stored.
pub(super) fn plain(places: BTreeMap<String, usize>) -> BTreeMap<String, (usize, String)> {
    let unwrapped = |name: &str| WRAPPERS.iter().fold(name.to_owned(), |name, wrapper| name.replace(wrapper, ""));
    let names: Vec<String> = places.keys().map(|name| unwrapped(name)).collect();
    let body = body(&names);
    let mut plain = BTreeMap::new();
    for (name, (stored, file)) in names.iter().zip(&places) {
        plain.insert(body.map_or_else(|| name.clone(), |body| of_body(name, body)), (*file, stored.clone()));
    }
    if plain.len() == places.len() {
        return plain;
    }
    // Two would have one name.
    places.into_iter().map(|(name, file)| (name.clone(), (file, name))).collect()
}

/// What stands in front of the embedding's name, if there is one embedding.
fn body(names: &[String]) -> Option<&str> {
    let mut found = names.iter().filter_map(|name| name.strip_suffix(EMBEDDING));
    let body = found.next().filter(|body| body.is_empty() || body.ends_with('.'))?;
    found.next().is_none().then_some(body)
}

fn of_body(name: &str, body: &str) -> String {
    // `lm_head` lies beside the body.
    let beside = body.strip_suffix(BODY).unwrap_or_default();
    if name == HEAD || name.strip_prefix(beside) == Some(HEAD) {
        return HEAD.into();
    }
    name.strip_prefix(body).map_or_else(|| name.to_owned(), |rest| format!("{BODY}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(stored: &[&str]) -> Vec<String> {
        plain(stored.iter().map(|name| ((*name).to_owned(), 0)).collect()).into_keys().collect()
    }

    #[test]
    fn wrapped_models_have_plain_names() {
        let expected =
            ["lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight"];
        for (body, beside, inner) in [
            ("model.", "", ""),
            ("", "", ""),
            ("_orig_mod.model.", "_orig_mod.", ""),
            ("module.model.", "module.", ""),
            ("base_model.model.model.", "base_model.model.", ""),
            ("language_model.model.", "language_model.", ""),
            ("model.language_model.", "", ""),
            ("model.", "", "_orig_mod."),
            ("_fsdp_wrapped_module.model.", "_fsdp_wrapped_module.", "_fsdp_wrapped_module."),
        ] {
            let of_body =
                ["embed_tokens.weight".into(), format!("layers.0.{inner}mlp.up_proj.weight"), "norm.weight".into()];
            let mut stored: Vec<String> = of_body.iter().map(|name| format!("{body}{name}")).collect();
            stored.push(format!("{beside}lm_head.weight"));
            assert_eq!(names(&stored.iter().map(String::as_str).collect::<Vec<_>>()), expected, "{body}");
        }
    }

    #[test]
    fn what_is_not_clear_stays() {
        for stored in [
            vec!["a.embed_tokens.weight", "b.embed_tokens.weight"],
            vec!["a.norm.weight", "b"],
            vec!["embed_tokens.weight", "model.norm.weight", "norm.weight"]
                .into_iter()
                .filter(|n| *n != "norm.weight")
                .collect(),
        ] {
            let kept = names(&stored);
            assert!(kept.len() == stored.len(), "{kept:?}");
        }
        assert_eq!(
            names(&["a.embed_tokens.weight", "b.embed_tokens.weight"]),
            ["a.embed_tokens.weight", "b.embed_tokens.weight"]
        );
        // Of a larger model the rest keeps its names.
        let mixed = ["model.language_model.embed_tokens.weight", "model.visual.patch.weight"];
        assert_eq!(names(&mixed), ["model.embed_tokens.weight", "model.visual.patch.weight"]);
        // Two that would have one name.
        let twice = ["_orig_mod.model.norm.weight", "model.norm.weight"];
        assert_eq!(names(&twice), twice);
    }
}
