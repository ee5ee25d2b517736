//! Encode many texts on many threads, and take the results in order while the threads go on.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{RecvTimeoutError, unbounded};

use crate::encode::{Model, Part, SpecialRule};
use crate::threads::{TICK, spawn_some};
use crate::{Error, Id};

/// Bytes of text that a thread encodes at a time. Longer texts are cut into pieces where that is safe.
const PIECE: usize = 64 << 10;

/// A part of a text, or its end.
#[derive(Debug, Clone, Copy)]
enum Piece<'t> {
    Part(Part<'t>),
    End,
}

/// The ids of some pieces that follow each other, and where in them texts end.
type Ids = (Vec<Id>, Vec<usize>);

/// Encode `texts`, and give `take` the ids of the next ones, in order, on the calling thread.
///
/// `take` is called about every 50 ms, with none if there are none. Its error ends all work.
pub fn encode_batch<T: AsRef<str>, E: From<Error>>(
    model: &Model,
    texts: &[T],
    rule: &SpecialRule,
    threads: usize,
    mut take: impl FnMut(&[&[Id]]) -> Result<(), E>,
) -> Result<(), E> {
    let pieces = cut(model, texts, rule)?;
    let jobs = group(&pieces);
    let (stop, next_job) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (sender, receiver) = unbounded::<(usize, Result<Ids, Error>)>();
    thread::scope(|scope| {
        let work = || {
            let sender = sender.clone();
            let (jobs, pieces, next_job, stop) = (&jobs, &pieces, &next_job, &stop);
            move || {
                while let Some(job) = jobs.get(next_job.fetch_add(1, Ordering::Relaxed)) {
                    let ids = encode_pieces(model, &pieces[job.pieces.clone()], stop);
                    if stop.load(Ordering::Relaxed) || sender.send((job.number, ids)).is_err() {
                        return;
                    }
                }
            }
        };
        spawn_some(scope, threads.min(jobs.len()), work)?;
        drop(sender);
        let mut waiting: Vec<Option<Ids>> = vec![None; jobs.len()];
        // A text that began in one job may end in a later one.
        let (mut done, mut begun) = (0, Vec::new());
        let mut taken = Instant::now();
        let mut collect = || {
            while done < jobs.len() {
                match receiver.recv_timeout(TICK) {
                    Ok((number, ids)) => waiting[number] = Some(ids?),
                    Err(RecvTimeoutError::Timeout) => {}
                    // A thread has panicked: the scope passes that on when all have ended.
                    Err(RecvTimeoutError::Disconnected) => return Ok(()),
                }
                if taken.elapsed() >= TICK {
                    take(&[])?;
                    taken = Instant::now();
                }
                while let Some((ids, ends)) = waiting.get_mut(done).and_then(Option::take) {
                    done += 1;
                    let mut finished: Vec<&[Id]> = Vec::with_capacity(ends.len());
                    let mut start = 0;
                    for end in ends {
                        finished.push(&ids[start..end]);
                        start = end;
                    }
                    if let Some(first) = finished.first_mut() {
                        if !begun.is_empty() {
                            begun.extend_from_slice(first);
                            *first = &begun;
                        }
                        take(&finished)?;
                        taken = Instant::now();
                        begun.clear();
                    }
                    begun.extend_from_slice(&ids[start..]);
                }
            }
            Ok(())
        };
        let result = collect();
        stop.store(true, Ordering::Relaxed);
        result
    })
}

fn cut<'t, T: AsRef<str>>(
    model: &Model,
    texts: &'t [T],
    rule: &SpecialRule,
) -> Result<Vec<Piece<'t>>, Error> {
    let mut pieces = Vec::new();
    for text in texts {
        for part in model.parts(text.as_ref(), rule)? {
            match part {
                Part::Text(text) => {
                    let cut = model.splitter.pieces(text, PIECE);
                    pieces.extend(cut.map(|piece| Piece::Part(Part::Text(piece))));
                }
                special => pieces.push(Piece::Part(special)),
            }
        }
        pieces.push(Piece::End);
    }
    Ok(pieces)
}

