//! One subject: a dense model, scanned once; then its cells, one after the other.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::record::{self, CellRecord, LossRecord, RoutedRecord, Store, SubjectRecord};
use super::{Cell, CompareConfig, CorpusConfig};
use crate::causal::{causal, without_mlps};
use tinyonn::checkpoint;
use tinyonn::decoder::{Active, Pass};
use tinyonn::imaging::{
    Form, GreedyOptions, LabelInputs, LabelSource, Labels, Log1p, NeuronScan, RowLabels, ScanRequest, Shard,
    TokenScore, Units, scan_with,
};
use tinyonn::metrics::Stopwatch;
use tinyonn::model::TinyOnnForCausalLm;
use tinyonn::moe::{LoadFigures, MoeSpec, Pfag, variant};
use tinyonn::ops::GradSite;
use tinyonn::phases::{HeldInputs, LabelUnit, Prepared, Run, RunConfig, SplitInputs, active_share};
use tinyonn::train::{Checkpoints, LevelAccuracy, router_accuracy, row_accuracy};
use tinyonn::{Error, Result};

/// Sequences of each task's training text that the oracle measures on: its time is most of a comparison's otherwise.
pub(super) const ORACLE_SEQUENCES: usize = 2;

/// The expert of each neuron by layer.
type Experts = Arc<Vec<Vec<u32>>>;

struct Subject<'a> {
    config: &'a CompareConfig,
    corpus: &'a CorpusConfig,
    seed: u64,
    prepared: Prepared,
    /// The plain image: of weights' gradients, neurons alone.
    scan: Arc<NeuronScan>,
    inputs: SplitInputs,
    held: HeldInputs,
    /// By variant and partition.
    units: BTreeMap<(String, String), Experts>,
    /// Other images: by variant, partition, grad site and whether they hold experts' norms and log1p values.
    images: BTreeMap<(String, String, &'static str, bool), Arc<NeuronScan>>,
}

/// Runs the cells of a subject that `shard` has and that have not been run; `done` is told of each. With `checkpoints` a pretraining that was cut off
/// goes on.
///
/// # Errors
/// Another process is at it; text that is not what it was; whatever a cell reports.
pub fn run_subject(
    config: &CompareConfig,
    (corpus, seed): (&CorpusConfig, u64),
    shard: Shard,
    checkpoints: Option<&Checkpoints>,
    mut done: impl FnMut(&Cell),
) -> Result<()> {
    let store = Store::new(&config.out);
    let at = config.subjects().position(|subject| subject == (corpus, seed));
    let Some(part) = at.and_then(|at| config.part(at, shard)) else { return Ok(()) };
    let folder = store.subject(&corpus.name, seed);
    let _place = taken(&folder, shard)?;
    let left: Vec<Cell> =
        part.cells.into_iter().filter(|cell| !store.cell_file(&corpus.name, seed, cell).exists()).collect();
    let known: Option<SubjectRecord> = record::read(&store.subject_file(&corpus.name, seed), record::REPEAT)?;
    let measures = part.has_record && known.is_none();
    if left.is_empty() && !measures {
        return Ok(());
    }
    let base = config.run(corpus, seed, &config.best);
    let prepared = Prepared::new(&base, &mut Stopwatch::new(), checkpoints)?;
    if let Some(known) = known.as_ref().filter(|known| known.corpus_sha256 != prepared.text.sha256) {
        let problem = format!("the text of `{}` is not what it was: SHA-256 {} then", corpus.name, known.corpus_sha256);
        return Err(Error::file(&folder, problem, "restore the text, or begin another comparison with --out"));
    }
    let started = Instant::now();
    let run = prepared.run(&base);
    let (scan, inputs) = run.scan()?;
    let held = run.held_inputs()?;
    if measures {
        let mut record = of_subject(&run, &scan, corpus)?;
        record.seconds = started.elapsed().as_secs_f64();
        record::write(&record, &store.subject_file(&corpus.name, seed))?;
    }
    let (scan, units, images) = (Arc::new(scan), BTreeMap::new(), BTreeMap::new());
    let mut subject = Subject { config, corpus, seed, prepared, scan, inputs, held, units, images };
    for cell in left {
        let started = Instant::now();
        let mut found = subject.cell(&cell)?;
        found.seconds = started.elapsed().as_secs_f64();
        record::write(&found, &store.cell_file(&corpus.name, seed, &cell))?;
        done(&cell);
    }
    Ok(())
}

