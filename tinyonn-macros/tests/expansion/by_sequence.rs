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
    pub(crate) const SPEC: ::tinyonn::moe::MoeSpec = ::tinyonn::moe::MoeSpec {
        name: ::std::borrow::Cow::Borrowed("BySequence"),
        levels: ::std::borrow::Cow::Borrowed(
            &[
                ::tinyonn::moe::LevelSpec {
                    name: ::std::borrow::Cow::Borrowed("group"),
                    routers: ::std::borrow::Cow::Borrowed(
                        &[
                            ::tinyonn::moe::RouterSpec {
                                name: ::std::borrow::Cow::Borrowed("group"),
                                parents: 1,
                                choices: 7,
                                top_k: 1,
                                kind: ::tinyonn::moe::RouterKind::Gaussian(::tinyonn::moe::GaussianSpec {
                                    dim: 5,
                                    reduce: ::tinyonn::moe::Reduce::Mean,
                                    covariance: ::tinyonn::moe::Covariance::Diag,
                                    project: ::tinyonn::moe::Project::Learned,
                                }),
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
                                parents: 7,
                                choices: 3,
                                top_k: 2,
                                kind: ::tinyonn::moe::RouterKind::Gaussian(::tinyonn::moe::GaussianSpec {
                                    dim: 5,
                                    reduce: ::tinyonn::moe::Reduce::Mean,
                                    covariance: ::tinyonn::moe::Covariance::Diag,
                                    project: ::tinyonn::moe::Project::Learned,
                                }),
                            },
                        ],
                    ),
                },
            ],
        ),
        always: ::std::borrow::Cow::Borrowed(&[]),
        experts_are: ::tinyonn::moe::ExpertsAre::Slice,
        combine: ::tinyonn::moe::Combine::Concat,
        route_per: ::tinyonn::moe::RoutePer::Sequence {
            first: 8,
        },
        gate: ::tinyonn::moe::Gate::Unit,
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
    pub(crate) fn layer(
        cfg: &::tinyonn::qwen3::Qwen3Config,
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
