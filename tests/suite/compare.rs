//! The comparison: its grid, its records, its verdict.

mod shards;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use experiments::compare::record::Store;
use experiments::compare::{
    Cell, CompareConfig, CorpusConfig, Difference, Outcome, Product, RIVALS, Trial, run_subject, verdict, write_report,
    write_results,
};
use experiments::fragments::{COMPARE, COMPARE_LARGE, Written};
use rstest::rstest;
use tempfile::TempDir;
use tinyonn::imaging::{ExpertForm, Form, How, LabelBalance, LabelSource, Norm, Partition, Score, Shard};
use tinyonn::metrics::Interval;
use tinyonn::ops::GradSite;
use tinyonn::phases::DenseShape;
use tinyonn::train::{PretrainConfig, RouterFitConfig};

use crate::models::message;

/// A comparison of two seeds on two small texts, with models that take a moment.
fn setting(dir: &Path) -> CompareConfig {
    let corpus = [tinyonn::data::arithmetic(0, 12_000), tinyonn::data::sorting(0, 12_000)];
    let data = corpus.iter().map(|task| {
        let path = dir.join(format!("{}.txt", task.name));
        let text: String = task.documents.iter().map(|document| document.text.as_str()).collect();
        fs::write(&path, text).unwrap();
        format!("{}={}", task.name, path.display())
    });
    let data = data.collect();
    let default = CompareConfig::default();
    let by = |score| LabelSource::By(score, How::Best);
    let labels: Vec<LabelSource> = RIVALS.into_iter().chain([LabelSource::SPS, LabelSource::Random]).collect();
    let router = RouterFitConfig { steps: 2, ..RouterFitConfig::default() };
    CompareConfig {
        out: dir.join("compare"),
        results: Some(dir.join("RESULTS.md")),
        cache: dir.join("cache"),
        corpora: vec![CorpusConfig { name: "small".into(), data }],
        seeds: vec![3, 4],
        dense: DenseShape {
            vocab_size: 300,
            hidden_size: 16,
            intermediate_size: 26,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 8,
        },
        pretrain: PretrainConfig { steps: 4, batch: 2, ..PretrainConfig::DEFAULT },
        length: 16,
        batch: 4,
        scan_tokens: 300,
        test_tokens: 120,
        best: Cell {
            variant: "Moe2x4".into(),
            top_k: vec![1, 2],
            labels: by(Score::Activation),
            router,
            ..Cell::default()
        },
        products: vec![Product { labels, routed: vec![false], ..Product::default() }],
        ..default
    }
}

fn run_all(config: &CompareConfig) -> usize {
    let mut ran = 0;
    for corpus in &config.corpora {
        for seed in &config.seeds {
            run_subject(config, (corpus, *seed), Shard::WHOLE, None, |_| ran += 1).unwrap();
        }
    }
    ran
}

#[rstest]
fn sources_of_labels_are_read_as_they_are_written(
    #[values(How::Best, How::Lowest, How::OnePath, How::Permuted)] how: How,
) {
    let of_scores = Score::ALL.into_iter().map(|score| LabelSource::By(score, how));
    for source in of_scores.chain([LabelSource::Random, LabelSource::Oracle]) {
        assert_eq!(source.to_string().parse::<LabelSource>().unwrap(), source);
    }
    let refused = message("sps_best".parse::<LabelSource>());
    assert!(
        refused.contains("there is no source `sps_best`; use random, oracle, or one of sps, activation"),
        "{refused}"
    );
}

