//! The words that stand for themselves: each enum is one of `tinyonn::moe` under the same name, each variant one of its variants.

use proc_macro2::TokenStream;
use quote::{ToTokens, quote};

/// A closed set of words, one of which is written.
pub(crate) trait Keyword: Copy + 'static {
    /// The words.
    const WORDS: &'static [&'static str];

    /// The meaning of a word.
    fn of(word: &str) -> Option<Self>;

    /// The word.
    fn word(self) -> &'static str;
}

macro_rules! keywords {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($variant),+
        }

        impl Keyword for $name {
            const WORDS: &'static [&'static str] = &[$($word),+];

            fn of(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }

            fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl ToTokens for $name {
            fn to_tokens(&self, tokens: &mut TokenStream) {
                tokens.extend(match self {
                    $(Self::$variant => quote!(::tinyonn::moe::$name::$variant),)+
                });
            }
        }
    )+};
}

keywords! {
    /// How the dimensions' log-densities of a Gaussian become one.
    Reduce { Mean = "mean", Sum = "sum" }

    /// What the variances of Gaussians are shared by.
    Covariance { Diag = "diag", Shared = "shared", Isotropic = "isotropic" }

    /// Where the z of a Gaussian router comes from.
    Project { Learned = "learned", Identity = "identity", Random = "random" }

    /// What an expert is.
    ExpertsAre { Slice = "slice", Replicate = "replicate" }

    /// How the chosen experts become one output.
    Combine { Concat = "concat", Merge = "merge", Dispatch = "dispatch" }

    /// The weight of a chosen slice. Replicas know but one.
    Gate { Unit = "unit", Scaled = "scaled", StraightThrough = "straight_through" }

    /// How neurons are given to experts.
    PartitionStrategy {
        Contiguous = "contiguous",
        Random = "random",
        Kmeans = "kmeans",
        Coactivation = "coactivation",
        Activation = "activation",
        Sps = "sps",
        Taylor = "taylor",
    }
}
