//! What a model forgets while it is taught one task after another (DESIGN §4).
//!
//! A dense model that knows its *old text* learns [`NovelTask`](crate::data::NovelTask)s in an order, each for as many steps, by a [`Method`], at a constant rate; the optimizer
//! begins anew with each task. The old text and all tasks are measured on held-out text before the first task and behind each, the old text and the task
//! at hand now and then in between. What the method knows of text (scan, routers, replay) is that of the old text and of the tasks so far.
//!
//! Of a pretrained model the old text is what it wrote itself, and [`OldKnowledge`] takes the place of its loss.
//!
//! Only the MLPs learn. [`Method::Experts`] of all, all active, is dense fine-tuning of them, bit for bit (a test).
//!
//! ```
//! use tinyonn::data::NovelTask;
//! use tinyonn::metrics::Stopwatch;
//! use tinyonn::phases::forgetting::{Crossing, ForgettingConfig, ForgettingRecord, Look, Method, forgetting, multiply_adds};
//! use tinyonn::phases::{DenseShape, Prepared, RunConfig};
//!
//! # let dir = tempfile::tempdir()?;
//! # let tasks = [tinyonn::data::sorting(0, 12_000), tinyonn::data::arithmetic(0, 12_000)].map(|task| {
//! #     let path = dir.path().join(&task.name).with_extension("jsonl");
//! #     let lines = task.documents.iter().map(|d| serde_json::json!({ "text": d.text }).to_string());
//! #     std::fs::write(&path, lines.collect::<Vec<_>>().join("\n"))?;
//! #     Ok(format!("{}={}", task.name, path.display()))
//! # });
//! # let data = tasks.into_iter().collect::<Result<Vec<_>, std::io::Error>>()?;
//! # let (out, cache) = (dir.path().join("run"), dir.path().join("cache"));
//! let mut config = RunConfig { variant: "Mixtral".into(), data, out, cache, ..RunConfig::quick() };
//! config.dense = DenseShape { vocab_size: 300, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, ..config.dense };
//! (config.length, config.scan_tokens, config.test_tokens) = (32, 512, 256);
//! (config.pretrain.steps, config.router.steps, config.smk.steps) = (4, 4, 2);
//! config.smk.look = 1;
//! let prepared = Prepared::new(&config, &mut Stopwatch::new(), None)?;
//! let order = vec![NovelTask::Ledger, NovelTask::LetterSums];
//! let of = ForgettingConfig { order, task_bytes: 6_000, method: Method::DENSE, fisher_sequences: 2 };
//! of.check(&config, &prepared.variant.spec)?;
//! assert!(!of.method.is_routed());
//!
//! let record: ForgettingRecord = forgetting(&prepared, &config, &of, None)?;
//! assert_eq!((record.tasks.len(), record.losses.len(), record.old.len()), (2, 3, 3)); // before, behind each task
//! let first: &Look = &record.looks[0];
//! let there: Option<Crossing> = record.at_loss(0, first.new);
//! assert_eq!(there.map(|at| at.old), Some(first.old)); // it begins there
//! assert!(record.at_distance(0, f64::INFINITY).is_none() && record.old_rise(0, 0).is_some());
//! assert!(record.multiply_adds > 0.0 && multiply_adds(&prepared.dense.cfg, (&config, &of), 8, (2, [256, 256])) > 0.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod figures;
mod knowledge;
mod method;
mod operations;
mod sequence;
mod subject;

pub use figures::{Crossing, ForgettingRecord, Look};
pub use knowledge::{Asked, KnowledgeRecord, OldKnowledge, asked_tokens};
pub use method::{ForgettingConfig, Method};
pub use operations::{multiply_adds, multiply_adds_of_knowledge};
pub use sequence::forgetting;