#[test]
fn the_default_grid_asks_what_is_asked() {
    let config = CompareConfig::default();
    config.validate().unwrap();
    let cells = config.cells();
    let ids: BTreeSet<String> = cells.iter().map(Cell::id).collect();
    assert_eq!(ids.len(), cells.len(), "each cell once");
    assert!(cells.is_sorted_by_key(|cell| cell.routed), "the short ones first");
    assert!(config.seeds.len() >= 3 && config.corpora.len() >= 2);
    let has = |pred: &dyn Fn(&Cell) -> bool| cells.iter().any(pred);
    // Those of marks are asked of a pretrained model.
    let of_marks = [Partition::CoactivationBinary, Partition::Rate];
    for partition in Partition::ALL.into_iter().filter(|by| !of_marks.contains(by)) {
        for source in RIVALS.into_iter().chain([LabelSource::SPS]) {
            assert!(
                has(&|cell| cell.partition == partition && cell.labels == source && !cell.routed),
                "{partition} {source}"
            );
        }
    }
    for variant in ["TinyOnn", "LinearPaths", "CosinePaths", "RandomPaths"] {
        assert!(has(&|cell| cell.variant == variant && cell.routed), "{variant}");
    }
    // Through routers one factor differs at a time, but for labels of tokens and balanced ones, which go with ∫SPS too.
    let routed = cells.iter().filter(|cell| cell.routed);
    for cell in routed.filter(|cell| cell.label == config.best.label && cell.label_balance == config.best.label_balance)
    {
        let best = &config.best;
        let differs = [
            cell.variant != best.variant,
            cell.top_k != best.top_k,
            cell.partition != best.partition,
            cell.labels != best.labels,
            cell.contrast != best.contrast,
            cell.image() != best.image(),
            cell.router != best.router,
        ];
        assert!(differs.iter().filter(|differs| **differs).count() <= 1, "{}", cell.id());
    }
}

/// Every way to form the image is asked about, for ∫SPS and all that it must beat.
#[test]
fn the_default_grid_asks_about_every_form_of_the_image() {
    let config = CompareConfig::default();
    let forms = config.cells().into_iter().filter(|cell| cell.labels == LabelSource::SPS && !cell.routed);
    let images: BTreeSet<String> = forms.map(|cell| cell.image()).collect();
    let named = Form::ALL.iter().map(|form| form.name()).chain(["layer_at_input".into(), "layer_at_output".into()]);
    assert_eq!(images, named.collect());
}

/// What a source does not read makes no other cell of it.
#[rstest]
#[case::drawn(LabelSource::Random, "")]
#[case::measured(LabelSource::Oracle, "")]
#[case::taylor(LabelSource::By(Score::Taylor, How::Best), "_contrasted_sinkhorn")]
#[case::magnitude(LabelSource::By(Score::TaylorMagnitude, How::Permuted), "_contrasted_sinkhorn")]
#[case::activation(LabelSource::By(Score::Activation, How::Best), "_contrasted_sinkhorn_global_by_expert")]
#[case::sps(LabelSource::SPS, "_contrasted_sinkhorn_global_by_expert_at_input")]
fn a_cell_is_named_by_what_its_labels_read(#[case] labels: LabelSource, #[case] expected: &str) {
    let form = Form { norm: Norm::Global, expert: ExpertForm::Norm };
    let (label_balance, grad_site) = (LabelBalance::Sinkhorn, GradSite::Input);
    let cell = Cell { labels, contrast: true, label_balance, form, grad_site, routed: false, ..Cell::default() };
    let canonical = cell.canonical();
    assert_eq!(canonical.id(), format!("TinyOnn.k7-7.activation.{labels}{expected}"));
    assert_eq!(canonical.canonical(), canonical);
    let product = Product {
        labels: vec![labels],
        contrast: vec![false, true],
        form: Form::ALL.to_vec(),
        grad_site: vec![GradSite::Weight, GradSite::Input],
        routed: vec![false],
        ..Product::default()
    };
    let cells = CompareConfig { products: vec![product], ..CompareConfig::default() }.cells();
    // Beside the best one, which is routed.
    let count = match expected {
        "" => 1,
        text if text.ends_with("input") => 24,
        text if text.ends_with("expert") => 12,
        _ => 2,
    };
    assert_eq!(cells.len() - 1, count, "{labels}");
}

