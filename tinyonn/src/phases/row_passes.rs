//! What routers see, and tokens' own labels, by shards: each of several machines reads a shard of the batches of every split into a file of its own
//! ([`Run::rows_shard`]), the files are put together ([`PassFile::sum`]), and phase 1 goes on with the whole ([`Passed`]). What they see once they route:
//! [`Run::refit_shards`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::dealt_rows::DealtRows;
use super::fitting::TokenRows;
use super::inputs::{HeldInputs, Split, SplitInputs};
use super::pass_file::PassFile;
use super::pass_record::{self, Record, RowPass};
use super::run::Run;
use crate::checkpoint::MappedSafetensors;
use crate::data::TokenSet;
use crate::decoder::{CausalLm, FeedForward, Pass};
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
/// use std::path::PathBuf;
/// use tinyonn::phases::Passed;
///
/// let rows = [PathBuf::from("added/inputs.safetensors")];
/// let passed = Passed { scan: Some("added/scan.safetensors".as_ref()), rows: &rows };
/// assert!(Passed::default().rows.is_empty()); // the run itself makes what is not given
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Passed<'a> {
    /// The image of the dense model's neurons ([`Run::scan_shard`]).
    pub scan: Option<&'a Path>,
    /// What [`RowPass`]es have made, a file each, in any order.
    pub rows: &'a [PathBuf],
}

impl<'a> Passed<'a> {
    /// The file of a pass, if it is given.
    ///
    /// # Errors
    /// A file that is of no pass; two of this one.
    pub(super) fn of(&self, pass: RowPass) -> Result<Option<&'a Path>> {
        let mut found: Option<&Path> = None;
        for path in self.rows {
            if PassFile::pass_of(path)?.ok_or_else(|| PassFile::foreign(path, None))? == pass
                && let Some(first) = found.replace(path)
            {
                let problem = format!("{} and {} both hold {pass}", first.display(), path.display());
                return Err(Error::setting("passed", problem, "add up the shards of a pass with --merge first"));
            }
        }
        Ok(found)
    }
}

/// The splits in the order in which their rows stand in files.
pub(super) const SPLITS: [&str; 3] = ["train", "validation", "test"];
/// Kinds of what routers see.
pub(super) const KINDS: [&str; 2] = ["tokens", "windows"];

