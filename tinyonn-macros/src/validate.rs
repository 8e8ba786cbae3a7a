//! Second pass: a [`Declaration`] to a [`Variant`]. All grammar beyond the shape of a setting, and all arithmetic, is here.

use proc_macro2::{Ident, Span};
use syn::{Attribute, Fields, Item, ItemStruct, LitInt, Visibility};

use crate::errors::Errors;
use crate::parse::{Argument, Declaration, Setting, Value};

/// The settings there are.
pub(crate) const SETTINGS: [&str; 5] = ["groups", "experts", "router", "top_k", "route_per"];
/// The routers there are.
pub(crate) const ROUTERS: [&str; 1] = ["gaussian"];
/// What can share a decision.
pub(crate) const ROUTE_PER: [&str; 2] = ["token", "sequence"];

/// Width of a Gaussian router's projection unless said otherwise.
const DIM: usize = 64;
/// Tokens that a sequence is judged by unless said otherwise.
const FIRST: usize = 64;
/// Choices taken at each level unless said otherwise, capped at what there is.
const TOP_K: [usize; 2] = [1, 2];
/// No MLP is wider, and each expert needs a neuron; no other number is sensibly larger.
const MOST: usize = 1 << 24;

/// A declaration that makes sense.
pub(crate) struct Variant {
    /// The user's documentation and other attributes.
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) name: Ident,
    /// From the root to the experts.
    pub(crate) levels: Vec<Level>,
    pub(crate) route_per: RoutePer,
}

/// One level of decisions.
pub(crate) struct Level {
    /// What a choice is called.
    pub(crate) name: &'static str,
    pub(crate) choices: usize,
    pub(crate) top_k: usize,
    pub(crate) router: Router,
}

/// The kind of a level's routers.
#[derive(Clone, Copy)]
pub(crate) enum Router {
    Gaussian { dim: usize },
}

/// What shares a decision.
#[derive(Clone, Copy)]
pub(crate) enum RoutePer {
    Token,
    Sequence { first: usize },
}

impl Variant {
    /// Routers at a level: the choices made before it.
    pub(crate) fn parents(&self, level: usize) -> usize {
        self.levels[..level].iter().map(|level| level.choices).product()
    }

    /// Experts in all.
    pub(crate) fn experts(&self) -> usize {
        self.parents(self.levels.len())
    }

    /// Experts that a decision takes.
    pub(crate) fn active_experts(&self) -> usize {
        self.levels.iter().map(|level| level.top_k).product()
    }
}

/// Checks everything; `None` if anything is wrong, all of which is then in `errors`.
pub(crate) fn validate(declaration: Declaration, errors: &mut Errors) -> Option<Variant> {
    let item = declaration.item.and_then(|item| unit_struct(item, errors));
    let settings = Settings::new(declaration.settings.iter(), "setting", &SETTINGS, errors);
    let groups = settings.required("groups", "the number of groups", errors);
    let experts = settings.required("experts", "the number of experts in each group", errors);
    if let (Some(groups), Some(experts)) = (groups, experts)
        && groups * experts > MOST
    {
        let problem = format!("{groups} groups of {experts} are {} experts", groups * experts);
        settings.error("experts", format!("{problem}; use {MOST} or fewer: each needs a neuron"), errors);
    }
    let router = settings.get("router").map_or(Some(Router::Gaussian { dim: DIM }), |value| router(value, errors));
    let route_per = settings.get("route_per").map_or(Some(RoutePer::Token), |value| route_per(value, errors));
    let top_k = top_k(settings.get("top_k"), [groups, experts], errors);
    let (item, [group_k, expert_k], router) = (item?, top_k?, router?);
    let level = |name, choices, top_k| Level { name, choices, top_k, router };
    let variant = Variant {
        attrs: item.attrs,
        vis: item.vis,
        name: item.ident,
        levels: vec![level("group", groups?, group_k), level("expert", experts?, expert_k)],
        route_per: route_per?,
    };
    errors.is_empty().then_some(variant)
}

/// The settings by name, each known and given once.
struct Settings<'a> {
    given: Vec<&'a Setting>,
    /// What unknown names were probably meant to be: not missing besides.
    meant: Vec<&'a str>,
}

impl<'a> Settings<'a> {
    fn new(all: impl Iterator<Item = &'a Setting>, what: &str, known: &'a [&'a str], errors: &mut Errors) -> Self {
        let mut settings = Self { given: Vec::new(), meant: Vec::new() };
        for setting in all {
            let key = &setting.key;
            if !known.iter().any(|known| key == known) {
                settings.meant.extend(errors.unknown(key, what, known));
            } else if settings.get(&key.to_string()).is_some() {
                errors.at(key.span(), format!("`{key}` is given twice; keep one"));
            } else {
                settings.given.push(setting);
            }
        }
        settings
    }

    /// The value of `key`: `None` if it is not given, `Some(None)` if it could not be read.
    #[expect(clippy::option_option, reason = "not given and not readable differ: only the first takes a default")]
    fn get(&self, key: &str) -> Option<Option<&'a Value>> {
        self.given.iter().find(|setting| setting.key == key).map(|setting| setting.value.as_ref())
    }

    /// The number `key`, which has no default.
    fn required(&self, key: &str, what: &str, errors: &mut Errors) -> Option<usize> {
        match self.get(key) {
            Some(value) => count(key, value?, errors),
            None if self.meant.contains(&key) => None,
            None => {
                errors.at(Span::call_site(), format!("`{key}` is missing; add `{key} = 10`, {what}"));
                None
            }
        }
    }

