pub struct RefusedGroups;
/// The groups of [`RefusedGroups`], in their order: those that routers choose from come first.
#[derive(
    ::core::clone::Clone,
    ::core::marker::Copy,
    ::core::fmt::Debug,
    ::core::cmp::PartialEq,
    ::core::cmp::Eq,
)]
#[allow(dead_code)]
pub enum RefusedGroupsGroup {
    /// alone
    Alone,
}
#[allow(dead_code)]
impl RefusedGroupsGroup {
    /// Every group.
    pub const ALL: [Self; 1] = [Self::Alone];
    /// The name of the group in metrics, pictures and checkpoints.
    #[must_use]
    pub const fn name(self) -> &'static ::core::primitive::str {
        match self {
            Self::Alone => "alone",
        }
    }
}
#[allow(dead_code)]
impl RefusedGroups {
    /// The declaration.
    pub const SPEC: ::tinyonn::moe::MoeSpec = {
        use ::std::borrow::Cow::Borrowed;
        use ::tinyonn::moe::*;
        MoeSpec {
            name: Borrowed("RefusedGroups"),
            ..MoeSpec::PLAIN
        }
    };
    /// Reads or initialises a layer from the parameters of its `mlp`.
    ///
    /// # Errors
    /// An MLP narrower than the number of experts; a missing or misshapen parameter.
    pub fn layer(
        cfg: &::tinyonn::decoder::Arch,
        layer: ::core::primitive::usize,
        vb: ::tinyonn::candle_nn::VarBuilder<'_>,
    ) -> ::tinyonn::Result<::tinyonn::moe::MoeLayer> {
        ::tinyonn::moe::MoeLayer::new(Self::SPEC, &[], cfg, layer, &vb)
    }
}
::core::compile_error! {
    "top_k = 5 exceeds the 1 group; use 1"
}
