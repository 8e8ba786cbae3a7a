//! The losses that phase 1 measures, by shards ([`RowPass::Losses`]): of every token of the test text that is scored, under the routers fitted to each set of
//! labels, all active, and along the labels' paths; and what routing takes. Tokens of all shards in order are summed up as one process sums them, to the same
//! bits. Who goes on with them fits no controls: their losses are all that is asked of those.

use std::path::Path;

use super::PassFile;
use super::dealt_rows::DealtRows;
use super::fitting::{LabelSet, TokenRows, from_where_they_are};
use super::pass_record::{self, Record, RowPass};
use super::row_passes::column;
use super::run::{LossesNow, Run};
use crate::Result;
use crate::checkpoint::ParamStore;
use crate::decoder::{CausalLm, FeedForward, Pass};
use crate::imaging::{Labels, Shard};
use crate::moe::LoadMeter;
use crate::train::evaluate::score_shard;
use crate::train::{Losses, ScoredTokens};

/// All experts take part.
const ALL: &str = "all";
/// The paths that the labels name.
const PATHS: &str = "paths";

/// What phase 1 has measured, but for studies.
pub(super) struct Measured {
    /// Under routers fitted to random labels, a draw each.
    pub(super) random: Vec<Losses>,
    /// Under routers fitted to the labels dealt to other tasks, a dealing each.
    pub(super) permuted: Vec<Losses>,
    pub(super) now: LossesNow,
    pub(super) label_paths: Losses,
}

