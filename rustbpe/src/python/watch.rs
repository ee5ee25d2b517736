//! Long work on other threads, while this one looks at Ctrl-C and reports progress.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::arguments::without_surrogates;
use crate::Error;
use crate::count::{LocalCounter, WordCounts};
use crate::split::Splitter;
use crate::threads::{TICK, spawn_some};

/// Bytes of text that a thread counts at a time.
const BATCH_BYTES: usize = 1 << 20;

/// A callable that hears (stage, done, total) now and then.
pub struct Progress<'py> {
    callback: Option<Bound<'py, PyAny>>,
    last: Instant,
}

impl<'py> Progress<'py> {
    pub fn new(callback: Option<Bound<'py, PyAny>>) -> Self {
        Progress { callback, last: Instant::now() }
    }

    pub fn report(&mut self, stage: &str, done: usize, total: Option<usize>) -> PyResult<()> {
        self.last = Instant::now();
        match &self.callback {
            Some(callback) => callback.call1((stage, done, total)).map(|_| ()),
            None => Ok(()),
        }
    }

    fn is_due(&self) -> bool {
        self.callback.is_some() && self.last.elapsed() >= TICK
    }
}

/// What the work of a thread tells the one that waits for it.
#[derive(Default)]
pub struct Watched {
    pub stop: AtomicBool,
    pub done: AtomicUsize,
}

impl Watched {
    pub fn go_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Run `work` on another thread with the interpreter released, until it ends, `tick` fails or Ctrl-C comes.
pub fn supervise<T: Send>(
    py: Python<'_>,
    watched: &Watched,
    work: impl FnOnce() -> Result<T, Error> + Send,
    mut tick: impl FnMut() -> PyResult<()>,
) -> PyResult<T> {
    thread::scope(|scope| {
        let (sender, receiver) = bounded(1);
        thread::Builder::new()
            .spawn_scoped(scope, move || sender.send(work()))
            .map_err(|error| Error::NoThread(error.to_string()))?;
        loop {
            match py.detach(|| receiver.recv_timeout(TICK)) {
                Ok(result) => return Ok(result?),
                // The work has panicked: the scope passes that on.
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Stopped.into()),
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(error) = py.check_signals().and_then(|()| tick()) {
                        watched.stop();
                        // Let others run until the work has ended.
                        py.detach(|| receiver.recv()).ok();
                        return Err(error);
                    }
                }
            }
        }
    })
}

/// Texts on their way to a thread, one after the other in one string.
#[derive(Default)]
struct Batch {
    text: String,
    ends: Vec<usize>,
}

impl Batch {
    fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.text[start..end])
    }
}

/// Count the words of all documents that `next` gives, on `threads` threads while this one reads on.
///
/// Memory holds the different words, and a few batches for each thread.
pub fn count_words<'py>(
    py: Python<'py>,
    splitter: &Splitter,
    threads: usize,
    buffer_size: usize,
    mut next: impl FnMut() -> Option<PyResult<Bound<'py, PyString>>>,
    progress: &mut Progress<'_>,
) -> PyResult<WordCounts> {
    let mut counts = WordCounts::default();
    let watched = Watched::default();
    let mut n_documents = 0;
    let (batches, work) = bounded::<Batch>(threads);
    let (finished, results) = bounded(threads);
    thread::scope(|scope| {
        let mut running = spawn_some(scope, threads, || {
            let (work, finished) = (work.clone(), finished.clone());
            let (counts, watched) = (&counts, &watched);
            move || finished.send(count_batches(counts, splitter, work, watched))
        })?;
        drop((work, finished)); // the threads have their own
        let mut looked = Instant::now();
        let mut feed = || {
            let mut batch = Batch::default();
            while let Some(document) = next() {
                let document = document?;
                n_documents += 1;
                if looked.elapsed() >= TICK {
                    look_around(py, &watched, progress)?;
                    looked = Instant::now();
                }
                // A str outside ASCII would keep the UTF-8 that to_str() makes for as long as it lives.
                let utf8;
                let text = if document.call_method0("isascii")?.is_truthy()? {
                    document.to_str()?
                } else {
                    utf8 = match document.encode_utf8() {
                        Ok(utf8) => utf8,
                        Err(_) => without_surrogates(document.clone())?.encode_utf8()?,
                    };
                    std::str::from_utf8(utf8.as_bytes()).expect("it was just encoded")
                };
                for piece in splitter.pieces(text, BATCH_BYTES) {
                    batch.push(piece);
                    if batch.ends.len() < buffer_size && batch.text.len() < BATCH_BYTES {
                        continue;
                    }
                    if !send(py, &batches, std::mem::take(&mut batch), &watched, progress)? {
                        return Ok(());
                    }
                }
            }
            send(py, &batches, batch, &watched, progress).map(|_| ())
        };
        let mut result = feed();
        drop(batches); // the threads end when they have counted what was sent
        while running > 0 {
            if result.is_err() {
                watched.stop();
            }
            match py.detach(|| results.recv_timeout(TICK)) {
                Ok(counted) => {
                    running -= 1;
                    // A thread that fails stops the others, and their word for that is not the reason.
                    match counted {
                        Err(error) if result.is_ok() && error != Error::Stopped => {
                            result = Err(error.into());
                        }
                        _ => {}
                    }
                }
                // A thread has panicked: the scope passes that on.
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => result = result.and(py.check_signals()),
            }
        }
        result
    })?;
    let n_bytes = watched.done.load(Ordering::Relaxed);
    if counts.size().0 == 0 {
        return Err(Error::EmptyCorpus { documents: n_documents, bytes: n_bytes as u64 }.into());
    }
    progress.report("count", n_bytes, None)?;
    Ok(counts)
}

/// Look at Ctrl-C, and report progress where that is due.
fn look_around(py: Python<'_>, watched: &Watched, progress: &mut Progress<'_>) -> PyResult<()> {
    py.check_signals()?;
    if progress.is_due() {
        progress.report("count", watched.done.load(Ordering::Relaxed), None)?;
    }
    Ok(())
}

/// Wait until a thread takes the batch. False if there is none left to do so.
fn send(
    py: Python<'_>,
    batches: &Sender<Batch>,
    mut batch: Batch,
    watched: &Watched,
    progress: &mut Progress<'_>,
) -> PyResult<bool> {
    while watched.go_on() {
        look_around(py, watched, progress)?;
        match py.detach(|| batches.send_timeout(batch, TICK)) {
            Ok(()) => return Ok(true),
            Err(SendTimeoutError::Disconnected(_)) => return Ok(false),
            Err(SendTimeoutError::Timeout(unsent)) => batch = unsent,
        }
    }
    Ok(false)
}

fn count_batches(
    counts: &WordCounts,
    splitter: &Splitter,
    work: Receiver<Batch>,
    watched: &Watched,
) -> Result<(), Error> {
    let mut local = LocalCounter::new(counts);
    for batch in work {
        for text in batch.texts() {
            if !watched.go_on() {
                return Err(Error::Stopped);
            }
            // One that fails stops all.
            local.add_text(splitter, text, || watched.go_on()).inspect_err(|_| watched.stop())?;
        }
        watched.done.fetch_add(batch.text.len(), Ordering::Relaxed);
    }
    local.finish();
    Ok(())
}