/// Keeps others from a subject: from the whole of it, or, while a shard of it is run, whoever would run the whole.
fn taken(folder: &Path, shard: Shard) -> Result<File> {
    let path = folder.join("lock");
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let place = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let place = place.map_err(|e| Error::io(&path, e))?;
    match if shard == Shard::WHOLE { place.try_lock() } else { place.try_lock_shared() } {
        Err(TryLockError::WouldBlock) => Err(Error::file(folder, "another process is at it", "wait for it")),
        _ => Ok(place),
    }
}

/// What does not depend on a cell.
fn of_subject(run: &Run<'_>, scan: &NeuronScan, corpus: &CorpusConfig) -> Result<SubjectRecord> {
    let dense = run.evaluate_on(&run.dense_model()?, &run.tokens.test, &Pass::all())?;
    let without = run.evaluate_on(&without_mlps(run)?, &run.tokens.test, &Pass::all())?;
    let units = run.units(scan)?;
    Ok(SubjectRecord {
        corpus: corpus.name.clone(),
        seed: run.config.seed,
        corpus_sha256: run.text.sha256.clone(),
        tasks: run.text.tasks.clone(),
        documents: dense.by_document.iter().map(|document| (document.task, document.tokens)).collect(),
        parameters: run.dense.cfg.parameters(),
        causal: causal(run, scan, &units)?,
        dense: LossRecord::mean_of(&[dense]),
        without: LossRecord::mean_of(&[without]),
        seconds: 0.0,
    })
}

