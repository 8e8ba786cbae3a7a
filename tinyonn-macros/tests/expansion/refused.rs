/// Kept.
pub struct Refused;
#[allow(dead_code)]
impl Refused {
    /// The declaration.
    pub const SPEC: ::tinyonn::moe::MoeSpec = {
        use ::std::borrow::Cow::Borrowed;
        use ::tinyonn::moe::*;
        MoeSpec {
            name: Borrowed("Refused"),
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
    "there are 0 groups; use 1 or more"
}
