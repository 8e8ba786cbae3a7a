//! Every rule by its words: the problem, then the remedy.

use rstest::rstest;

use super::{UNIT, refused};

#[rstest]
#[case::missing("groups = 4", "`experts` is missing; add `experts = 10`, the number of experts in each group")]
#[case::missing_groups(
    "experts = 4",
    "`groups` is missing; add `groups = 10`, the number of groups, or write `levels = [10]` for experts without groups"
)]
#[case::nothing("", "the hierarchy is missing; add `groups = 10, experts = 10`, or `levels = [4, 5, 5]`")]
#[case::twice_declared(
    "levels = [4], groups = 4",
    "`levels` and `groups` both declare the hierarchy; keep `levels`, or write `groups = 10, experts = 10`"
)]
#[case::levels_number(
    "levels = 4",
    "`levels` takes the choices at each level from the root; write `levels = [4, 5, 5]`"
)]
#[case::no_levels("levels = []", "a hierarchy of 0 levels; write 1 to 4, such as `levels = [4, 5, 5]`")]
#[case::five_levels("levels = [1, 1, 1, 1, 1]", "a hierarchy of 5 levels; write 1 to 4, such as `levels = [4, 5, 5]`")]
#[case::level_of_none("levels = [4, 0]", "there are 0 experts of a group; use 1 or more")]
#[case::twice("groups = 4, groups = 5, experts = 4", "`groups` is given twice; keep one")]
#[case::no_value("groups = 4, experts", "`experts` has no value; write `experts = ..`")]
#[case::no_right_side("groups = 4, experts =", "`experts =` has no value; write one after the `=`")]
#[case::no_equals("groups = 4, experts 4", "`experts` has no value; write `experts = ..`")]
#[case::no_setting("groups = 4, experts = 4, 7", "this is not a setting; write `name = value`, such as `groups = 10`")]
#[case::comma("groups = 4,, experts = 4", "nothing stands before this comma; remove it")]
#[case::zero("groups = 0, experts = 4", "there are 0 groups; use 1 or more")]
#[case::negative("groups = -2, experts = 4", "`-2` is negative, which no setting can be; remove the minus")]
#[case::fraction("groups = 4.0, experts = 4", "`4.0` is not a whole number; write one without a point")]
#[case::text("groups = \"4\", experts = 4", "`\"4\"` is no number; write one without quotes")]
#[case::suffix("groups = 4usize, experts = 4", "`4usize` has a suffix; write `4`")]
#[case::large("groups = 16777217, experts = 1", "16777217 × 1 are 16777217 experts; use 16777216 or fewer")]
#[case::larger(
    "groups = 99999999999999999999, experts = 1",
    "`99999999999999999999` is more than anything here can be; use 16777216 or less"
)]
#[case::product("groups = 5000, experts = 5000", "5000 × 5000 are 25000000 experts; use 16777216 or fewer")]
#[case::beyond_any_integer(
    "levels = [16777216, 16777216, 16777216, 16777216]",
    "16777216 × 16777216 × 16777216 × 16777216 are 79228162514264337593543950336 experts; use 16777216 or fewer"
)]
#[case::product_of_levels("levels = [256, 256, 257]", "256 × 256 × 257 are 16842752 experts; use 16777216 or fewer")]
#[case::word_for_number("groups = many, experts = 4", "`groups` takes a number; write `groups = 10`")]
#[case::expression(
    "groups = 2 + 2, experts = 4",
    "`2+2` is not a value; write a number, a word, the path of a type, or a list such as `[1, 2]`"
)]
fn refuses_hierarchies(#[case] settings: &str, #[case] message: &str) {
    assert_eq!(refused(settings, UNIT), [message]);
}

#[rstest]
#[case::slip("rooter = linear", "`rooter` is no setting; did you mean `router`? known: groups, experts, levels, ")]
#[case::unknown("colour = 1", "`colour` is no setting; known: groups, experts, levels, ")]
fn refuses_unknown_settings(#[case] setting: &str, #[case] start: &str) {
    let messages = refused(&format!("levels = [4], {setting}"), UNIT);
    assert!(messages.len() == 1 && messages[0].starts_with(start), "{messages:?}");
}