impl Run<'_> {
    /// What `pass` makes of a shard of the batches of every split that it reads.
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
    /// Labels of a run that labels tasks, or of replicas; what is not among the files of passes that this one reads; whatever the device reports.
    pub fn rows_shard(&self, pass: RowPass, shard: Shard) -> Result<PassFile> {
        shard.check()?;
        self.refuse_unasked()?;
        match pass {
            RowPass::Inputs => {
                let mut made = PassFile::new(self.inputs_record(shard)?);
                for (name, set) in SPLITS.into_iter().zip(self.sets()) {
                    let seen = (name, &KINDS[..]);
                    self.see_shard(&self.dense_model()?, &Pass::all(), (set, shard), seen, &mut made)?;
                }
                Ok(made)
            }
            RowPass::Labels => {
                let scan = self.scan_for_labels()?;
                let units = self.units(&scan)?;
                let mut made = PassFile::new(self.labels_record((&scan, &units), shard)?);
                self.label_shard((&scan, &units), shard, &mut made)?;
                Ok(made)
            }
            RowPass::Refit { round, set } => self.refit_shard(round, set, shard),
            RowPass::Losses => self.losses_shard(shard),
        }
    }

    /// Refuses files of passes that this run does not make: of other settings, they would be left out without a word.
    pub(super) fn refuse_unasked(&self) -> Result<()> {
        for path in self.passed.rows {
            let pass = PassFile::pass_of(path)?.ok_or_else(|| PassFile::foreign(path, None))?;
            let is_made = match pass {
                RowPass::Inputs | RowPass::Losses => true,
                RowPass::Labels => self.config.label == super::LabelUnit::Token,
                RowPass::Refit { round, set } => self.refits(round, set),
            };
            if !is_made {
                let problem = format!("holds {pass}, a pass that this run does not make");
                return Err(Error::file(path, problem, "give the settings that the shards had, or leave the file out"));
            }
        }
        Ok(())
    }

    fn sets(&self) -> [&TokenSet; 3] {
        [&self.tokens.train, &self.tokens.validation, &self.tokens.test]
    }

    /// What decides the rows of any pass: the model and the text that are read.
    fn read_by_all(&self) -> Result<BTreeMap<String, String>> {
        let options = self.scan_options();
        let mut text = Digest::new();
        self.sets().iter().for_each(|set| text.text(&options.part(set).sha256()));
        let all = [
            (pass_record::MODEL, self.model_sha256()?),
            (pass_record::TEXT, text.hex()),
            (pass_record::LENGTH, format!("{options:?}")),
        ];
        Ok(all.map(|(name, value)| (name.to_owned(), value)).into())
    }

    /// All that decides the rows of a pass, `of` and its own, and what it computes in and on.
    pub(super) fn record(
        &self,
        pass: RowPass,
        mut of: BTreeMap<String, String>,
        own: Vec<(&str, String)>,
        shard: Shard,
    ) -> Result<Record> {
        of.extend(own.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let dtype = self.dense_model()?.head().dtype();
        let mut record = Record::new(pass, of, (dtype.as_str(), scan_file::name_of(&self.device)?, shard));
        record.then = self.pass_after(pass).map(str::to_owned);
        Ok(record)
    }

    /// The same of a pass that is made from what routers see, whose file says which model and text that is: who loads it has compared them. What the files of
    /// these passes hold decides the rows, too.
    pub(super) fn record_behind(
        &self,
        pass: RowPass,
        before: &[RowPass],
        mut own: Vec<(&str, String)>,
        shard: Shard,
    ) -> Result<Record> {
        let file = |of: RowPass| self.passed.of(of)?.ok_or_else(|| lacks(pass, of));
        let mut digest = Digest::new();
        for of in before {
            digest.text(&PassFile::claims(file(*of)?)?.1);
        }
        own.push(("passes before", digest.hex()));
        let (inputs, _) = PassFile::claims(file(RowPass::Inputs)?)?;
        self.record(pass, inputs.of, own, shard)
    }

    /// What the run makes next, by the word for it.
    fn pass_after(&self, pass: RowPass) -> Option<&'static str> {
        let (labels, rounds) = (self.config.label == super::LabelUnit::Token, self.config.router.refit_rounds);
        match pass {
            RowPass::Inputs if labels => Some("labels"),
            RowPass::Inputs | RowPass::Labels if rounds > 0 => Some("refit"),
            RowPass::Refit { round, .. } if round < rounds => Some("refit"),
            RowPass::Losses => None,
            _ => Some("losses"),
        }
    }

    fn inputs_record(&self, shard: Shard) -> Result<Record> {
        let own = vec![("width or unit of routers", self.thinnings())];
        self.record(RowPass::Inputs, self.read_by_all()?, own, shard)
    }

    /// Labels are of a scan and of the experts of neurons.
    fn labels_record(&self, (scan, units): (&NeuronScan, &[Vec<u32>]), shard: Shard) -> Result<Record> {
        let own = vec![
            ("score of labels", self.labels_by()),
            ("scan", sums_sha256(scan)),
            ("partition", partition_sha256(units)),
            ("variant", format!("{:?}", self.variant.spec.levels)),
        ];
        self.record(RowPass::Labels, self.read_by_all()?, own, shard)
    }

    /// What routers see of a shard of a split, of tokens or of windows or of both, in a pass through `model`.
    pub(super) fn see_shard<F: FeedForward>(
        &self,
        model: &CausalLm<F>,
        pass: &Pass,
        (set, shard): (&TokenSet, Shard),
        (split, kinds): (&str, &[&str]),
        made: &mut PassFile,
    ) -> Result<()> {
        let mut inputs = self.router_inputs(set, if split == SPLITS[0] { Split::Fitted } else { Split::HeldOut });
        inputs.collect_shard(model, (set, shard), self.scan_options(), pass, &self.device)?;
        for (kind, ShardRows { samples, batches }) in KINDS.into_iter().zip(inputs.into_shard_rows()) {
            if !kinds.contains(&kind) {
                continue;
            }
            let mut rows = DealtRows::new(batches);
            if let Some(first) = samples.first() {
                rows.add_words("tasks".into(), first.tasks.clone());
                rows.add_words("documents".into(), first.documents.clone());
            }
            for (layer, samples) in samples.into_iter().enumerate() {
                rows.add_floats(column(layer), &samples.values);
                made.scatter.extend(samples.scatter.map(|scatter| (*scatter).clone()));
            }
            made.tables.insert(format!("{split}.{kind}"), rows);
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
        self.scan_that_was_made(RowPass::Labels)
    }

    /// The scan, which `pass` is made from.
    pub(super) fn scan_that_was_made(&self, pass: RowPass) -> Result<NeuronScan> {
        let scan = self.passed.scan.ok_or_else(|| lacks(pass, "scan"))?;
        self.read_scan(scan)
    }

    /// What routers see of the training split, if a pass has made it.
    pub(super) fn passed_inputs(&self) -> Result<Option<SplitInputs>> {
        let Some((path, mut file)) =
            self.passed_rows(RowPass::Inputs, || self.inputs_record(Shard::WHOLE), of_splits(&SPLITS[..1]))?
        else {
            return Ok(None);
        };
        let mut seen = self.split_inputs(path, &mut file, SPLITS[0], &KINDS)?;
        self.give_scatter(path, file, &mut seen)?;
        Ok(Some(seen))
    }

    /// Gives the tokens of the training split the scatter that is summed up of them.
    pub(super) fn give_scatter(&self, path: &Path, file: PassFile, seen: &mut SplitInputs) -> Result<()> {
        if self.router_inputs(&self.tokens.train, Split::Fitted).sums_scatter() && !seen.tokens.is_empty() {
            if file.scatter.len() != seen.tokens.len() {
                return Err(PassFile::contradicts(path));
            }
            let scatter = file.scatter.into_iter().map(|scatter| Some(scatter.into()));
            seen.tokens.iter_mut().zip(scatter).for_each(|(samples, scatter)| samples.scatter = scatter);
        }
        Ok(())
    }

    /// The same of the held-out splits.
    pub(super) fn passed_held_inputs(&self) -> Result<Option<HeldInputs>> {
        let Some((path, mut file)) =
            self.passed_rows(RowPass::Inputs, || self.inputs_record(Shard::WHOLE), of_splits(&SPLITS[1..]))?
        else {
            return Ok(None);
        };
        let [validation, test] = [SPLITS[1], SPLITS[2]].map(|split| self.split_inputs(path, &mut file, split, &KINDS));
        Ok(Some(HeldInputs { validation: validation?, test: test? }))
    }

    /// The labels of all tokens, if a pass has made them.
    pub(super) fn passed_labels(&self, scan: &NeuronScan, units: &[Vec<u32>]) -> Result<Option<TokenRows>> {
        let record = || self.labels_record((scan, units), Shard::WHOLE);
        let Some((path, mut file)) = self.passed_rows(RowPass::Labels, record, |_| true)? else { return Ok(None) };
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

    /// What lies in the file of a pass of the tables that are `wanted`, if one is given; refused where it is of another run than `own`.
    pub(super) fn passed_rows(
        &self,
        pass: RowPass,
        own: impl FnOnce() -> Result<Record>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Option<(&Path, PassFile)>> {
        let Some(path) = self.passed.of(pass)? else { return Ok(None) };
        let file = PassFile::of_some(MappedSafetensors::open(path)?, wanted)?;
        file.refuse_other(path, &own()?)?;
        Ok(Some((path, file)))
    }

    /// Rows of a split out of a file; of the kinds that are not asked for none.
    pub(super) fn split_inputs(
        &self,
        path: &Path,
        file: &mut PassFile,
        split: &str,
        kinds: &[&str],
    ) -> Result<SplitInputs> {
        let (layers, hidden) = (self.dense.cfg.num_hidden_layers, self.dense.cfg.hidden_size);
        let contradicts = || PassFile::contradicts(path);
        let mut of_kind = |kind: &str| -> Result<Vec<Samples>> {
            if !kinds.contains(&kind) {
                return Ok(Vec::new());
            }
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

/// The tables of these splits.
pub(super) fn of_splits<'a>(splits: &'a [&str]) -> impl Fn(&str) -> bool + use<'a> {
    |table| table.split_once('.').is_some_and(|(split, _)| splits.contains(&split))
}

/// The column of a layer.
pub(super) fn column(layer: usize) -> String {
    format!("layers.{layer}")
}

/// That `pass` is made from what another has made, which is not given.
pub(super) fn lacks(pass: RowPass, another: impl std::fmt::Display) -> Error {
    let remedy = format!("give the file that --merge left of the pass `{another}`, with --passed");
    Error::setting(
        pass.to_string(),
        format!("is made from what the pass `{another}` has made, which is not given"),
        remedy,
    )
}

/// SHA-256 of the expert of each neuron.
pub(super) fn partition_sha256(units: &[Vec<u32>]) -> String {
    let mut digest = Digest::new();
    units.iter().for_each(|layer| digest.words(layer));
    digest.hex()
}

/// SHA-256 of the sums of a scan.
fn sums_sha256(scan: &NeuronScan) -> String {
    let mut digest = Digest::new();
    for sums in scan.sums.iter().flatten().flat_map(NeuronSums::each) {
        digest.bytes(&sums.iter().flat_map(|sum| sum.to_le_bytes()).collect::<Vec<u8>>());
    }
    digest.hex()
}
