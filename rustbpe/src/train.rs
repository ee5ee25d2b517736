//! Learn merges: replace the most frequent pair by a new token, again and again.
//!
//! The rule is exact: the pair with the highest count, and among equals the smallest (left id, right
//! id). Counting anew after every merge would cost O(text) a merge; three facts make it cheap:
//!
//! - Only words that hold the pair change, and an index from pair to words finds them.
//! - Only pairs with the new token gain anything. So all other entries of the heap can merely be too
//!   high: when one comes up we compare it with the true count and, if stale, put it back lower.
//! - A pair first appears while its newer token is being made, and only then. So its list of words is
//!   complete after that merge and holds no word twice.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::count::WordCounts;
use crate::{Id, Pair};

#[derive(Debug)]
struct Word {
    ids: Vec<Id>,
    count: i64,
}

/// A pair's count over the whole text, and the indices of the words it was ever seen in.
#[derive(Debug, Default)]
struct PairState {
    count: i64,
    words: Vec<u32>,
}

/// Training in progress. Each call of [`Trainer::step`] learns one merge.
#[derive(Debug)]
pub struct Trainer {
    words: Vec<Word>,
    pairs: FxHashMap<Pair, PairState>,
    heap: BinaryHeap<(i64, Reverse<Pair>)>,
    merges: Vec<Pair>,
}

impl Trainer {
    pub fn new(counts: WordCounts) -> Self {
        let words: Vec<Word> = counts
            .into_iter_words()
            .filter(|(word, _)| word.len() > 1)
            .map(|(word, n)| Word { ids: word.bytes().map(Id::from).collect(), count: n as i64 })
            .collect();
        assert!(words.len() <= u32::MAX as usize, "more than 2^32 different words");
        let mut pairs: FxHashMap<Pair, PairState> = FxHashMap::default();
        for (index, word) in words.iter().enumerate() {
            for pair in word.ids.windows(2) {
                add(pairs.entry((pair[0], pair[1])).or_default(), word.count, index as u32);
            }
        }
        let heap = pairs.iter().map(|(&pair, state)| (state.count, Reverse(pair))).collect();
        Trainer { words, pairs, heap, merges: Vec::new() }
    }

    /// Learn one merge. Returns None when no pair is left.
    pub fn step(&mut self) -> Option<Pair> {
        let pair = self.pop_most_frequent()?;
        let new_id = 256 + self.merges.len() as Id;
        let state = self.pairs.remove(&pair).expect("a pair with a count has a state");
        let mut created: FxHashMap<Pair, PairState> = FxHashMap::default();
        for &index in &state.words {
            let word = &mut self.words[index as usize];
            let count = word.count;
            merge_word(&mut word.ids, pair, new_id, |changed, sign| {
                if changed.0 == new_id || changed.1 == new_id {
                    let entry = created.entry(changed).or_default();
                    if sign > 0 {
                        add(entry, count, index);
                    } else {
                        entry.count -= count;
                    }
                } else if let Some(entry) = self.pairs.get_mut(&changed) {
                    // `pair` itself is gone from the map: nobody asks for its count again.
                    entry.count -= count;
                    if entry.count == 0 {
                        self.pairs.remove(&changed);
                    }
                }
            });
        }
        created.retain(|_, state| state.count > 0);
        self.heap.extend(created.iter().map(|(&pair, state)| (state.count, Reverse(pair))));
        self.pairs.extend(created);
        self.merges.push(pair);
        Some(pair)
    }

    pub fn merges(&self) -> &[Pair] {
        &self.merges
    }

    pub fn into_merges(self) -> Vec<Pair> {
        self.merges
    }

    fn pop_most_frequent(&mut self) -> Option<Pair> {
        while let Some((claimed, Reverse(pair))) = self.heap.pop() {
            match self.pairs.get(&pair).map(|state| state.count) {
                Some(count) if count == claimed => return Some(pair),
                Some(count) => self.heap.push((count, Reverse(pair))),
                None => {}
            }
        }
        None
    }
}

