//! From text to text: conversations by a model's own template, text that appears as its tokens come, and what ends it.
//!
//! The tokens are [`LoadedModel::generate`](crate::checkpoint::LoadedModel::generate)'s; its listener gives each to an [`AnswerStream`], which says what to print
//! and when to stop.
//!
//! ```
//! use tinyonn::checkpoint::{ModelFolder, load_model};
//! use tinyonn::data::TextTokenizer;
//! use tinyonn::decoder::{Generation, Prompt, Sampling};
//! use tinyonn::generation::{AnswerStream, end_ids};
//!
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/gguf/llama_k.gguf");
//! let folder = ModelFolder::open(path)?;
//! let tokenizer = tinyonn::phases::text::tokenizer(&folder)?.for_prompts();
//! let model = load_model(path, &candle_core::Device::Cpu, None)?;
//! let how = Generation { tokens: 8, stop_ids: end_ids(&folder, &tokenizer)?, sampling: Sampling::GREEDY };
//! let prompt = Prompt::new(tokenizer.encode_with_ends("The cat")?, 0, 0);
//!
//! let mut answer = AnswerStream::new(&tokenizer, &prompt.tokens, &how.stop_ids, &["\n\n"])?;
//! let mut text = String::new();
//! model.generate(vec![prompt], &how, &model.active().pass(), &mut |step| {
//!     text += &answer.push(step.tokens[0])?;
//!     step.ended[0] |= answer.has_ended();
//!     Ok(())
//! })?;
//! text += &answer.finish()?;
//! assert!(!text.contains("\n\n"));
//! # Ok::<(), tinyonn::Error>(())
//! ```

mod answer_stream;
mod chat_template;
mod end_ids;
mod python_json;
mod template_bounds;
mod template_budget;
mod text_stream;

pub use answer_stream::AnswerStream;
pub use chat_template::ChatTemplate;
pub use end_ids::end_ids;
pub use text_stream::TextStream;