#[rstest]
#[case::router(
    "router = gausian",
    "`gausian` is no router; did you mean `gaussian`? known: gaussian, linear, cosine, random, or the path of a type"
)]
#[case::no_router("router = 3", "`router` takes the kind of router; write `router = gaussian`, or the path of a type")]
#[case::routers(
    "router = [linear]",
    "`router` lists 1 for 2 levels; write one for all, or one for each: group, expert"
)]
#[case::linear("router = linear(3)", "this argument of `linear` has no name; write `linear(dim = 32)`")]
#[case::linear_to_nothing("router = linear(dim = 0)", "`dim` is 0; use 1 or more")]
#[case::linear_in_two_widths(
    "router = [linear(dim = 3), linear(dim = 4)]",
    "`linear(dim = 4)` stands beside `linear(dim = 3)`; use one `dim`: all levels of a layer read one projection"
)]
#[case::linear_argument("router = linear(rank = 3)", "`rank` is no argument of `linear`; known: dim")]
#[case::type_argument("router = Mine(3)", "`Mine` is a type, which takes no argument here; write `router = Mine`")]
#[case::argument(
    "router = gaussian(din = 3)",
    "`din` is no argument of `gaussian`; did you mean `dim`? known: dim, reduce, covariance, project"
)]
#[case::argument_twice("router = gaussian(dim = 3, dim = 3)", "`dim` is given twice; keep one")]
#[case::plain_argument("router = gaussian(3)", "this argument of `gaussian` has no name; write `gaussian(dim = 64)`")]
#[case::no_dim("router = gaussian(dim = 0)", "`dim` is 0; use 1 or more")]
#[case::identity(
    "router = gaussian(dim = 3, project = identity)",
    "`project = identity` leaves the hidden size as it is; remove `dim`, or write `project = learned`"
)]
#[case::covariance(
    "router = gaussian(covariance = tied)",
    "`tied` is no `covariance`; known: diag, shared, shared_full, isotropic"
)]
#[case::full_covariance(
    "router = gaussian(covariance = full)",
    "`full` would be r² numbers for each choice, more than labels can tell; write `covariance = shared_full`, one Σ for all choices of a router"
)]
#[case::reduce("router = gaussian(reduce = 3)", "`reduce` takes a word; write `reduce = mean`")]
#[case::too_many_groups("top_k = [5, 1]", "top_k = 5 exceeds the 4 groups; use 4 or fewer")]
#[case::too_many_experts("top_k = [1, 12]", "top_k = 12 exceeds the 4 experts of a group; use 4 or fewer")]
#[case::none_taken("top_k = [0, 1]", "`top_k` is 0; use 1 or more")]
#[case::one_k("top_k = 2", "`top_k` takes a number for each level; write `top_k = [1, 2]`: group, expert")]
#[case::three_ks("top_k = [1, 2, 3]", "`top_k` lists 3 for 2 levels; write `top_k = [1, 2]`: group, expert")]
fn refuses_routers(#[case] setting: &str, #[case] message: &str) {
    assert_eq!(refused(&format!("groups = 4, experts = 4, {setting}"), UNIT), [message]);
}

#[rstest]
#[case("levels = [1, 4], top_k = [2, 1]", "top_k = 2 exceeds the 1 group; use 1")]
#[case("levels = [2, 3, 4], top_k = [1, 4, 1]", "top_k = 4 exceeds the 3 groups of a cluster; use 3 or fewer")]
#[case(
    "levels = [2, 3, 4], top_k = 1",
    "`top_k` takes a number for each level; write `top_k = [1, 1, 2]`: cluster, group, expert"
)]
#[case("levels = [4], top_k = 5", "top_k = 5 exceeds the 4 experts; use 4 or fewer")]
#[case("levels = [4, 1, 1], pfag = entropy, top_k = [1, 1, 2]", "top_k = 2 exceeds the 1 expert of a group; use 1")]
fn counts_choices_at_any_depth(#[case] settings: &str, #[case] message: &str) {
    assert_eq!(refused(settings, UNIT), [message]);
}

