//! Count equal words, on all cores.
//!
//! Real text repeats itself: 1 GB of English has a few million different words. Everything after
//! this step works on the different words, each with its count.

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::{Error, Splitter};

/// How often each word occurs.
#[derive(Debug, Default)]
pub struct WordCounts {
    counts: FxHashMap<Box<str>, u64>,
}

impl WordCounts {
    /// Add the words of these texts. On an error nothing has been added.
    pub fn add_texts<T: AsRef<str> + Sync>(
        &mut self,
        splitter: &Splitter,
        texts: &[T],
    ) -> Result<(), Error> {
        // Each thread counts borrowed slices of the texts; a word is copied when it is first seen.
        let found = texts
            .par_iter()
            .try_fold(FxHashMap::<&str, u64>::default, |mut counts, text| {
                splitter
                    .for_each_word(text.as_ref(), |word| *counts.entry(word).or_default() += 1)?;
                Ok(counts)
            })
            .try_reduce(FxHashMap::default, |a, b| {
                let (mut large, small) = if a.len() < b.len() { (b, a) } else { (a, b) };
                for (word, n) in small {
                    *large.entry(word).or_default() += n;
                }
                Ok(large)
            })?;
        for (word, n) in found {
            match self.counts.get_mut(word) {
                Some(count) => *count += n,
                None => {
                    self.counts.insert(word.into(), n);
                }
            }
        }
        Ok(())
    }

    /// Number of different words.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    pub fn into_iter_words(self) -> impl Iterator<Item = (Box<str>, u64)> {
        self.counts.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::DEFAULT_PATTERN;

    #[test]
    fn adds_over_texts_and_calls() {
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let mut counts = WordCounts::default();
        counts.add_texts(&splitter, &["a b", "a", " b"]).unwrap();
        counts.add_texts(&splitter, &["a"]).unwrap();
        let mut words: Vec<_> = counts.into_iter_words().collect();
        words.sort();
        assert_eq!(words, [(" b".into(), 2), ("a".into(), 3)]);
    }
}
