//! Third pass: a [`Variant`] to the module that a person would have written for it.
//!
//! Every name is an absolute path: whatever the user has in scope, it means the same.

use proc_macro2::{Ident, TokenStream};
use quote::{format_ident, quote};
use syn::punctuated::Punctuated;
use syn::{Attribute, Path, Token};

use crate::rustdoc;
use crate::validate::{Level, RoutePer, Router, Variant};

/// The module, its trait implementations and its registry entry.
pub(crate) fn expand(variant: &Variant) -> TokenStream {
    [module(variant), inherent(variant), feed_forward(variant), moe_module(variant), entry(variant)]
        .into_iter()
        .collect()
}

/// The struct: a field for the routers of each level, and the experts.
fn module(variant: &Variant) -> TokenStream {
    let Variant { attrs, vis, name, levels, .. } = variant;
    let (own_docs, attrs): (Vec<_>, Vec<_>) = attrs.iter().partition(|attr| attr.path().is_ident("doc"));
    let blank = (!own_docs.is_empty()).then_some("");
    let docs = blank.map(str::to_owned).into_iter().chain(rustdoc::of(variant));
    let derive = missing_derives(&attrs);
    let fields = levels.iter().map(|level| {
        let (field, kind) = (field(level), router_type(level.router));
        quote!(#field: #kind)
    });
    quote! {
        #(#own_docs)*
        #(#[doc = #docs])*
        #(#attrs)*
        #derive
        #vis struct #name {
            #(#fields,)*
            experts: ::tinyonn::moe::TinyOnnExpert,
        }
    }
}

