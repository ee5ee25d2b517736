//! The Python class. What takes long happens in the core, with the interpreter released.

mod arguments;
mod watch;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};

use pyo3::exceptions::{PyOSError, PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyInt, PyList, PyString, PyTuple};

use self::arguments::{
    Number, documents, special_rule, text_list, thread_count, without_surrogates, wrong_item,
};
use self::watch::{Progress, Watched, count_words, supervise};
use crate::batch::encode_batch;
use crate::encode::{Encoder, Part, SpecialRule};
use crate::split::DEFAULT_PATTERN;
use crate::{Error, Id, MAX_TOKENS, Model, Splitter, Trainer, Vocabulary, store};

/// Texts from this size on are encoded on a thread of their own, so that Ctrl-C is heard.
const LONG_TEXT: usize = 4 << 20;
/// Ids below this have a Python int ready: 8 MB of them at most.
const MOST_INTS: usize = 1 << 18;

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        PyValueError::new_err(error.to_string())
    }
}

/// Python's OSError says which file; Rust's does not.
fn with_path(error: std::io::Error, path: &std::path::Path) -> PyErr {
    let name = path.display().to_string();
    match error.raw_os_error() {
        None => PyOSError::new_err(format!("{name}: {error}")),
        Some(code) => {
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_string();
            PyOSError::new_err((code, text, name)) // Python picks FileNotFoundError and its kin
        }
    }
}

/// A byte-pair-encoding tokenizer: train it, load it or make it from ranks; encode and decode.
///
/// A new one knows the 256 single bytes and splits as GPT-4 does, but with at most two digits a word.
#[pyclass(frozen, module = "rustbpe")]
struct Tokenizer {
    // Training swaps in a new model at its end, so a failed or interrupted one changes nothing.
    serving: RwLock<Arc<Serving>>,
}

struct Serving {
    model: Arc<Model>,
    /// The first ids as Python ints: a list of ids then only counts references up.
    ints: PyOnceLock<Vec<Py<PyInt>>>,
}

impl Tokenizer {
    fn with_model(splitter: Splitter, vocabulary: Vocabulary) -> Self {
        let serving = Serving { model: Model::new(splitter, vocabulary), ints: PyOnceLock::new() };
        Tokenizer { serving: RwLock::new(Arc::new(serving)) }
    }

    fn serving(&self) -> Arc<Serving> {
        self.serving.read().expect("nobody panics while writing").clone()
    }

    fn model(&self) -> Arc<Model> {
        self.serving().model.clone()
    }
}

impl Serving {
    fn list<'py>(&self, py: Python<'py>, ids: &[Id]) -> PyResult<Bound<'py, PyList>> {
        let ints = self.ints.get_or_try_init(py, || {
            let first = 0..self.model.vocabulary.n_ordinary().min(MOST_INTS) as Id;
            first.map(|id| Ok::<_, PyErr>(id.into_pyobject(py)?.unbind())).collect()
        })?;
        let int = |&id: &Id| match ints.get(id as usize) {
            Some(int) => int.bind(py).clone(),
            None => PyInt::new(py, id),
        };
        PyList::new(py, ids.iter().map(int))
    }

    fn encode(&self, py: Python<'_>, text: &str, rule: &SpecialRule) -> PyResult<Vec<Id>> {
        let watched = Watched::default();
        let encode = |encoder: &mut Encoder| {
            let mut ids = Vec::with_capacity(text.len() / 3);
            for part in self.model.parts(text, rule)? {
                match part {
                    Part::Special(id) => ids.push(id),
                    Part::Text(text) => encoder.encode_into(text, &mut ids)?,
                }
            }
            Ok(ids)
        };
        let work = || self.model.with_encoder(&watched.stop, encode);
        if text.len() < LONG_TEXT {
            return Ok(py.detach(work)?);
        }
        supervise(py, &watched, work, || Ok(()))
    }

    /// Encode texts on threads, and make of each text's ids what `wrap` makes of them, in order.
    fn encode_batch<T: Send>(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyList>,
        rule: &SpecialRule,
        num_threads: Option<Number>,
        wrap: impl Fn(Python<'_>, &[Id]) -> PyResult<T> + Sync,
    ) -> PyResult<Vec<T>> {
        let threads = thread_count(num_threads)?;
        let texts = texts.iter().enumerate().map(|(i, text)| {
            let text =
                text.cast_into::<PyString>().map_err(|e| wrong_item("texts", i, e.into_inner()))?;
            PyBackedStr::try_from(without_surrogates(text)?)
        });
        let texts = texts.collect::<PyResult<Vec<_>>>()?;
        let mut wrapped = Vec::with_capacity(texts.len());
        py.detach(|| {
            encode_batch(&self.model, &texts, rule, threads, |finished| {
                Python::attach(|py| {
                    for ids in finished {
                        wrapped.push(wrap(py, ids)?);
                    }
                    py.check_signals()
                })
            })
        })?;
        Ok(wrapped)
    }
}