#[rstest]
#[case::neurons_without_routers(
    "neurons = gate, pfag = entropy",
    "`pfag` is for routers, and without a hierarchy there are none; remove `pfag`, or declare groups, experts or levels"
)]
#[case::neurons_without_balance(
    "neurons = pruned, balance = loss(0.01)",
    "`balance` is for routers, and without a hierarchy there are none; remove `balance`, or declare groups, experts or levels"
)]
#[case::pruned_by_segment(
    "neurons = pruned, route_per = segment(4)",
    "`route_per` is for routers, and without a hierarchy there are none; remove `route_per`, or declare groups, experts or levels"
)]
#[case::pairs_by_segment(
    "attention = pairs(keep = 0.5, index = exact), route_per = segment(4)",
    "`route_per` is for routers, and without a hierarchy there are none; remove `route_per`, or declare groups, experts or levels"
)]
#[case::pairs_and_a_gate(
    "attention = pairs(keep = 0.5, index = exact), gate = scaled",
    "`gate` is for routers, and without a hierarchy there are none; remove `gate`, or declare groups, experts or levels"
)]
#[case::pairs_dispatched(
    "attention = pairs(keep = 0.5, index = exact), combine = dispatch",
    "`combine` is for routers, and without a hierarchy there are none; remove `combine`, or declare groups, experts or levels"
)]
fn refuses_what_is_for_routers_where_there_are_none(#[case] settings: &str, #[case] message: &str) {
    assert_eq!(refused(settings, UNIT), [message]);
}

#[rstest]
#[case::experts("experts_are = slices", "`slices` is no `experts_are`; did you mean `slice`? known: slice, replicate")]
#[case::combine("combine = Merge", "`Merge` is no `combine`; did you mean `merge`? known: concat, merge, dispatch")]
#[case::gate("gate = a::B", "`a::B` is no `gate`; known: unit, scaled, straight_through")]
#[case::gate_argument("gate = unit(1)", "`unit` takes no argument; write `gate = unit`")]
#[case::neurons("neurons = gates", "`gates` is no `neurons`; did you mean `gate`? known: all, gate, pruned")]
#[case::neurons_of_replicas(
    "neurons = gate, experts_are = replicate",
    "replicas are merged as whole matrices, of which no token takes neurons; write `experts_are = slice`, or remove \
     `neurons = gate`"
)]
#[case::neurons_by_half(
    "neurons = gate, gate = scaled",
    "a neuron that is chosen takes part whole; write `gate = unit`, or remove `neurons = gate`"
)]
#[case::neurons_dispatched(
    "neurons = gate, combine = dispatch",
    "what chooses neurons computes just these, whatever experts they are of; remove `combine`, or remove `neurons = gate`"
)]
#[case::neurons_of_a_task(
    "neurons = gate, route_per = task",
    "a token's own gate chooses for that token alone; write `route_per = token`, or remove `neurons = gate`"
)]
#[case::neurons_of_a_segment(
    "neurons = gate, route_per = segment(4)",
    "a token's own gate chooses for that token alone; write `route_per = token`, or remove `neurons = gate`"
)]
#[case::pruned_and_routed(
    "neurons = pruned",
    "a fixed set of neurons leaves nothing for routers to choose; remove the hierarchy, or write `neurons = gate`"
)]
#[case::merge(
    "combine = merge",
    "slices of one MLP have no common weights to merge; write `combine = concat` or `combine = dispatch`, or add \
     `experts_are = replicate`"
)]
#[case::concat(
    "experts_are = replicate, combine = concat",
    "replicas are whole MLPs, not parts of one; write `combine = merge` or `combine = dispatch`, or write \
     `experts_are = slice`"
)]
#[case::weight(
    "experts_are = replicate, gate = scaled",
    "replicas are weighted by their probabilities, which add up to one; remove `gate`, or write `experts_are = slice`"
)]
#[case::parts(
    "experts_are = replicate, partition = sps",
    "replicas are whole MLPs: no neurons are shared out; remove `partition`, or write `experts_are = slice`"
)]
#[case::partition(
    "partition = halves",
    "`halves` is no `partition`; known: contiguous, random, kmeans, coactivation, coactivation_binary, rate, activation, sps, taylor"
)]
#[case::always_by_without_always(
    "always_by = rate",
    "no expert always takes part whose neurons it could find; add `always = 2` (on an enum a group that is `always`), or \
     remove `always_by`"
)]
#[case::always_by_nothing_known("always = 2, always_by = often", "`often` is no `always_by`; known: rate, output")]
#[case::activation(
    "activation = gelo",
    "`gelo` is no activation; did you mean `gelu`? known: silu, gelu, or the path of a type"
)]
#[case::activation_argument("activation = gelu(1)", "`gelu` takes no argument; write `activation = gelu`")]
#[case::activation_type(
    "activation = Mine(1)",
    "`Mine` is a type, which takes no argument here; write `activation = Mine`"
)]
#[case::no_activation("activation = 1", "`activation` takes a word; write `activation = silu`")]
fn refuses_experts(#[case] settings: &str, #[case] message: &str) {
    assert_eq!(refused(&format!("levels = [4], {settings}"), UNIT), [message]);
}

