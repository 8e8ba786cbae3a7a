//! The grid: which cells there are.
//!
//! A *subject* is a dense model of its own, by text and seed (a seed changes pretraining too); a *cell* is one way to make experts and
//! routers of it. The grid is a list of products: in each, every combination of the values listed, the rest as in `best`. By default
//! factors vary one at a time around the best, and the sources of labels, which are what is asked about, over all partitions and shares besides.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Cell, record};
use tinyonn::imaging::{Form, How, LabelBalance, LabelSource, Partition, partition};
use tinyonn::moe::variant;
use tinyonn::ops::GradSite;
use tinyonn::phases::config::{absolute, absolute_source};
use tinyonn::phases::{DenseShape, DeviceName, LabelUnit, RunConfig, Text};
use tinyonn::train::{Precision, PretrainConfig, RouterFitConfig};
use tinyonn::{Error, Result, SOURCES_SHA256, files};

/// The configuration of a comparison. As TOML, every key is optional and unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompareConfig {
    /// The folder of the comparison: its cells, its pictures. One that was begun is gone on with.
    pub out: PathBuf,
    /// Where the table and what it says are written; without it `RESULTS.md` in the comparison's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub results: Option<PathBuf>,
    /// Where pretrained dense models are kept.
    pub cache: PathBuf,
    /// Where it computes.
    pub device: DeviceName,
    /// What it computes in.
    #[serde(skip_serializing_if = "Precision::is_f32")]
    pub dtype: Precision,
    /// The texts.
    pub corpora: Vec<CorpusConfig>,
    /// Each decides everything random of a subject, pretraining among it.
    pub seeds: Vec<u64>,
    /// The shape of the dense models.
    pub dense: DenseShape,
    /// How they are pretrained.
    pub pretrain: PretrainConfig,
    /// Tokens a sequence.
    pub length: usize,
    /// Sequences a batch, in scan and evaluation.
    pub batch: usize,
    /// Training tokens of each task that are scanned.
    pub scan_tokens: usize,
    /// Test tokens of each task that losses are taken over, at most.
    pub test_tokens: usize,
    /// What a product leaves out.
    pub best: Cell,
    /// The cells: the best one, and every combination of each product.
    pub products: Vec<Product>,
}

/// SHA-256 of the sources by which this package computes the records of a comparison.
const STUDY_SHA256: &str = env!("EXPERIMENTS_STUDY_SHA256");
/// The file that holds a comparison's settings.
const BEGUN: &str = "compare.json";
/// The folder of the records.
const SUBJECTS: &str = "subjects";

/// What that file says.
#[derive(Serialize)]
struct Begun<'a> {
    #[serde(flatten)]
    by: By,
    settings: &'a CompareConfig,
}

/// What computed the records; a file of any version says so.
#[derive(Serialize, Deserialize)]
struct By {
    /// SHA-256 of the library's sources.
    sources: String,
    /// SHA-256 of the study's own; none where the library still held them.
    #[serde(default)]
    study: String,
    /// Their commit.
    #[serde(default)]
    commit: String,
}

impl By {
    /// Of the comparison in `out`.
    fn read(out: &Path) -> Result<Self> {
        read_begun(out, "name another folder with --out")
    }

    fn describe(&self) -> String {
        let commit = if self.commit.is_empty() { String::new() } else { format!("commit {}, ", self.commit) };
        format!("{commit}sources of the library with SHA-256 {}", self.sources)
    }

    /// The settings that stand beside it, which another version may have written, with keys that this one does not know.
    fn settings(&self, out: &Path) -> Result<CompareConfig> {
        /// Not flattened: what is flattened is read from a copy that no longer knows its line.
        #[derive(Deserialize)]
        struct Settings {
            settings: CompareConfig,
        }
        let remedy = format!("use the program that wrote it ({}), or name another folder with --out", self.describe());
        Ok(read_begun::<Settings>(out, &remedy)?.settings)
    }
}

/// Whether a comparison was begun in the folder `dir`.
#[must_use]
pub fn is_begun(dir: &Path) -> bool {
    dir.join(BEGUN).exists()
}

fn read_begun<R: DeserializeOwned>(out: &Path, remedy: &str) -> Result<R> {
    let path = out.join(BEGUN);
    let none = || Error::file(&path, "is not there", "begin a comparison with exp_compare");
    record::read(&path, remedy)?.ok_or_else(none)
}

/// A text by its name in tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusConfig {
    /// Its name.
    pub name: String,
    /// Tasks as `NAME=PATH`, or `toolchain`; none: the default text.
    pub data: Vec<String>,
}

