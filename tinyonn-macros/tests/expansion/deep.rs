/// 100 experts, at most 4 active (4 %); physical decision depth 3; each token decides for itself.
///
/// ```text
/// Deep
/// └─ 4 × cluster: linear takes at most 1
///    └─ 5 × group: gaussian(dim = 64, covariance = shared, project = random) takes at most 2
///       └─ 5 × expert: my::Router takes at most 2
/// ```
///
/// - Experts are slices of the dense MLP, combined as one bank whose hidden activation is gated (`combine = concat`); a chosen expert weighs 1.
/// - A router takes as few choices as hold the probability 0.9.
/// - Router z-loss 0.001 · mean (log Σ exp ℓ)² (Zoph et al., 2022).
/// - In training, the routers' input is multiplied by U(1 − ε, 1 + ε), ε = 0.01.
///
/// | routers | in number | choices of each | taken | parameters |
/// |---|---|---|---|---|
/// | `cluster_router` | 1 | 4 | 1 | 4·d + 4 |
/// | `group_router` | 4 | 5 | 2 | r·d + 24·r + 21, r = min(64, d), of which r·d are not trained |
/// | `expert_router` | 20 | 5 | 2 | its own |
///
/// For hidden width d and MLP width I (at least 100), a layer holds the 3·d·I weights of the dense MLP, and the parameters of the routers.
struct Deep;
impl Deep {
    /// The declaration.
    const SPEC: ::tinyonn::moe::MoeSpec = {
        use ::std::borrow::Cow::Borrowed;
        use ::tinyonn::moe::{RouterKind::*, *};
        const CLUSTER: &[RouterSpec] = &[RouterSpec::new("cluster", 1, 4, 1, Linear)];
        const GROUP: &[RouterSpec] = &[
            RouterSpec::new(
                "group",
                4,
                5,
                2,
                Gaussian(GaussianSpec {
                    dim: 64,
                    reduce: Reduce::Mean,
                    covariance: Covariance::Shared,
                    project: Project::Random,
                }),
            ),
        ];
        const EXPERT: &[RouterSpec] = &[
            RouterSpec::new("expert", 20, 5, 2, Custom(Borrowed("my::Router"))),
        ];
        MoeSpec {
            name: Borrowed("Deep"),
            levels: Borrowed(
                &[
                    LevelSpec::new("cluster", CLUSTER),
                    LevelSpec::new("group", GROUP),
                    LevelSpec::new("expert", EXPERT),
                ],
            ),
            pfag: Pfag::Nucleus { mass: 0.9 },
            z_loss: 0.001,
            jitter: 0.01,
            ..MoeSpec::PLAIN
        }
    };
    /// Reads or initialises a layer from the parameters of its `mlp`.
    ///
    /// # Errors
    /// An MLP narrower than the number of experts; a missing or misshapen parameter.
    fn layer(
        cfg: &::tinyonn::decoder::Arch,
        layer: ::core::primitive::usize,
        vb: ::tinyonn::candle_nn::VarBuilder<'_>,
    ) -> ::tinyonn::Result<::tinyonn::moe::MoeLayer> {
        ::tinyonn::moe::MoeLayer::new(
            Self::SPEC,
            &[("my::Router", ::tinyonn::moe::new_router::<my::Router>)],
            cfg,
            layer,
            &vb,
        )
    }
}
::tinyonn::inventory::submit! {
    ::tinyonn::moe::Variant { spec : Deep::SPEC, module_path : ::core::module_path!(),
    build : Deep::layer, }
}
