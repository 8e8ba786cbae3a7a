//! The comparisons that are run unless a file says otherwise: the default one, a first look, and one of a larger model.

use super::{Cell, CompareConfig, CorpusConfig, Product};
use tinyonn::data::TOOLCHAIN;
use tinyonn::imaging::{ExpertForm, Form, How, LabelBalance, LabelSource, Norm, Partition, Score};
use tinyonn::ops::GradSite;
use tinyonn::phases::{DenseShape, DeviceName, LabelUnit, RunConfig};
use tinyonn::train::{FitBy, OptimizerConfig, Precision, PretrainConfig, Projection, RouterFitConfig};

/// The partitions that are compared. Those of marks are asked of a pretrained model.
pub(crate) const PARTITIONS: [Partition; 7] = [
    Partition::Contiguous,
    Partition::Random,
    Partition::Kmeans,
    Partition::Coactivation,
    Partition::Activation,
    Partition::Sps,
    Partition::Taylor,
];
/// Numbers of groups and of experts in each: 2, 10, 25, 49, 72 and 90 % of 10 × 10 experts.
const SHARES: [[usize; 2]; 6] = [[1, 2], [2, 5], [5, 5], [7, 7], [8, 9], [9, 10]];

impl Default for CompareConfig {
    fn default() -> Self {
        let run = RunConfig::default();
        let corpus = |name: &str, data: &[&str]| CorpusConfig {
            name: name.into(),
            data: data.iter().map(ToString::to_string).collect(),
        };
        let best = Cell::default();
        Self {
            out: "runs/compare".into(),
            results: None,
            cache: run.cache,
            device: DeviceName::Cpu,
            dtype: Precision::F32,
            corpora: vec![corpus("workspace", &[]), corpus("toolchain", &[TOOLCHAIN])],
            seeds: vec![0, 1, 2],
            dense: DenseShape::default(),
            // What RESULTS.md was computed with: its claims are of these models, not of the shorter pretraining of a single run.
            pretrain: PretrainConfig { steps: 2400, warmup: 100, ..PretrainConfig::DEFAULT },
            length: run.length,
            batch: run.batch,
            scan_tokens: 32_768,
            test_tokens: 2048,
            products: products(&best),
            best,
        }
    }
}

/// Kinds of text that `scripts/fetch_material.sh` brings.
const MATERIAL: [&str; 7] = ["c", "dictionary", "english", "french", "german", "python", "rust"];

impl CompareConfig {
    /// That of a Qwen3 of 114 million parameters, pretrained on real text: one seed, one partition, every source of labels at a quarter and at half of the
    /// experts, along their paths and through routers. The search for the lowest loss is left out: of so many layers it would take hours.
    #[must_use]
    pub fn large() -> Self {
        let best = Cell { top_k: vec![5, 5], router: RouterFitConfig::default(), ..Cell::default() };
        let shares = vec![vec![5, 5], vec![7, 7]];
        let of =
            |routed| Product { labels: sources(), top_k: shares.clone(), routed: vec![routed], ..Product::default() };
        let optimizer = OptimizerConfig { rate: 6e-4, ..PretrainConfig::DEFAULT.optimizer };
        Self {
            out: "runs/compare-large".into(),
            corpora: vec![CorpusConfig {
                name: "material".into(),
                data: MATERIAL.map(|kind| format!("{kind}=material/text/{kind}")).to_vec(),
            }],
            seeds: vec![0],
            dense: DenseShape {
                vocab_size: 16_384,
                hidden_size: 768,
                intermediate_size: 2048,
                num_hidden_layers: 16,
                num_attention_heads: 12,
                num_key_value_heads: 4,
                head_dim: 64,
            },
            pretrain: PretrainConfig { steps: 3000, batch: 64, warmup: 200, optimizer, ..PretrainConfig::DEFAULT },
            length: 512,
            batch: 16,
            scan_tokens: 131_072,
            test_tokens: 16_384,
            products: vec![of(false), of(true)],
            best,
            ..Self::default()
        }
    }

