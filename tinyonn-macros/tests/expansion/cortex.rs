/// Named, uneven groups.
///
/// 18 experts, 4 active (22.2 %); physical decision depth 2; each token decides for itself.
///
/// ```text
/// Cortex
/// ├─ 2 × group: gaussian(dim = 64) takes 1
/// │  ├─ language: 10 × expert: gaussian(dim = 64) takes 2
/// │  └─ arithmetic: 6 × expert: cosine takes 2
/// └─ shared_among_all: 2 × expert, always
/// ```
///
/// - Experts are slices of the dense MLP, combined as one bank whose hidden activation is gated (`combine = concat`); a chosen expert weighs 1.
/// - Load is evened by a bias on selection that steps by 0.001 (DeepSeek-AI, 2024).
///
/// | routers | in number | choices of each | taken | parameters |
/// |---|---|---|---|---|
/// | `group_router` | 1 | 2 | 1 | r·d + 4·r + 3, r = min(64, d) |
/// | `language_router` | 1 | 10 | 2 | r·d + 20·r + 11, r = min(64, d) |
/// | `arithmetic_router` | 1 | 6 | 2 | 6·d + 1 |
///
/// For hidden width d and MLP width I (at least 18), a layer holds the 3·d·I weights of the dense MLP, and the parameters of the routers.
pub struct Cortex;
/// The groups of [`Cortex`], in their order: those that routers choose from come first.
#[derive(
    ::core::clone::Clone,
    ::core::marker::Copy,
    ::core::fmt::Debug,
    ::core::cmp::PartialEq,
    ::core::cmp::Eq,
)]
#[allow(dead_code)]
pub enum CortexGroup {
    /// Words.
    ///
    /// 10 experts, gaussian(dim = 64) takes 2.
    Language,
    /// 6 experts, cosine takes 2.
    Arithmetic,
    /// 2 experts, always active.
    SharedAmongAll,
}
#[allow(dead_code)]
impl CortexGroup {
    /// Every group.
    pub const ALL: [Self; 3] = [Self::Language, Self::Arithmetic, Self::SharedAmongAll];
    /// The name of the group in metrics, pictures and checkpoints.
    #[must_use]
    pub const fn name(self) -> &'static ::core::primitive::str {
        match self {
            Self::Language => "language",
            Self::Arithmetic => "arithmetic",
            Self::SharedAmongAll => "shared_among_all",
        }
    }
}
impl Cortex {
    /// The declaration.
    pub const SPEC: ::tinyonn::moe::MoeSpec = {
        use ::std::borrow::Cow::Borrowed;
        use ::tinyonn::moe::{RouterKind::*, *};
        const GROUP: &[RouterSpec] = &[
            RouterSpec::new("group", 1, 2, 1, Gaussian(GaussianSpec::new(64))),
        ];
        const EXPERT: &[RouterSpec] = &[
            RouterSpec::new("language", 1, 10, 2, Gaussian(GaussianSpec::new(64))),
            RouterSpec::new("arithmetic", 1, 6, 2, Cosine),
        ];
        MoeSpec {
            name: Borrowed("Cortex"),
            levels: Borrowed(
                &[LevelSpec::new("group", GROUP), LevelSpec::new("expert", EXPERT)],
            ),
            always: Borrowed(
                &[
                    AlwaysSpec {
                        name: Borrowed("shared_among_all"),
                        experts: 2,
                    },
                ],
            ),
            balance: Balance::Bias { rate: 0.001 },
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
    ::tinyonn::moe::Variant { spec : Cortex::SPEC, module_path : ::core::module_path!(),
    build : Cortex::layer, }
}
