//! The Python class. All work happens in the core, with the interpreter released.

use std::sync::{Arc, RwLock};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::count::WordCounts;
use crate::split::DEFAULT_PATTERN;
use crate::{Error, Id, Model, Splitter, Trainer};

/// A buffer is counted when it holds this many bytes, even if it has room for more documents.
const BUFFER_BYTES: usize = 64 << 20;
/// Merges between two looks at Ctrl-C.
const STEPS_BETWEEN_SIGNALS: usize = 64;

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        PyValueError::new_err(error.to_string())
    }
}

/// A byte-pair-encoding tokenizer: train it, read its ranks, encode and decode.
///
/// Before training it knows the 256 single bytes. Special tokens are not its business.
#[pyclass(frozen, module = "rustbpe")]
struct Tokenizer {
    // Training swaps in a new model at its end, so a failed or interrupted one changes nothing.
    model: RwLock<Arc<Model>>,
}

impl Tokenizer {
    fn current(&self) -> Arc<Model> {
        self.model.read().expect("nobody panics while writing").clone()
    }
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new() -> PyResult<Self> {
        let model = Model::new(Splitter::new(DEFAULT_PATTERN)?, &[]);
        Ok(Tokenizer { model: RwLock::new(Arc::new(model)) })
    }

    /// Learn merges until there are vocab_size tokens, or no pair is left to merge.
    ///
    /// Args:
    ///     iterator: an iterable of str, read once.
    ///     vocab_size: tokens in the end, counting the 256 bytes.
    ///     buffer_size: documents read before they are counted, on all cores and with the GIL released.
    ///     pattern: regex whose matches are the words; None for GPT-4's with at most two digits.
    ///
    /// Raises:
    ///     ValueError: vocab_size < 256, buffer_size < 1, or a pattern that does not compile.
    ///     TypeError: an item that is not str. Whatever the iterator raises is passed on.
    #[pyo3(signature = (iterator, vocab_size, buffer_size=8192, pattern=None))]
    fn train_from_iterator(
        &self,
        py: Python<'_>,
        iterator: &Bound<'_, PyAny>,
        vocab_size: i64,
        buffer_size: i64,
        pattern: Option<&str>,
    ) -> PyResult<()> {
        if !(256..=i64::from(Id::MAX)).contains(&vocab_size) {
            return Err(Error::VocabSize(vocab_size).into());
        }
        if buffer_size < 1 {
            let message = format!("buffer_size is {buffer_size}: it must be at least 1 document");
            return Err(PyValueError::new_err(message));
        }
        let splitter = Splitter::new(pattern.unwrap_or(DEFAULT_PATTERN))?;
        let counts = count_words(py, iterator, &splitter, buffer_size as usize)?;
        let mut trainer = py.detach(|| Trainer::new(counts));
        let n_merges = vocab_size as usize - 256;
        let mut more = true;
        while more && trainer.merges().len() < n_merges {
            let end = n_merges.min(trainer.merges().len() + STEPS_BETWEEN_SIGNALS);
            more = py.detach(|| {
                while trainer.merges().len() < end {
                    if trainer.step().is_none() {
                        return false;
                    }
                }
                true
            });
            py.check_signals()?;
        }
        let model = py.detach(|| Arc::new(Model::new(splitter, trainer.merges())));
        *self.model.write().expect("nobody panics while writing") = model;
        Ok(())
    }

    /// Return the split pattern in use.
    fn get_pattern(&self) -> String {
        self.current().pattern().to_owned()
    }

    /// Return (bytes, id) of every token, in order of id: what tiktoken calls mergeable ranks.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, Id)> {
        let model = self.current();
        let tokens = model.tokens().iter().enumerate();
        tokens.map(|(id, token)| (PyBytes::new(py, token), id as Id)).collect()
    }

    /// Number of tokens, counting the 256 bytes.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.current().tokens().len()
    }

    /// Encode one text.
    fn encode(&self, py: Python<'_>, text: &str) -> PyResult<Vec<Id>> {
        let model = self.current();
        Ok(py.detach(|| model.encode(text))?)
    }

    /// Encode many texts in parallel.
    ///
    /// Args:
    ///     texts: a list of str.
    ///     num_threads: None for all cores.
    #[pyo3(signature = (texts, num_threads=None))]
    fn batch_encode(
        &self,
        py: Python<'_>,
        texts: Vec<String>,
        num_threads: Option<i64>,
    ) -> PyResult<Vec<Vec<Id>>> {
        let model = self.current();
        let Some(n) = num_threads else {
            return Ok(py.detach(|| model.encode_batch(&texts))?);
        };
        if !(1..=1024).contains(&n) {
            let message = format!("num_threads is {n}: it must be between 1 and 1024, or None");
            return Err(PyValueError::new_err(message));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n as usize)
            .build()
            .map_err(|e| PyValueError::new_err(format!("cannot start {n} threads: {e}")))?;
        Ok(py.detach(|| pool.install(|| model.encode_batch(&texts)))?)
    }

    /// Decode ids to text; bytes that are no valid UTF-8 become U+FFFD.
    ///
    /// Raises:
    ///     ValueError: an id outside the vocabulary.
    fn decode(&self, py: Python<'_>, ids: Vec<i64>) -> PyResult<String> {
        let model = self.current();
        py.detach(|| Ok(String::from_utf8_lossy(&model.decode(ids)?).into_owned()))
    }

    fn __repr__(&self) -> String {
        format!("Tokenizer(vocab_size={})", self.vocab_size())
    }
}

/// Read the iterator in buffers; count each buffer on all cores while Python may do other things.
fn count_words(
    py: Python<'_>,
    iterator: &Bound<'_, PyAny>,
    splitter: &Splitter,
    buffer_size: usize,
) -> PyResult<WordCounts> {
    if iterator.is_instance_of::<PyString>() {
        let message =
            "train_from_iterator got one str: pass an iterable of documents, such as [text]";
        return Err(PyTypeError::new_err(message));
    }
    let mut counts = WordCounts::default();
    let mut items = iterator.try_iter()?.enumerate();
    loop {
        let mut buffer: Vec<String> = Vec::new();
        let mut bytes = 0;
        for (index, item) in items.by_ref() {
            let text = document(&item?, index)?;
            bytes += text.len();
            buffer.push(text);
            if buffer.len() >= buffer_size || bytes >= BUFFER_BYTES {
                break;
            }
        }
        if buffer.is_empty() {
            return Ok(counts);
        }
        py.detach(|| counts.add_texts(splitter, &buffer))?;
        py.check_signals()?;
    }
}

fn document(item: &Bound<'_, PyAny>, index: usize) -> PyResult<String> {
    match item.cast::<PyString>() {
        Ok(text) => Ok(text.to_str()?.to_owned()),
        Err(_) => {
            let kind = item.get_type().name()?;
            let message = format!("item {index} of the iterator is {kind}, expected str");
            Err(PyTypeError::new_err(message))
        }
    }
}

#[pymodule]
#[pyo3(name = "rustbpe")]
mod module {
    #[pymodule_export]
    use super::Tokenizer;
}
