/// 4 experts, 2 active (50 %); physical decision depth 2; each token decides for itself.
///
/// ```text
/// OfOnesOwn
/// └─ 2 × group: Mine takes 1
///    └─ 2 × expert: Mine takes 2
/// ```
///
/// - Experts are slices of the dense MLP, combined by dispatching each input to its own (`combine = dispatch`); a chosen expert weighs its p, renormalised over the chosen, times their number.
/// - Neurons are given to experts by `partition = sps`.
/// - Activation: `relu2`.
///
/// | routers | in number | choices of each | taken | parameters |
/// |---|---|---|---|---|
/// | `group_router` | 1 | 2 | 1 | its own |
/// | `expert_router` | 2 | 2 | 2 | its own |
///
/// For hidden width d and MLP width I (at least 4), a layer holds the 3·d·I weights of the dense MLP, and the parameters of the routers.
pub struct OfOnesOwn;
impl OfOnesOwn {
    /// The declaration.
    pub const SPEC: ::tinyonn::moe::MoeSpec = {
        use ::std::borrow::Cow::Borrowed;
        use ::tinyonn::moe::{RouterKind::*, *};
        const GROUP: &[RouterSpec] = &[
            RouterSpec::new("group", 1, 2, 1, Custom(Borrowed("Mine"))),
        ];
        const EXPERT: &[RouterSpec] = &[
            RouterSpec::new("expert", 2, 2, 2, Custom(Borrowed("Mine"))),
        ];
        MoeSpec {
            name: Borrowed("OfOnesOwn"),
            levels: Borrowed(
                &[LevelSpec::new("group", GROUP), LevelSpec::new("expert", EXPERT)],
            ),
            combine: Combine::Dispatch,
            gate: Gate::Scaled,
            partition: ::core::option::Option::Some(PartitionStrategy::Sps),
            activation: ::core::option::Option::Some(Borrowed("relu2")),
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
        ::tinyonn::moe::MoeLayer::new(
            Self::SPEC,
            &[("Mine", ::tinyonn::moe::new_router::<Mine>)],
            cfg,
            layer,
            &vb,
        )
    }
}
::tinyonn::inventory::submit! {
    ::tinyonn::moe::Variant { spec : OfOnesOwn::SPEC, module_path :
    ::core::module_path!(), build : OfOnesOwn::layer, }
}
::tinyonn::inventory::submit! {
    ::tinyonn::ops::ActivationEntry(& my::Relu2)
}
