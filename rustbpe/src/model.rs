//! A trained vocabulary: encode text with it, and decode ids.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::{Error, Id, Pair, Splitter};

/// From this many bytes on, a word is encoded with a heap: O(n log n), where scanning takes O(n^2).
const LONG_WORD: usize = 128;

#[derive(Debug, Clone)]
pub struct Model {
    splitter: Splitter,
    tokens: Vec<Vec<u8>>,
    ids_of_pairs: FxHashMap<Pair, Id>,
}

impl Model {
    /// Build the vocabulary: 256 bytes, then one token for each merge. Merges name earlier ids.
    pub fn new(splitter: Splitter, merges: &[Pair]) -> Self {
        let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
        let mut ids_of_pairs = FxHashMap::default();
        for &(left, right) in merges {
            ids_of_pairs.insert((left, right), tokens.len() as Id);
            let token = [&tokens[left as usize][..], &tokens[right as usize][..]].concat();
            tokens.push(token);
        }
        Model { splitter, tokens, ids_of_pairs }
    }

    pub fn pattern(&self) -> &str {
        self.splitter.pattern()
    }

    /// The bytes of each token, in order of id.
    pub fn tokens(&self) -> &[Vec<u8>] {
        &self.tokens
    }

    pub fn encode(&self, text: &str) -> Result<Vec<Id>, Error> {
        let mut out = Vec::with_capacity(text.len() / 3);
        self.splitter.for_each_word(text, |word| self.encode_word(word.as_bytes(), &mut out))?;
        Ok(out)
    }

    /// Encode many texts on all cores of the current rayon pool.
    pub fn encode_batch<T: AsRef<str> + Sync>(&self, texts: &[T]) -> Result<Vec<Vec<Id>>, Error> {
        texts.par_iter().map(|text| self.encode(text.as_ref())).collect()
    }

    pub fn decode(&self, ids: impl IntoIterator<Item = i64>) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        for id in ids {
            let token = usize::try_from(id).ok().and_then(|index| self.tokens.get(index));
            let unknown = Error::UnknownId { id, vocab_size: self.tokens.len() };
            out.extend_from_slice(token.ok_or(unknown)?);
        }
        Ok(out)
    }

    fn encode_word(&self, word: &[u8], out: &mut Vec<Id>) {
        if word.len() < LONG_WORD {
            self.encode_short(word, out);
        } else {
            self.encode_long(word, out);
        }
    }

    /// Merge the earliest-learned pair until none is left, scanning the word each time.
    fn encode_short(&self, word: &[u8], out: &mut Vec<Id>) {
        let start = out.len();
        out.extend(word.iter().map(|&byte| Id::from(byte)));
        loop {
            let ids = &out[start..];
            let best = ids
                .windows(2)
                .enumerate()
                .filter_map(|(i, p)| Some((*self.ids_of_pairs.get(&(p[0], p[1]))?, i)))
                .min();
            let Some((id, i)) = best else { return };
            out[start + i] = id;
            out.remove(start + i + 1);
        }
    }

    /// The same with a heap of candidate merges over a linked list, for words without end.
    fn encode_long(&self, word: &[u8], out: &mut Vec<Id>) {
        let n = word.len();
        let mut ids: Vec<Id> = word.iter().map(|&byte| Id::from(byte)).collect();
        let mut next: Vec<usize> = (1..=n).collect();
        // previous[i] is one too high, so that 0 means none.
        let mut previous: Vec<usize> = (0..n).collect();
        let mut alive = vec![true; n];
        let candidate = |ids: &[Id], i: usize, j: usize| {
            let id = *self.ids_of_pairs.get(&(ids[i], ids[j]))?;
            Some(Reverse((id, i, ids[i], ids[j])))
        };
        let mut heap: BinaryHeap<_> = (1..n).filter_map(|j| candidate(&ids, j - 1, j)).collect();
        while let Some(Reverse((id, i, left, right))) = heap.pop() {
            let j = next[i];
            if !alive[i] || j == n || (ids[i], ids[j]) != (left, right) {
                continue; // one of the two has been merged since
            }
            ids[i] = id;
            alive[j] = false;
            next[i] = next[j];
            if next[i] < n {
                previous[next[i]] = i + 1;
                heap.extend(candidate(&ids, i, next[i]));
            }
            if previous[i] > 0 {
                heap.extend(candidate(&ids, previous[i] - 1, i));
            }
        }
        out.extend((0..n).filter(|&i| alive[i]).map(|i| ids[i]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::DEFAULT_PATTERN;

    fn model() -> Model {
        // 256 "aa", 257 "ab", 258 "aaab", 259 "aaaa"
        let merges = [(97, 97), (97, 98), (256, 257), (256, 256)];
        Model::new(Splitter::new(DEFAULT_PATTERN).unwrap(), &merges)
    }

    #[test]
    fn earlier_merges_go_first() {
        assert_eq!(model().encode("aaab").unwrap(), [258]);
        assert_eq!(model().encode("aaaaa").unwrap(), [259, 97]);
    }

    #[test]
    fn both_encoders_agree() {
        let model = model();
        for n in 1..300 {
            let word: Vec<u8> =
                (0..n).map(|i| if (i * i + n) % 7 < 4 { b'a' } else { b'b' }).collect();
            let (mut short, mut long) = (Vec::new(), Vec::new());
            model.encode_short(&word, &mut short);
            model.encode_long(&word, &mut long);
            assert_eq!(short, long, "word {:?}", String::from_utf8(word).unwrap());
        }
    }

    #[test]
    fn decodes_what_it_encodes() {
        let text = "aaab \u{1f44b} ab\n12 aa";
        let ids = model().encode(text).unwrap();
        let bytes = model().decode(ids.into_iter().map(i64::from)).unwrap();
        assert_eq!(bytes, text.as_bytes());
    }

    #[test]
    fn unknown_ids_are_named() {
        for id in [-1, 260] {
            let error = model().decode([id]).unwrap_err().to_string();
            assert!(error.contains(&format!("id {id}")) && error.contains("259"), "{error}");
        }
    }

    #[test]
    fn long_words_take_no_quadratic_time() {
        let word = "a".repeat(1_000_000);
        assert_eq!(model().encode(&word).unwrap().len(), 250_000);
    }
}
