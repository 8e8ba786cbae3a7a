/// 8 experts, 3 active (37.5 %); physical decision depth 1; each segment of 256 tokens decides for the next.
///
/// ```text
/// Merged
/// └─ 8 × expert: gaussian(reduce = sum, covariance = isotropic, project = identity) takes 3
/// ```
///
/// - Experts are replicas of the dense MLP, one base and a delta each, combined by merging their weights into one MLP (`combine = merge`); a chosen expert weighs its p, renormalised over the chosen.
///
/// | routers | in number | choices of each | taken | parameters |
/// |---|---|---|---|---|
/// | `expert_router` | 1 | 8 | 3 | 8·d + 17 |
///
/// For hidden width d and MLP width I, a layer holds the 3·d·I weights of the dense MLP, 3·d·I more for each expert that has learnt, and the parameters of the routers.
pub struct Merged;
impl Merged {
    /// The declaration.
    pub const SPEC: ::tinyonn::moe::MoeSpec = {
        use ::std::borrow::Cow::Borrowed;
        use ::tinyonn::moe::{RouterKind::*, *};
        const EXPERT: &[RouterSpec] = &[
            RouterSpec::new(
                "expert",
                1,
                8,
                3,
                Gaussian(GaussianSpec {
                    dim: 64,
                    reduce: Reduce::Sum,
                    covariance: Covariance::Isotropic,
                    project: Project::Identity,
                }),
            ),
        ];
        MoeSpec {
            name: Borrowed("Merged"),
            levels: Borrowed(&[LevelSpec::new("expert", EXPERT)]),
            experts_are: ExpertsAre::Replicate,
            combine: Combine::Merge,
            route_per: RoutePer::Segment { tokens: 256 },
            gate: Gate::Normalised,
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
    ::tinyonn::moe::Variant { spec : Merged::SPEC, module_path : ::core::module_path!(),
    build : Merged::layer, }
}