impl Run<'_> {
    /// Losses of the tokens of a shard.
    pub(super) fn losses_shard(&self, shard: Shard) -> Result<PassFile> {
        let pass = RowPass::Losses;
        let ready = self.ready(pass)?;
        let (store, labels, rows) = (&ready.store, &ready.to_fit.labels, ready.to_fit.rows.as_ref());
        let mut made = PassFile::new(self.losses_record(store, (labels, rows), shard)?);
        let (from_start, experts) = (from_where_they_are(store)?, self.variant.spec.experts());
        for set in self.label_sets() {
            from_start()?;
            let fitted_to = self.labels_of(set, labels);
            let rows = rows.filter(|_| set == LabelSet::Own);
            self.fit_through(&ready, (pass, set), (&fitted_to, rows), self.config.router.refit_rounds)?;
            let load = (set == LabelSet::Own).then_some(experts);
            let routed = Self::routed(&fitted_to);
            self.score(self.model(store)?.lm(), &routed, (&set.to_string(), load), shard, &mut made)?;
        }
        let model = self.model(store)?;
        self.score(model.lm(), &Pass::all(), (ALL, None), shard, &mut made)?;
        self.score(model.lm(), &Self::on_paths(labels), (PATHS, None), shard, &mut made)?;
        Ok(made)
    }

    /// Scores a shard of the test text, and keeps that under the name `what`.
    fn score<F: FeedForward>(
        &self,
        model: &CausalLm<F>,
        pass: &Pass,
        (what, experts): (&str, Option<usize>),
        shard: Shard,
        made: &mut PassFile,
    ) -> Result<()> {
        let (set, options) = ((&self.tokens.test, shard), self.evaluate_options());
        let ScoredTokens { batches, tasks, documents, losses, loads } =
            score_shard(model, set, options, pass, &self.device, experts)?;
        let mut rows = DealtRows::new(batches);
        rows.add_words("tasks".into(), tasks);
        rows.add_words("documents".into(), documents);
        rows.add_doubles("losses".into(), &losses);
        made.tables.insert(format!("{what}.losses"), rows);
        if experts.is_some() {
            let mut rows = DealtRows::new(loads.iter().map(|(batch, _)| *batch).collect());
            let by_batch: Vec<Vec<Vec<f64>>> = loads.iter().map(|(_, load)| load.numbers()).collect();
            for layer in 0..self.dense.cfg.num_hidden_layers {
                let numbers: Vec<f64> = by_batch.iter().flat_map(|batch| batch[layer].iter().copied()).collect();
                rows.add_doubles(column(layer), &numbers);
            }
            made.tables.insert(format!("{what}.loads"), rows);
        }
        Ok(())
    }

    /// What a pass has measured, if one has.
    pub(super) fn passed_losses(
        &self,
        store: &ParamStore,
        fitted_to: (&Labels, Option<&TokenRows>),
    ) -> Result<Option<Measured>> {
        let record = || self.losses_record(store, fitted_to, Shard::WHOLE);
        let Some((path, mut file)) = self.passed_rows(RowPass::Losses, record, |_| true)? else { return Ok(None) };
        let (mut random, mut permuted) = (Vec::new(), Vec::new());
        for set in self.label_sets() {
            match set {
                LabelSet::Random(_) => random.push(self.losses_in(path, &mut file, &set.to_string())?),
                LabelSet::Permuted(_) => permuted.push(self.losses_in(path, &mut file, &set.to_string())?),
                LabelSet::Own => {}
            }
        }
        let own = LabelSet::Own.to_string();
        let now = LossesNow {
            all_active: self.losses_in(path, &mut file, ALL)?,
            routed: self.losses_in(path, &mut file, &own)?,
            load: self.load_in(path, &mut file, &own)?,
        };
        Ok(Some(Measured { random, permuted, now, label_paths: self.losses_in(path, &mut file, PATHS)? }))
    }

    fn losses_in(&self, path: &Path, file: &mut PassFile, what: &str) -> Result<Losses> {
        let mut rows = file.take(path, &format!("{what}.losses"))?;
        let count = rows.count();
        let words = |rows: &mut DealtRows, name: &str| {
            let words = rows.take_words(name).map(|(_, words)| words).filter(|words| words.len() == count);
            words.ok_or_else(|| PassFile::contradicts(path))
        };
        let (tasks, documents) = (words(&mut rows, "tasks")?, words(&mut rows, "documents")?);
        let losses = rows.take_doubles("losses").map(|(_, losses)| losses);
        let losses = losses.filter(|losses| losses.len() == count && losses.iter().all(|loss| loss.is_finite()));
        let losses = losses.ok_or_else(|| PassFile::contradicts(path))?;
        let scored = ScoredTokens { tasks, documents, losses, ..ScoredTokens::default() };
        let skip = self.evaluate_options().skip;
        scored.sum(&self.tokens.test, skip)?.ok_or_else(|| PassFile::contradicts(path))
    }

    fn load_in(&self, path: &Path, file: &mut PassFile, what: &str) -> Result<LoadMeter> {
        let mut rows = file.take(path, &format!("{what}.loads"))?;
        let mut load = LoadMeter::new(self.dense.cfg.num_hidden_layers, self.variant.spec.experts());
        for layer in 0..self.dense.cfg.num_hidden_layers {
            let (width, numbers) = rows
                .take_doubles(&column(layer))
                .filter(|(width, _)| *width > 0)
                .ok_or_else(|| PassFile::contradicts(path))?;
            for numbers in numbers.chunks(width) {
                load.add_numbers(layer, numbers).ok_or_else(|| PassFile::contradicts(path))?;
            }
        }
        Ok(load)
    }

    /// All that decides the losses: what routers were fitted to is in the files of the passes before, whose digests stand for it.
    fn losses_record(
        &self,
        store: &ParamStore,
        fitted_to: (&Labels, Option<&TokenRows>),
        shard: Shard,
    ) -> Result<Record> {
        let last = |set: LabelSet| match self.config.router.refit_rounds {
            0 => RowPass::Inputs,
            round => RowPass::Refit { round, set },
        };
        let mut own = self.fits_are_of(store, fitted_to)?;
        own.push((pass_record::TEST_TEXT, self.tokens.test.sha256()));
        self.record_behind(RowPass::Losses, &self.label_sets().map(last).collect::<Vec<_>>(), own, shard)
    }
}
