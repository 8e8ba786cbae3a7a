/// 21 experts, 2 active (9.5 %); physical decision depth 2; a sequence decides once, by its first 8 tokens.
///
/// ```text
/// BySequence
/// └─ 7 × group: gaussian(dim = 5) takes 1
///    └─ 3 × expert: gaussian(dim = 5) takes 2
/// ```
///
/// | level | routers | choices of each | taken | router parameters |
/// |---|---|---|---|---|
/// | group | 1 | 7 | 1 | r·d + 2·7·r + 8, r = min(5, d) |
/// | expert | 7 | 3 | 2 | r·d + 2·21·r + 22, r = min(5, d) |
///
/// For hidden width d and MLP width I (at least 21), a layer holds the 3·d·I weights of the dense MLP, and the routers.
#[derive(Debug, Default)]
#[derive(::core::clone::Clone)]
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
                    choices: 7,
                    top_k: 1,
                    router: ::tinyonn::moe::RouterSpec::Gaussian {
                        dim: 5,
                    },
                },
                ::tinyonn::moe::LevelSpec {
                    name: ::std::borrow::Cow::Borrowed("expert"),
                    choices: 3,
                    top_k: 2,
                    router: ::tinyonn::moe::RouterSpec::Gaussian {
                        dim: 5,
                    },
                },
            ],
        ),
        route_per: ::tinyonn::moe::RoutePer::Sequence {
            first: 8,
        },
    };
    /// Reads or initialises layer `layer` from the parameters of its `mlp`: the routers under their fields' names,
    /// the experts under the names of the dense MLP.
    ///
    /// # Errors
    /// An MLP narrower than the number of experts; a missing or misshapen parameter.
    pub(crate) fn new(
        cfg: &::tinyonn::qwen3::Qwen3Config,
        layer: usize,
        vb: &::tinyonn::candle_nn::VarBuilder<'_>,
    ) -> ::tinyonn::Result<Self> {
        ::core::result::Result::Ok(Self {
            group_router: ::tinyonn::moe::GaussianMoeRouter::new(
                cfg.hidden_size,
                5,
                1,
                7,
                &vb.pp("group_router"),
            )?,
            expert_router: ::tinyonn::moe::GaussianMoeRouter::new(
                cfg.hidden_size,
                5,
                7,
                3,
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
        let gate_tn = ::tinyonn::moe::route(
            &Self::SPEC,
            self.experts.layer(),
            x,
            ctx,
            |x_td| { ::tinyonn::moe::MoeModule::log_probs(self, x_td) },
        )?;
        self.experts.forward(x, gate_tn.as_ref(), ctx)
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
    fn log_probs(
        &self,
        x_td: &::tinyonn::candle_core::Tensor,
    ) -> ::tinyonn::Result<::std::vec::Vec<::tinyonn::candle_core::Tensor>> {
        ::core::result::Result::Ok(
            ::std::vec![
                ::tinyonn::moe::Router::log_probs(& self.group_router, x_td) ?,
                ::tinyonn::moe::Router::log_probs(& self.expert_router, x_td) ?
            ],
        )
    }
}
::tinyonn::inventory::submit! {
    ::tinyonn::moe::Variant { spec : BySequence::SPEC, module_path :
    ::core::module_path!(), build : | cfg, layer, vb | {
    ::core::result::Result::Ok(::std::boxed::Box::new(BySequence::new(cfg, layer, & vb)
    ?)) }, }
}
