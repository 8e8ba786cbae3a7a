//! What the runs of one dense model share: copies of its weights, its tasks as tokens, and what it knows of the text so far.

use super::ForgettingConfig;
use crate::checkpoint::ParamStore;
use crate::data::{Corpus, Splits, TokenSet};
use crate::decoder::Pass;
use crate::imaging::{Integral, NeuronScan, Score};
use crate::phases::weights;
use crate::phases::{Dense, Prepared, Run, RunConfig, Text, Tokens};
use crate::{Error, Result};

/// A dense model of its own to teach, and the tasks.
pub(super) struct Subject<'a> {
    pub(super) prepared: &'a Prepared,
    pub(super) config: &'a RunConfig,
    /// The same model over weights that nobody else has.
    pub(super) dense: Dense,
    /// The tasks, in the order in which they are learnt.
    novel: Tokens,
    names: Vec<String>,
}

/// The text so far.
pub(super) struct SoFar {
    text: Text,
    tokens: Tokens,
}

impl<'a> Subject<'a> {
    pub(super) fn new(prepared: &'a Prepared, config: &'a RunConfig, of: &ForgettingConfig) -> Result<Self> {
        let Dense { dir, cfg, store, stored, tokenizer } = &prepared.dense;
        let mut own = store.deep_copy()?;
        weights::give_masters(&mut own, cfg, prepared.variant, false)?;
        let dense = Dense {
            dir: dir.clone(),
            cfg: cfg.clone(),
            store: own,
            stored: stored.clone(),
            tokenizer: tokenizer.clone(),
        };
        let corpus = Corpus { tasks: of.order.iter().map(|task| task.generate(config.seed, of.task_bytes)).collect() };
        let text = Text::split(&corpus, config.seed)?;
        let mut novel = text.encode(tokenizer)?;
        novel.test.beginnings(config.test_tokens);
        Ok(Self { prepared, config, dense, novel, names: text.tasks })
    }

    /// The old text and the first `tasks` tasks.
    pub(super) fn so_far(&self, tasks: usize) -> Result<SoFar> {
        let old = &self.prepared.tokens;
        let with = |old: &TokenSet, novel: &TokenSet| -> Result<TokenSet> {
            (0..tasks).try_fold(old.clone(), |set, task| Ok(set.beside(&novel.only(task)?)))
        };
        let none = || Corpus { tasks: Vec::new() };
        let names = self.prepared.text.tasks.iter().chain(&self.names[..tasks]).cloned().collect();
        let splits = Splits { train: none(), validation: none(), test: none() };
        Ok(SoFar {
            text: Text { sha256: self.prepared.text.sha256.clone(), tasks: names, splits },
            tokens: Tokens {
                train: with(&old.train, &self.novel.train)?,
                validation: with(&old.validation, &self.novel.validation)?,
                test: with(&old.test, &self.novel.test)?,
            },
        })
    }

    /// The stages of the library over that text.
    pub(super) fn run<'b>(&'b self, so_far: &'b SoFar) -> Run<'b> {
        Run { text: &so_far.text, tokens: &so_far.tokens, dense: &self.dense, ..self.prepared.run(self.config) }
    }

    /// The training text of the task at place `task`, with rows of all text before it among its own, one in `one_in`, where that is asked.
    pub(super) fn taught(&self, task: usize, one_in: Option<usize>) -> Result<TokenSet> {
        let own = self.novel.train.only(task)?;
        match one_in {
            Some(one_in) => own.with_replay(&self.so_far(task)?.tokens.train, one_in, self.config.length),
            None => Ok(own),
        }
    }

    /// Held-out text: the old one's, and behind it that of all tasks.
    pub(super) fn held_out(&self) -> TokenSet {
        self.prepared.tokens.test.beside(&self.novel.test)
    }

    /// Held-out text: the old one's, and behind it that of the task at place `task`.
    pub(super) fn held_out_of(&self, task: usize) -> Result<TokenSet> {
        Ok(self.prepared.tokens.test.beside(&self.novel_of(task)?))
    }

    /// Held-out text of the tasks.
    pub(super) fn novel_test(&self) -> &TokenSet {
        &self.novel.test
    }

    /// Held-out text of the task at place `task`.
    pub(super) fn novel_of(&self, task: usize) -> Result<TokenSet> {
        self.novel.test.only(task)
    }

    /// Fits the routers in `store` to the text up to the task at place `task`, that one included, in the model as it is now.
    pub(super) fn fit_routers(&self, store: &ParamStore, units: &[Vec<u32>], task: usize) -> Result<()> {
        let so_far = self.so_far(task + 1)?;
        let run = self.run(&so_far);
        let (scan, inputs) = run.scan()?;
        let labels = run.labels(&scan, Some(units));
        let validation = run.inputs(&run.dense_model()?, &so_far.tokens.validation, &Pass::all())?;
        let mut fitter = run.fitter(inputs.own(run.variant), validation.own(run.variant))?;
        run.fit_own(store, &mut fitter, (&labels, None), || run.model(store))
    }

    /// By layer, whether each neuron belongs to one of the `count` experts that matter least to the scanned text: of least |h ∂L/∂h| a token, summed
    /// over its tasks.
    pub(super) fn least_important(
        &self,
        scan: &NeuronScan,
        units: &[Vec<u32>],
        count: usize,
    ) -> Result<Vec<Vec<bool>>> {
        let experts = self.prepared.variant.spec.experts();
        let worth = Integral::new(scan, Score::TaylorMagnitude).by_unit(units, experts);
        let of_layer = |(layer, owners): (usize, &Vec<u32>)| {
            let mut order: Vec<(f64, u32)> = (0..experts)
                .map(|expert| (worth.iter().map(|task| task[layer][expert]).sum(), expert as u32))
                .collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0));
            let least: Vec<u32> = order.into_iter().take(count).map(|(_, expert)| expert).collect();
            owners.iter().map(|owner| least.contains(owner)).collect()
        };
        if worth.is_empty() {
            return Err(Error::setting("data", "has no task", "give text that the model knows"));
        }
        Ok(units.iter().enumerate().map(of_layer).collect())
    }
}
