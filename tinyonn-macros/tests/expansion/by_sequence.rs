/// 21 experts, 2 active (9.5 %); physical decision depth 2; a sequence decides once, by its first 8 tokens.
///
/// ```text
/// BySequence
/// └─ 7 × group: gaussian(dim = 5) takes 1
///    └─ 3 × expert: gaussian(dim = 5) takes 2
/// ```
///
/// - Experts are slices of the dense MLP, combined as one bank whose hidden activation is gated (`combine = concat`); a chosen expert weighs 1.
///
/// | routers | in number | choices of each | taken | parameters |
/// |---|---|---|---|---|
/// | `group_router` | 1 | 7 | 1 | r·d + 14·r + 8, r = min(5, d) |
/// | `expert_router` | 7 | 3 | 2 | r·d + 42·r + 22, r = min(5, d) |
///
/// For hidden width d and MLP width I (at least 21), a layer holds the 3·d·I weights of the dense MLP, and the parameters of the routers.
#[derive(Debug, Default)]
pub(crate) struct BySequence;
impl BySequence {
    /// The declaration.
    pub(crate) const SPEC: ::tinyonn::moe::MoeSpec = {
        use ::std::borrow::Cow::Borrowed;
        use ::tinyonn::moe::{RouterKind::*, *};
        const GROUP: &[RouterSpec] = &[
            RouterSpec::new("group", 1, 7, 1, Gaussian(GaussianSpec::new(5))),
        ];
        const EXPERT: &[RouterSpec] = &[
            RouterSpec::new("expert", 7, 3, 2, Gaussian(GaussianSpec::new(5))),
        ];
        MoeSpec {
            name: Borrowed("BySequence"),
            levels: Borrowed(
                &[LevelSpec::new("group", GROUP), LevelSpec::new("expert", EXPERT)],
            ),
            route_per: RoutePer::Sequence { first: 8 },
            ..MoeSpec::PLAIN
        }
    };
    /// Reads or initialises a layer from the parameters of its `mlp`.
    ///
    /// # Errors
    /// An MLP narrower than the number of experts; a missing or misshapen parameter.
    pub(crate) fn layer(
        cfg: &::tinyonn::decoder::Arch,
        layer: ::core::primitive::usize,
        vb: ::tinyonn::candle_nn::VarBuilder<'_>,
    ) -> ::tinyonn::Result<::tinyonn::moe::MoeLayer> {
        ::tinyonn::moe::MoeLayer::new(Self::SPEC, &[], cfg, layer, &vb)
    }
}
::tinyonn::inventory::submit! {
    ::tinyonn::moe::Variant { spec : BySequence::SPEC, module_path :
    ::core::module_path!(), build : BySequence::layer, }
}
