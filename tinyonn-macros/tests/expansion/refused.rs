/// Kept.
pub struct Refused;
impl Refused {
    /// The declaration.
    pub const SPEC: ::tinyonn::moe::MoeSpec = ::tinyonn::moe::MoeSpec {
        name: ::std::borrow::Cow::Borrowed("Refused"),
        levels: ::std::borrow::Cow::Borrowed(&[]),
        always: ::std::borrow::Cow::Borrowed(&[]),
        experts_are: ::tinyonn::moe::ExpertsAre::Slice,
        combine: ::tinyonn::moe::Combine::Concat,
        route_per: ::tinyonn::moe::RoutePer::Token,
        gate: ::tinyonn::moe::Gate::Normalised,
        pfag: ::tinyonn::moe::Pfag::Off,
        balance: ::tinyonn::moe::Balance::None,
        z_loss: 0.0,
        jitter: 0.0,
        partition: ::core::option::Option::None,
        activation: ::core::option::Option::None,
    };
    /// Reads or initialises a layer from the parameters of its `mlp`.
    ///
    /// # Errors
    /// An MLP narrower than the number of experts; a missing or misshapen parameter.
    pub fn layer(
        cfg: &::tinyonn::qwen3::Qwen3Config,
        layer: ::core::primitive::usize,
        vb: ::tinyonn::candle_nn::VarBuilder<'_>,
    ) -> ::tinyonn::Result<::tinyonn::moe::MoeLayer> {
        ::tinyonn::moe::MoeLayer::new(Self::SPEC, &[], cfg, layer, &vb)
    }
}
::core::compile_error! {
    "`groups` is 0; use 1 or more"
}
