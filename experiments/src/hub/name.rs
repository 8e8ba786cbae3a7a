//! What a model is called on the hub.

use std::fmt;
use std::path::Path;

/// A model, one of its revisions, and one of its files if it is not meant as a folder.
///
/// ```
/// use experiments::hub::HubName;
///
/// let name = HubName::parse("org/name@refs/pr/1:sub/model-Q4_1.gguf").unwrap();
/// assert_eq!((name.id.as_str(), name.revision.as_str()), ("org/name", "refs/pr/1"));
/// assert_eq!(name.file.as_deref(), Some("sub/model-Q4_1.gguf"));
/// assert_eq!(HubName::parse("Qwen/Qwen3-1.7B").unwrap().revision, "main");
/// for path in ["model", "./org/name", "/org/name", "a/b/c", "../org/name", "org/", "org/name:model.bin", "org/name:../x.gguf"] {
///     assert_eq!(HubName::parse(path), None, "{path}");
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// `OWNER/NAME`.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// A GGUF file.
    pub file: Option<String>,
}

impl HubName {
    /// `None` of what cannot be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (rest, file) = match text.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (text, None),
        };
        let (id, revision) = match rest.split_once('@') {
            Some((id, revision)) => (id, revision),
            None => (rest, "main"),
        };
        let (owner, name) = id.split_once('/')?;
        let gguf = |file: &str| is_below(file) && is_gguf(file);
        let fit = is_word(owner) && is_word(name) && is_below(revision) && file.is_none_or(gguf);
        fit.then(|| Self { id: id.to_owned(), revision: revision.to_owned(), file: file.map(str::to_owned) })
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, ":{file}"))
    }
}

/// Letters, digits and `-_.`, a letter or digit first.
fn is_word(part: &str) -> bool {
    part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Words with `/` between them: what stays below the folder that it is put in.
pub(super) fn is_below(path: &str) -> bool {
    path.split('/').all(is_word)
}

/// Whether a file is called as GGUF files are.
pub(super) fn is_gguf(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}