    /// A first look: two seeds of one text, pretrained briefly, and few cells.
    #[must_use]
    pub fn quick() -> Self {
        let config = Self::default();
        let quick = RunConfig::quick();
        let by = |score| LabelSource::By(score, How::Best);
        let labels = vec![
            LabelSource::SPS,
            LabelSource::By(Score::Sps, How::Permuted),
            by(Score::Activation),
            by(Score::Taylor),
            by(Score::TaylorMagnitude),
            LabelSource::Random,
        ];
        Self {
            out: "runs/compare-quick".into(),
            seeds: vec![0, 1],
            corpora: config.corpora[..1].to_vec(),
            pretrain: quick.pretrain,
            scan_tokens: quick.scan_tokens,
            test_tokens: 512,
            products: vec![Product { labels, routed: vec![false], ..Product::default() }],
            ..config
        }
    }
}

/// Every source of labels that reads an image, and random paths.
fn sources() -> Vec<LabelSource> {
    let by = |score, how| LabelSource::By(score, how);
    let scores = Score::ALL.into_iter().map(|score| by(score, How::Best));
    let controls = [by(Score::Sps, How::Lowest), by(Score::Sps, How::OnePath), LabelSource::Random];
    let permuted = [Score::Sps, Score::Activation, Score::ActivationPlusSurprise, Score::TaylorMagnitude];
    scores.chain(controls).chain(permuted.map(|score| by(score, How::Permuted))).collect()
}

fn products(best: &Cell) -> Vec<Product> {
    let by = |score, how| LabelSource::By(score, how);
    let sources = sources();
    let rivals = vec![
        LabelSource::SPS,
        by(Score::Sps, How::Permuted),
        by(Score::Activation, How::Best),
        by(Score::Surprise, How::Best),
        LabelSource::ACTIVATION_PLUS_SURPRISE,
        by(Score::Taylor, How::Best),
        by(Score::TaylorMagnitude, How::Best),
        LabelSource::Random,
    ];
    let fit = |change: &dyn Fn(&mut RouterFitConfig)| {
        let mut fit = best.router;
        change(&mut fit);
        fit
    };
    vec![
        // What is asked: every source of labels, over all partitions and over all shares.
        Product { labels: sources.clone(), partition: PARTITIONS.to_vec(), routed: vec![false], ..Product::default() },
        Product {
            labels: rivals.clone(),
            top_k: SHARES.map(|k| k.to_vec()).to_vec(),
            partition: vec![best.partition, Partition::Sps],
            routed: vec![false],
            ..Product::default()
        },
        Product { labels: rivals.clone(), contrast: vec![true], routed: vec![false], ..Product::default() },
        // Whether it is the form of the image that decides.
        Product { labels: rivals.clone(), form: Form::ALL.to_vec(), routed: vec![false], ..Product::default() },
        // The form that serves ∫SPS best, at every share.
        Product {
            labels: rivals.clone(),
            top_k: SHARES.map(|k| k.to_vec()).to_vec(),
            form: vec![Form { norm: Norm::Log1p, expert: ExpertForm::Norm }],
            routed: vec![false],
            ..Product::default()
        },
        Product {
            labels: rivals.clone(),
            grad_site: vec![GradSite::Input, GradSite::Output],
            routed: vec![false],
            ..Product::default()
        },
        // What measuring would give, where it is worth its time.
        Product { labels: vec![LabelSource::Oracle], routed: vec![false], ..Product::default() },
        // Through routers, one factor at a time around the best.
        Product { labels: rivals, ..Product::default() },
        Product {
            variant: ["LinearPaths", "CosinePaths", "RandomPaths"].map(Into::into).to_vec(),
            ..Product::default()
        },
        Product { top_k: SHARES.map(|k| k.to_vec()).to_vec(), ..Product::default() },
        Product { partition: PARTITIONS.to_vec(), ..Product::default() },
        Product { label: vec![LabelUnit::Token], labels: vec![best.labels, LabelSource::SPS], ..Product::default() },
        Product {
            label_balance: vec![LabelBalance::Sinkhorn],
            labels: vec![best.labels, LabelSource::SPS],
            ..Product::default()
        },
        Product {
            router: vec![
                fit(&|fit| fit.fit = FitBy::Gda),
                fit(&|fit| fit.fit = FitBy::Sgd),
                fit(&|fit| fit.refit_rounds = 1),
                fit(&|fit| fit.projection = Projection::Pca),
                fit(&|fit| fit.projection = Projection::Random),
                fit(&|fit| fit.projection = Projection::Identity),
            ],
            ..Product::default()
        },
    ]
}
