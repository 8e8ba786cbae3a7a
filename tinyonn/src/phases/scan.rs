//! The scan of phase 1: by the run itself, or by several machines without a network between them. Each of those reads a shard of the training text into a file
//! of its own, the files are added up ([`StoredScan::sum`]), and phase 1 goes on with the sum ([`Passed`](super::Passed)).

use std::path::Path;
use std::time::Duration;

use super::inputs::{Split, SplitInputs};
use super::run::Run;
use crate::Result;
use crate::checkpoint::ModelFolder;
use crate::decoder::Pass;
use crate::imaging::{NeuronScan, ScanFile, ScanRequest, Shard, StoredScan, scan, scan_with};

/// A scan that is being made is written this often.
const KEPT_EVERY: Duration = Duration::from_mins(1);

impl Run<'_> {
    /// The image of the dense model's neurons on the training text, and what routers see of it: in one pass, unless the one or the other was made before
    /// ([`passed`](Self::passed)).
    ///
    /// ```no_run
    /// use tinyonn::metrics::Stopwatch;
    /// use tinyonn::phases::{Prepared, RunConfig};
    ///
    /// let config = RunConfig::quick();
    /// let prepared = Prepared::new(&config, &mut Stopwatch::new(), None)?;
    /// let (_image, _inputs) = prepared.run(&config).scan()?;
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// A file that holds another scan; whatever the device reports.
    pub fn scan(&self) -> Result<(NeuronScan, SplitInputs)> {
        let model = self.dense_model()?;
        match (self.passed.scan.map(|file| self.read_scan(file)).transpose()?, self.passed_inputs()?) {
            (Some(scan), Some(inputs)) => return Ok((scan, inputs)),
            (Some(scan), None) => return Ok((scan, self.own_inputs(&model, &Pass::all())?)),
            (None, Some(inputs)) => {
                let scan = scan(&model, &self.tokens.train, self.scan_options(), &self.device, None)?;
                return Ok((scan, inputs));
            }
            (None, None) => {}
        }
        let mut inputs = self.router_inputs(&self.tokens.train, Split::Fitted);
        let scan = scan(&model, &self.tokens.train, self.scan_options(), &self.device, Some(&mut inputs))?;
        Ok((scan, SplitInputs::of(inputs)))
    }

    /// The image of the dense model's neurons on a shard of the training text, kept in `file` as it goes, and gone on with if it is there.
    ///
    /// ```no_run
    /// use std::path::PathBuf;
    /// use tinyonn::imaging::{Shard, StoredScan};
    /// use tinyonn::metrics::Stopwatch;
    /// use tinyonn::phases::{Passed, Prepared, Run, RunConfig};
    ///
    /// let (config, mut watch) = (RunConfig::quick(), Stopwatch::new());
    /// let prepared = Prepared::new(&config, &mut watch, None)?;
    /// // On two machines, each a half.
    /// let half = |index: usize| -> tinyonn::Result<(PathBuf, StoredScan)> {
    ///     let path = PathBuf::from(format!("half-{index}.safetensors"));
    ///     let stored = prepared.run(&config).scan_shard(Shard { index, of: 2 }, &path)?;
    ///     Ok((path, stored))
    /// };
    /// let whole = "whole.safetensors".as_ref();
    /// StoredScan::sum(vec![half(0)?, half(1)?], false)?.save(whole)?;
    /// // And from there on one.
    /// let run = Run { passed: Passed { scan: Some(whole), ..Passed::default() }, ..prepared.run(&config) };
    /// let (image, inputs) = run.scan()?;
    /// assert_eq!(image.sums.len(), inputs.tokens.len()); // of every layer
    /// println!("{:.3} nats a token", run.phase1(&mut watch)?.before.routed.mean);
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// A file of another scan; whatever the device reports.
    pub fn scan_shard(&self, shard: Shard, file: &Path) -> Result<StoredScan> {
        let request = ScanRequest { shard, ..ScanRequest::new(self.scan_options()) };
        let (model, sha256) = (self.dense_model()?, self.model_sha256()?);
        scan_with(&model, &self.tokens.train, &request, &self.device, Some(&self.scan_file(file, &sha256)))?;
        StoredScan::load(file)
    }

    /// What a scan that was made before has found.
    pub(super) fn read_scan(&self, file: &Path) -> Result<NeuronScan> {
        let (stored, sha256) = (StoredScan::load(file)?, self.model_sha256()?);
        let text = self.scan_options().part(&self.tokens.train).sha256();
        let dtype = self.dense_model()?.head().dtype();
        stored.refuse_other(&self.scan_file(file, &sha256), (&text, self.scan_options()), dtype)?;
        // Neurons are all that phase 1 asks of it.
        Ok(NeuronScan { experts: None, log1p: None, ..stored.scan })
    }

    fn scan_file<'a>(&'a self, path: &'a Path, model: &'a str) -> ScanFile<'a> {
        ScanFile { path, corpus: &self.text.sha256, model, every: KEPT_EVERY }
    }

    pub(super) fn model_sha256(&self) -> Result<String> {
        ModelFolder::open(&self.dense.dir)?.sha256()
    }
}
