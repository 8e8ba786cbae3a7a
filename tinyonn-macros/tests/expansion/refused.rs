/// Kept.
pub struct Refused;
#[allow(missing_docs, dead_code)]
impl Refused {
    pub const SPEC: ::tinyonn::moe::MoeSpec = ::tinyonn::moe::MoeSpec {
        name: ::std::borrow::Cow::Borrowed("Refused"),
        levels: ::std::borrow::Cow::Borrowed(&[]),
        always: ::std::borrow::Cow::Borrowed(&[]),
        experts_are: ::tinyonn::moe::ExpertsAre::Slice,
        combine: ::tinyonn::moe::Combine::Concat,
        route_per: ::tinyonn::moe::RoutePer::Token,
        gate: ::tinyonn::moe::Gate::Normalised,
        pfag: ::tinyonn::moe::Pfag::Off,
        balance: ::tinyonn::moe::Balance::None,
        z_loss: 0.0,
        jitter: 0.0,
        partition: ::core::option::Option::None,
        activation: ::core::option::Option::None,
    };
    pub fn new(
        _: &::tinyonn::qwen3::Qwen3Config,
        _: ::core::primitive::usize,
        _: &::tinyonn::candle_nn::VarBuilder<'_>,
    ) -> ::tinyonn::Result<Self> {
        ::core::unreachable!("what was refused does not compile")
    }
}
impl ::core::fmt::Debug for Refused {
    fn fmt(&self, _: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
        ::core::unreachable!("what was refused does not compile")
    }
}
impl ::tinyonn::qwen3::FeedForward for Refused {
    fn forward(
        &self,
        _: &::tinyonn::candle_core::Tensor,
        _: &::tinyonn::qwen3::RouteCtx,
    ) -> ::tinyonn::Result<::tinyonn::candle_core::Tensor> {
        ::core::unreachable!("what was refused does not compile")
    }
}
impl ::tinyonn::moe::MoeModule for Refused {
    fn spec(&self) -> &::tinyonn::moe::MoeSpec {
        ::core::unreachable!("what was refused does not compile")
    }
    fn experts(&self) -> &::tinyonn::moe::TinyOnnExpert {
        ::core::unreachable!("what was refused does not compile")
    }
    fn routers(&self) -> ::std::vec::Vec<::std::vec::Vec<&dyn ::tinyonn::moe::Router>> {
        ::core::unreachable!("what was refused does not compile")
    }
}
::core::compile_error! {
    "`groups` is 0; use 1 or more"
}
