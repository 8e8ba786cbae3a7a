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
/// | field | routers | choices of each | taken | parameters |
/// |---|---|---|---|---|
/// | `group_router` | 1 | 7 | 1 | r·d + 14·r + 8, r = min(5, d) |
/// | `expert_router` | 7 | 3 | 2 | r·d + 42·r + 22, r = min(5, d) |
///
/// For hidden width d and MLP width I (at least 21), a layer holds the 3·d·I weights of the dense MLP, and the parameters of the routers.
#[derive(Debug, Default)]
pub(crate) struct BySequence {
    group_router: ::tinyonn::moe::GaussianMoeRouter,
    expert_router: ::tinyonn::moe::GaussianMoeRouter,
    experts: ::tinyonn::moe::TinyOnnExpert,
}
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
    /// Reads or initialises layer `layer` from the parameters of its `mlp`: the routers under their fields' names,
    /// the experts under the names of the dense MLP.
    ///
    /// # Errors
    /// An MLP narrower than the number of experts; a missing or misshapen parameter.
    pub(crate) fn new(
        cfg: &::tinyonn::qwen3::Qwen3Config,
        layer: ::core::primitive::usize,
        vb: &::tinyonn::candle_nn::VarBuilder<'_>,
    ) -> ::tinyonn::Result<Self> {
        ::core::result::Result::Ok(Self {
            group_router: ::tinyonn::moe::GaussianMoeRouter::with_form(
                ::tinyonn::moe::RouterShape {
                    hidden: cfg.hidden_size,
                    parents: 1,
                    choices: 7,
                },
                &::tinyonn::moe::GaussianSpec {
                    dim: 5,
                    reduce: ::tinyonn::moe::Reduce::Mean,
                    covariance: ::tinyonn::moe::Covariance::Diag,
                    project: ::tinyonn::moe::Project::Learned,
                },
                &vb.pp("group_router"),
            )?,
            expert_router: ::tinyonn::moe::GaussianMoeRouter::with_form(
                ::tinyonn::moe::RouterShape {
                    hidden: cfg.hidden_size,
                    parents: 7,
                    choices: 3,
                },
                &::tinyonn::moe::GaussianSpec {
                    dim: 5,
                    reduce: ::tinyonn::moe::Reduce::Mean,
                    covariance: ::tinyonn::moe::Covariance::Diag,
                    project: ::tinyonn::moe::Project::Learned,
                },
                &vb.pp("expert_router"),
            )?,
            experts: ::tinyonn::moe::TinyOnnExpert::new(&Self::SPEC, cfg, layer, vb)?,
        })
    }
}
impl ::tinyonn::qwen3::FeedForward for BySequence {
    fn forward(
        &self,
        x: &::tinyonn::candle_core::Tensor,
        ctx: &::tinyonn::qwen3::RouteCtx,
    ) -> ::tinyonn::Result<::tinyonn::candle_core::Tensor> {
        let routing = ::tinyonn::moe::route(self, x, ctx)?;
        self.experts.forward(x, &routing, ctx)
    }
}
impl ::tinyonn::moe::MoeModule for BySequence {
    fn spec(&self) -> &::tinyonn::moe::MoeSpec {
        static SPEC: ::tinyonn::moe::MoeSpec = BySequence::SPEC;
        &SPEC
    }
    fn experts(&self) -> &::tinyonn::moe::TinyOnnExpert {
        &self.experts
    }
    fn routers(&self) -> ::std::vec::Vec<::std::vec::Vec<&dyn ::tinyonn::moe::Router>> {
        ::std::vec![::std::vec![& self.group_router], ::std::vec![& self.expert_router]]
    }
}
::tinyonn::inventory::submit! {
    ::tinyonn::moe::Variant { spec : BySequence::SPEC, module_path :
    ::core::module_path!(), build : | cfg, layer, vb | {
    ::core::result::Result::Ok(::std::boxed::Box::new(BySequence::new(cfg, layer, & vb)
    ?)) }, }
}
