/// The seed's hierarchy.
///
/// 100 experts, 64 active (64 %); physical decision depth 2; each token decides for itself.
///
/// ```text
/// TinyOnn
/// └─ 10 × group: gaussian(dim = 64) takes 8
///    └─ 10 × expert: gaussian(dim = 64) takes 8
/// ```
///
/// - Experts are slices of the dense MLP, combined as one bank whose hidden activation is gated (`combine = concat`); a chosen expert weighs 1.
///
/// | routers | in number | choices of each | taken | parameters |
/// |---|---|---|---|---|
/// | `group_router` | 1 | 10 | 8 | r·d + 20·r + 11, r = min(64, d) |
/// | `expert_router` | 10 | 10 | 8 | r·d + 200·r + 101, r = min(64, d) |
///
/// For hidden width d and MLP width I (at least 100), a layer holds the 3·d·I weights of the dense MLP, and the parameters of the routers.
#[must_use]
pub struct TinyOnn;
impl TinyOnn {
    /// The declaration.
    pub const SPEC: ::tinyonn::moe::MoeSpec = {
        use ::std::borrow::Cow::Borrowed;
        use ::tinyonn::moe::{RouterKind::*, *};
        const GROUP: &[RouterSpec] = &[
            RouterSpec::new("group", 1, 10, 8, Gaussian(GaussianSpec::new(64))),
        ];
        const EXPERT: &[RouterSpec] = &[
            RouterSpec::new("expert", 10, 10, 8, Gaussian(GaussianSpec::new(64))),
        ];
        MoeSpec {
            name: Borrowed("TinyOnn"),
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
    ::tinyonn::moe::Variant { spec : TinyOnn::SPEC, module_path : ::core::module_path!(),
    build : TinyOnn::layer, }
}
