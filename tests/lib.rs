//! The test binary is `suite`; this library only gives the package a target, and the examples of README and book a compiler.

/// Pages whose examples are tested like any other documentation.
macro_rules! pages {
    ($($name:ident $path:literal)*) => {
        $(#[cfg(doctest)]
        #[doc = include_str!($path)]
        pub struct $name;)*
    };
}

pages! {
    ReadMe "../README.md"
    Method "../docs/DESIGN.md"
    Macro "../docs/macro.md"
    Start "../docs/start.md"
}
