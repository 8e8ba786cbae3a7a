//! What the forms of `#[moe(..)]` leave at run time: the specification, the routers with their shapes and names, the names of groups.

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init, VarBuilder, VarMap};
use rstest::rstest;
use tinyonn::Result;
use tinyonn::moe::{
    self, AlwaysSpec, AttentionSpec, Balance, Combine, Covariance, ExpertsAre, Gate, GaussianSpec, LevelSpec, MoeSpec,
    Neurons, PartitionStrategy, Pfag, Project, Reduce, RoutePer, Router, RouterKind, RouterShape, RouterSpec, moe,
};

use crate::gradients::inputs;
use crate::models::config;

/// The same offset for every input.
#[derive(Debug)]
struct Offsets {
    offset: Tensor,
}

impl Router for Offsets {
    fn new(shape: RouterShape, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { offset: vb.get_with_hints((shape.parents, shape.choices), "offset", Init::Const(0.0))? })
    }

    fn logits(&self, x_td: &Tensor) -> Result<Tensor> {
        let (parents, choices) = self.offset.dims2()?;
        Ok(self.offset.broadcast_as((x_td.dim(0)?, parents, choices))?.contiguous()?)
    }
}

/// Named, uneven groups.
#[moe(router = [linear, gaussian(reduce = sum)], top_k = 2, balance = bias(0.001), gate = scaled)]
enum Lobes {
    /// Words.
    #[group(experts = 3)]
    Language,
    #[group(experts = 2, top_k = 1, router = Offsets)]
    PureReason,
    #[group(experts = 1, router = cosine)]
    r#Type,
    #[group(experts = 2, always)]
    Shared,
}

/// All kinds of router, one a level.
#[moe(
    levels = [2, 3, 2, 2],
    router = [linear, gaussian(covariance = shared, project = random, dim = 3), crate::declarations::Offsets, random],
    pfag = nucleus(0.9),
    top_k = [1, 2, 1, 2],
    z_loss = 0.001,
    jitter = 0.25
)]
struct Divisions;

/// Experts without groups.
#[moe(
    levels = [5],
    top_k = 3,
    router = gaussian(project = identity, covariance = isotropic),
    combine = dispatch,
    gate = straight_through,
    route_per = sequence,
    partition = activation,
    activation = crate::activation::TanhSquare,
)]
struct Flat;

/// Replicas.
#[moe(levels = [2, 2], experts_are = replicate, route_per = segment(16), balance = loss(0.5), activation = silu)]
struct Merged;

/// What is spoiled below.
#[moe(groups = 4, experts = 2)]
struct Spoiled;

