/// Seven groups of three experts; a token takes part in two groups, with one expert of each.
///
/// 21 experts, 2 active (9.5 %); physical decision depth 2; each token decides for itself.
///
/// ```text
/// Few
/// └─ 7 × group: gaussian(dim = 16) takes 2
///    └─ 3 × expert: gaussian(dim = 16) takes 1
/// ```
///
/// - Experts are slices of the dense MLP, combined as one bank whose hidden activation is gated (`combine = concat`); a chosen expert weighs 1.
///
/// | routers | in number | choices of each | taken | parameters |
/// |---|---|---|---|---|
/// | `group_router` | 1 | 7 | 2 | r·d + 14·r + 8, r = min(16, d) |
/// | `expert_router` | 7 | 3 | 1 | r·d + 42·r + 22, r = min(16, d) |
///
/// For hidden width d and MLP width I (at least 21), a layer holds the 3·d·I weights of the dense MLP, and the parameters of the routers.
pub struct Few;
impl Few {
    /// The declaration.
    pub const SPEC: ::tinyonn::moe::MoeSpec = {
        use ::std::borrow::Cow::Borrowed;
        use ::tinyonn::moe::{RouterKind::*, *};
        const GROUP: &[RouterSpec] = &[
            RouterSpec::new("group", 1, 7, 2, Gaussian(GaussianSpec::new(16))),
        ];
        const EXPERT: &[RouterSpec] = &[
            RouterSpec::new("expert", 7, 3, 1, Gaussian(GaussianSpec::new(16))),
        ];
        MoeSpec {
            name: Borrowed("Few"),
            levels: Borrowed(
                &[LevelSpec::new("group", GROUP), LevelSpec::new("expert", EXPERT)],
            ),
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
::tinyonn::inventory::submit! {
    ::tinyonn::moe::Variant { spec : Few::SPEC, module_path : ::core::module_path!(),
    build : Few::layer, }
}