#[rstest]
#[case::share(
    "route_per = tokens",
    "`tokens` is no `route_per`; did you mean `token`? known: token, segment, sequence, task"
)]
#[case::token_argument("route_per = token(3)", "`token` takes no argument; write `route_per = token`")]
#[case::two_arguments(
    "route_per = sequence(3, 4)",
    "`sequence` takes one number, the tokens it reads first; write `sequence(64)`"
)]
#[case::named_argument(
    "route_per = sequence(first = 4)",
    "`sequence` takes one number, the tokens it reads first; write `sequence(64)`"
)]
#[case::no_tokens("route_per = sequence(0)", "`sequence` is 0; use 1 or more")]
#[case::segment("route_per = segment", "`segment` takes one number, the tokens of a segment; write `segment(256)`")]
#[case::no_share("route_per = 3", "`route_per` takes a word; write `route_per = token`")]
#[case::pfag(
    "pfag = entropi",
    "`entropi` is no `pfag`; did you mean `entropy`? known: off, entropy, nucleus, surprisal"
)]
#[case::pfag_argument("pfag = entropy(2)", "`entropy` takes no argument; write `pfag = entropy`")]
#[case::no_mass("pfag = nucleus", "`nucleus` takes one number, the probability that is taken; write `nucleus(0.9)`")]
#[case::large_mass("pfag = nucleus(1.5)", "`nucleus` is 1.5; use more than 0, and at most 1")]
#[case::zero_mass("pfag = nucleus(0)", "`nucleus` is 0; use more than 0, and at most 1")]
#[case::word_mass("pfag = nucleus(all)", "`nucleus` takes a number; write `nucleus(0.9)`")]
#[case::suffix("pfag = nucleus(0.9f32)", "`0.9f32` has a suffix; write `0.9`")]
#[case::balance("balance = los(1)", "`los` is no `balance`; did you mean `loss`? known: none, loss, bias")]
#[case::no_coefficient("balance = loss", "`loss` takes one number, the coefficient of the loss; write `loss(0.01)`")]
#[case::no_rate("balance = bias()", "`bias` takes one number, the step of the bias; write `bias(0.001)`")]
#[case::infinite("balance = bias(1e999)", "`bias` is inf; use a finite number, 0 or more")]
#[case::negative("z_loss = -0.1", "`-0.1` is negative, which no setting can be; remove the minus")]
#[case::no_number("z_loss = small", "`z_loss` takes a number; write `z_loss = 0.001`")]
#[case::jitter("jitter = 1", "`jitter` is 1; use 0 or more, and less than 1")]
#[case::task_pfag(
    "route_per = task, pfag = entropy",
    "`pfag` needs the scores of routers, and `route_per = task` asks none; remove `pfag`, or write `route_per = sequence`"
)]
#[case::task_gate(
    "route_per = task, gate = scaled",
    "`gate` needs the scores of routers, and `route_per = task` asks none; remove `gate`, or write `route_per = sequence`"
)]
fn refuses_decisions(#[case] settings: &str, #[case] message: &str) {
    assert_eq!(refused(&format!("levels = [4], {settings}"), UNIT), [message]);
}

#[rstest]
#[case::tuple("struct Name(u32);", "a declaration has no fields; write `struct Name;`")]
#[case::braces("struct Name { a: u32 }", "a declaration has no fields; write `struct Name;`")]
#[case::generic("struct Name<T>;", "a variant is one type, without parameters; write `struct Name;`")]
#[case::bounds("struct Name where u32: Copy;", "a variant is one type, without bounds; write `struct Name;`")]
#[case::function(
    "fn name() {}",
    "`#[moe]` declares a variant on a unit struct or an enum of groups; write `pub struct Name;` below it"
)]
fn refuses_items(#[case] item: &str, #[case] message: &str) {
    assert_eq!(refused("groups = 2, experts = 2", item), [message]);
}

