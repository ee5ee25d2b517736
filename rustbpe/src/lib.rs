//! Byte-pair encoding: learn merges from text, then encode with them.
//!
//! The core knows nothing of Python and is tested without it (`cargo test --no-default-features`).
//! Training goes down this list, and encoding begins at [`split`] again:
//!
//! 1. [`split`] cuts text into words, with [`scan`] or a regex engine; no merge ever crosses a word.
//! 2. [`count`] counts equal words, so that training sees each different word a single time.
//! 3. [`train`] merges the most frequent pair, again and again, touching only the places where it stands.
//! 4. [`vocabulary`] is the result: the bytes of each id, and special tokens.
//! 5. [`encode`] looks words up and merges those that are no tokens; [`batch`] does so on many threads.
//! 6. [`store`] keeps a tokenizer in a file.
//!
//! `python` wraps all that in the class `rustbpe.Tokenizer`.

pub mod batch;
pub mod count;
pub mod encode;
pub mod error;
mod prefetch;
pub mod scan;
pub mod split;
pub mod store;
mod threads;
pub mod train;
pub mod unicode;
pub mod vocabulary;
pub mod word;

#[cfg(feature = "python")]
mod python;

pub use encode::Model;
pub use error::Error;
pub use split::Splitter;
pub use train::Trainer;
pub use vocabulary::Vocabulary;

/// A token's id: 0..=255 are the bytes, then one id per merge in the order learned.
pub type Id = u32;
/// Two neighbouring tokens, left and right.
pub type Pair = (Id, Id);
/// Ids are smaller than this.
pub const MAX_TOKENS: i64 = 1 << 24;