/// Values to combine; an empty list leaves what the best cell has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Product {
    /// [`Cell::variant`].
    pub variant: Vec<String>,
    /// [`Cell::top_k`].
    pub top_k: Vec<Vec<usize>>,
    /// [`Cell::partition`].
    pub partition: Vec<Partition>,
    /// [`Cell::labels`].
    pub labels: Vec<LabelSource>,
    /// [`Cell::label`].
    pub label: Vec<LabelUnit>,
    /// [`Cell::label_balance`].
    pub label_balance: Vec<LabelBalance>,
    /// [`Cell::contrast`].
    pub contrast: Vec<bool>,
    /// [`Cell::form`].
    pub form: Vec<Form>,
    /// [`Cell::grad_site`].
    pub grad_site: Vec<GradSite>,
    /// [`Cell::routed`].
    pub routed: Vec<bool>,
    /// [`Cell::router`].
    pub router: Vec<RouterFitConfig>,
}

impl Product {
    fn cells(&self, best: &Cell) -> Vec<Cell> {
        fn spread<T: Clone>(cells: Vec<Cell>, values: &[T], set: impl Fn(&mut Cell, T)) -> Vec<Cell> {
            if values.is_empty() {
                return cells;
            }
            let with = |cell: &Cell, value: &T| {
                let mut cell = cell.clone();
                set(&mut cell, value.clone());
                cell
            };
            cells.iter().flat_map(|cell| values.iter().map(|value| with(cell, value)).collect::<Vec<_>>()).collect()
        }
        let cells = spread(vec![best.clone()], &self.variant, |cell, value| cell.variant = value);
        let cells = spread(cells, &self.top_k, |cell, value| cell.top_k = value);
        let cells = spread(cells, &self.partition, |cell, value| cell.partition = value);
        let cells = spread(cells, &self.labels, |cell, value| cell.labels = value);
        let cells = spread(cells, &self.label, |cell, value| cell.label = value);
        let cells = spread(cells, &self.label_balance, |cell, value| cell.label_balance = value);
        let cells = spread(cells, &self.contrast, |cell, value| cell.contrast = value);
        let cells = spread(cells, &self.form, |cell, value| cell.form = value);
        let cells = spread(cells, &self.grad_site, |cell, value| cell.grad_site = value);
        let cells = spread(cells, &self.routed, |cell, value| cell.routed = value);
        spread(cells, &self.router, |cell, value| cell.router = value)
    }
}

impl CompareConfig {
    /// All cells, each once, without what its labels do not read: first those without routers, which take a moment.
    #[must_use]
    pub fn cells(&self) -> Vec<Cell> {
        let all = self.products.iter().flat_map(|product| product.cells(&self.best)).chain([self.best.clone()]);
        let mut seen = BTreeSet::new();
        let mut cells: Vec<Cell> = all.map(|cell| cell.canonical()).filter(|cell| seen.insert(cell.id())).collect();
        cells.sort_by_key(|cell| cell.routed);
        cells
    }

    /// Makes the folder, for records computed by the sources at `commit`, or checks that the comparison that was begun in it is this one: grids and results may differ, all else not.
    ///
    /// # Errors
    /// Another comparison, or other sources, in that folder; a folder of something else.
    pub fn begin(&self, commit: &str) -> Result<()> {
        let path = self.out.join(BEGUN);
        let folder = self.out.join(SUBJECTS);
        // In this order: what another machine has begun meanwhile is there at the second look.
        if self.has_other_files()? && !path.exists() {
            let remedy = "name another folder with --out";
            return Err(Error::file(&self.out, "exists, is not empty, and is no comparison", remedy));
        }
        let mut by = By { sources: SOURCES_SHA256.into(), study: STUDY_SHA256.into(), commit: commit.to_owned() };
        if path.exists() {
            let other = |problem: String| {
                Err(Error::file(&self.out, problem, "name another folder with --out, or remove this one"))
            };
            by = By::read(&self.out)?;
            if by.sources != SOURCES_SHA256 {
                let problem = "was begun with other sources of the library: cells would not be comparable";
                return other(format!("{problem} (computed by {}; these have {SOURCES_SHA256})", by.describe()));
            }
            if by.study != STUDY_SHA256 {
                let problem = "was begun with other sources of the comparison: cells would not be comparable";
                return other(format!("{problem} (computed by {})", by.describe()));
            }
            let settings = by.settings(&self.out)?;
            let same = Self { products: self.products.clone(), results: self.results.clone(), ..settings.clone() };
            // What is measured once a subject is of the best cell's variant and partition.
            let Cell { variant, partition, .. } = self.best.clone();
            let asked = Self { best: Cell { variant, partition, ..settings.best.clone() }, ..self.clone() };
            if same != asked {
                return other("was begun with other settings".into());
            }
        }
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        record::write(&Begun { by, settings: self }, &path)
    }

