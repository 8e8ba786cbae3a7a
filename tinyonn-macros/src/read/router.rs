//! Routers: one kind for all levels, or one for each.

use proc_macro2::Span;
use syn::Path;
use syn::spanned::Spanned;
use tinyonn_spec::{Covariance, GaussianSpec, Project, Reduce, RouterKind};

use super::settings::{Call, Settings, count, word};
use crate::errors::{Errors, source};
use crate::parse::{Argument, Setting, Value, names_a_type};

/// The routers that have a word.
pub(crate) const ROUTERS: [&str; 4] = ["gaussian", "linear", "cosine", "random"];
/// What can be said of `gaussian`.
pub(crate) const GAUSSIAN_ARGUMENTS: [&str; 4] = ["dim", "reduce", "covariance", "project"];
/// What can be said of `linear`.
pub(crate) const LINEAR_ARGUMENTS: [&str; 1] = ["dim"];

/// A router as it was written.
#[derive(Clone)]
pub(super) struct Router {
    pub(super) kind: RouterKind,
    /// The type, if it is the user's.
    pub(super) path: Option<Path>,
    /// What a rule about it is said of.
    pub(super) span: Span,
}

impl Router {
    /// What goes without saying; and what stands for one that could not be read, for no rule objects to it.
    pub(super) fn plain() -> Self {
        Self::known(RouterKind::Gaussian(GaussianSpec::PLAIN), Span::call_site())
    }

    fn known(kind: RouterKind, span: Span) -> Self {
        Self { kind, path: None, span }
    }
}

/// The router of each level; `names` is `None` if not even the number of levels is known.
pub(super) fn by_level(settings: &Settings, names: Option<&[&str]>, errors: &mut Errors) -> Vec<Router> {
    let depth = names.map_or(0, <[_]>::len);
    let mut each = vec![Router::plain(); depth];
    match settings.value("router") {
        Some(Value::List { brackets, values }) => {
            if let Some(names) = names
                && names.len() != values.len()
            {
                let problem = format!("`router` lists {} for {} levels", values.len(), names.len());
                errors.on(brackets, format!("{problem}; write one for all, or one for each: {}", names.join(", ")));
            }
            for (at, value) in values.iter().enumerate() {
                let found = value.as_ref().and_then(|value| router("router", value, errors));
                if let (Some(place), Some(found)) = (each.get_mut(at), found) {
                    *place = found;
                }
            }
        }
        Some(value) => {
            if let Some(found) = router("router", value, errors) {
                each.fill(found);
            }
        }
        None => (),
    }
    each
}

/// One router.
pub(super) fn router(key: &str, value: &Value, errors: &mut Errors) -> Option<Router> {
    let (name, arguments) = match value {
        Value::Path(path) => {
            let kind = RouterKind::Custom(source(path).into());
            return Some(Router { kind, path: Some(path.clone()), span: path.span() });
        }
        Value::Word { name, arguments } => (name, arguments),
        _ => {
            errors.on(value, "`router` takes the kind of router; write `router = gaussian`, or the path of a type");
            return None;
        }
    };
    if names_a_type(name) {
        errors.on(name, format!("`{name}` is a type, which takes no argument here; write `router = {name}`"));
        return None;
    }
    if name == "gaussian" {
        return Some(gaussian(name.span(), arguments, errors));
    }
    if name == "linear" && !arguments.is_empty() {
        return Some(low_rank(name.span(), arguments, errors));
    }
    if !ROUTERS.iter().any(|known| name == known) {
        errors.unknown(name, "router", &[ROUTERS.as_slice(), &["or the path of a type"]].concat());
        return None;
    }
    let call = Call::of(key, value, &ROUTERS, errors)?;
    call.without_arguments(key, errors)?;
    let kind = match call.word {
        "linear" => RouterKind::Linear,
        "cosine" => RouterKind::Cosine,
        _ => RouterKind::Random,
    };
    Some(Router::known(kind, name.span()))
}

/// The arguments of a router that have a name; `example` writes one.
fn named<'a>(arguments: &'a [Argument], (router, example): (&str, &str), errors: &mut Errors) -> Vec<&'a Setting> {
    let mut named = Vec::new();
    for argument in arguments {
        match argument {
            Argument::Named(setting) => named.push(setting),
            Argument::Plain(value) => {
                errors.on(value, format!("this argument of `{router}` has no name; write `{example}`"));
            }
        }
    }
    named
}

/// A linear router behind the projection that a layer has.
fn low_rank(span: Span, arguments: &[Argument], errors: &mut Errors) -> Router {
    let named = named(arguments, ("linear", "linear(dim = 32)"), errors);
    let given = Settings::new(named.into_iter(), "argument of `linear`", &LINEAR_ARGUMENTS, &[], errors);
    let mut dim = None;
    given.set("dim", &mut dim, errors, |key, value, errors| count(key, value, errors).map(Some));
    // What could not be read has been said, and no rule objects to a router without it.
    let kind = dim.map_or(RouterKind::Linear, |dim| RouterKind::LowRank { dim });
    Router::known(kind, given.innermost("dim").unwrap_or(span))
}

/// What the variances are shared by; one full Σ for each choice is no such word.
fn covariance(key: &str, value: &Value, errors: &mut Errors) -> Option<Covariance> {
    if let Value::Word { name, .. } = value
        && name == "full"
    {
        let problem = "`full` would be r² numbers for each choice, more than labels can tell";
        errors.on(name, format!("{problem}; write `covariance = shared_full`, one Σ for all choices of a router"));
        return None;
    }
    word(&Covariance::ALL)(key, value, errors)
}

fn gaussian(span: Span, arguments: &[Argument], errors: &mut Errors) -> Router {
    let named = named(arguments, ("gaussian", "gaussian(dim = 64)"), errors);
    let given = Settings::new(named.into_iter(), "argument of `gaussian`", &GAUSSIAN_ARGUMENTS, &[], errors);
    let mut form = GaussianSpec::PLAIN;
    given.set("dim", &mut form.dim, errors, count);
    given.set("reduce", &mut form.reduce, errors, word(&Reduce::ALL));
    given.set("covariance", &mut form.covariance, errors, covariance);
    given.set("project", &mut form.project, errors, word(&Project::ALL));
    if let (Project::Identity, Some(dim)) = (form.project, given.key("dim")) {
        let problem = "`project = identity` leaves the hidden size as it is";
        errors.at(dim.span(), format!("{problem}; remove `dim`, or write `project = learned`"));
    }
    // Of its arguments, the rules speak of the width.
    Router::known(RouterKind::Gaussian(form), given.innermost("dim").unwrap_or(span))
}
