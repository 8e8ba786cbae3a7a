//! What routers see once they route, round by round, by shards ([`RowPass::Refit`]). A round is a pass over training and validation text for every set of labels,
//! with the routers that were fitted to what the pass before has made: each machine fits them anew from the files of the passes before, added up, which takes no
//! text, and reads its shard of the batches.

use super::PassFile;
use super::fitting::{LabelSet, ToFit, TokenRows, from_where_they_are};
use super::inputs::SplitInputs;
use super::pass_record::{Record, RowPass};
use super::row_passes::{KINDS, SPLITS, lacks, of_splits, partition_sha256};
use super::run::Run;
use crate::checkpoint::ParamStore;
use crate::files::Digest;
use crate::imaging::{Labels, RowLabels, Shard};
use crate::moe::RoutePer;
use crate::train::RouterFitConfig;
use crate::{Error, Result};

/// What is read before the text is.
pub(super) struct Ready {
    pub(super) store: ParamStore,
    /// What routers see of the training text before they route.
    inputs: SplitInputs,
    pub(super) to_fit: ToFit,
}

impl Run<'_> {
    /// What routers see of a shard in the next round of refitting, of every set of labels that they are fitted to; `save` is given one file after another. The
    /// next round is the first of which [`passed`](Self::passed) lacks a file.
    ///
    /// ```
    /// use tinyonn::imaging::Shard;
    /// use tinyonn::phases::{PassFile, Run};
    ///
    /// /// The first of two shards, a file for each set of labels.
    /// fn first(run: &Run<'_>) -> tinyonn::Result<()> {
    ///     let save = |made: PassFile| made.save(format!("{}.safetensors", made.pass()));
    ///     run.refit_shards(Shard { index: 0, of: 2 }, save)
    /// }
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    ///
    /// # Errors
    /// A run without rounds of refitting, or with files of all of them; what is not among the files of passes before; whatever the device or `save` reports.
    pub fn refit_shards(&self, shard: Shard, mut save: impl FnMut(PassFile) -> Result<()>) -> Result<()> {
        shard.check()?;
        self.refuse_unasked()?;
        let round = self.next_round()?;
        let ready = self.ready(RowPass::Refit { round, set: LabelSet::Own })?;
        let from_start = from_where_they_are(&ready.store)?;
        for set in self.label_sets() {
            from_start()?;
            save(self.refit_to(&ready, (round, set), shard)?)?;
        }
        Ok(())
    }

    /// The same of one set of labels and any round.
    pub(super) fn refit_shard(&self, round: usize, set: LabelSet, shard: Shard) -> Result<PassFile> {
        let rounds = self.config.router.refit_rounds;
        if !self.refits(round, set) {
            let problem = format!(
                "round {round} of routers that are fitted to {set} is none of the run's, which has {rounds} rounds"
            );
            return Err(Error::setting("refit", problem, "name a round from 1, and labels that the run has"));
        }
        self.refit_to(&self.ready(RowPass::Refit { round, set })?, (round, set), shard)
    }

    /// Whether the run has such a round.
    pub(super) fn refits(&self, round: usize, set: LabelSet) -> bool {
        (1..=self.config.router.refit_rounds).contains(&round) && self.label_sets().any(|own| own == set)
    }

    /// The first round of which a file is missing.
    fn next_round(&self) -> Result<usize> {
        let rounds = self.config.router.refit_rounds;
        if rounds == 0 {
            let remedy = "leave this pass out, or set router.refit_rounds";
            return Err(Error::setting(
                "refit",
                "is of a run that refits routers, and this one fits them once",
                remedy,
            ));
        }
        for round in 1..=rounds {
            for set in self.label_sets() {
                if self.passed.of(RowPass::Refit { round, set })?.is_none() {
                    return Ok(round);
                }
            }
        }
        let problem = format!("has no round left: the files of all {rounds} are given");
        Err(Error::setting("refit", problem, "go on without --pass"))
    }

    /// What `pass` is made from: nothing of it is made here.
    pub(super) fn ready(&self, pass: RowPass) -> Result<Ready> {
        let scan = self.scan_that_was_made(pass)?;
        let inputs = self.passed_inputs()?.ok_or_else(|| lacks(pass, RowPass::Inputs))?;
        if self.config.label == super::LabelUnit::Token && self.passed.of(RowPass::Labels)?.is_none() {
            return Err(lacks(pass, RowPass::Labels));
        }
        let store = self.upcycle(&scan)?;
        let to_fit = self.to_fit(&scan, &store)?;
        Ok(Ready { store, inputs, to_fit })
    }

    /// Fits routers as they are before `round`, and has them see a shard of it.
    fn refit_to(&self, ready: &Ready, (round, set): (usize, LabelSet), shard: Shard) -> Result<PassFile> {
        let (store, pass) = (&ready.store, RowPass::Refit { round, set });
        let labels = &self.labels_of(set, &ready.to_fit.labels);
        let rows = ready.to_fit.rows.as_ref().filter(|_| set == LabelSet::Own);
        self.fit_through(ready, (pass, set), (labels, rows), round - 1)?;
        let mut made = PassFile::new(self.refit_record(pass, store, (labels, rows), shard)?);
        let (model, routed) = (self.model(store)?, Self::routed(labels));
        for (split, set) in SPLITS.into_iter().zip([&self.tokens.train, &self.tokens.validation]) {
            let own = [self.own_kind()];
            self.see_shard(model.lm(), &routed, (set, shard), (split, &own), &mut made)?;
        }
        Ok(made)
    }

    /// Fits routers to `labels` and through so many rounds, as files of the passes before have these; `pass` is made of them.
    pub(super) fn fit_through(
        &self,
        Ready { store, inputs, to_fit }: &Ready,
        (pass, set): (RowPass, LabelSet),
        (labels, rows): (&Labels, Option<&TokenRows>),
        rounds: usize,
    ) -> Result<()> {
        let validation = to_fit.held.validation.own(self.variant);
        let mut fitter = self.fitter(inputs.own(self.variant), validation)?;
        self.fit_rounds(store, &mut fitter, (labels, rows), rounds, |round| {
            let seen = self.passed_round((round, set), store, (labels, rows))?;
            seen.ok_or_else(|| lacks(pass, RowPass::Refit { round, set }))
        })
    }

    /// What routers see in `round` of training and of validation text, if a pass has made it.
    pub(super) fn passed_round(
        &self,
        (round, set): (usize, LabelSet),
        store: &ParamStore,
        fitted_to: (&Labels, Option<&TokenRows>),
    ) -> Result<Option<[SplitInputs; 2]>> {
        let pass = RowPass::Refit { round, set };
        let record = || self.refit_record(pass, store, fitted_to, Shard::WHOLE);
        let Some((path, mut file)) = self.passed_rows(pass, record, of_splits(&SPLITS[..2]))? else { return Ok(None) };
        let own = [self.own_kind()];
        let [train, validation] = [SPLITS[0], SPLITS[1]].map(|split| self.split_inputs(path, &mut file, split, &own));
        let (mut train, validation) = (train?, validation?);
        self.give_scatter(path, file, &mut train)?;
        Ok(Some([train, validation]))
    }

    /// All that decides what routers see in a round: what they were fitted to is in the file of the round before, whose digest stands for it.
    fn refit_record(
        &self,
        pass: RowPass,
        store: &ParamStore,
        (labels, rows): (&Labels, Option<&TokenRows>),
        shard: Shard,
    ) -> Result<Record> {
        let before = match pass {
            RowPass::Refit { round, set } if round > 1 => RowPass::Refit { round: round - 1, set },
            _ => RowPass::Inputs,
        };
        self.record_behind(pass, &[before], self.fits_are_of(store, (labels, rows))?, shard)
    }

    /// What decides a fit besides the rows that it is to.
    pub(super) fn fits_are_of(
        &self,
        store: &ParamStore,
        (labels, rows): (&Labels, Option<&TokenRows>),
    ) -> Result<Vec<(&'static str, String)>> {
        let units = self.model(store)?.neuron_experts()?;
        let fit = RouterFitConfig { refit_rounds: 0, ..self.config.router };
        Ok(vec![
            ("partition", units.map_or_else(|| "none".into(), |units| partition_sha256(&units))),
            ("variant", format!("{:?}", self.variant.spec)),
            ("labels", labels_sha256(labels, rows)),
            ("fit of routers, or seed", format!("{fit:?} {}", self.config.seed)),
        ])
    }

    /// What routers decide by.
    fn own_kind(&self) -> &'static str {
        match self.variant.spec.route_per {
            RoutePer::Token | RoutePer::Task => KINDS[0],
            RoutePer::Sequence { .. } | RoutePer::Segment { .. } => KINDS[1],
        }
    }
}

/// SHA-256 of the labels of tasks and, where they have their own, of tokens.
fn labels_sha256(labels: &Labels, rows: Option<&TokenRows>) -> String {
    let mut digest = Digest::new();
    labels.paths.experts.iter().flatten().for_each(|path| digest.words(path));
    let splits = rows.map_or([&[][..]; 2], |rows| [&rows.train[..], &rows.validation]);
    for RowLabels { class_of_row, paths } in splits.into_iter().flatten() {
        digest.words(class_of_row);
        paths.iter().for_each(|path| digest.words(path));
    }
    digest.hex()
}
