//! What can go wrong, in words a caller can act on.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The vocabulary has no room for the 256 bytes, or more ids than we number.
    VocabSize(i64),
    /// The split pattern does not compile.
    Pattern { pattern: String, reason: String },
    /// The pattern backtracked too long on one text.
    Split { byte: usize, reason: String },
    /// An id that no token has.
    UnknownId { id: String, vocab_size: usize },
    /// There is nothing to learn from.
    EmptyCorpus { documents: usize, bytes: u64 },
    /// The different words of the corpus together are longer than training can number.
    TooManyWords { words: u64, bytes: u64 },
    /// The machine gives us no thread.
    NoThread(String),
    /// The ranks or special tokens given are no vocabulary.
    Vocabulary(String),
    /// A file that `save` did not write.
    File { path: String, reason: String },
    /// The text holds a special token that was not allowed.
    SpecialToken { token: String, byte: usize },
    /// A set of special tokens names one that does not exist.
    NoSuchSpecial { token: String, known: String },
    /// Somebody asked us to stop.
    Stopped,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::VocabSize(n) => write!(
                f,
                "vocab_size is {n}: it must be between 256 (the single bytes) and {}",
                crate::MAX_TOKENS
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
            Error::EmptyCorpus { documents, bytes } => write!(
                f,
                "the corpus is empty: {documents} documents, {bytes} bytes, and no word in them"
            ),
            Error::TooManyWords { words, bytes } => write!(
                f,
                "this corpus has {words} different words of {bytes} bytes in all, and training takes at \
                 most {} of both together: train on a sample, or use a pattern that cuts shorter words",
                crate::train::MAX_BYTES
            ),
            Error::NoThread(reason) => write!(f, "no thread could be started: {reason}"),
            Error::Vocabulary(reason) => write!(f, "{reason}"),
            Error::File { path, reason } => {
                write!(f, "{path} is no tokenizer that save() wrote: {reason}")
            }
            Error::SpecialToken { token, byte } => write!(
                f,
                "the text holds the special token {token:?} at byte {byte}: to encode it as that \
                 token, pass allowed_special={{{token:?}}}; to encode its characters as ordinary \
                 text, pass disallowed_special=()"
            ),
            Error::NoSuchSpecial { token, known } => {
                write!(f, "no special token {token:?}: this tokenizer has {known}")
            }
            Error::Stopped => write!(f, "stopped"),
        }
    }
}

impl std::error::Error for Error {}