#[rstest]
#[case::none("", "`Name` has no groups; add one: `#[group(experts = 10)] Language`")]
#[case::bare("Alone", "`Alone` does not say what it holds; write `#[group(experts = 10)] Alone`")]
#[case::missing("#[group] A", "`experts` is missing; add `experts = 10`, the number of experts of `A`")]
#[case::assigned("#[group = 3] A", "`#[group]` takes settings in parentheses; write `#[group(experts = 10)]`")]
#[case::twice("#[group(experts = 1)] #[group(always)] A", "`A` has a second `#[group]`; write all in one")]
#[case::unknown(
    "#[group(expert = 1)] A",
    "`expert` is no setting of a group; did you mean `experts`? known: experts, top_k, router, always"
)]
#[case::fields("#[group(experts = 1)] A(u8)", "a group is a name, without fields; write `A`")]
#[case::number("#[group(experts = 1)] A = 1", "groups are numbered in their order; write `A` without a number")]
#[case::switched(
    "#[cfg(test)] #[group(experts = 1)] A",
    "`A` cannot be switched: the hierarchy is counted before; write the whole declaration twice, each under its \
     `#[cfg(..)]`"
)]
#[case::too_many("#[group(experts = 3, top_k = 4)] Few", "top_k = 4 exceeds the 3 experts of `few`; use 3 or fewer")]
#[case::always_value(
    "#[group(experts = 1)] A, #[group(experts = 1, always = 3)] B",
    "`always` takes no value; write `always` alone"
)]
#[case::always_top_k(
    "#[group(experts = 1)] A, #[group(experts = 1, always, top_k = 1)] B",
    "`B` always takes part, and no router chooses; remove `top_k`, or `always`"
)]
#[case::always_router(
    "#[group(experts = 1)] A, #[group(experts = 1, always, router = linear)] B",
    "`B` always takes part, and no router chooses; remove `router`, or `always`"
)]
#[case::only_always(
    "#[group(experts = 1, always)] A",
    "every group of `Name` always takes part: nothing is routed; remove one `always`, or write a unit struct with \
     `groups` and `experts`"
)]
#[case::always_first(
    "#[group(experts = 1, always)] A, #[group(experts = 1)] B",
    "`A` always takes part and stands before groups that routers choose; move `A` to the end"
)]
#[case::alike(
    "#[group(experts = 1)] AaBb, #[group(experts = 1)] Aa_bb",
    "two routers are called `aa_bb_router` in a checkpoint; rename one"
)]
#[case::group("#[group(experts = 1)] Group", "two routers are called `group_router` in a checkpoint; rename one")]
#[case::sum(
    "#[group(experts = 16777216)] A, #[group(experts = 1)] B",
    "the groups are 16777217 experts; use 16777216 or fewer"
)]
fn refuses_groups(#[case] groups: &str, #[case] message: &str) {
    assert_eq!(refused("", &format!("enum Name {{ {groups} }}")), [message]);
}

#[rstest]
#[case::experts(
    "experts = 4",
    "the variants of an enum are its groups: `experts` has no place here; remove it, and write `#[group(experts = 10)]` \
     on each"
)]
#[case::list(
    "top_k = [1, 2]",
    "`top_k` of an enum is the number of its groups that are taken; write `top_k = 1` here, and `#[group(top_k = 2)]` \
     for experts"
)]
#[case::too_many("top_k = 3", "top_k = 3 exceeds the 2 groups that routers choose; use 2 or fewer")]
#[case::routers(
    "router = [linear, linear, linear]",
    "`router` lists 3 for 2 levels; write one for all, or one for each: group, expert"
)]
#[case::always_of_an_enum(
    "always = 2",
    "the variants of an enum are its groups: `always` is a word of the group it is said of; remove it, and write \
     `#[group(experts = 2, always)]`"
)]
#[case::shared_replicas(
    "experts_are = replicate",
    "replicas share one weight of 1 among the chosen, which leaves none for experts that always take part; remove \
     `always`, or write `experts_are = slice`"
)]
fn refuses_settings_of_an_enum(#[case] settings: &str, #[case] message: &str) {
    let item = "enum Name { #[group(experts = 4)] A, #[group(experts = 4)] B, #[group(experts = 1, always)] C }";
    assert_eq!(refused(settings, item), [message]);
}