    /// Whether `out` holds anything but what a comparison puts there while it begins, on this machine or on another.
    fn has_other_files(&self) -> Result<bool> {
        if !files::is_used(&self.out)? {
            return Ok(false);
        }
        let io = |e| Error::io(&self.out, e);
        for entry in std::fs::read_dir(&self.out).map_err(io)? {
            let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
            let is_staged = name.starts_with(&format!(".{BEGUN}.")) && name.ends_with(".writing");
            if name != SUBJECTS && !is_staged {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What its records were computed by: the commit, and the SHA-256 of the library's sources.
    ///
    /// # Errors
    /// There is no comparison in `out`.
    pub fn computed_by(out: &Path) -> Result<String> {
        Ok(By::read(out)?.describe())
    }

    /// The comparison that was begun in `out`.
    ///
    /// # Errors
    /// There is none, or one whose settings another version wrote.
    pub fn begun(out: &Path) -> Result<Self> {
        By::read(out)?.settings(out)
    }

    /// The file of the results.
    #[must_use]
    pub fn results_file(&self) -> PathBuf {
        self.results.clone().unwrap_or_else(|| self.out.join("RESULTS.md"))
    }

    /// The same, with what it reads and writes named so that it can be gone on with from another folder.
    #[must_use]
    pub fn with_absolute_paths(mut self) -> Self {
        self.cache = absolute(&self.cache);
        self.results = self.results.map(|path| absolute(&path));
        for source in self.corpora.iter_mut().flat_map(|corpus| &mut corpus.data) {
            *source = absolute_source(source);
        }
        self
    }

    /// Refuses what could only fail later.
    ///
    /// # Errors
    /// No seed or corpus; a name given twice or that is no file's; a variant that is unknown; what [`RunConfig::validate`] refuses.
    pub fn validate(&self) -> Result<()> {
        let (seeds, corpora) = (&self.seeds, &self.corpora);
        if seeds.is_empty() || corpora.is_empty() {
            let name = if seeds.is_empty() { "seeds" } else { "corpora" };
            return Err(Error::setting(name, "is empty", "give one or more; intervals need three seeds"));
        }
        let named: BTreeSet<&str> = corpora.iter().map(|corpus| corpus.name.as_str()).collect();
        let fit = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        if named.len() != corpora.len()
            || !named.iter().all(|name| fit(name))
            || seeds.iter().collect::<BTreeSet<_>>().len() != seeds.len()
        {
            let problem = "a corpus or seed is given twice, or a corpus' name is not of letters, digits, `-` and `_`";
            return Err(Error::setting("corpora", problem, "give each its own"));
        }
        for cell in self.cells() {
            let variant = variant(&cell.variant)?;
            if cell.top_k.len() != variant.spec.levels.len() || cell.top_k.contains(&0) {
                let problem = format!("{:?} is not a positive number for each level of `{}`", cell.top_k, cell.variant);
                return Err(Error::setting("top_k", problem, "give one a level"));
            }
            partition::choose(Some(cell.partition), &variant.spec, cell.partition)?;
            if cell.label == LabelUnit::Token && !matches!(cell.labels, LabelSource::By(_, How::Best)) {
                let problem = format!("is token, and a token has no label by `{}`", cell.labels);
                return Err(Error::setting("label", problem, "label tokens by a score itself"));
            }
            if cell.label == LabelUnit::Token && cell.image() != Cell::default().image() {
                let problem = format!("is `{}`, and a token is labelled by the plain image", cell.image());
                return Err(Error::setting("form", problem, "leave form and grad_site out where label = token"));
            }
            self.run(&corpora[0], seeds[0], &cell).validate(variant)?;
        }
        Ok(())
    }

    /// Refuses a comparison one of whose texts cannot be read or divided, before hours are spent on the others.
    ///
    /// # Errors
    /// As of [`Text::new`].
    pub fn check_texts(&self) -> Result<()> {
        let seed = self.seeds.first().copied().unwrap_or(0);
        self.corpora.iter().try_for_each(|corpus| Text::new(&corpus.data, seed).map(drop))
    }

    /// The settings of one cell's run.
    #[must_use]
    pub fn run(&self, corpus: &CorpusConfig, seed: u64, cell: &Cell) -> RunConfig {
        RunConfig {
            data: corpus.data.clone(),
            seed,
            variant: cell.variant.clone(),
            partition: Some(cell.partition),
            label: cell.label,
            label_balance: cell.label_balance,
            contrast: cell.contrast,
            router: cell.router,
            out: self.out.clone(),
            cache: self.cache.clone(),
            device: self.device,
            dtype: self.dtype,
            dense: self.dense,
            pretrain: self.pretrain,
            length: self.length,
            batch: self.batch,
            scan_tokens: self.scan_tokens,
            test_tokens: self.test_tokens,
            study_tokens: (self.test_tokens / 4).max(1),
            ..RunConfig::default()
        }
    }
}
