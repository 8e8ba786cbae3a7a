//! What the runs say together: targets, the rate of each method that does best, the finals.

use tinyonn::metrics::{Interval, mean_interval};
use tinyonn::phases::{ForgettingRecord, Method};
use tinyonn::train::UpdateRule;
use tinyonn::{Error, Result};

use super::{Matched, RunKey, RunRecord, Store, StudyConfig, Targets, Trial};

/// A trial of the screen.
#[derive(Clone, Debug)]
pub struct Screened {
    /// Which.
    pub trial: Trial,
    /// What it found.
    pub record: ForgettingRecord,
    /// At equal learning, if dense fine-tuning forgets at this rate.
    pub matched: Matched,
    /// At equal learning, whatever dense fine-tuning does at this rate.
    pub at_any_rate: Matched,
}

/// A finalist over seeds and orders.
#[derive(Clone, Debug)]
pub struct Final {
    /// Which.
    pub trial: Trial,
    /// Its runs, `[seed][order]`, with their figures at equal learning.
    pub runs: Vec<Vec<(ForgettingRecord, Matched)>>,
}

/// Every run of a study that was made.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The screen, in the order of its trials.
    pub screen: Vec<Screened>,
    /// Runs of the screen that were not made.
    pub screen_left: Vec<RunKey>,
    /// The finals; empty until the screen is whole.
    pub finals: Vec<Final>,
    /// Runs of the finals that were not made.
    pub finals_left: Vec<RunKey>,
    /// SHA-256 of the old text, by seed.
    pub texts: Vec<(u64, String)>,
}

impl Outcome {
    /// Reads what is there.
    ///
    /// # Errors
    /// A record that cannot be read, or of another old text than others of its seed; dense fine-tuning at the reference rate that did not get through the tasks.
    pub fn read(config: &StudyConfig) -> Result<Self> {
        let store = Store::new(&config.out);
        let mut outcome = Self::default();
        let mut read: Vec<RunRecord> = Vec::new();
        for key in config.screen() {
            match store.record(&key)? {
                Some(record) => read.push(record),
                None => outcome.screen_left.push(key),
            }
        }
        outcome.note_texts(&read, &store)?;
        let dense = |rule, rate| read.iter().find(|run| run.key.trial == Trial { method: Method::DENSE, rule, rate });
        if let Some(reference) = dense(UpdateRule::Adamw, config.reference_rate) {
            let targets = targets(&reference.record, config, &reference.key)?;
            for run in &read {
                let Some(gate) = dense(run.key.trial.rule, run.key.trial.rate) else { continue };
                let at_any_rate = Matched::new(&run.record, &targets);
                let matched = Matched::new(&run.record, &targets.gated_by(&gate.record, run.key.seed));
                outcome.screen.push(Screened {
                    trial: run.key.trial,
                    record: run.record.clone(),
                    matched,
                    at_any_rate,
                });
            }
        }
        if outcome.screen_left.is_empty() && !config.seeds.is_empty() {
            outcome.read_finals(config, &store)?;
        }
        Ok(outcome)
    }

    fn read_finals(&mut self, config: &StudyConfig, store: &Store) -> Result<()> {
        let finalists = self.finalists(config);
        for trial in &finalists {
            self.finals.push(Final { trial: *trial, runs: Vec::new() });
        }
        for seed in &config.seeds {
            let mut of_seed: Vec<Vec<(ForgettingRecord, Matched)>> = vec![Vec::new(); finalists.len()];
            for order in 0..config.orders.len() {
                let keys = finalists.iter().map(|trial| RunKey { trial: *trial, seed: *seed, order });
                let read = keys.clone().map(|key| store.record(&key)).collect::<Result<Vec<_>>>()?;
                self.finals_left.extend(keys.zip(&read).filter(|(_, read)| read.is_none()).map(|(key, _)| key));
                let read: Vec<Option<RunRecord>> = read;
                self.note_texts(&read.iter().flatten().cloned().collect::<Vec<_>>(), store)?;
                let dense = finalists.iter().position(|trial| trial.method == Method::DENSE);
                let Some(Some(dense)) = dense.map(|at| read[at].as_ref()) else { continue };
                let targets = targets(&dense.record, config, &dense.key)?;
                for (runs, run) in of_seed.iter_mut().zip(&read) {
                    runs.extend(run.iter().map(|run| (run.record.clone(), Matched::new(&run.record, &targets))));
                }
            }
            self.finals.iter_mut().zip(of_seed).for_each(|(finalist, runs)| finalist.runs.push(runs));
        }
        Ok(())
    }

    /// Runs of one seed are compared in pairs, so their old text must be one: files can be copied from elsewhere, and the default text is the workspace's
    /// that a command finds itself in.
    fn note_texts(&mut self, read: &[RunRecord], store: &Store) -> Result<()> {
        for run in read {
            match self.texts.iter().find(|(seed, _)| *seed == run.key.seed) {
                None => self.texts.push((run.key.seed, run.corpus_sha256.clone())),
                Some((_, text)) if *text == run.corpus_sha256 => {}
                Some(_) => {
                    let problem = format!("has another old text than other runs of seed {}", run.key.seed);
                    let remedy = "remove the file, and run it again with the text of the others";
                    return Err(Error::file(store.file(&run.key), problem, remedy));
                }
            }
        }
        Ok(())
    }

