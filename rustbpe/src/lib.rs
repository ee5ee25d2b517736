//! Byte-pair encoding: learn merges from text, then encode with them.
//!
//! The core knows nothing of Python and is tested without it (`cargo test --no-default-features`).
//! Text flows one way through it:
//!
//! 1. [`split`] cuts text into words with a regex; no merge ever crosses a word.
//! 2. [`count`] counts equal words once, on all cores, so that training sees each word a single time.
//! 3. [`train`] merges the most frequent pair, again and again, touching only the words that hold it.
//! 4. [`model`] is the result: tokens, merges, encoding and decoding.
//!
//! `python` wraps the four in the class `rustbpe.Tokenizer`.

pub mod count;
pub mod error;
pub mod model;
pub mod split;
pub mod train;

#[cfg(feature = "python")]
mod python;

pub use error::Error;
pub use model::Model;
pub use split::Splitter;
pub use train::Trainer;

/// A token's id: 0..=255 are the bytes, then one id per merge in the order learned.
pub type Id = u32;
/// Two neighbouring tokens, left and right.
pub type Pair = (Id, Id);