#[pymethods]
impl Tokenizer {
    #[new]
    fn new() -> PyResult<Self> {
        Ok(Self::with_model(Splitter::new(DEFAULT_PATTERN)?, Vocabulary::from_merges(&[])))
    }

    /// Make a tokenizer from ranks, as tiktoken has them: lower ids merge first.
    ///
    /// Args:
    ///     ranks: bytes -> id, as a dict or as pairs; each single byte must be among them.
    ///     pattern: the regex whose matches are the words; None for the default one.
    ///
    /// Raises:
    ///     ValueError: an id or a token comes twice, a byte is missing, or the pattern does not compile.
    #[staticmethod]
    #[pyo3(signature = (ranks, pattern=None))]
    fn from_mergeable_ranks(
        py: Python<'_>,
        ranks: &Bound<'_, PyAny>,
        pattern: Option<&str>,
    ) -> PyResult<Self> {
        let items = match ranks.cast::<PyDict>() {
            Ok(dict) => dict.items().into_any(),
            Err(_) => ranks.clone(),
        };
        let mut pairs: Vec<(Vec<u8>, i64)> = Vec::new();
        for item in items.try_iter()? {
            let (token, Number(id)): (Bound<'_, PyBytes>, Number) = item?.extract()?;
            pairs.push((token.as_bytes().to_vec(), id));
        }
        let splitter = Splitter::new(pattern.unwrap_or(DEFAULT_PATTERN))?;
        let vocabulary = py.detach(|| Vocabulary::from_ranks(pairs))?;
        Ok(Self::with_model(splitter, vocabulary))
    }

    /// Return a tokenizer with the same tokens and these special ones, in place of those it has.
    ///
    /// Args:
    ///     special_tokens: name -> id; the ids must be free. For ids that follow the others, count up
    ///         from `vocab_size`.
    ///
    /// Raises:
    ///     ValueError: an id is taken, or a name is empty.
    fn with_special_tokens(&self, special_tokens: &Bound<'_, PyDict>) -> PyResult<Self> {
        let mut specials = Vec::new();
        for (name, id) in special_tokens.iter() {
            specials.push((name.extract::<String>()?, id.extract::<Number>()?.0));
        }
        let model = self.model();
        Ok(Self::with_model(model.splitter.clone(), model.vocabulary.with_specials(specials)?))
    }

    /// Learn merges until there are vocab_size tokens, or no pair is left to merge.
    ///
    /// The result depends on the text, vocab_size and pattern alone. Special tokens are dropped.
    ///
    /// Args:
    ///     iterator: an iterable of str, read once; it may be larger than memory.
    ///     vocab_size: tokens in the end, counting the 256 bytes.
    ///     buffer_size: at most so many documents go to a counting thread at a time.
    ///     pattern: regex whose matches are the words; None for GPT-4's with at most two digits.
    ///     num_threads: threads that count words; None for one a core.
    ///     progress: called now and then as progress(stage, done, total): stage "count" with the bytes
    ///         counted and None, then "merge" with the merges learned and wanted.
    ///
    /// Raises:
    ///     ValueError: a number out of range, a pattern that does not compile, or an empty corpus.
    ///     TypeError: an item that is not str.
    ///     KeyboardInterrupt: within 0.2 s of Ctrl-C. What the iterator or progress raise is passed on.
    ///     Whatever happens, the tokenizer stays as it was before the call.
    #[pyo3(
        signature = (iterator, vocab_size, buffer_size=Number(8192), pattern=None, *, num_threads=None, progress=None),
        text_signature = "($self, iterator, vocab_size, buffer_size=8192, pattern=None, *, num_threads=None, progress=None)"
    )]
    #[allow(clippy::too_many_arguments)] // they are Python's keyword arguments
    fn train_from_iterator(
        &self,
        py: Python<'_>,
        iterator: &Bound<'_, PyAny>,
        vocab_size: Number,
        buffer_size: Number,
        pattern: Option<&str>,
        num_threads: Option<Number>,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (Number(vocab_size), Number(buffer_size)) = (vocab_size, buffer_size);
        if !(256..=MAX_TOKENS).contains(&vocab_size) {
            return Err(Error::VocabSize(vocab_size).into());
        }
        if buffer_size < 1 {
            let message = format!("buffer_size is {buffer_size}: it must be at least 1 document");
            return Err(PyValueError::new_err(message));
        }
        let threads = thread_count(num_threads)?;
        let splitter = Splitter::new(pattern.unwrap_or(DEFAULT_PATTERN))?;
        let mut progress = Progress::new(progress);
        let next = documents(iterator)?;
        let counts =
            count_words(py, &splitter, threads, buffer_size as usize, next, &mut progress)?;
        let n_merges = vocab_size as usize - 256;
        let watched = Watched::default();
        let go_on = || watched.go_on();
        let learn = || {
            let mut trainer = Trainer::new(counts, &go_on)?;
            while trainer.merges().len() < n_merges && trainer.step(&go_on).is_some() {
                watched.done.fetch_add(1, Ordering::Relaxed);
                if !go_on() {
                    return Err(Error::Stopped);
                }
            }
            Ok(trainer.into_merges())
        };
        let merges = supervise(py, &watched, learn, || {
            progress.report("merge", watched.done.load(Ordering::Relaxed), Some(n_merges))
        })?;
        progress.report("merge", merges.len(), Some(n_merges))?;
        let trained = Self::with_model(splitter, Vocabulary::from_merges(&merges));
        *self.serving.write().expect("nobody panics while writing") = trained.serving();
        Ok(())
    }

    /// Return the split pattern in use.
    fn get_pattern(&self) -> String {
        self.model().splitter.pattern().to_owned()
    }

    /// Return (bytes, id) of every token but the special ones, by rising id: tiktoken's mergeable ranks.
    fn get_mergeable_ranks<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, Id)> {
        let model = self.model();
        model.vocabulary.iter().map(|(id, token)| (PyBytes::new(py, token), id)).collect()
    }

    /// Special tokens: name -> id.
    #[getter]
    fn special_tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let specials = PyDict::new(py);
        for (name, id) in self.model().vocabulary.specials() {
            specials.set_item(name, id)?;
        }
        Ok(specials)
    }

    /// The highest id and one: rows that an embedding needs.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.model().vocabulary.size()
    }

    /// Encode one text.
    ///
    /// A lone surrogate, which is no character, is read as U+FFFD.
    ///
    /// Args:
    ///     text: the text.
    ///     allowed_special: names of special tokens that become their ids, or "all".
    ///     disallowed_special: names that are an error where the text holds them; "all" for all that
    ///         are not allowed. Names in neither are ordinary characters.
    ///
    /// Raises:
    ///     ValueError: the text holds a disallowed special token, or a set names one that does not exist.
    #[pyo3(
        signature = (text, *, allowed_special=None, disallowed_special=None),
        text_signature = "($self, text, *, allowed_special=(), disallowed_special='all')"
    )]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: Bound<'py, PyString>,
        allowed_special: Option<Bound<'py, PyAny>>,
        disallowed_special: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let serving = self.serving();
        let rule = special_rule(&serving.model, allowed_special, disallowed_special)?;
        let text = without_surrogates(text)?;
        serving.list(py, &serving.encode(py, text.to_str()?, &rule)?)
    }

    /// Encode one text into a numpy array of uint32; arguments as in `encode`.
    #[pyo3(
        signature = (text, *, allowed_special=None, disallowed_special=None),
        text_signature = "($self, text, *, allowed_special=(), disallowed_special='all')"
    )]
    fn encode_to_numpy<'py>(
        &self,
        py: Python<'py>,
        text: Bound<'py, PyString>,
        allowed_special: Option<Bound<'py, PyAny>>,
        disallowed_special: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let serving = self.serving();
        let rule = special_rule(&serving.model, allowed_special, disallowed_special)?;
        let text = without_surrogates(text)?;
        numpy_array(py, &serving.encode(py, text.to_str()?, &rule)?)
    }

    /// Encode many texts on threads; the special arguments as in `encode`.
    ///
    /// Args:
    ///     texts: a list, or any other iterable, of str.
    ///     num_threads: None for one a core.
    #[pyo3(
        signature = (texts, num_threads=None, *, allowed_special=None, disallowed_special=None),
        text_signature = "($self, texts, num_threads=None, *, allowed_special=(), disallowed_special='all')"
    )]
    fn batch_encode(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        num_threads: Option<Number>,
        allowed_special: Option<Bound<'_, PyAny>>,
        disallowed_special: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Vec<Py<PyList>>> {
        let serving = self.serving();
        let rule = special_rule(&serving.model, allowed_special, disallowed_special)?;
        let wrap = |py: Python<'_>, ids: &[Id]| Ok(serving.list(py, ids)?.unbind());
        serving.encode_batch(py, &text_list(texts)?, &rule, num_threads, wrap)
    }

    /// Encode many texts on threads, each into a numpy array of uint32; arguments as in `batch_encode`.
    #[pyo3(
        signature = (texts, num_threads=None, *, allowed_special=None, disallowed_special=None),
        text_signature = "($self, texts, num_threads=None, *, allowed_special=(), disallowed_special='all')"
    )]
    fn batch_encode_to_numpy(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        num_threads: Option<Number>,
        allowed_special: Option<Bound<'_, PyAny>>,
        disallowed_special: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Vec<Py<PyAny>>> {
        let serving = self.serving();
        let rule = special_rule(&serving.model, allowed_special, disallowed_special)?;
        serving.encode_batch(py, &text_list(texts)?, &rule, num_threads, numpy_array)
    }

    /// Encode bytes: valid UTF-8 as text, and each stretch of other bytes as a word of its own. Special
    /// tokens in it are ordinary characters.
    fn encode_bytes<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyList>> {
        let serving = self.serving();
        let ids = py.detach(|| serving.model.encode_bytes(data))?;
        serving.list(py, &ids)
    }

    /// Decode ids to text: special tokens as their names, bytes that are no valid UTF-8 as U+FFFD.
    ///
    /// Raises:
    ///     ValueError: an id outside the vocabulary.
    fn decode(&self, ids: &Bound<'_, PyAny>) -> PyResult<String> {
        Ok(String::from_utf8_lossy(&self.decoded(ids)?).into_owned())
    }

    /// Decode ids to bytes, which may begin or end inside a character.
    ///
    /// Raises:
    ///     ValueError: an id outside the vocabulary.
    fn decode_bytes<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.decoded(ids)?))
    }

    /// Write the tokenizer to a JSON file, whole or not at all.
    fn save(&self, path: PathBuf) -> PyResult<()> {
        store::save(&self.model(), &path).map_err(|error| with_path(error, &path))
    }

    /// Read a tokenizer from a file that `save` wrote.
    ///
    /// Raises:
    ///     OSError: the file cannot be read.
    ///     ValueError: it is damaged, or of another kind.
    #[staticmethod]
    fn load(path: PathBuf) -> PyResult<Self> {
        let (splitter, vocabulary) =
            store::load(&path).map_err(|error| with_path(error, &path))??;
        Ok(Self::with_model(splitter, vocabulary))
    }

    /// What pickle, copy and the fingerprints of `datasets` need: a new tokenizer, and all that it becomes.
    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>, Bound<'py, PyTuple>)> {
        let (py, this) = (slf.py(), slf.get());
        let ranks = this.get_mergeable_ranks(py).into_pyobject(py)?;
        let pattern = slf.call_method0("get_pattern")?;
        let state = [ranks.into_any(), pattern, this.special_tokens(py)?.into_any()];
        Ok((slf.get_type().into_any(), PyTuple::empty(py), PyTuple::new(py, state)?))
    }

    fn __setstate__(
        &self,
        py: Python<'_>,
        state: (Bound<'_, PyAny>, String, Bound<'_, PyDict>),
    ) -> PyResult<()> {
        let (ranks, pattern, specials) = state;
        let mut made = Self::from_mergeable_ranks(py, &ranks, Some(&pattern))?;
        if !specials.is_empty() {
            made = made.with_special_tokens(&specials)?;
        }
        *self.serving.write().expect("nobody panics while writing") = made.serving();
        Ok(())
    }

    fn __repr__(&self) -> String {
        format!("Tokenizer(vocab_size={})", self.vocab_size())
    }
}

impl Tokenizer {
    fn decoded(&self, ids: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
        let model = self.model();
        let mut bytes = Vec::new();
        for id in ids.try_iter()? {
            let id = id?;
            match id.extract::<i64>() {
                Ok(id) => bytes.extend_from_slice(model.vocabulary.decode_one(id)?),
                Err(error) if error.is_instance_of::<PyOverflowError>(id.py()) => {
                    let vocab_size = model.vocabulary.size();
                    return Err(Error::UnknownId { id: id.to_string(), vocab_size }.into());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }
}

/// A numpy array that owns its memory, without a Python list on the way.
fn numpy_array(py: Python<'_>, ids: &[Id]) -> PyResult<Py<PyAny>> {
    let bytes = PyByteArray::new_with(py, size_of_val(ids), |bytes| {
        for (four, id) in bytes.chunks_exact_mut(4).zip(ids) {
            four.copy_from_slice(&id.to_ne_bytes());
        }
        Ok(())
    })?;
    Ok(py.import("numpy")?.call_method1("frombuffer", (bytes, "uint32"))?.unbind())
}

#[pymodule]
#[pyo3(name = "rustbpe")]
mod module {
    #[pymodule_export]
    use super::Tokenizer;
}
