//! The declaration as a constant expression: what does not go without saying.

use std::fmt::Debug;

use proc_macro2::{Ident, Literal, TokenStream};
use quote::{format_ident, quote};
use tinyonn_spec::{
    AlwaysSpec, AttentionSpec, Balance, GaussianSpec, KeptPairs, LevelSpec, MoeSpec, PairIndex, PairsSpec, Pfag,
    RoutePer, RouterKind, RouterSpec,
};

pub(super) fn spec(spec: &MoeSpec) -> TokenStream {
    let MoeSpec { name, levels, always, experts_are, combine, route_per, gate, pfag, balance, .. } = spec;
    let plain = MoeSpec::PLAIN;
    let consts = levels.iter().map(|level| {
        let (name, routers) = (runs(level), level.routers.iter().map(router));
        quote!(const #name: &[RouterSpec] = &[#(#routers),*];)
    });
    let levels = levels.iter().map(|level| {
        let (name, runs) = (&level.name, runs(level));
        quote!(LevelSpec::new(#name, #runs))
    });
    let mut said = Vec::new();
    let mut say = |differs: bool, field: &str, value: TokenStream| {
        let field = format_ident!("{field}");
        said.extend(differs.then(|| quote!(#field: #value,)));
    };
    let groups = always.iter().map(|AlwaysSpec { name, experts }| {
        let experts = number(*experts);
        quote!(AlwaysSpec { name: Borrowed(#name), experts: #experts })
    });
    say(!spec.levels.is_empty(), "levels", quote!(Borrowed(&[#(#levels),*])));
    say(!always.is_empty(), "always", quote!(Borrowed(&[#(#groups),*])));
    if let Some(by) = &spec.always_by {
        let by = word("AlwaysBy", by);
        say(true, "always_by", quote!(::core::option::Option::Some(#by)));
    }
    say(*experts_are != plain.experts_are, "experts_are", word("ExpertsAre", experts_are));
    say(*combine != plain.combine, "combine", word("Combine", combine));
    say(*route_per != plain.route_per, "route_per", self::route_per(*route_per));
    say(*gate != plain.gate, "gate", word("Gate", gate));
    say(spec.neurons != plain.neurons, "neurons", word("Neurons", &spec.neurons));
    say(!spec.attention.is_dense(), "attention", attention(&spec.attention));
    say(*pfag != plain.pfag, "pfag", self::pfag(*pfag));
    say(*balance != plain.balance, "balance", self::balance(*balance));
    for (field, value) in [("z_loss", spec.z_loss), ("jitter", spec.jitter)] {
        let literal = real(value);
        say(value != 0.0, field, quote!(#literal));
    }
    if let Some(partition) = &spec.partition {
        let partition = word("PartitionStrategy", partition);
        say(true, "partition", quote!(::core::option::Option::Some(#partition)));
    }
    if let Some(activation) = &spec.activation {
        say(true, "activation", quote!(::core::option::Option::Some(Borrowed(#activation))));
    }
    // Nothing is imported that is not used.
    let kinds = (!spec.levels.is_empty()).then(|| quote!(RouterKind::*,));
    quote! {
        {
            use ::std::borrow::Cow::Borrowed;
            use ::tinyonn::moe::{#kinds *};
            #(#consts)*
            MoeSpec {
                name: Borrowed(#name),
                #(#said)*
                ..MoeSpec::PLAIN
            }
        }
    }
}

/// The constant that holds the routers of a level.
fn runs(LevelSpec { name, .. }: &LevelSpec) -> Ident {
    format_ident!("{}", name.to_uppercase())
}

fn router(RouterSpec { name, parents, choices, top_k, kind }: &RouterSpec) -> TokenStream {
    let (parents, choices, top_k, kind) = (number(*parents), number(*choices), number(*top_k), self::kind(kind));
    quote!(RouterSpec::new(#name, #parents, #choices, #top_k, #kind))
}

fn kind(kind: &RouterKind) -> TokenStream {
    match kind {
        RouterKind::Gaussian(form) => {
            let form = gaussian(form);
            quote!(Gaussian(#form))
        }
        RouterKind::Custom(path) => quote!(Custom(Borrowed(#path))),
        RouterKind::Linear => quote!(Linear),
        RouterKind::LowRank { dim } => {
            let dim = number(*dim);
            quote!(LowRank { dim: #dim })
        }
        RouterKind::Cosine => quote!(Cosine),
        RouterKind::Random => quote!(Random),
    }
}

fn gaussian(form: &GaussianSpec) -> TokenStream {
    let GaussianSpec { dim, reduce, covariance, project } = form;
    let dim = number(*dim);
    if *form == GaussianSpec::new(form.dim) {
        return quote!(GaussianSpec::new(#dim));
    }
    let (reduce, covariance) = (word("Reduce", reduce), word("Covariance", covariance));
    let project = word("Project", project);
    quote!(GaussianSpec { dim: #dim, reduce: #reduce, covariance: #covariance, project: #project })
}

fn route_per(route_per: RoutePer) -> TokenStream {
    match route_per {
        RoutePer::Segment { tokens } => {
            let tokens = number(tokens);
            quote!(RoutePer::Segment { tokens: #tokens })
        }
        RoutePer::Sequence { first } => {
            let first = number(first);
            quote!(RoutePer::Sequence { first: #first })
        }
        RoutePer::Token | RoutePer::Task => word("RoutePer", &route_per),
    }
}

fn attention(attention: &AttentionSpec) -> TokenStream {
    let AttentionSpec::Pairs(pairs) = attention else { return word("AttentionSpec", attention) };
    let PairsSpec { keep, index, near, first, by, choose, prefill } = pairs;
    let keep = match keep {
        KeptPairs::Share(share) => {
            let share = real(*share);
            quote!(KeptPairs::Share(#share))
        }
        KeptPairs::Keys(keys) => {
            let keys = number(*keys);
            quote!(KeptPairs::Keys(#keys))
        }
    };
    let sized = |name: &str, size: usize| {
        let (name, size) = (format_ident!("{name}"), number(size));
        quote!(PairIndex::#name(#size))
    };
    let index = match *index {
        PairIndex::Components(r) => sized("Components", r),
        PairIndex::Directions(r) => sized("Directions", r),
        PairIndex::Blocks(size) => sized("Blocks", size),
        PairIndex::Window | PairIndex::Exact => word("PairIndex", index),
    };
    let (near, first) = (number(*near), number(*first));
    let (by, choose, prefill) = (word("PairsBy", by), word("PairsChosen", choose), word("Prefill", prefill));
    quote! {
        AttentionSpec::Pairs(PairsSpec {
            keep: #keep,
            index: #index,
            near: #near,
            first: #first,
            by: #by,
            choose: #choose,
            prefill: #prefill,
        })
    }
}

fn pfag(pfag: Pfag) -> TokenStream {
    if let Pfag::Nucleus { mass } = pfag {
        let mass = real(mass);
        return quote!(Pfag::Nucleus { mass: #mass });
    }
    word("Pfag", &pfag)
}

fn balance(balance: Balance) -> TokenStream {
    match balance {
        Balance::None => word("Balance", &balance),
        Balance::Loss { coefficient } => {
            let coefficient = real(coefficient);
            quote!(Balance::Loss { coefficient: #coefficient })
        }
        Balance::Bias { rate } => {
            let rate = real(rate);
            quote!(Balance::Bias { rate: #rate })
        }
    }
}

/// A variant without fields, which is called in Rust what `Debug` calls it.
fn word(enumeration: &str, value: &impl Debug) -> TokenStream {
    let (enumeration, value) = (format_ident!("{enumeration}"), format_ident!("{value:?}"));
    quote!(#enumeration::#value)
}

/// `10`, not `10usize`.
fn number(value: usize) -> Literal {
    Literal::usize_unsuffixed(value)
}

/// `0.5`, not `0.5f64`.
fn real(value: f64) -> Literal {
    Literal::f64_unsuffixed(value)
}
