//! Closed sets of words: each is an enum, and each of its words is what a declaration writes and a checkpoint holds.
//!
//! ```
//! use tinyonn::moe::Gate;
//! use tinyonn_spec::Word;
//!
//! /// All words of a setting.
//! fn words<W: Word>() -> Vec<&'static str> {
//!     W::ALL.iter().map(|word| word.word()).collect()
//! }
//! assert_eq!(words::<Gate>(), Gate::ALL.map(Gate::word));
//! assert_eq!(words::<Gate>(), ["unit", "scaled", "normalised", "straight_through"]);
//! ```

/// A closed set of words, one of which is said.
pub trait Word: Copy + PartialEq + 'static {
    /// All of them.
    const ALL: &'static [Self];

    /// How it is written.
    fn word(self) -> &'static str;
}

macro_rules! words {
    ($($(#[$doc:meta])* pub enum $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$variant),+];

            /// How it is written in declarations, configurations and checkpoints.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl crate::Word for $name {
            const ALL: &'static [Self] = &$name::ALL;

            fn word(self) -> &'static str {
                self.word()
            }
        }
    )+};
}

pub(crate) use words;
