//! What Python passes, turned into what the core takes.

use std::borrow::Cow;

use pyo3::exceptions::{PyOverflowError, PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use crate::encode::SpecialRule;
use crate::{Error, Model};

/// An int. One that 64 bits cannot hold is out of every range that we have.
#[derive(Debug, Clone, Copy)]
pub struct Number(pub i64);

impl<'py> FromPyObject<'_, 'py> for Number {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match object.extract::<i64>() {
            Ok(number) => Ok(Number(number)),
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
                let message = format!("{} is out of range", object.str()?.to_cow()?);
                Err(PyValueError::new_err(message))
            }
            Err(error) => Err(error),
        }
    }
}

pub fn thread_count(num_threads: Option<Number>) -> PyResult<usize> {
    match num_threads {
        None => Ok(std::thread::available_parallelism().map_or(1, |n| n.get())),
        Some(Number(n @ 1..=1024)) => Ok(n as usize),
        Some(Number(n)) => {
            let message = format!("num_threads is {n}: it must be between 1 and 1024, or None");
            Err(PyValueError::new_err(message))
        }
    }
}

pub fn wrong_item(what: &str, index: usize, item: Bound<'_, PyAny>) -> PyErr {
    let kind = item.get_type().name().map_or_else(|_| "something else".into(), |n| n.to_string());
    PyTypeError::new_err(format!("item {index} of {what} is {kind}, expected str"))
}

/// Texts as a list: any iterable of str will do, but not one str.
pub fn text_list<'py>(texts: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
    if let Ok(list) = texts.cast::<PyList>() {
        return Ok(list.clone());
    }
    if texts.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err("texts is one str: pass a list of texts, such as [text]"));
    }
    PyList::new(texts.py(), texts.try_iter()?.collect::<PyResult<Vec<_>>>()?)
}

/// The documents of an iterable, one by one.
pub fn documents<'py>(
    iterator: &Bound<'py, PyAny>,
) -> PyResult<impl FnMut() -> Option<PyResult<Bound<'py, PyString>>>> {
    if iterator.is_instance_of::<PyString>() {
        let message =
            "train_from_iterator got one str: pass an iterable of documents, such as [text]";
        return Err(PyTypeError::new_err(message));
    }
    let mut items = iterator.try_iter()?.enumerate();
    Ok(move || {
        let (index, item) = items.next()?;
        Some(item.and_then(|item| {
            let wrong =
                |e: pyo3::CastIntoError<'py>| wrong_item("the iterator", index, e.into_inner());
            item.cast_into::<PyString>().map_err(wrong)
        }))
    })
}

/// A text that UTF-8 can hold: surrogates in pairs become the character they mean, others U+FFFD.
pub fn without_surrogates(text: Bound<'_, PyString>) -> PyResult<Bound<'_, PyString>> {
    match text.to_str() {
        Ok(_) => Ok(text),
        Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(text.py()) => {
            let utf16 = text.call_method1("encode", ("utf-16", "surrogatepass"))?;
            Ok(utf16.call_method1("decode", ("utf-16", "replace"))?.cast_into()?)
        }
        Err(error) => Err(error),
    }
}

/// Names out of "all", None or a collection of names.
fn special_names(
    model: &Model,
    names: Option<Bound<'_, PyAny>>,
    all_by_default: bool,
) -> PyResult<Option<Vec<String>>> {
    let Some(names) = names else { return Ok((!all_by_default).then(Vec::new)) };
    if let Ok(word) = names.cast::<PyString>() {
        if word.to_cow()? == "all" {
            return Ok(None);
        }
        let message = format!("{word:?} is one str: pass a set of names, or \"all\"");
        return Err(PyTypeError::new_err(message));
    }
    let names: Vec<String> =
        names.try_iter()?.map(|name| name?.extract()).collect::<PyResult<_>>()?;
    let specials = model.vocabulary.specials();
    match names.iter().find(|name| specials.iter().all(|(known, _)| known != *name)) {
        None => Ok(Some(names)),
        Some(token) => {
            let known = match specials {
                [] => Cow::from("none"),
                some => some.iter().map(|(s, _)| s.as_str()).collect::<Vec<_>>().join(", ").into(),
            };
            Err(Error::NoSuchSpecial { token: token.clone(), known: known.into() }.into())
        }
    }
}

pub fn special_rule(
    model: &Model,
    allowed: Option<Bound<'_, PyAny>>,
    disallowed: Option<Bound<'_, PyAny>>,
) -> PyResult<SpecialRule> {
    // None stands for all names.
    let allowed = special_names(model, allowed, false)?;
    let disallowed = special_names(model, disallowed, true)?;
    let is_in = |names: &Option<Vec<String>>, name: &str| match names {
        None => true,
        Some(names) => names.iter().any(|known| known == name),
    };
    Ok(SpecialRule {
        allowed: model.vocabulary.find_specials(|name| is_in(&allowed, name)),
        forbidden: model.vocabulary.find_specials(|name| match &disallowed {
            None => !is_in(&allowed, name),
            some => is_in(some, name),
        }),
    })
}