struct Job {
    number: usize,
    pieces: Range<usize>,
}

/// Put pieces together until they are worth a thread's while.
fn group(pieces: &[Piece]) -> Vec<Job> {
    let (mut jobs, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, piece) in pieces.iter().enumerate() {
        bytes += match piece {
            Piece::Part(Part::Text(text)) => text.len(),
            _ => 8,
        };
        if bytes >= PIECE || i + 1 == pieces.len() {
            jobs.push(Job { number: jobs.len(), pieces: start..i + 1 });
            (start, bytes) = (i + 1, 0);
        }
    }
    jobs
}

fn encode_pieces(model: &Model, pieces: &[Piece], stop: &AtomicBool) -> Result<Ids, Error> {
    let (mut ids, mut ends) = (Vec::with_capacity(PIECE / 3), Vec::new());
    model.with_encoder(stop, |encoder| {
        for piece in pieces {
            match *piece {
                Piece::Part(Part::Text(text)) => encoder.encode_into(text, &mut ids)?,
                Piece::Part(Part::Special(id)) => ids.push(id),
                Piece::End => ends.push(ids.len()),
            }
        }
        Ok((ids, ends))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Splitter;
    use crate::split::DEFAULT_PATTERN;
    use crate::vocabulary::Vocabulary;

    fn batch(texts: &[String], rule: &SpecialRule, threads: usize) -> Result<Vec<Vec<Id>>, Error> {
        let mut taken = Vec::new();
        let model = model();
        encode_batch(&model, texts, rule, threads, |ids| {
            taken.extend(ids.iter().map(|ids| ids.to_vec()));
            Ok::<(), Error>(())
        })?;
        Ok(taken)
    }

    fn model() -> std::sync::Arc<Model> {
        let plain = Vocabulary::from_merges(&[(97, 98), (32, 256)]);
        let specials = vec![("<s>".to_owned(), 300), ("<s>>".to_owned(), 301)];
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        Model::new(splitter, plain.with_specials(specials).unwrap())
    }

    #[test]
    fn equals_one_after_the_other() {
        let texts: Vec<String> =
            (0..2000).map(|i| " ab, b a1".repeat(if i == 700 { 50_000 } else { i % 37 })).collect();
        let expected: Vec<_> = texts.iter().map(|text| model().encode(text).unwrap()).collect();
        for threads in [1, 2, 5] {
            assert_eq!(batch(&texts, &SpecialRule::default(), threads).unwrap(), expected);
        }
        assert_eq!(batch(&[], &SpecialRule::default(), 2), Ok(vec![]));
    }

    #[test]
    fn special_tokens_by_rule() {
        let finder =
            |names: &[&str]| model().vocabulary.find_specials(|name| names.contains(&name));
        let texts = ["ab<s>ab<s>>".to_owned(), String::new()];
        let both = SpecialRule { allowed: finder(&["<s>", "<s>>"]), forbidden: None };
        assert_eq!(batch(&texts, &both, 2), Ok(vec![vec![256, 300, 256, 301], vec![]]));
        let one = SpecialRule { allowed: finder(&["<s>"]), forbidden: finder(&["<s>>"]) };
        let error = batch(&texts, &one, 2).unwrap_err();
        assert_eq!(error, Error::SpecialToken { token: "<s>>".into(), byte: 7 });
        let ordinary = batch(&texts, &SpecialRule::default(), 2).unwrap();
        assert_eq!(ordinary[0].len(), 2 + "<s><s>>".len());
    }

    #[test]
    fn an_error_of_take_ends_it() {
        let texts = vec!["ab ".repeat(100_000); 50];
        let refuse = |_: &[&[Id]]| Err(Error::Stopped);
        let result = encode_batch(&model(), &texts, &SpecialRule::default(), 3, refuse);
        assert_eq!(result, Err(Error::Stopped));
    }
}
