//! The declaration as a constant expression.

use proc_macro2::TokenStream;
use quote::quote;

use super::{number, real};
use crate::errors::source;
use crate::variant::{Always, Balance, Behaviour, Gaussian, Level, Pfag, RoutePer, Router, Run, Variant};

pub(super) fn spec(variant: &Variant) -> TokenStream {
    let Variant { name, levels, always, behaviour, .. } = variant;
    let name = borrowed(&name.to_string());
    let levels = levels.iter().map(level);
    let always = always.iter().map(|Always { name, experts }| {
        let (name, experts) = (borrowed(name), number(*experts));
        quote!(::tinyonn::moe::AlwaysSpec { name: #name, experts: #experts })
    });
    let Behaviour { experts_are, combine, gate, partition, activation, .. } = behaviour;
    let gate = gate.map_or(quote!(::tinyonn::moe::Gate::Normalised), |gate| quote!(#gate));
    let (route_per, pfag) = (route_per(behaviour.route_per), pfag(behaviour.pfag));
    let (balance, z_loss, jitter) = (balance(behaviour.balance), real(behaviour.z_loss), real(behaviour.jitter));
    let partition = optional(partition.map(|partition| quote!(#partition)));
    let activation = optional(activation.as_ref().map(|activation| borrowed(&activation.name())));
    quote! {
        ::tinyonn::moe::MoeSpec {
            name: #name,
            levels: ::std::borrow::Cow::Borrowed(&[#(#levels),*]),
            always: ::std::borrow::Cow::Borrowed(&[#(#always),*]),
            experts_are: #experts_are,
            combine: #combine,
            route_per: #route_per,
            gate: #gate,
            pfag: #pfag,
            balance: #balance,
            z_loss: #z_loss,
            jitter: #jitter,
            partition: #partition,
            activation: #activation,
        }
    }
}

fn optional(value: Option<TokenStream>) -> TokenStream {
    value.map_or(quote!(::core::option::Option::None), |value| quote!(::core::option::Option::Some(#value)))
}

fn borrowed(text: &str) -> TokenStream {
    quote!(::std::borrow::Cow::Borrowed(#text))
}

fn level(Level { name, runs }: &Level) -> TokenStream {
    let name = borrowed(name);
    let runs = runs.iter().map(|Run { name, parents, choices, top_k, router }| {
        let (name, kind) = (borrowed(name), kind(router));
        let (parents, choices, top_k) = (number(*parents), number(*choices), number(*top_k));
        quote! {
            ::tinyonn::moe::RouterSpec {
                name: #name,
                parents: #parents,
                choices: #choices,
                top_k: #top_k,
                kind: #kind,
            }
        }
    });
    quote! {
        ::tinyonn::moe::LevelSpec {
            name: #name,
            routers: ::std::borrow::Cow::Borrowed(&[#(#runs),*]),
        }
    }
}

fn kind(router: &Router) -> TokenStream {
    match router {
        Router::Gaussian(form) => {
            let form = gaussian(form);
            quote!(::tinyonn::moe::RouterKind::Gaussian(#form))
        }
        Router::Linear => quote!(::tinyonn::moe::RouterKind::Linear),
        Router::Cosine => quote!(::tinyonn::moe::RouterKind::Cosine),
        Router::Random => quote!(::tinyonn::moe::RouterKind::Random),
        Router::Custom(path) => {
            let path = borrowed(&source(path));
            quote!(::tinyonn::moe::RouterKind::Custom(#path))
        }
    }
}

fn gaussian(Gaussian { dim, reduce, covariance, project }: &Gaussian) -> TokenStream {
    let dim = number(*dim);
    quote! {
        ::tinyonn::moe::GaussianSpec { dim: #dim, reduce: #reduce, covariance: #covariance, project: #project }
    }
}

fn route_per(route_per: RoutePer) -> TokenStream {
    match route_per {
        RoutePer::Token => quote!(::tinyonn::moe::RoutePer::Token),
        RoutePer::Segment { tokens } => {
            let tokens = number(tokens);
            quote!(::tinyonn::moe::RoutePer::Segment { tokens: #tokens })
        }
        RoutePer::Sequence { first } => {
            let first = number(first);
            quote!(::tinyonn::moe::RoutePer::Sequence { first: #first })
        }
        RoutePer::Task => quote!(::tinyonn::moe::RoutePer::Task),
    }
}

fn pfag(pfag: Pfag) -> TokenStream {
    match pfag {
        Pfag::Off => quote!(::tinyonn::moe::Pfag::Off),
        Pfag::Entropy => quote!(::tinyonn::moe::Pfag::Entropy),
        Pfag::Nucleus { mass } => {
            let mass = real(mass);
            quote!(::tinyonn::moe::Pfag::Nucleus { mass: #mass })
        }
        Pfag::Surprisal => quote!(::tinyonn::moe::Pfag::Surprisal),
    }
}

fn balance(balance: Balance) -> TokenStream {
    match balance {
        Balance::None => quote!(::tinyonn::moe::Balance::None),
        Balance::Loss { coefficient } => {
            let coefficient = real(coefficient);
            quote!(::tinyonn::moe::Balance::Loss { coefficient: #coefficient })
        }
        Balance::Bias { rate } => {
            let rate = real(rate);
            quote!(::tinyonn::moe::Balance::Bias { rate: #rate })
        }
    }
}
