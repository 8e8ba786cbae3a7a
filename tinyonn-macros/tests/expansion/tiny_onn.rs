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
/// | level | routers | choices of each | taken | router parameters |
/// |---|---|---|---|---|
/// | group | 1 | 10 | 8 | r·d + 2·10·r + 11, r = min(64, d) |
/// | expert | 10 | 10 | 8 | r·d + 2·100·r + 101, r = min(64, d) |
///
/// For hidden width d and MLP width I (at least 100), a layer holds the 3·d·I weights of the dense MLP, and the routers.
#[must_use]
#[derive(::core::clone::Clone, ::core::fmt::Debug)]
pub struct TinyOnn {
    group_router: ::tinyonn::moe::GaussianMoeRouter,
    expert_router: ::tinyonn::moe::GaussianMoeRouter,
    experts: ::tinyonn::moe::TinyOnnExpert,
}
impl TinyOnn {
    /// The declaration.
    pub const SPEC: ::tinyonn::moe::MoeSpec = ::tinyonn::moe::MoeSpec {
        name: ::std::borrow::Cow::Borrowed("TinyOnn"),
        levels: ::std::borrow::Cow::Borrowed(
            &[
                ::tinyonn::moe::LevelSpec {
                    name: ::std::borrow::Cow::Borrowed("group"),
                    choices: 10,
                    top_k: 8,
                    router: ::tinyonn::moe::RouterSpec::Gaussian {
                        dim: 64,
                    },
                },
                ::tinyonn::moe::LevelSpec {
                    name: ::std::borrow::Cow::Borrowed("expert"),
                    choices: 10,
                    top_k: 8,
                    router: ::tinyonn::moe::RouterSpec::Gaussian {
                        dim: 64,
                    },
                },
            ],
        ),
        route_per: ::tinyonn::moe::RoutePer::Token,
    };
    /// Reads or initialises layer `layer` from the parameters of its `mlp`: the routers under their fields' names,
    /// the experts under the names of the dense MLP.
    ///
    /// # Errors
    /// An MLP narrower than the number of experts; a missing or misshapen parameter.
    pub fn new(
        cfg: &::tinyonn::qwen3::Qwen3Config,
        layer: usize,
        vb: &::tinyonn::candle_nn::VarBuilder<'_>,
    ) -> ::tinyonn::Result<Self> {
        ::core::result::Result::Ok(Self {
            group_router: ::tinyonn::moe::GaussianMoeRouter::new(
                cfg.hidden_size,
                64,
                1,
                10,
                &vb.pp("group_router"),
            )?,
            expert_router: ::tinyonn::moe::GaussianMoeRouter::new(
                cfg.hidden_size,
                64,
                10,
                10,
                &vb.pp("expert_router"),
            )?,
            experts: ::tinyonn::moe::TinyOnnExpert::new(&Self::SPEC, cfg, layer, vb)?,
        })
    }
}
impl ::tinyonn::qwen3::FeedForward for TinyOnn {
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
impl ::tinyonn::moe::MoeModule for TinyOnn {
    fn spec(&self) -> &::tinyonn::moe::MoeSpec {
        static SPEC: ::tinyonn::moe::MoeSpec = TinyOnn::SPEC;
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
    ::tinyonn::moe::Variant { spec : TinyOnn::SPEC, module_path : ::core::module_path!(),
    build : | cfg, layer, vb | {
    ::core::result::Result::Ok(::std::boxed::Box::new(TinyOnn::new(cfg, layer, & vb) ?))
    }, }
}