/// At the MLP's output all units are surprised alike: ∫SPS orders them as activation does. Elsewhere it does not.
#[test]
fn the_image_is_the_one_that_is_asked_for() {
    let dir = TempDir::new().unwrap();
    let product = Product {
        labels: vec![LabelSource::SPS, LabelSource::By(Score::Activation, How::Best)],
        form: Form::ALL.to_vec(),
        grad_site: vec![GradSite::Weight, GradSite::Input, GradSite::Output],
        routed: vec![false],
        ..Product::default()
    };
    let mut config = CompareConfig { products: vec![product], seeds: vec![3], ..setting(dir.path()) };
    // Experts of one width: norms are taken over its root.
    config.dense.intermediate_size = 24;
    config.begin("abc").unwrap();
    run_all(&config);
    let outcome = Outcome::read(&config).unwrap();
    let sums = |cell: Cell| outcome.corpora[0].1[0].cell(&cell).unwrap().paths.sums.clone();
    let mut different = 0;
    for form in Form::ALL {
        let cell = Cell { form, routed: false, ..config.best.clone() };
        let activation = sums(cell.clone());
        let sps = |grad_site| sums(Cell { labels: LabelSource::SPS, grad_site, ..cell.clone() });
        assert_eq!(sps(GradSite::Output), activation, "{}", form.name());
        different += usize::from(sps(GradSite::Weight) != activation) + usize::from(sps(GradSite::Input) != activation);
    }
    // Twelve images of experts that hardly know anything: some agree by chance.
    assert!(different >= 6, "{different}");
}

#[rstest]
#[case::no_seed(&|config: &mut CompareConfig| config.seeds.clear(), "`seeds`: is empty")]
#[case::no_corpus(&|config: &mut CompareConfig| config.corpora.clear(), "`corpora`: is empty")]
#[case::seed_twice(&|config: &mut CompareConfig| config.seeds = vec![1, 1], "given twice")]
#[case::name(&|config: &mut CompareConfig| config.corpora[0].name = "a/b".into(), "is not of letters")]
#[case::variant(&|config: &mut CompareConfig| config.best.variant = "Nobody".into(), "Nobody")]
#[case::top_k(&|config: &mut CompareConfig| config.best.top_k = vec![1], "[1] is not a positive number for each level")]
#[case::tokens(&|config: &mut CompareConfig| config.test_tokens = 0, "`test_tokens`: is 0")]
#[case::image(
    &|config: &mut CompareConfig| {
        config.best.label = tinyonn::phases::LabelUnit::Token;
        config.best.form.norm = Norm::Global;
        config.products.clear();
    },
    "a token is labelled by the plain image"
)]
fn what_cannot_work_is_refused_before_it_begins(#[case] change: &dyn Fn(&mut CompareConfig), #[case] expected: &str) {
    let dir = TempDir::new().unwrap();
    let mut config = setting(dir.path());
    config.validate().unwrap();
    change(&mut config);
    let said = message(config.validate());
    assert!(said.contains(expected), "{said}");
}

#[test]
fn it_goes_on_where_it_stopped_and_finds_the_same() {
    let dir = TempDir::new().unwrap();
    let config = setting(dir.path());
    config.begin("abc").unwrap();
    let cells = config.cells();
    assert_eq!(run_all(&config), 2 * cells.len());
    assert_eq!(run_all(&config), 0, "what is there is not run again");
    let store = Store::new(&config.out);
    // As if it had been stopped before some cells and before a subject was whole.
    let files =
        cells[1..3].iter().map(|cell| store.cell_file("small", 4, cell)).chain([store.subject_file("small", 3)]);
    let without_seconds = |path: &Path| {
        let mut value: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        value.as_object_mut().unwrap().remove("seconds");
        value
    };
    let before: Vec<_> = files.clone().map(|path| without_seconds(&path)).collect();
    files.clone().for_each(|path| fs::remove_file(path).unwrap());
    assert!(message(Outcome::read(&config)).contains("run exp_compare again"));
    assert_eq!(run_all(&config), 2);
    assert_eq!(files.map(|path| without_seconds(&path)).collect::<Vec<_>>(), before);
    // More cells may be asked for, other settings not.
    let more = Product { contrast: vec![true], routed: vec![false], ..Product::default() };
    let grown = CompareConfig { products: [config.products.clone(), vec![more]].concat(), ..config.clone() };
    grown.begin("abc").unwrap();
    assert_eq!(run_all(&grown), 2);
    let other = CompareConfig { scan_tokens: 299, ..config.clone() };
    assert!(message(other.begin("abc")).contains("was begun with other settings; name another folder"));
    // So must the text be what it was.
    let file = dir.path().join("sorting.txt");
    fs::write(&file, fs::read_to_string(&file).unwrap() + "2 1 -> 1 2\n").unwrap();
    fs::remove_file(store.cell_file("small", 3, &cells[0])).unwrap();
    let said = message(run_subject(&config, (&config.corpora[0], 3), Shard::WHOLE, None, |_| {}));
    assert!(said.contains("the text of `small` is not what it was"), "{said}");
}

