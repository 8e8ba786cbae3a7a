//! What routers see, and tokens' own labels, by shards: each of several machines reads a shard of the batches of every split into a file of its own
//! ([`Run::rows_shard`]), the files are put together ([`PassFile::sum`]), and phase 1 goes on with the whole ([`Passed`]).

use std::collections::BTreeMap;
use std::path::Path;

use super::dealt_rows::DealtRows;
use super::fitting::TokenRows;
use super::inputs::{HeldInputs, Split, SplitInputs};
use super::pass_file::{PassFile, Record, RowPass};
use super::run::Run;
use crate::data::TokenSet;
use crate::decoder::Pass;
use crate::files::Digest;
use crate::imaging::inputs::{Samples, ShardRows};
use crate::imaging::token_labels::token_paths;
use crate::imaging::{NeuronScan, RowLabels, Shard, TokenScore, scan_file};
use crate::moe::ExpertsAre;
use crate::ops::NeuronSums;
use crate::{Error, Result};

/// Files with what passes over the text have made before: shards of several machines, added up.
///
/// ```
/// use tinyonn::phases::Passed;
///
/// let passed = Passed { scan: Some("added/scan.safetensors".as_ref()), ..Passed::default() };
/// assert!(passed.inputs.is_none() && passed.labels.is_none()); // these are made by the run itself
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed<'a> {
    /// The image of the dense model's neurons ([`Run::scan_shard`]).
    pub scan: Option<&'a Path>,
    /// What routers see ([`RowPass::Inputs`]).
    pub inputs: Option<&'a Path>,
    /// Tokens' own labels ([`RowPass::Labels`]).
    pub labels: Option<&'a Path>,
}

/// The splits in the order in which their rows stand in files.
const SPLITS: [&str; 3] = ["train", "validation", "test"];
/// Kinds of what routers see.
const KINDS: [&str; 2] = ["tokens", "windows"];