const fn borrowed(name: &'static str) -> std::borrow::Cow<'static, str> {
    std::borrow::Cow::Borrowed(name)
}

const fn run(name: &'static str, choices: usize, top_k: usize, kind: RouterKind) -> RouterSpec {
    RouterSpec { name: borrowed(name), parents: 1, choices, top_k, kind }
}

#[test]
fn an_enum_is_its_specification_field_by_field() {
    let sum = GaussianSpec { dim: 64, reduce: Reduce::Sum, covariance: Covariance::Diag, project: Project::Learned };
    let groups = vec![run("group", 3, 2, RouterKind::Linear)];
    let experts = vec![
        run("language", 3, 2, RouterKind::Gaussian(sum)),
        run("pure_reason", 2, 1, RouterKind::Custom(borrowed("Offsets"))),
        run("type", 1, 1, RouterKind::Cosine),
    ];
    let expected = MoeSpec {
        name: borrowed("Lobes"),
        levels: vec![
            LevelSpec { name: borrowed("group"), routers: groups.into() },
            LevelSpec { name: borrowed("expert"), routers: experts.into() },
        ]
        .into(),
        always: vec![AlwaysSpec { name: borrowed("shared"), experts: 2 }].into(),
        always_by: None,
        experts_are: ExpertsAre::Slice,
        combine: Combine::Concat,
        route_per: RoutePer::Token,
        gate: Gate::Scaled,
        neurons: Neurons::All,
        attention: AttentionSpec::Dense,
        pfag: Pfag::Off,
        balance: Balance::Bias { rate: 0.001 },
        z_loss: 0.0,
        jitter: 0.0,
        partition: None,
        activation: None,
    };
    assert_eq!(Lobes::SPEC, expected);
    assert_eq!((Lobes::SPEC.experts(), Lobes::SPEC.active_experts()), (8, 5));
}

#[test]
fn an_enum_leaves_the_names_of_its_groups() {
    assert_eq!(LobesGroup::ALL.map(LobesGroup::name), ["language", "pure_reason", "type", "shared"]);
    assert_eq!(LobesGroup::ALL[3], LobesGroup::Shared);
    let named = LobesGroup::ALL.iter().enumerate().take(3);
    for (node, group) in named {
        assert_eq!(Lobes::SPEC.node_name(0, node), group.name());
    }
}

#[test]
fn what_is_said_of_the_whole_is_in_the_specification() {
    let (deep, flat, merged) = (Divisions::SPEC, Flat::SPEC, Merged::SPEC);
    assert_eq!((deep.pfag, deep.z_loss, deep.jitter), (Pfag::Nucleus { mass: 0.9 }, 0.001, 0.25));
    assert_eq!((flat.combine, flat.gate), (Combine::Dispatch, Gate::StraightThrough));
    assert_eq!(
        (flat.route_per, flat.partition),
        (RoutePer::Sequence { first: 64 }, Some(PartitionStrategy::Activation))
    );
    assert_eq!(flat.activation.as_deref(), Some("tanh_square"));
    assert_eq!((merged.experts_are, merged.combine), (ExpertsAre::Replicate, Combine::Merge));
    assert_eq!((merged.gate, merged.balance), (Gate::Normalised, Balance::Loss { coefficient: 0.5 }));
    assert_eq!((merged.route_per, merged.activation.as_deref()), (RoutePer::Segment { tokens: 16 }, Some("silu")));
}

#[rstest]
#[case(&Lobes::SPEC)]
#[case(&Divisions::SPEC)]
#[case(&Flat::SPEC)]
#[case(&Merged::SPEC)]
fn what_the_compiler_accepts_the_library_accepts_and_reads_back(#[case] spec: &MoeSpec) {
    moe::check(spec).unwrap();
    assert_eq!(moe::variant(&spec.name).unwrap().spec, *spec);
    let json = serde_json::to_string(spec).unwrap();
    assert_eq!(serde_json::from_str::<MoeSpec>(&json).unwrap(), *spec, "{json}");
}

/// What the compiler would have refused, of a declaration that a program made.
#[rstest]
#[case::no_level(|spec: &mut MoeSpec| spec.levels = vec![].into(), "0 levels")]
#[case::too_deep(|spec: &mut MoeSpec| spec.levels = vec![spec.levels[0].clone(); 5].into(), "5 levels")]
#[case::parents(|spec: &mut MoeSpec| spec.levels = vec![spec.levels[0].clone(); 2].into(), "1 routers for 4 nodes")]
#[case::same_name(|spec: &mut MoeSpec| level(spec, |run| run.name = "group".into()), "two routers")]
#[case::no_router(|spec: &mut MoeSpec| level(spec, |run| run.parents = 0), "0 routers for 4 nodes")]
#[case::beyond_any_mlp(|spec: &mut MoeSpec| level(spec, |run| run.choices = 1 << 40), "are 4398046511104 experts")]
#[case::no_choices(|spec: &mut MoeSpec| level(spec, |run| run.choices = 0), "there are 0 experts of a group")]
#[case::none_taken(|spec: &mut MoeSpec| level(spec, |run| run.top_k = 0), "`top_k` is 0")]
#[case::too_many(|spec: &mut MoeSpec| level(spec, |run| run.top_k = 99), "top_k = 99 exceeds the 2 experts of a group; use 2 or fewer")]
#[case::no_dimension(|spec: &mut MoeSpec| level(spec, |run| run.kind = RouterKind::Gaussian(GaussianSpec::new(0))), "`dim` is 0")]
#[case::merged_slices(|spec: &mut MoeSpec| spec.combine = Combine::Merge, "no common weights")]
#[case::concatenated_replicas(|spec: &mut MoeSpec| { spec.experts_are = ExpertsAre::Replicate; spec.combine = Combine::Concat }, "not parts of one")]
#[case::unit_replicas(|spec: &mut MoeSpec| { spec.experts_are = ExpertsAre::Replicate; spec.combine = Combine::Dispatch; spec.gate = Gate::Unit }, "add up to one")]
#[case::normalised_slices(|spec: &mut MoeSpec| spec.gate = Gate::Normalised, "shrink")]
#[case::z_loss(|spec: &mut MoeSpec| spec.z_loss = f64::NAN, "`z_loss` is NaN")]
#[case::jitter(|spec: &mut MoeSpec| spec.jitter = 1.0, "`jitter` is 1")]
#[case::balance(|spec: &mut MoeSpec| spec.balance = Balance::Bias { rate: -0.1 }, "`bias` is -0.1")]
#[case::nucleus(|spec: &mut MoeSpec| spec.pfag = Pfag::Nucleus { mass: 1.5 }, "`nucleus` is 1.5")]
#[case::segment(|spec: &mut MoeSpec| spec.route_per = RoutePer::Segment { tokens: 0 }, "`segment` is 0")]
#[case::task(|spec: &mut MoeSpec| { spec.route_per = RoutePer::Task; spec.pfag = Pfag::Entropy }, "asks none")]
#[case::empty_group(|spec: &mut MoeSpec| spec.always = vec![AlwaysSpec { name: "shared".into(), experts: 0 }].into(), "has 0 experts")]
fn what_the_compiler_refuses_the_library_refuses(#[case] spoil: fn(&mut MoeSpec), #[case] words: &str) {
    let mut spec = Spoiled::SPEC;
    moe::check(&spec).unwrap();
    spoil(&mut spec);
    let refusal = crate::models::message(moe::check(&spec));
    assert!(refusal.contains(words) && refusal.contains("Spoiled"), "{refusal}");
}

/// Changes the routers of the last level.
fn level(spec: &mut MoeSpec, change: fn(&mut RouterSpec)) {
    let mut levels = spec.levels.to_vec();
    let last = levels.last_mut().unwrap();
    let mut routers = last.routers.to_vec();
    routers.iter_mut().for_each(change);
    last.routers = routers.into();
    spec.levels = levels.into();
}

#[rstest]
#[case("Lobes", "silu")]
#[case("Divisions", "silu")]
#[case("Flat", "tanh_square")]
fn each_run_of_routers_has_its_parameters_under_its_name(#[case] name: &str, #[case] hidden_act: &str) {
    let variant = moe::variant(name).unwrap();
    let cfg = tinyonn::decoder::Arch { hidden_act: hidden_act.into(), ..config(31, true) };
    let variables = VarMap::new();
    let owners: Vec<u32> = (0..cfg.intermediate_size).map(|i| (i % variant.spec.experts()) as u32).collect();
    let owners = candle_core::Var::from_vec(owners, cfg.intermediate_size, &Device::Cpu).unwrap();
    variables.data().lock().unwrap().insert("neuron_expert".to_owned(), owners);
    let layer = (variant.build)(&cfg, 0, VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu)).unwrap();
    let x_td = inputs(3, &[&[4, cfg.hidden_size]]).remove(0).to_dtype(DType::F32).unwrap();
    let found: Vec<Vec<Vec<usize>>> = layer
        .routers()
        .iter()
        .map(|level| level.iter().map(|router| router.logits(&x_td).unwrap().dims().to_vec()).collect())
        .collect();
    let shape = |run: &RouterSpec| vec![4, run.parents, run.choices];
    let expected: Vec<Vec<Vec<usize>>> =
        variant.spec.levels.iter().map(|level| level.routers.iter().map(shape).collect()).collect();
    assert_eq!(found, expected);
    for run in variant.spec.levels.iter().flat_map(|level| level.routers.iter()) {
        let prefix = format!("{}_router.", run.name);
        assert!(variables.data().lock().unwrap().keys().any(|name| name.starts_with(&prefix)), "{prefix}");
    }
}
