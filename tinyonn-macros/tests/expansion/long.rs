/// 1 expert, 1 active (100 %); physical decision depth 0; each token decides for itself.
///
/// ```text
/// Long
/// └─ shared: 1 × expert, always
/// ```
///
/// - Experts are slices of the dense MLP, combined as one bank whose hidden activation is gated (`combine = concat`); a chosen expert weighs 1.
/// - Attention: in a routed pass the query at position t keeps ⌈0.125 (t + 1)⌉ keys, the 32 nearest and the first 4 among them, by the logit of q's largest components alone, r = 8; one choice a key head; what a cache reads first attends to all.
///
/// | routers | in number | choices of each | taken | parameters |
/// |---|---|---|---|---|
///
/// For hidden width d and MLP width I (at least 1), a layer holds the 3·d·I weights of the dense MLP, and the parameters of the routers.
pub struct Long;
impl Long {
    /// The declaration.
    pub const SPEC: ::tinyonn::moe::MoeSpec = {
        use ::std::borrow::Cow::Borrowed;
        use ::tinyonn::moe::*;
        MoeSpec {
            name: Borrowed("Long"),
            always: Borrowed(
                &[
                    AlwaysSpec {
                        name: Borrowed("shared"),
                        experts: 1,
                    },
                ],
            ),
            attention: AttentionSpec::Pairs(PairsSpec {
                keep: KeptPairs::Share(0.125),
                index: PairIndex::Components(8),
                near: 32,
                first: 4,
                by: PairsBy::KvHead,
                choose: PairsChosen::TopK,
                prefill: Prefill::Dense,
            }),
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
    ::tinyonn::moe::Variant { spec : Long::SPEC, module_path : ::core::module_path!(),
    build : Long::layer, }
}
