//! What can go wrong, in words a caller can act on.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The vocabulary has no room for the 256 bytes, or more ids than 32 bits can number.
    VocabSize(i64),
    /// The split pattern does not compile.
    Pattern { pattern: String, reason: String },
    /// The pattern backtracked too long on one text.
    Split { byte: usize, reason: String },
    /// An id that no token has.
    UnknownId { id: i64, vocab_size: usize },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::VocabSize(n) => write!(
                f,
                "vocab_size is {n}: it must be between 256 (the single bytes) and {}",
                crate::Id::MAX
            ),
            Error::Pattern { pattern, reason } => {
                write!(f, "the split pattern {pattern:?} does not compile: {reason}")
            }
            Error::Split { byte, reason } => write!(
                f,
                "the split pattern gave up at byte {byte} of a text: {reason}; \
                 cut the text, or use possessive quantifiers in the pattern"
            ),
            Error::UnknownId { id, vocab_size } => {
                write!(f, "unknown token id {id}: this vocabulary has ids 0 to {}", vocab_size - 1)
            }
        }
    }
}

impl std::error::Error for Error {}