/// Count one occurrence of a pair in a word that occurs `count` times. Words come in order of index.
fn add(state: &mut PairState, count: i64, index: u32) {
    state.count += count;
    if state.words.last() != Some(&index) {
        state.words.push(index);
    }
}

/// Replace `pair` by `new_id` from left to right, in place, and report each pair lost (-1) or won (+1).
fn merge_word(ids: &mut Vec<Id>, pair: Pair, new_id: Id, mut report: impl FnMut(Pair, i64)) {
    let (mut read, mut write) = (0, 0);
    while read < ids.len() {
        if read + 1 < ids.len() && (ids[read], ids[read + 1]) == pair {
            report(pair, -1);
            if write > 0 {
                // The left neighbour may be a token that this very call has made.
                let left = ids[write - 1];
                report((left, pair.0), -1);
                report((left, new_id), 1);
            }
            if let Some(&right) = ids.get(read + 2) {
                report((pair.1, right), -1);
                report((new_id, right), 1);
            }
            ids[write] = new_id;
            read += 2;
        } else {
            ids[write] = ids[read];
            read += 1;
        }
        write += 1;
    }
    ids.truncate(write);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Splitter;
    use crate::split::DEFAULT_PATTERN;
    use std::collections::BTreeMap;

    fn count(texts: &[String]) -> WordCounts {
        let mut counts = WordCounts::default();
        counts.add_texts(&Splitter::new(DEFAULT_PATTERN).unwrap(), texts).unwrap();
        counts
    }

    fn fast(texts: &[String], n: usize) -> Vec<Pair> {
        let mut trainer = Trainer::new(count(texts));
        while trainer.merges().len() < n && trainer.step().is_some() {}
        trainer.into_merges()
    }

    /// Count everything anew for every merge.
    fn naive(texts: &[String], n: usize) -> Vec<Pair> {
        let mut words: Vec<(Vec<Id>, i64)> = count(texts)
            .into_iter_words()
            .map(|(w, n)| (w.bytes().map(Id::from).collect(), n as i64))
            .collect();
        let mut merges = Vec::new();
        while merges.len() < n {
            let mut pairs: BTreeMap<Pair, i64> = BTreeMap::new();
            for (ids, n) in &words {
                for p in ids.windows(2) {
                    *pairs.entry((p[0], p[1])).or_default() += n;
                }
            }
            let best = pairs.into_iter().max_by_key(|&(pair, n)| (n, Reverse(pair)));
            let Some((pair, _)) = best else { break };
            let new_id = 256 + merges.len() as Id;
            for (ids, _) in &mut words {
                let mut out = Vec::new();
                let mut i = 0;
                while i < ids.len() {
                    if i + 1 < ids.len() && (ids[i], ids[i + 1]) == pair {
                        out.push(new_id);
                        i += 2;
                    } else {
                        out.push(ids[i]);
                        i += 1;
                    }
                }
                *ids = out;
            }
            merges.push(pair);
        }
        merges
    }

    /// Texts over two or three letters, where runs, overlaps and ties are the rule.
    fn random_texts(seed: u64) -> Vec<String> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = move |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let letters = ["a", "b", " ", "é", "ab"];
        let kinds = 2 + next(4);
        (0..1 + next(6))
            .map(|_| (0..next(60)).map(|_| letters[next(kinds) as usize]).collect())
            .collect()
    }

    #[test]
    fn by_hand() {
        // aaabdaaabac: aa (97,97) comes 4 times, then (256 'aa', 97) twice, as 'ab' does: 97,98 is smaller.
        let merges = fast(&["aaabdaaabac".to_string()], 3);
        assert_eq!(merges, [(97, 97), (97, 98), (256, 257)]);
    }

    #[test]
    fn equals_counting_anew() {
        for seed in 1..400 {
            let texts = random_texts(seed);
            assert_eq!(fast(&texts, 30), naive(&texts, 30), "texts {texts:?}");
        }
    }

    #[test]
    fn runs_out_of_pairs() {
        assert_eq!(fast(&["ab".to_string()], 10), [(97, 98)]);
        assert_eq!(fast(&[], 10), []);
    }
}
