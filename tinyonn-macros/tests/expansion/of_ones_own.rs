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
/// | field | routers | choices of each | taken | parameters |
/// |---|---|---|---|---|
/// | `group_router` | 1 | 2 | 1 | its own |
/// | `expert_router` | 2 | 2 | 2 | its own |
///
/// For hidden width d and MLP width I (at least 4), a layer holds the 3·d·I weights of the dense MLP, and the parameters of the routers.
#[derive(::core::fmt::Debug)]
pub struct OfOnesOwn {
    group_router: Mine,
    expert_router: Mine,
    experts: ::tinyonn::moe::TinyOnnExpert,
}
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
    /// Reads or initialises layer `layer` from the parameters of its `mlp`: the routers under their fields' names,
    /// the experts under the names of the dense MLP.
    ///
    /// # Errors
    /// An MLP narrower than the number of experts; a missing or misshapen parameter.
    pub fn new(
        cfg: &::tinyonn::qwen3::Qwen3Config,
        layer: ::core::primitive::usize,
        vb: &::tinyonn::candle_nn::VarBuilder<'_>,
    ) -> ::tinyonn::Result<Self> {
        ::core::result::Result::Ok(Self {
            group_router: <Mine as ::tinyonn::moe::Router>::new(
                ::tinyonn::moe::RouterShape {
                    hidden: cfg.hidden_size,
                    parents: 1,
                    choices: 2,
                },
                &vb.pp("group_router"),
            )?,
            expert_router: <Mine as ::tinyonn::moe::Router>::new(
                ::tinyonn::moe::RouterShape {
                    hidden: cfg.hidden_size,
                    parents: 2,
                    choices: 2,
                },
                &vb.pp("expert_router"),
            )?,
            experts: ::tinyonn::moe::TinyOnnExpert::new(&Self::SPEC, cfg, layer, vb)?,
        })
    }
}
impl ::tinyonn::qwen3::FeedForward for OfOnesOwn {
    fn forward(
        &self,
        x: &::tinyonn::candle_core::Tensor,
        ctx: &::tinyonn::qwen3::RouteCtx,
    ) -> ::tinyonn::Result<::tinyonn::candle_core::Tensor> {
        let routing = ::tinyonn::moe::route(self, x, ctx)?;
        self.experts.forward(x, &routing, ctx)
    }
}
impl ::tinyonn::moe::MoeModule for OfOnesOwn {
    fn spec(&self) -> &::tinyonn::moe::MoeSpec {
        static SPEC: ::tinyonn::moe::MoeSpec = OfOnesOwn::SPEC;
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
    ::tinyonn::moe::Variant { spec : OfOnesOwn::SPEC, module_path :
    ::core::module_path!(), build : | cfg, layer, vb | {
    ::core::result::Result::Ok(::std::boxed::Box::new(OfOnesOwn::new(cfg, layer, & vb)
    ?)) }, }
}
::tinyonn::inventory::submit! {
    ::tinyonn::ops::ActivationEntry(& my::Relu2)
}
