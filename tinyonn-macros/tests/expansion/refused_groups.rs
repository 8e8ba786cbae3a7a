pub struct RefusedGroups;
#[allow(missing_docs, dead_code)]
impl RefusedGroups {
    pub const SPEC: ::tinyonn::moe::MoeSpec = ::tinyonn::moe::MoeSpec {
        name: ::std::borrow::Cow::Borrowed("RefusedGroups"),
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
impl ::core::fmt::Debug for RefusedGroups {
    fn fmt(&self, _: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
        ::core::unreachable!("what was refused does not compile")
    }
}
impl ::tinyonn::qwen3::FeedForward for RefusedGroups {
    fn forward(
        &self,
        _: &::tinyonn::candle_core::Tensor,
        _: &::tinyonn::qwen3::RouteCtx,
    ) -> ::tinyonn::Result<::tinyonn::candle_core::Tensor> {
        ::core::unreachable!("what was refused does not compile")
    }
}
impl ::tinyonn::moe::MoeModule for RefusedGroups {
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
#[derive(
    ::core::clone::Clone,
    ::core::marker::Copy,
    ::core::fmt::Debug,
    ::core::cmp::PartialEq,
    ::core::cmp::Eq,
)]
#[allow(missing_docs, dead_code)]
pub enum RefusedGroupsGroup {
    Alone,
}
#[allow(missing_docs, dead_code)]
impl RefusedGroupsGroup {
    pub const ALL: [Self; 1usize] = [Self::Alone];
    pub const fn name(self) -> &'static ::core::primitive::str {
        ""
    }
}
::core::compile_error! {
    "top_k = 5 exceeds the 1 group that routers choose; use 1"
}