    /// The trials of the finals: the methods that are in them anyway, and those of the others that forget least, each at the rate that does best. Of a
    /// screen that is not whole there are none.
    #[must_use]
    pub fn finalists(&self, config: &StudyConfig) -> Vec<Trial> {
        if !self.screen_left.is_empty() {
            return Vec::new();
        }
        let methods = config.methods();
        let best = |method: &Method| self.best(*method).map(|best| best.trial);
        let mut finalists: Vec<Trial> = config.finalists.iter().filter_map(best).collect();
        let mut others: Vec<(f64, Trial)> = methods
            .iter()
            .filter(|method| !config.finalists.contains(method))
            .filter_map(|method| self.best(*method))
            .filter_map(|best| Some((best.matched.rise()?, best.trial)))
            .collect();
        others.sort_by(|a, b| a.0.total_cmp(&b.0));
        finalists.extend(others.into_iter().take(config.open_places).map(|(_, trial)| trial));
        finalists
    }

    /// The rate at which `method` does best in the screen, of AdamW: with which it forgets least at equal learning; if none of them learns all tasks, that
    /// with which it learns most of them, at the lowest last losses.
    #[must_use]
    pub fn best(&self, method: Method) -> Option<&Screened> {
        let own = self.screen.iter().filter(|run| run.trial.method == method && run.trial.rule == UpdateRule::Adamw);
        let last = |run: &Screened| {
            let tasks = run.record.tasks.len();
            let of = |task: usize| run.record.losses.get(task + 1).map_or(f64::INFINITY, |losses| losses[task]);
            (0..tasks).map(of).sum::<f64>()
        };
        let key = |run: &Screened| match run.matched.rise() {
            Some(rise) => (0, rise),
            None => (1 + run.matched.reached.len() - run.matched.learnt(), last(run)),
        };
        own.min_by(|a, b| {
            let (a, b) = (key(a), key(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        })
    }

    /// The highest rate at which `method` learns all tasks, and whether a higher one was tried.
    #[must_use]
    pub fn highest_rate(&self, method: Method, rule: UpdateRule) -> Option<(f64, bool)> {
        let own = || self.screen.iter().filter(|run| run.trial.method == method && run.trial.rule == rule);
        let learns = own().filter(|run| run.matched.learns_all()).map(|run| run.trial.rate);
        let highest = learns.fold(f64::NEG_INFINITY, f64::max);
        highest.is_finite().then(|| (highest, own().any(|run| run.trial.rate > highest)))
    }

    /// The runs of either stage that were not made.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        self.screen_left.iter().chain(&self.finals_left).map(RunKey::id).collect()
    }
}

fn targets(dense: &ForgettingRecord, config: &StudyConfig, key: &RunKey) -> Result<Targets> {
    Targets::of(dense, config.margin, key.seed).ok_or_else(|| {
        let problem = format!("`{}` did not get through its tasks, and sets the targets", key.id());
        Error::setting("reference_rate", problem, "name a lower one")
    })
}

impl Final {
    /// A figure of each run, mean over a seed's orders; seeds where a run lacks it are left out.
    #[must_use]
    pub fn by_seed(&self, figure: impl Fn(&(ForgettingRecord, Matched)) -> Option<f64>) -> Vec<Option<f64>> {
        let of_seed = |runs: &Vec<(ForgettingRecord, Matched)>| {
            let values = runs.iter().map(&figure).collect::<Option<Vec<f64>>>()?;
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        self.runs.iter().map(of_seed).collect()
    }

    /// The old text's rise at equal learning minus that of `dense`, by seed (its orders' mean): the mean and where it lies with 95 % confidence for other
    /// seeds. `None` where fewer than two seeds have both.
    #[must_use]
    pub fn against(&self, dense: &Self) -> Option<Interval> {
        let rise = |run: &(ForgettingRecord, Matched)| run.1.rise();
        let pairs = self.by_seed(rise).into_iter().zip(dense.by_seed(rise));
        let differences: Vec<f64> = pairs.filter_map(|(own, dense)| Some(own? - dense?)).collect();
        mean_interval(&differences)
    }

    /// In how many runs, of those that both have, the old text's rise at equal learning is less than that of `dense`.
    #[must_use]
    pub fn better_in(&self, dense: &Self) -> (usize, usize) {
        let pairs = self.runs.iter().flatten().zip(dense.runs.iter().flatten());
        let rises = pairs.filter_map(|(own, dense)| Some((own.1.rise()?, dense.1.rise()?)));
        rises.fold((0, 0), |(better, all), (own, dense)| (better + usize::from(own < dense), all + 1))
    }
}
