//! What the cells of a seed share: text, tokens, the dense model, benchmarks; and what is measured of a cell.

use std::collections::BTreeMap;

use candle_core::DType;
use tinyonn::benchmark::{BenchmarkTask, TaskFigures, answers};
use tinyonn::checkpoint::ModelFolder;
use tinyonn::data::TokenSet;
use tinyonn::decoder::{CausalLm, FeedForward, Pass};
use tinyonn::imaging::{Partition, partition};
use tinyonn::metrics::Stopwatch;
use tinyonn::moe::variant;
use tinyonn::ops::host;
use tinyonn::phases::{Prepared, Run, RunConfig, SparseModel, text};
use tinyonn::train::evaluate::EvaluateOptions;
use tinyonn::train::{Checkpoints, divergence, evaluate};
use tinyonn::{Error, Result, SOURCES_SHA256};

use super::carved::{carved, operations};
use super::{Cell, CellAnswers, CellRecord, EvidenceConfig, KindLosses, Lacking, Method, TaskAnswers};

/// Tokens of a document of a kind that is never calibrated on, at most: as of the test split.
const OF_A_DOCUMENT: usize = 1024;
/// The stage in which distributions are held against the dense model's.
const DIVERGENCE: &str = "divergence";
/// The stage in which benchmarks are answered.
const BENCHMARKS: &str = "benchmarks";

/// What the cells of a seed share.
pub struct Subject {
    prepared: Prepared,
    of_run: RunConfig,
    validation: TokenSet,
    unseen: TokenSet,
    tasks: Vec<BenchmarkTask>,
    model_sha256: String,
}

/// What was found of a cell.
#[derive(Clone, Debug)]
pub enum Found {
    /// Losses.
    Record(CellRecord),
    /// Answers to benchmarks.
    Answers(CellAnswers),
}

/// How a model is read.
struct Reading<'a> {
    pass: &'a Pass,
    /// Whether texts may be read with what they begin with in common.
    cached: bool,
}

impl Subject {
    /// Reads all of it, for the cells of `seed`.
    ///
    /// # Errors
    /// Text, models or benchmarks that cannot be read.
    pub fn new(config: &EvidenceConfig, seed: u64) -> Result<Self> {
        let tasks = config.benchmarks()?;
        let settings = config.sparsify(&Cell::of(Method::OwnGate, 50, seed))?;
        let of_run = settings.run();
        let prepared = Prepared::of_sparsify(&settings, &mut Stopwatch::new())?;
        let spread = |mut set: TokenSet, most: usize| {
            set.spread_documents(OF_A_DOCUMENT, most);
            set.beginnings(most);
            set
        };
        let validation = spread(prepared.tokens.validation.clone(), config.validation_tokens);
        let corpus = text::corpus(&config.kinds("held_out_text")?, seed)?;
        let mut unseen = TokenSet::encode(&corpus, &prepared.dense.tokenizer)?;
        unseen.number_copies_alike(&corpus);
        let unseen = spread(unseen, config.test_tokens);
        let model_sha256 = ModelFolder::open(&config.model)?.sha256()?;
        Ok(Self { prepared, of_run, validation, unseen, tasks, model_sha256 })
    }

    /// Makes the first of `cells` and those of its steps that are asked for behind it, and measures of each what is lacking; `done` is told of it as soon as it is found.
    ///
    /// # Errors
    /// What the library reports.
    pub fn run(
        &self,
        config: &EvidenceConfig,
        cells: &[Lacking],
        checkpoints: Option<&Checkpoints>,
        mut done: impl FnMut(Found) -> Result<()>,
    ) -> Result<()> {
        let Some(lacking) = cells.first() else { return Ok(()) };
        let first = &lacking.cell;
        if !first.method.is_declared() {
            return self.carve(config, lacking, &mut done);
        }
        let mut watch = Stopwatch::new();
        let settings = config.sparsify(first)?;
        let variant = variant(&settings.variant)?;
        let of_run =
            RunConfig { scan_tokens: settings.calibration_tokens, out: settings.out.clone(), ..self.of_run.clone() };
        std::fs::create_dir_all(&settings.out).map_err(|e| Error::io(&settings.out, e))?;
        let partition = partition::choose(None, &variant.spec, Partition::Contiguous)?;
        let run = Run { variant, partition, ..self.prepared.run(&of_run) };
        let mut made = run.sparse_model(&settings, &mut watch)?;
        for lacking in cells {
            let (cell, mut distilled_to) = (&lacking.cell, None);
            if cell.steps > 0 {
                watch.stage("distil");
                let checkpoints = checkpoints.map(|own| Checkpoints { dir: settings.out.clone(), ..own.clone() });
                distilled_to = run.distil_sparse(&mut made, &config.sparsify(cell)?, checkpoints.as_ref())?;
            }
            self.declared(config, lacking, (&run, &made), (distilled_to, &mut watch), &mut done)?;
        }
        Ok(())
    }