#[rstest]
#[case::word("attention = pair", "`pair` is no `attention`; did you mean `pairs`? known: pairs, dense")]
#[case::number("attention = 0.5", "`attention` takes a word; write `attention = pairs`")]
#[case::dense("attention = dense(1)", "`dense` takes no argument; write `attention = dense`")]
#[case::no_index(
    "attention = pairs(keep = 0.5)",
    "`index` of `pairs` is missing; add `index = components(8)`, what scores a key"
)]
#[case::no_keep(
    "attention = pairs(index = exact)",
    "`keep` of `pairs` is missing; add `keep = 0.125`, the share of keys that a query keeps, or `keep = keys(1024)`"
)]
#[case::no_name(
    "attention = pairs(0.5, keep = 0.5, index = exact)",
    "this argument of `pairs` has no name; write `pairs(keep = 0.125, index = components(8))`"
)]
#[case::argument(
    "attention = pairs(keep = 0.5, index = exact, neer = 3)",
    "`neer` is no argument of `pairs`; did you mean `near`? known: keep, index, near, first, by, choose, prefill"
)]
#[case::one(
    "attention = pairs(keep = 1, index = exact)",
    "`keep = 1` is neither a share nor a number of keys; write `keep = 1.0` for all pairs, or `keep = keys(1)` for so many \
     keys a query"
)]
#[case::whole(
    "attention = pairs(keep = 1024, index = exact)",
    "`keep = 1024` is neither a share nor a number of keys; write a share, such as `keep = 0.125`, or `keep = keys(1024)` \
     for so many keys a query"
)]
#[case::keep_word("attention = pairs(keep = half, index = exact)", "`half` is no `keep`; known: keys")]
#[case::keep_list(
    "attention = pairs(keep = [1], index = exact)",
    "`keep` takes a share or a number of keys; write `keep = 0.125`, or `keep = keys(1024)`"
)]
#[case::keys_of_nothing(
    "attention = pairs(keep = keys, index = exact)",
    "`keys` takes one number, the keys that a query keeps; write `keys(1024)`"
)]
#[case::share_of_none(
    "attention = pairs(keep = 0.0, index = exact)",
    "`keep` is 0; use a share above 0, and at most 1.0, or `keys(1024)`"
)]
#[case::more_than_all(
    "attention = pairs(keep = 1.5, index = exact)",
    "`keep` is 1.5; use a share above 0, and at most 1.0, or `keys(1024)`"
)]
#[case::no_keys("attention = pairs(keep = keys(0), index = exact)", "`keys` is 0; use 1 or more")]
#[case::index(
    "attention = pairs(keep = 0.5, index = component(8))",
    "`component` is no `index`; did you mean `components`? known: components, directions, blocks, window, exact"
)]
#[case::components(
    "attention = pairs(keep = 0.5, index = components)",
    "`components` takes one number, the components of a query that are read; write `components(8)`"
)]
#[case::no_directions("attention = pairs(keep = 0.5, index = directions(0))", "`directions` is 0; use 1 or more")]
#[case::half_a_block(
    "attention = pairs(keep = 0.5, index = blocks(0.5))",
    "`0.5` is not a whole number; write one without a point"
)]
#[case::window(
    "attention = pairs(keep = 0.5, index = window(4))",
    "`window` takes no argument; write `index = window`"
)]
#[case::by(
    "attention = pairs(keep = 0.5, index = exact, by = heads)",
    "`heads` is no `by`; did you mean `head`? known: head, kv_head"
)]
#[case::choose("attention = pairs(keep = 0.5, index = exact, choose = best)", "`best` is no `choose`; known: top_k")]
#[case::prefill(
    "attention = pairs(keep = 0.5, index = exact, prefill = all)",
    "`all` is no `prefill`; known: dense, sparse"
)]
#[case::near(
    "attention = pairs(keep = 0.5, index = exact, near = 99999999)",
    "`near` is 99999999; use 16777216 or less"
)]
fn refuses_pairs(#[case] settings: &str, #[case] message: &str) {
    assert_eq!(refused(settings, UNIT), [message]);
    assert_eq!(refused(&format!("groups = 4, experts = 4, {settings}"), UNIT), [message]);
}