impl Subject<'_> {
    fn cell(&mut self, cell: &Cell) -> Result<CellRecord> {
        let config = self.config.run(self.corpus, self.seed, cell);
        let variant = variant(&cell.variant)?;
        let units = self.units(cell, &config)?;
        let image = self.image(cell, &units)?;
        let run = Run { variant, partition: cell.partition, ..self.prepared.run(&config) };
        let store = checkpoint::upcycle(
            self.prepared.dense.store.share(),
            &self.prepared.dense.cfg,
            variant,
            &units,
            self.seed,
        )?;
        let spec = variant.spec.taking(&cell.top_k, Pfag::Off);
        let seeds: Vec<u64> = if cell.labels.is_drawn() { run.draws().collect() } else { vec![self.seed] };
        let vb = store.frozen();
        let model = TinyOnnForCausalLm::taking(&self.prepared.dense.cfg, variant, &vb, |_| &cell.top_k, Pfag::Off)?;
        let (contrast, balance) = (cell.contrast, cell.label_balance);
        let from = LabelInputs { scan: &image, form: cell.form, units: &units, spec: &spec, contrast, balance };
        let draw = |seed: &u64| {
            if let Some(labels) = cell.labels.labels(&from, *seed)? {
                return Ok(labels);
            }
            let options = GreedyOptions { length: run.config.length, sequences: ORACLE_SEQUENCES };
            Labels::greedy(model.lm(), &spec, &run.tokens.train, options, &run.device)
        };
        let labels = seeds.iter().map(draw).collect::<Result<Vec<Labels>>>()?;
        let along = |labels: &Labels| {
            let active = Active::Paths(Arc::new(labels.paths.clone()));
            run.evaluate_on(model.lm(), &run.tokens.test, &Pass { active, ..Pass::all() })
        };
        let paths = labels.iter().map(along).collect::<Result<Vec<_>>>()?;
        let routed = cell.routed.then(|| self.routed(&run, &store, &labels[0], &units, cell)).transpose()?;
        let own_paths = (cell.label == LabelUnit::Task).then(|| LossRecord::mean_of(&paths[..1]));
        let routed = routed.map(|routed| RoutedRecord { own_paths, ..routed });
        Ok(CellRecord {
            cell: cell.clone(),
            draws: if cell.labels.is_drawn() { paths.iter().map(|losses| losses.mean).collect() } else { Vec::new() },
            paths: LossRecord::mean_of(&paths),
            labels: labels[0].statistics(&spec),
            routed,
            seconds: 0.0,
        })
    }

    /// Fits routers to `labels`, of the draws the first, and measures them.
    fn routed(
        &self,
        run: &Run<'_>,
        store: &checkpoint::ParamStore,
        labels: &Labels,
        units: &[Vec<u32>],
        cell: &Cell,
    ) -> Result<RoutedRecord> {
        let (cfg, variant) = (&self.prepared.dense.cfg, run.variant);
        let routing = || {
            let vb = store.frozen();
            TinyOnnForCausalLm::taking(cfg, variant, &vb, |_| &cell.top_k, Pfag::Off)
        };
        let spec = variant.spec.taking(&cell.top_k, Pfag::Off);
        let rows = match (cell.label, cell.labels) {
            (LabelUnit::Token, LabelSource::By(score, _)) => {
                let by =
                    TokenScore { scan: &self.scan, score, contrast: cell.contrast, units, spec: &spec, prices: None };
                Some(run.label_tokens(by, cell.label_balance)?)
            }
            _ => None,
        };
        let mut fitter = run.fitter(&self.inputs.tokens, &self.held.validation.tokens)?;
        run.fit_own(store, &mut fitter, (labels, rows.as_ref()), routing)?;
        let model = routing()?;
        let (loss, load) = run.evaluate_load(&model, &run.tokens.test, &Run::routed(labels))?;
        let modules: Vec<_> = (0..cfg.num_hidden_layers).map(|layer| model.moe(layer)).collect();
        let layers = match &rows {
            Some(rows) => row_accuracy(&modules, &self.held.test.tokens, &rows.test)?,
            None => router_accuracy(&modules, &self.held.test.tokens, labels)?.layers,
        };
        let asked = rows.as_ref().map_or_else(|| run.asked_load(labels), |rows| asked_by_rows(&spec, &rows.test));
        let found = load.figures(&spec);
        let over = |f: &dyn Fn(&LevelAccuracy) -> f64| layers.iter().map(f).sum::<f64>() / layers.len() as f64;
        let levels = 0..variant.spec.levels.len();
        Ok(RoutedRecord {
            loss: LossRecord::mean_of(&[loss]),
            own_paths: None,
            accuracy: levels
                .map(|level| (over(&|layer| layer.accuracy[level]), over(&|layer| layer.chance[level])))
                .collect(),
            active_share: active_share(&load, Some(units)),
            collapsed: found.warnings(&spec, &asked),
            load: found,
        })
    }

    /// The image that the cell's labels are made from.
    fn image(&mut self, cell: &Cell, units: &Experts) -> Result<Arc<NeuronScan>> {
        if cell.form == Form::default() && cell.grad_site == GradSite::Weight {
            return Ok(self.scan.clone());
        }
        let formed = cell.form != Form::default();
        let key = (cell.variant.clone(), cell.partition.to_string(), cell.grad_site.name(), formed);
        if let Some(image) = self.images.get(&key) {
            return Ok(image.clone());
        }
        let config = self.config.run(self.corpus, self.seed, cell);
        let run = self.prepared.run(&config);
        let request = ScanRequest {
            grad_site: cell.grad_site,
            units: formed.then(|| Units { neuron_expert: units.to_vec(), count: cell.experts() }),
            log1p: if formed { Log1p::Measured } else { Log1p::Off },
            ..ScanRequest::new(run.scan_options())
        };
        let image = Arc::new(scan_with(&run.dense_model()?, &run.tokens.train, &request, &run.device, None)?);
        self.images.insert(key, image.clone());
        Ok(image)
    }

    fn units(&mut self, cell: &Cell, config: &RunConfig) -> Result<Experts> {
        let key = (cell.variant.clone(), cell.partition.to_string());
        if let Some(units) = self.units.get(&key) {
            return Ok(units.clone());
        }
        let run = Run { variant: variant(&cell.variant)?, partition: cell.partition, ..self.prepared.run(config) };
        let units = Arc::new(run.units(&self.scan)?);
        self.units.insert(key, units.clone());
        Ok(units)
    }
}

/// The load if each row of each layer took its own path.
fn asked_by_rows(spec: &MoeSpec, layers: &[RowLabels]) -> LoadFigures {
    let of_layer = |rows: &RowLabels| {
        let mut taken = vec![0.0; spec.experts()];
        (0..rows.class_of_row.len()).flat_map(|row| rows.path(row)).for_each(|expert| taken[*expert as usize] += 1.0);
        taken
    };
    LoadFigures::new(spec, &layers.iter().map(of_layer).collect::<Vec<_>>())
}