    /// A declared variant, made.
    fn declared(
        &self,
        config: &EvidenceConfig,
        lacking: &Lacking,
        (run, made): (&Run<'_>, &SparseModel),
        (distilled_to, watch): (Option<f64>, &mut Stopwatch),
        done: &mut dyn FnMut(Found) -> Result<()>,
    ) -> Result<()> {
        watch.stage("verify");
        let model = run.model(&made.store)?;
        let bit_equal = Some(self.bit_equal(run, model.lm())?);
        watch.stage("validation");
        let (losses, load) = run.evaluate_load(&model, &self.validation, &Pass::routed())?;
        let operations = run.operations(&run.taken(made, &load)?);
        let cfg = &self.prepared.dense.cfg;
        let per_layer = match (distilled_to, made.repaired_on) {
            (Some(_), _) => 3 * cfg.intermediate_size * cfg.hidden_size + cfg.hidden_size,
            (None, 0) => 0,
            (None, _) => cfg.intermediate_size * cfg.hidden_size + cfg.hidden_size,
        };
        let record = CellRecord {
            operations,
            calibrated_on: made.calibrated_on,
            repaired_on: made.repaired_on,
            added: cfg.num_hidden_layers * per_layer,
            bit_equal,
            distilled_to,
            validation: KindLosses::of(&self.validation, &losses),
            ..self.nothing(&lacking.cell)
        };
        let read = Reading { pass: &Pass::routed(), cached: true };
        self.measured(config, (lacking, record), (model.lm(), &read), watch, done)
    }

    /// The dense model, or one that the study carves itself.
    fn carve(
        &self,
        config: &EvidenceConfig,
        lacking: &Lacking,
        done: &mut dyn FnMut(Found) -> Result<()>,
    ) -> Result<()> {
        let cell = &lacking.cell;
        let mut watch = Stopwatch::new();
        let settings = config.sparsify(cell)?;
        let run = self.prepared.run(&self.of_run);
        let read = Reading { pass: &Pass::all(), cached: cell.method.is_of_the_token() };
        if cell.method == Method::Dense {
            let model = run.dense_model()?;
            watch.stage("validation");
            let losses = evaluate(&model, &self.validation, self.options(), read.pass, &run.device)?;
            let validation = KindLosses::of(&self.validation, &losses);
            let record = CellRecord { operations: 1.0, validation, ..self.nothing(cell) };
            return self.measured(config, (lacking, record), (&model, &read), &mut watch, done);
        }
        watch.stage("calibrate");
        let made = carved(&run, cell, &settings)?;
        watch.stage("validation");
        let losses = evaluate(&made.model, &self.validation, self.options(), read.pass, &run.device)?;
        let cfg = &self.prepared.dense.cfg;
        let added = cfg.num_hidden_layers * (cfg.intermediate_size + 1) * cfg.hidden_size;
        let record = CellRecord {
            operations: operations(&made.model, &self.validation, &settings, &run.device)?,
            calibrated_on: made.calibrated_on,
            repaired_on: made.repaired_on,
            added: if made.repaired_on > 0 { added } else { 0 },
            validation: KindLosses::of(&self.validation, &losses),
            ..self.nothing(cell)
        };
        self.measured(config, (lacking, record), (&made.model, &read), &mut watch, done)
    }

    fn nothing(&self, cell: &Cell) -> CellRecord {
        CellRecord {
            cell: *cell,
            sources: SOURCES_SHA256.into(),
            corpus_sha256: self.prepared.text.sha256.clone(),
            operations: 0.0,
            calibrated_on: 0,
            repaired_on: 0,
            added: 0,
            bit_equal: None,
            distilled_to: None,
            validation: Vec::new(),
            test: Vec::new(),
            unseen: Vec::new(),
            seconds: BTreeMap::new(),
        }
    }

    fn options(&self) -> EvaluateOptions {
        EvaluateOptions { length: self.of_run.length, batch: self.of_run.batch, skip: 0 }
    }

    /// What is lacking of a cell, `record` as validation text has left it: a finalist is read on other text as well, and asked benchmarks.
    fn measured<F: FeedForward>(
        &self,
        config: &EvidenceConfig,
        (lacking, mut record): (&Lacking, CellRecord),
        (model, read): (&CausalLm<F>, &Reading<'_>),
        watch: &mut Stopwatch,
        done: &mut dyn FnMut(Found) -> Result<()>,
    ) -> Result<()> {
        let validation = KindLosses::mean_of(&record.validation);
        if lacking.record {
            if config.is_final(&lacking.cell) {
                let losses = |set: &TokenSet| {
                    let losses = evaluate(model, set, self.options(), read.pass, &self.prepared.device)?;
                    Ok::<_, Error>(KindLosses::of(set, &losses))
                };
                watch.stage("test");
                record.test = losses(&self.prepared.tokens.test)?;
                watch.stage("unseen");
                record.unseen = losses(&self.unseen)?;
            }
            watch.stop();
            record.seconds = watch.seconds().into_iter().collect();
            done(Found::Record(record))?;
        }
        if lacking.answers {
            let mut apart = Vec::new();
            if lacking.cell.method != Method::Dense {
                watch.stage(DIVERGENCE);
                let test = &self.prepared.tokens.test;
                let dense = self.prepared.run(&self.of_run).dense_model()?;
                apart = KindLosses::of(
                    test,
                    &divergence((model, &dense), test, self.options(), read.pass, &self.prepared.device)?,
                );
            }
            watch.stage(BENCHMARKS);
            let most = self.prepared.dense.cfg.max_position_embeddings;
            let mut tasks = Vec::with_capacity(self.tasks.len());
            for task in &self.tasks {
                let ask = |asked: &[_], greedy| model.likelihoods(asked, read.pass, greedy, read.cached);
                let together = if read.cached { config.together } else { 1 };
                let found = answers(task, &self.prepared.dense.tokenizer, most, together, ask)?;
                tasks.push(TaskAnswers::new(TaskFigures::new(task, &found, config.seed)?, &found));
            }
            watch.stop();
            let mut seconds: BTreeMap<String, f64> = watch.seconds().into_iter().collect();
            // What the record tells is not told twice.
            seconds.retain(|stage, _| !lacking.record || [DIVERGENCE, BENCHMARKS].contains(&stage.as_str()));
            done(Found::Answers(CellAnswers {
                cell: lacking.cell,
                sources: SOURCES_SHA256.into(),
                model_sha256: self.model_sha256.clone(),
                items: config.items,
                validation,
                divergence: apart,
                tasks,
                seconds,
            }))?;
        }
        Ok(())
    }

    /// Whether all active the logits of the beginning of each kind are the dense model's, bit for bit.
    fn bit_equal<F: FeedForward>(&self, run: &Run<'_>, model: &CausalLm<F>) -> Result<bool> {
        let dense = run.dense_model()?;
        let mut equal = true;
        for task in 0..self.validation.tasks.len() {
            let batches = self.validation.batches_of_task(task, self.of_run.length, 1, &run.device)?;
            for batch in batches.take(1) {
                let ids = batch?.inputs;
                let bits = |logits: candle_core::Tensor| {
                    let values = host::values(&logits.to_dtype(DType::F32)?)?;
                    Ok::<_, Error>(values.into_iter().map(f32::to_bits).collect::<Vec<_>>())
                };
                let own = bits(model.logits(&ids, &Pass::all(), None)?)?;
                equal &= own == bits(dense.logits(&ids, &Pass::all(), None)?)?;
            }
        }
        Ok(equal)
    }
}