/// A folder of something else is left alone.
#[test]
fn a_folder_that_is_no_comparison_is_refused() {
    let dir = TempDir::new().unwrap();
    let config = setting(dir.path());
    fs::create_dir(&config.out).unwrap();
    fs::write(config.out.join("thesis.tex"), "years of work").unwrap();
    assert!(message(config.begin("abc")).contains("is no comparison"));
    assert_eq!(fs::read_dir(&config.out).unwrap().count(), 1);
}

#[test]
fn the_results_are_written_from_the_records() {
    let dir = TempDir::new().unwrap();
    let config = setting(dir.path());
    config.begin("abc").unwrap();
    run_all(&config);
    let outcome = Outcome::read(&config).unwrap();
    // A difference to itself is none, surely; what is paired is what the means say.
    let corpus = &outcome.corpora[0].1;
    let [sps, activation] =
        [LabelSource::SPS, RIVALS[1]].map(|labels| Cell { labels, routed: false, ..config.best.clone() });
    let via = experiments::compare::Via::Paths;
    let none = outcome.paired(corpus, (&sps, via), (&sps, via)).unwrap();
    assert_eq!((none.mean, none.low, none.high), (0.0, 0.0, 0.0));
    let delta = outcome.paired(corpus, (&sps, via), (&activation, via)).unwrap();
    let tokens = |at: usize| corpus[at].subject.documents.iter().map(|(_, tokens)| tokens).sum::<f64>();
    let mean = |cell: &Cell| {
        let seeds = outcome.by_seed(corpus, cell, via);
        seeds.iter().enumerate().map(|(at, loss)| loss * tokens(at)).sum::<f64>() / (tokens(0) + tokens(1))
    };
    // f64 sums of a few hundred losses.
    approx::assert_abs_diff_eq!(delta.mean, mean(&sps) - mean(&activation), epsilon = 1e-9);
    let trials = outcome.trials(&config);
    assert_eq!(trials.len(), 1);
    write_results(&outcome, &trials, &config, &[("sources at commit".into(), "abc".into())]).unwrap();
    let text = fs::read_to_string(config.results_file()).unwrap();
    let first = text.lines().nth(2).unwrap();
    assert!(first.starts_with("**The claim"), "{first}");
    for expected in [
        "| sps |",
        "sources at commit: abc",
        "## Through routers (small)",
        "sps permuted",
        "`Moe2x4`",
        "## What each expert is given to do (small)",
    ] {
        assert!(text.contains(expected) || text.contains(&expected.replace(' ', "_")), "{expected}\n{text}");
    }
    // All that the grid asks for is there, and nothing else; what was not run is missed.
    let declared = config.declared();
    assert_eq!(declared.missing_in(&text), Vec::<String>::new());
    let rows = declared.tables.iter().map(|table| table.rows.len() + 1).sum::<usize>();
    assert_eq!(text.lines().filter(|line| line.starts_with("| ")).count(), rows);
    assert_eq!(text.matches("\n## ").count(), declared.tables.len());
    let read = |text: &str| Written::read(&config.results_file(), text, &COMPARE);
    let written = read(&text).unwrap();
    assert_eq!((&written.declared, &written.not_run), (&declared, &Vec::new()));
    let more = Product { contrast: vec![true], routed: vec![false], ..Product::default() };
    let grown = CompareConfig { products: [config.products.clone(), vec![more]].concat(), ..config.clone() };
    let missing = grown.declared().missing_in(&text);
    assert!(missing.len() == 1 && missing[0].contains("contrasted"), "{missing:?}");
    // A cell without a record is no row of its own everywhere: it is named.
    let grown_cells = grown.cells().len() - config.cells().len();
    assert_eq!(outcome.not_run(&grown).len(), grown_cells * corpus.len());
    write_results(&outcome, &trials, &grown, &[]).unwrap();
    let text = fs::read_to_string(config.results_file()).unwrap();
    let said = message(Written::read(&config.results_file(), &text, &COMPARE));
    assert!(said.contains("of its grid, `small-") && said.contains("first, were not run"), "{said}");
    write_report(&outcome, &trials, &config).unwrap();
    let page = fs::read_to_string(config.out.join("report.html")).unwrap();
    assert!(page.contains("Whose image knows the path? (small)"));
    assert!(config.out.join("figures/differences-small.csv").exists());
}