    fn error(&self, key: &str, message: String, errors: &mut Errors) {
        if let Some(Some(value)) = self.get(key) {
            errors.on(value, message);
        }
    }
}

/// A struct without fields or parameters: the macro writes the fields.
fn unit_struct(item: Item, errors: &mut Errors) -> Option<ItemStruct> {
    let Item::Struct(item) = item else {
        errors.on(item, "`#[moe]` declares a variant on a unit struct; write `pub struct Name;` below it");
        return None;
    };
    let name = &item.ident;
    if !matches!(item.fields, Fields::Unit) {
        errors.on(&item.fields, format!("the macro writes the fields; write `struct {name};`"));
    }
    if !item.generics.params.is_empty() {
        errors.on(&item.generics, format!("a variant is one type, without parameters; write `struct {name};`"));
    }
    if let Some(clause) = &item.generics.where_clause {
        errors.on(clause, format!("a variant is one type, without bounds; write `struct {name};`"));
    }
    Some(item)
}

/// A number of one or more.
fn count(key: &str, value: &Value, errors: &mut Errors) -> Option<usize> {
    match value {
        Value::Number(number) => whole(key, number, errors),
        other => {
            errors.on(other, format!("`{key}` takes a number; write `{key} = 10`"));
            None
        }
    }
}

fn whole(key: &str, number: &LitInt, errors: &mut Errors) -> Option<usize> {
    if !number.suffix().is_empty() {
        let digits = number.base10_digits();
        errors.on(number, format!("`{number}` has a suffix; write `{digits}`"));
        return None;
    }
    match number.base10_parse() {
        Ok(0) => errors.on(number, format!("`{key}` is 0; use 1 or more")),
        Ok(value) if value <= MOST => return Some(value),
        _ => errors.on(number, format!("`{key}` is {number}; use {MOST} or less")),
    }
    None
}

fn router(value: Option<&Value>, errors: &mut Errors) -> Option<Router> {
    let Value::Word { name, arguments } = value? else {
        errors.on(value, "`router` takes the kind of router; write `router = gaussian`");
        return None;
    };
    if name != "gaussian" {
        errors.unknown(name, "router", &ROUTERS);
        return None;
    }
    for argument in arguments {
        if let Argument::Plain(value) = argument {
            errors.on(value, "this argument of `gaussian` has no name; write `gaussian(dim = 64)`");
        }
    }
    let named = arguments.iter().filter_map(|argument| match argument {
        Argument::Named(setting) => Some(setting),
        Argument::Plain(_) => None,
    });
    match Settings::new(named, "argument of `gaussian`", &["dim"], errors).get("dim") {
        Some(dim) => Some(Router::Gaussian { dim: count("dim", dim?, errors)? }),
        None => Some(Router::Gaussian { dim: DIM }),
    }
}

fn route_per(value: Option<&Value>, errors: &mut Errors) -> Option<RoutePer> {
    let Value::Word { name, arguments } = value? else {
        errors.on(value, "`route_per` takes what shares a decision; write `route_per = token`");
        return None;
    };
    match (name.to_string().as_str(), arguments.as_slice()) {
        ("token", []) => Some(RoutePer::Token),
        ("token", _) => {
            errors.at(name.span(), "`token` takes no argument; write `route_per = token`");
            None
        }
        ("sequence", []) => Some(RoutePer::Sequence { first: FIRST }),
        ("sequence", [Argument::Plain(first)]) => Some(RoutePer::Sequence { first: count("sequence", first, errors)? }),
        ("sequence", _) => {
            errors.at(name.span(), "`sequence` takes one number, the tokens it reads first; write `sequence(64)`");
            None
        }
        _ => {
            errors.unknown(name, "way to share a decision", &ROUTE_PER);
            None
        }
    }
}

/// How many groups, and how many experts of a group, are taken.
#[expect(clippy::option_option, reason = "as `Settings::get` gives it")]
fn top_k(given: Option<Option<&Value>>, choices: [Option<usize>; 2], errors: &mut Errors) -> Option<[usize; 2]> {
    let Some(value) = given else {
        return Some([TOP_K[0].min(choices[0]?), TOP_K[1].min(choices[1]?)]);
    };
    let Value::List { brackets, values } = value? else {
        errors.on(value, "`top_k` takes a number for each level; write `top_k = [1, 2]`: groups, experts of a group");
        return None;
    };
    let [groups, experts] = values.as_slice() else {
        let problem = format!("`top_k` has {} numbers for 2 levels", values.len());
        errors.on(brackets, format!("{problem}; write `top_k = [1, 2]`: groups, experts of a group"));
        return None;
    };
    let mut taken = |value: &Option<Value>, choices: Option<usize>, of: (&str, &str)| {
        let value = value.as_ref()?;
        let k = count("top_k", value, errors)?;
        match choices {
            Some(choices) if k > choices => {
                let (of, fewer) =
                    if choices == 1 { (of.0, "1".to_owned()) } else { (of.1, format!("{choices} or fewer")) };
                errors.on(value, format!("top_k = {k} exceeds the {choices} {of}; use {fewer}"));
                None
            }
            _ => Some(k),
        }
    };
    let groups = taken(groups, choices[0], ("group", "groups"));
    let experts = taken(experts, choices[1], ("expert of a group", "experts of a group"));
    Some([groups?, experts?])
}