/// `Clone` and `Debug`, where the user does not derive them already.
fn missing_derives(attrs: &[&Attribute]) -> Option<TokenStream> {
    let given: Vec<Path> = attrs
        .iter()
        .filter(|attr| attr.path().is_ident("derive"))
        .filter_map(|attr| attr.parse_args_with(Punctuated::<Path, Token![,]>::parse_terminated).ok())
        .flatten()
        .collect();
    let derives = |name: &str| given.iter().any(|path| path.segments.last().is_some_and(|last| last.ident == name));
    let missing: Vec<TokenStream> = [("Clone", quote!(::core::clone::Clone)), ("Debug", quote!(::core::fmt::Debug))]
        .into_iter()
        .filter(|(name, _)| !derives(name))
        .map(|(_, path)| path)
        .collect();
    (!missing.is_empty()).then(|| quote!(#[derive(#(#missing),*)]))
}

/// The declaration and the constructor.
fn inherent(variant: &Variant) -> TokenStream {
    let Variant { vis, name, levels, .. } = variant;
    let spec = spec(variant);
    let routers = levels.iter().enumerate().map(|(index, level)| {
        let (field, router) = (field(level), new_router(variant, index));
        quote!(#field: #router)
    });
    quote! {
        impl #name {
            /// The declaration.
            #vis const SPEC: ::tinyonn::moe::MoeSpec = #spec;

            /// Reads or initialises layer `layer` from the parameters of its `mlp`: the routers under their fields' names,
            /// the experts under the names of the dense MLP.
            ///
            /// # Errors
            /// An MLP narrower than the number of experts; a missing or misshapen parameter.
            #vis fn new(
                cfg: &::tinyonn::qwen3::Qwen3Config,
                layer: usize,
                vb: &::tinyonn::candle_nn::VarBuilder<'_>,
            ) -> ::tinyonn::Result<Self> {
                ::core::result::Result::Ok(Self {
                    #(#routers,)*
                    experts: ::tinyonn::moe::TinyOnnExpert::new(&Self::SPEC, cfg, layer, vb)?,
                })
            }
        }
    }
}

/// The declaration as a constant expression.
fn spec(variant: &Variant) -> TokenStream {
    let name = variant.name.to_string();
    let levels = variant.levels.iter().enumerate().map(|(index, level)| {
        let Level { name, choices, top_k, router } = level;
        let (parents, choices, top_k) = (number(variant.parents(index)), number(*choices), number(*top_k));
        let form = form(*router);
        quote! {
            ::tinyonn::moe::LevelSpec {
                name: ::std::borrow::Cow::Borrowed(#name),
                routers: ::std::borrow::Cow::Borrowed(&[::tinyonn::moe::RouterSpec {
                    name: ::std::borrow::Cow::Borrowed(#name),
                    parents: #parents,
                    choices: #choices,
                    top_k: #top_k,
                    kind: ::tinyonn::moe::RouterKind::Gaussian(#form),
                }]),
            }
        }
    });
    let route_per = match variant.route_per {
        RoutePer::Token => quote!(::tinyonn::moe::RoutePer::Token),
        RoutePer::Sequence { first } => {
            let first = number(first);
            quote!(::tinyonn::moe::RoutePer::Sequence { first: #first })
        }
    };
    quote! {
        ::tinyonn::moe::MoeSpec {
            name: ::std::borrow::Cow::Borrowed(#name),
            levels: ::std::borrow::Cow::Borrowed(&[#(#levels),*]),
            always: ::std::borrow::Cow::Borrowed(&[]),
            experts_are: ::tinyonn::moe::ExpertsAre::Slice,
            combine: ::tinyonn::moe::Combine::Concat,
            route_per: #route_per,
            gate: ::tinyonn::moe::Gate::Unit,
            pfag: ::tinyonn::moe::Pfag::Off,
            balance: ::tinyonn::moe::Balance::None,
            z_loss: 0.0,
            jitter: 0.0,
            partition: ::core::option::Option::None,
            activation: ::core::option::Option::None,
        }
    }
}

/// Route, gate, combine.
fn feed_forward(variant: &Variant) -> TokenStream {
    let name = &variant.name;
    quote! {
        impl ::tinyonn::qwen3::FeedForward for #name {
            fn forward(
                &self,
                x: &::tinyonn::candle_core::Tensor,
                ctx: &::tinyonn::qwen3::RouteCtx,
            ) -> ::tinyonn::Result<::tinyonn::candle_core::Tensor> {
                let routing = ::tinyonn::moe::route(self, x, ctx)?;
                self.experts.forward(x, &routing, ctx)
            }
        }
    }
}

/// What the rest of the library asks of a mixture of experts.
fn moe_module(variant: &Variant) -> TokenStream {
    let Variant { name, levels, .. } = variant;
    let fields = levels.iter().map(field);
    quote! {
        impl ::tinyonn::moe::MoeModule for #name {
            fn spec(&self) -> &::tinyonn::moe::MoeSpec {
                static SPEC: ::tinyonn::moe::MoeSpec = #name::SPEC;
                &SPEC
            }

            fn experts(&self) -> &::tinyonn::moe::TinyOnnExpert {
                &self.experts
            }

            fn routers(&self) -> ::std::vec::Vec<::std::vec::Vec<&dyn ::tinyonn::moe::Router>> {
                ::std::vec![#(::std::vec![&self.#fields]),*]
            }
        }
    }
}

/// The registry entry.
fn entry(variant: &Variant) -> TokenStream {
    let name = &variant.name;
    quote! {
        ::tinyonn::inventory::submit! {
            ::tinyonn::moe::Variant {
                spec: #name::SPEC,
                module_path: ::core::module_path!(),
                build: |cfg, layer, vb| {
                    ::core::result::Result::Ok(::std::boxed::Box::new(#name::new(cfg, layer, &vb)?))
                },
            }
        }
    }
}

/// The field of a level's routers, which also names their parameters in a checkpoint.
fn field(level: &Level) -> Ident {
    format_ident!("{}_router", level.name)
}

fn router_type(router: Router) -> TokenStream {
    match router {
        Router::Gaussian { .. } => quote!(::tinyonn::moe::GaussianMoeRouter),
    }
}

fn form(Router::Gaussian { dim }: Router) -> TokenStream {
    let dim = number(dim);
    quote! {
        ::tinyonn::moe::GaussianSpec {
            dim: #dim,
            reduce: ::tinyonn::moe::Reduce::Mean,
            covariance: ::tinyonn::moe::Covariance::Diag,
            project: ::tinyonn::moe::Project::Learned,
        }
    }
}

fn new_router(variant: &Variant, index: usize) -> TokenStream {
    let level = &variant.levels[index];
    let (parents, choices) = (number(variant.parents(index)), number(level.choices));
    let kind = router_type(level.router);
    let prefix = field(level).to_string();
    match level.router {
        Router::Gaussian { dim } => {
            let form = form(Router::Gaussian { dim });
            quote! {
                #kind::with_form(
                    ::tinyonn::moe::RouterShape { hidden: cfg.hidden_size, parents: #parents, choices: #choices },
                    &#form,
                    &vb.pp(#prefix),
                )?
            }
        }
    }
}

/// `10`, not `10usize`.
fn number(value: usize) -> proc_macro2::Literal {
    proc_macro2::Literal::usize_unsuffixed(value)
}