/// Held only where all rivals are beaten with confidence; undecided is not held.
#[rstest]
#[case::all([-0.2, -0.1, -0.3, -0.1], 0.05, "The claim held in all of one setting: refuted in 0, undecided in 0.")]
#[case::one_lost([-0.2, 0.1, -0.3, -0.1], 0.05, "The claim held in none of one setting: refuted in 1, undecided in 0.")]
#[case::the_last_lost([-0.2, -0.1, -0.3, 0.1], 0.05, "The claim held in none of one setting: refuted in 1, undecided in 0.")]
#[case::one_unsure([-0.2, -0.01, -0.3, -0.1], 0.05, "The claim held in none of one setting: refuted in 0, undecided in 1.")]
fn the_verdict_is_what_the_intervals_say(#[case] against: [f64; 4], #[case] half: f64, #[case] expected: &str) {
    let interval = |mean: f64| Interval { mean, low: mean - half, high: mean + half };
    let difference = |mean| Difference { interval: interval(mean), by_seed: vec![mean - 0.001, mean + 0.001] };
    let trial = Trial { corpus: "t".into(), cell: Cell::default(), against: against.map(difference).to_vec() };
    let said = verdict(&[trial]);
    assert!(said[0].starts_with(expected), "{}", said[0]);
    let activation = said.iter().find(|line| line.starts_with("Against `activation`")).unwrap();
    let words = match against[1] {
        x if x < -half => "better in 1 of one setting",
        x if x > half => "worse in 1,",
        _ => "undecided in 1",
    };
    assert!(activation.contains(words), "{activation}");
    assert!(verdict(&[])[0].starts_with("Nothing was compared"));
}

/// Models that differ leave a difference undecided, and so does a single one, however narrow the interval over documents.
#[rstest]
#[case::alike(&[-0.16, -0.15, -0.14], true, false)]
#[case::of_one_sign_and_far_apart(&[-0.4, -0.01, -0.04], false, false)]
#[case::of_two_signs(&[-0.4, 0.1], false, false)]
#[case::against_the_documents(&[0.1, 0.1, 0.1], false, false)]
#[case::one(&[-0.15], false, false)]
fn models_must_agree(#[case] by_seed: &[f64], #[case] below: bool, #[case] above: bool) {
    let interval = Interval { mean: -0.15, low: -0.2, high: -0.1 };
    let difference = Difference { interval, by_seed: by_seed.to_vec() };
    assert_eq!((difference.is_below(), difference.is_above()), (below, above));
}

/// Of one model of more than a hundred million parameters every source of labels that reads an image stands at both shares, as a part of the results of
/// its own, wherever its text lies.
#[test]
fn the_comparison_of_a_larger_model_is_whole() {
    let large = CompareConfig::large();
    large.validate().unwrap();
    assert!(large.dense.arch(large.dense.vocab_size, "silu").parameters() > 100_000_000);
    let declared = large.declared();
    assert_eq!((declared.study.as_str(), COMPARE_LARGE.name), (COMPARE_LARGE.name, "compare_large"));
    let rows = |heading: &str| {
        let table = declared.tables.iter().find(|table| table.heading.starts_with(heading)).unwrap();
        table.rows.iter().map(|row| row.last().unwrap().clone()).collect::<BTreeSet<_>>()
    };
    let scores: BTreeSet<String> =
        Score::ALL.map(|score| LabelSource::By(score, How::Best).to_string()).into_iter().collect();
    assert!(rows("Whose image knows the path?").is_superset(&scores));
    assert!(rows("At every share").is_superset(&scores));
    assert_eq!(rows("Every setting").len(), 1); // the plain image, at both shares
    let settings = declared.tables.iter().find(|table| table.heading == "Every setting").unwrap();
    assert_eq!(settings.rows.len(), 2);
    let elsewhere = CompareConfig { out: "elsewhere".into(), ..large.clone() }.with_absolute_paths();
    assert_eq!(elsewhere.declared(), declared);
}