impl Run<'_> {
    /// What `pass` makes of a shard of the batches of every split.
    ///
    /// ```
    /// use tinyonn::imaging::Shard;
    /// use tinyonn::phases::{RowPass, Run};
    ///
    /// /// The second of four shards of what routers see.
    /// fn second(run: &Run<'_>) -> tinyonn::Result<()> {
    ///     run.rows_shard(RowPass::Inputs, Shard { index: 1, of: 4 })?.save("inputs-1.safetensors")
    /// }
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// Labels of a run that labels tasks, or of replicas, or without a scan that was made before; whatever the device reports.
    pub fn rows_shard(&self, pass: RowPass, shard: Shard) -> Result<PassFile> {
        shard.check()?;
        let scan = (pass == RowPass::Labels).then(|| self.scan_for_labels()).transpose()?;
        let units = scan.as_ref().map(|scan| self.units(scan)).transpose()?;
        let labelled = scan.as_ref().zip(units.as_deref());
        let mut made =
            PassFile { record: self.record(pass, labelled, shard)?, tables: BTreeMap::new(), scatter: Vec::new() };
        match labelled {
            Some(labelled) => self.label_shard(labelled, shard, &mut made)?,
            None => self.see_shard(shard, &mut made)?,
        }
        Ok(made)
    }

    fn sets(&self) -> [&TokenSet; 3] {
        [&self.tokens.train, &self.tokens.validation, &self.tokens.test]
    }

    /// All that decides the rows of a pass, and what it computes in and on; labels are of a scan and of the experts of neurons.
    fn record(&self, pass: RowPass, labelled: Option<(&NeuronScan, &[Vec<u32>])>, shard: Shard) -> Result<Record> {
        let options = self.scan_options();
        let mut text = Digest::new();
        self.sets().iter().for_each(|set| text.text(&options.part(set).sha256()));
        let mut of: BTreeMap<String, String> = [
            ("model", self.model_sha256()?),
            ("text, seed or split", text.hex()),
            ("length, batch or scan_tokens", format!("{options:?}")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        match labelled {
            None => {
                of.insert("width or unit of routers".into(), self.thinnings());
            }
            Some((scan, units)) => {
                of.insert("score of labels".into(), self.labels_by());
                of.insert("scan".into(), sums_sha256(scan));
                let mut digest = Digest::new();
                units.iter().for_each(|layer| digest.words(layer));
                of.insert("partition".into(), digest.hex());
                of.insert("variant".into(), format!("{:?}", self.variant.spec.levels));
            }
        }
        let dtype = self.dense_model()?.head().dtype();
        Ok(Record::new(pass, of, (dtype.as_str(), scan_file::name_of(&self.device)?, shard)))
    }

    /// What routers see of a shard.
    fn see_shard(&self, shard: Shard, made: &mut PassFile) -> Result<()> {
        let model = self.dense_model()?;
        for (name, set) in SPLITS.into_iter().zip(self.sets()) {
            let split = if name == SPLITS[0] { Split::Fitted } else { Split::HeldOut };
            let mut inputs = self.router_inputs(set, split);
            inputs.collect_shard(&model, (set, shard), self.scan_options(), &Pass::all(), &self.device)?;
            for (kind, ShardRows { samples, batches }) in KINDS.into_iter().zip(inputs.into_shard_rows()) {
                let mut rows = DealtRows::new(batches);
                if let Some(first) = samples.first() {
                    rows.add_words("tasks".into(), first.tasks.clone());
                    rows.add_words("documents".into(), first.documents.clone());
                }
                for (layer, samples) in samples.into_iter().enumerate() {
                    rows.add_floats(column(layer), &samples.values);
                    made.scatter.extend(samples.scatter.map(|scatter| (*scatter).clone()));
                }
                made.tables.insert(format!("{name}.{kind}"), rows);
            }
        }
        Ok(())
    }

    /// The labels of the tokens of a shard.
    fn label_shard(&self, (scan, units): (&NeuronScan, &[Vec<u32>]), shard: Shard, made: &mut PassFile) -> Result<()> {
        let by = self.token_score(scan, units);
        let model = self.dense_model()?;
        let prices = self.prices(&model, by, self.config.label_balance)?;
        let by = TokenScore { prices: prices.as_deref(), ..by };
        for (name, set) in SPLITS.into_iter().zip(self.sets()) {
            let labels = token_paths(&self.token_pass(&model, set, self.stride(set)), shard, by)?;
            let mut rows = DealtRows::new(labels.batches);
            for (layer, paths) in labels.by_layer.into_iter().enumerate() {
                rows.add_words(column(layer), paths.concat());
            }
            made.tables.insert(format!("{name}.labels"), rows);
        }
        Ok(())
    }

    fn scan_for_labels(&self) -> Result<NeuronScan> {
        if self.config.label != super::LabelUnit::Token {
            let problem =
                "has a pass of its own where tokens are labelled, and here tasks are, which the scan says all of";
            return Err(Error::setting("labels", problem, "leave this pass out, or set label = \"token\""));
        }
        if self.variant.spec.experts_are == ExpertsAre::Replicate {
            let problem = "is of replicas, whose tokens have no labels of their own";
            return Err(Error::variant(self.variant.spec.name.clone(), problem, "leave this pass out"));
        }
        let Some(scan) = self.passed.scan else {
            let remedy = "give the file that --merge left of the pass `scan`";
            return Err(Error::setting("labels", "are made from a scan, and none is given", remedy));
        };
        self.read_scan(scan)
    }

    /// What routers see of the training split, if a pass has made it.
    pub(super) fn passed_inputs(&self) -> Result<Option<SplitInputs>> {
        let of_train = |table: &str| table.starts_with(SPLITS[0]);
        let Some((path, mut file)) = self.passed_rows(RowPass::Inputs, self.passed.inputs, None, of_train)? else {
            return Ok(None);
        };
        let mut seen = self.split_inputs(path, &mut file, SPLITS[0])?;
        if self.router_inputs(&self.tokens.train, Split::Fitted).sums_scatter() {
            if file.scatter.len() != seen.tokens.len() {
                return Err(PassFile::contradicts(path));
            }
            let scatter = file.scatter.into_iter().map(|scatter| Some(scatter.into()));
            seen.tokens.iter_mut().zip(scatter).for_each(|(samples, scatter)| samples.scatter = scatter);
        }
        Ok(Some(seen))
    }

    /// The same of the held-out splits.
    pub(super) fn passed_held_inputs(&self) -> Result<Option<HeldInputs>> {
        let held = |table: &str| !table.starts_with(SPLITS[0]);
        let Some((path, mut file)) = self.passed_rows(RowPass::Inputs, self.passed.inputs, None, held)? else {
            return Ok(None);
        };
        let [validation, test] = [SPLITS[1], SPLITS[2]].map(|split| self.split_inputs(path, &mut file, split));
        Ok(Some(HeldInputs { validation: validation?, test: test? }))
    }

    /// The labels of all tokens, if a pass has made them.
    pub(super) fn passed_labels(&self, scan: &NeuronScan, units: &[Vec<u32>]) -> Result<Option<TokenRows>> {
        let Some((path, mut file)) =
            self.passed_rows(RowPass::Labels, self.passed.labels, Some((scan, units)), |_| true)?
        else {
            return Ok(None);
        };
        let layers = self.dense.cfg.num_hidden_layers;
        let mut of_split = |split: &str| -> Result<Vec<RowLabels>> {
            let mut rows = file.take(path, &format!("{split}.labels"))?;
            let of_layer = |layer: usize| {
                let (width, words) = rows.take_words(&column(layer)).ok_or_else(|| PassFile::contradicts(path))?;
                let labels = RowLabels::from_paths(words.chunks_exact(width.max(1)).map(<[u32]>::to_vec));
                labels.check(rows.count(), &self.variant.spec).map_err(|_| PassFile::contradicts(path))?;
                Ok(labels)
            };
            (0..layers).map(of_layer).collect()
        };
        let [train, validation, test] = SPLITS.map(&mut of_split);
        Ok(Some(TokenRows { train: train?, validation: validation?, test: test? }))
    }

    /// What lies in a file of a pass of the tables that are `wanted`, if one is given; refused where it is of another run.
    fn passed_rows<'a>(
        &self,
        pass: RowPass,
        path: Option<&'a Path>,
        labelled: Option<(&NeuronScan, &[Vec<u32>])>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Option<(&'a Path, PassFile)>> {
        let Some(path) = path else { return Ok(None) };
        let file = PassFile::load_some(path, wanted)?;
        file.refuse_other(path, &self.record(pass, labelled, Shard::WHOLE)?)?;
        Ok(Some((path, file)))
    }

    fn split_inputs(&self, path: &Path, file: &mut PassFile, split: &str) -> Result<SplitInputs> {
        let (layers, hidden) = (self.dense.cfg.num_hidden_layers, self.dense.cfg.hidden_size);
        let contradicts = || PassFile::contradicts(path);
        let mut of_kind = |kind: &str| -> Result<Vec<Samples>> {
            let mut rows = file.take(path, &format!("{split}.{kind}"))?;
            let count = rows.count();
            let mut words = |name: &str| {
                let words = rows.take_words(name).map(|(_, words)| words);
                words.filter(|words| words.len() == count).ok_or_else(contradicts)
            };
            let (tasks, documents) = (words("tasks")?, words("documents")?);
            if tasks.iter().any(|task| *task as usize >= self.text.tasks.len()) {
                return Err(contradicts());
            }
            let of_layer = |layer: usize| {
                let values = rows.take_floats(&column(layer)).filter(|values| values.len() == count * hidden);
                let values = values.ok_or_else(contradicts)?;
                Ok(Samples { values, tasks: tasks.clone(), documents: documents.clone(), scatter: None })
            };
            (0..layers).map(of_layer).collect()
        };
        let [tokens, sequences] = KINDS.map(&mut of_kind);
        Ok(SplitInputs { tokens: tokens?, sequences: sequences? })
    }
}

fn column(layer: usize) -> String {
    format!("layers.{layer}")
}

/// SHA-256 of the sums of a scan.
fn sums_sha256(scan: &NeuronScan) -> String {
    let mut digest = Digest::new();
    for sums in scan.sums.iter().flatten().flat_map(NeuronSums::each) {
        digest.bytes(&sums.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<u8>>());
    }
    digest.hex()
}
