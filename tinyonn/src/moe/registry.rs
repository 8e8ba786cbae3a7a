//! Variants by name. `#[moe(..)]` submits each declared variant; binaries find it by the name of its type.

use candle_nn::VarBuilder;

use super::{MoeLayer, MoeSpec};
use crate::decoder::Arch;
use crate::{Error, Result};

/// A declared variant.
///
/// ```
/// use tinyonn::moe::{Variant, moe, variant, variants};
///
/// #[moe(levels = [5], top_k = 2)]
/// struct Five;
///
/// let found: &Variant = variant("Five")?;
/// assert_eq!((&found.spec, found.spec.experts()), (&Five::SPEC, 5));
/// assert!(variants().iter().any(|known| known.spec.name == "TinyOnn" && known.module_path == "tinyonn::gallery"));
/// assert!(variant("Fife").is_err_and(|e| e.to_string().contains("Five"))); // it names what is near
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub struct Variant {
    /// The declaration.
    pub spec: MoeSpec,
    /// Where it was declared.
    pub module_path: &'static str,
    /// Builds layer `layer` from the parameters under its `mlp`.
    pub build: fn(&Arch, usize, VarBuilder<'_>) -> Result<MoeLayer>,
}

inventory::collect!(Variant);

/// Every variant that is linked in, by name.
pub fn variants() -> Vec<&'static Variant> {
    let mut all: Vec<_> = inventory::iter::<Variant>.into_iter().collect();
    all.sort_by_key(|variant| (variant.spec.name.as_ref(), variant.module_path));
    all
}

/// The variant of that name.
///
/// # Errors
/// No such name, or several declarations of it.
pub fn variant(name: &str) -> Result<&'static Variant> {
    let all = variants();
    let mut named = all.iter().filter(|variant| variant.spec.name == name);
    match (named.next(), named.next()) {
        (Some(variant), None) => Ok(variant),
        (Some(one), Some(two)) => {
            let problem = format!("it is declared in {} and in {}", one.module_path, two.module_path);
            Err(Error::variant(name, problem, "rename one of them"))
        }
        (None, _) => {
            let names: Vec<&str> = all.iter().map(|variant| variant.spec.name.as_ref()).collect();
            let problem = format!("there is none of that name; known: {}", names.join(", "));
            Err(Error::variant(
                name,
                problem,
                "name one of these; if yours lives in another crate, link it in with `use my_variants as _;`",
            ))
        }
    }
}
