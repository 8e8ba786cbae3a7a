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
    pub const SPEC: ::tinyonn::moe::MoeSpec = ::tinyonn::moe::MoeSpec {
        name: ::std::borrow::Cow::Borrowed("OfOnesOwn"),
        levels: ::std::borrow::Cow::Borrowed(
            &[
                ::tinyonn::moe::LevelSpec {
                    name: ::std::borrow::Cow::Borrowed("group"),
                    routers: ::std::borrow::Cow::Borrowed(
                        &[
                            ::tinyonn::moe::RouterSpec {
                                name: ::std::borrow::Cow::Borrowed("group"),
                                parents: 1,
                                choices: 2,
                                top_k: 1,
                                kind: ::tinyonn::moe::RouterKind::Custom(
                                    ::std::borrow::Cow::Borrowed("Mine"),
                                ),
                            },
                        ],
                    ),
                },
                ::tinyonn::moe::LevelSpec {
                    name: ::std::borrow::Cow::Borrowed("expert"),
                    routers: ::std::borrow::Cow::Borrowed(
                        &[
                            ::tinyonn::moe::RouterSpec {
                                name: ::std::borrow::Cow::Borrowed("expert"),
                                parents: 2,
                                choices: 2,
                                top_k: 2,
                                kind: ::tinyonn::moe::RouterKind::Custom(
                                    ::std::borrow::Cow::Borrowed("Mine"),
                                ),
                            },
                        ],
                    ),
                },
            ],
        ),
        always: ::std::borrow::Cow::Borrowed(&[]),
        experts_are: ::tinyonn::moe::ExpertsAre::Slice,
        combine: ::tinyonn::moe::Combine::Dispatch,
        route_per: ::tinyonn::moe::RoutePer::Token,
        gate: ::tinyonn::moe::Gate::Scaled,
        pfag: ::tinyonn::moe::Pfag::Off,
        balance: ::tinyonn::moe::Balance::None,
        z_loss: 0.0,
        jitter: 0.0,
        partition: ::core::option::Option::Some(::tinyonn::moe::PartitionStrategy::Sps),
        activation: ::core::option::Option::Some(::std::borrow::Cow::Borrowed("relu2")),
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
