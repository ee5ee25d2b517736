//! Learn merges: replace the most frequent pair by a new token, again and again.
//!
//! The rule is exact: the pair with the highest count, and among equals the smallest (left id, right
//! id). Counting anew after every merge would cost O(text) a merge. What makes it cheap:
//!
//! - All different words lie in one array, a slot a byte. A token fills as many slots as it has bytes and
//!   writes its id into its first and its last one; so from any token its neighbours are one step away,
//!   and merging two tokens moves nothing.
//! - For every pair we keep the places where it was born. A merge goes through those of its pair, and
//!   through nothing else.
//! - What a merge changes is summed up by neighbour first, so the map of all pairs is asked once for
//!   each different neighbour, and not for each place.
//! - Only pairs with the new token gain anything. So all other entries of the heap can merely be too
//!   high: when one comes up we compare it with the true count and, if stale, put it back lower.
//! - Most pairs are rare and never come up. The heap holds only those above a threshold, which falls
//!   when it runs dry.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::count::WordCounts;
use crate::prefetch::prefetch;
use crate::{Error, Id, Pair};

/// A slot with this bit is no id: it stands before a word and holds the word's count.
const HEADER: u32 = 1 << 31;
/// A header with this bit as well holds an index into `large_counts`.
const LARGE: u32 = 1 << 30;
/// In place of the id of a token that has become the right part of another.
const DEAD: Id = HEADER - 1;
/// Slots and places are numbered with 32 bits, and there may be twice as many places as slots: a merge
/// adds at most one for each of its pair's, and takes a slot's token away each time.
pub const MAX_BYTES: u64 = i32::MAX as u64;
/// In words of at least so many bytes a token's way back to the header could be long: they have a list.
const LONG_WORD: usize = 64;
/// How many places ahead of its work a merge asks for memory.
const AHEAD: usize = 12;

/// A pair's count over the whole text, and where it was born: `n` entries of `places` from `start` on, or,
/// if `n` is 1, the place `start` itself. Places where the pair is no more are among them.
#[derive(Debug, Clone, Copy)]
struct PairState {
    count: u64,
    start: u32,
    n: u32,
}

/// What a merge changes on one side, for one neighbour: summed weights, and the places of the new pair.
#[derive(Debug, Clone, Copy, Default)]
struct Change {
    count: u64,
    n: u32,
    fill: u32,
}

/// The changes on one side of a merge, by neighbour.
#[derive(Debug, Default)]
struct Side {
    changes: Vec<Change>, // index: the neighbour's id
    neighbours: Vec<Id>,
    births: Vec<(Id, u32)>, // neighbour, place of the new pair
}

impl Side {
    #[inline(always)]
    fn add(&mut self, neighbour: Id, place: u32, weight: u64) {
        let change = &mut self.changes[neighbour as usize];
        if change.n == 0 {
            self.neighbours.push(neighbour);
        }
        change.count += weight;
        change.n += 1;
        self.births.push((neighbour, place));
    }

    /// Group the places of the new pairs by neighbour; groups of one are kept in the change itself.
    fn group_places(&mut self, places: &mut Vec<u32>, mut free: std::ops::Range<u32>) {
        for &neighbour in &self.neighbours {
            let change = &mut self.changes[neighbour as usize];
            if change.n == 1 {
                continue;
            }
            if free.len() >= change.n as usize {
                change.fill = free.start;
                free.start += change.n;
            } else {
                change.fill = places.len() as u32;
                places.resize(places.len() + change.n as usize, 0);
            }
        }
        for (neighbour, place) in self.births.drain(..) {
            let change = &mut self.changes[neighbour as usize];
            if change.n == 1 {
                change.fill = place;
            } else {
                places[change.fill as usize] = place;
                change.fill += 1;
            }
        }
    }

    fn state(&self, neighbour: Id) -> PairState {
        let change = self.changes[neighbour as usize];
        let start = if change.n == 1 { change.fill } else { change.fill - change.n };
        PairState { count: change.count, start, n: change.n }
    }
}

/// Training in progress. Each call of [`Trainer::step`] learns one merge.
#[derive(Debug)]
pub struct Trainer {
    text: Vec<u32>,
    large_counts: Vec<u64>,
    long_words: Vec<(u32, u64)>, // where each begins, and its count
    lengths: Vec<u32>,           // of each token, in bytes
    pairs: FxHashMap<u64, PairState>,
    places: Vec<u32>,
    heap: BinaryHeap<(u64, Reverse<u64>)>,
    threshold: u64,
    left: Side,
    right: Side,
    merges: Vec<Pair>,
}

/// A pair as one number, which sorts as the pair does.
fn pack((left, right): Pair) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

fn unpack(pair: u64) -> Pair {
    ((pair >> 32) as Id, pair as Id)
}

impl Trainer {
    /// Lay out the words and count their pairs, until `go_on` says no.
    pub fn new(mut counts: WordCounts, go_on: &dyn Fn() -> bool) -> Result<Self, Error> {
        let (n_words, n_bytes) = counts.size();
        if n_words + n_bytes >= MAX_BYTES {
            return Err(Error::TooManyWords { words: n_words, bytes: n_bytes });
        }
        let mut trainer = Trainer {
            text: Vec::with_capacity((n_words + n_bytes) as usize + 1),
            large_counts: Vec::new(),
            long_words: Vec::new(),
            lengths: vec![1; 256],
            pairs: FxHashMap::default(),
            places: Vec::new(),
            heap: BinaryHeap::new(),
            threshold: u64::MAX,
            left: Side::default(),
            right: Side::default(),
            merges: Vec::new(),
        };
        for shard in counts.into_shards() {
            for (word, count) in shard.iter().filter(|(word, _)| word.len() > 1) {
                trainer.push_header(count);
                if word.len() >= LONG_WORD {
                    trainer.long_words.push((trainer.text.len() as u32, count));
                }
                trainer.text.extend(word.iter().map(|&byte| Id::from(byte)));
            }
            if !go_on() {
                return Err(Error::Stopped);
            }
        }
        trainer.push_header(0);
        trainer.count_pairs(go_on)?;
        Ok(trainer)
    }

    fn push_header(&mut self, count: u64) {
        if count < u64::from(LARGE) {
            self.text.push(HEADER | count as u32);
        } else {
            self.text.push(HEADER | LARGE | self.large_counts.len() as u32);
            self.large_counts.push(count);
        }
    }

    fn weight(&self, header: u32) -> u64 {
        match header & !HEADER {
            index if index & LARGE != 0 => self.large_counts[(index & !LARGE) as usize],
            count => u64::from(count),
        }
    }

    /// The count of the word that the token at `start` is part of.
    #[inline(always)]
    fn weight_at(&self, start: usize) -> u64 {
        let (mut at, nearest) = (start - 1, start.saturating_sub(LONG_WORD));
        while self.text[at] < HEADER {
            if at < nearest {
                let index = self.long_words.partition_point(|&(first, _)| first as usize <= start);
                return self.long_words[index - 1].1;
            }
            at -= self.lengths[self.text[at] as usize] as usize;
        }
        self.weight(self.text[at])
    }

    /// Count the pairs of bytes and note their places: once for the sizes, once to fill them in.
    fn count_pairs(&mut self, go_on: &dyn Fn() -> bool) -> Result<(), Error> {
        const PORTION: usize = 1 << 20;
        let mut changes = vec![Change::default(); 1 << 16];
        let index_of = |left: u32, right: u32| (left << 8 | right) as usize;
        let mut weight = 0;
        for start in (1..self.text.len()).step_by(PORTION) {
            for at in start..self.text.len().min(start + PORTION) {
                let (left, right) = (self.text[at - 1], self.text[at]);
                if left >= HEADER {
                    weight = self.weight(left);
                } else if right < HEADER {
                    let change = &mut changes[index_of(left, right)];
                    change.count += weight;
                    change.n += 1;
                }
            }
            if !go_on() {
                return Err(Error::Stopped);
            }
        }
        let mut total = 0;
        for change in &mut changes {
            change.fill = total;
            total += change.n;
        }
        self.places = vec![0; total as usize];
        for start in (1..self.text.len()).step_by(PORTION) {
            for at in start..self.text.len().min(start + PORTION) {
                let (left, right) = (self.text[at - 1], self.text[at]);
                if left < HEADER && right < HEADER {
                    let fill = &mut changes[index_of(left, right)].fill;
                    self.places[*fill as usize] = at as u32 - 1;
                    *fill += 1;
                }
            }
            if !go_on() {
                return Err(Error::Stopped);
            }
        }
        for (index, change) in changes.iter().enumerate().filter(|(_, change)| change.n > 0) {
            let pair = ((index >> 8) as Id, (index & 255) as Id);
            let start = change.fill - change.n;
            let start = if change.n == 1 { self.places[start as usize] } else { start };
            self.pairs.insert(pack(pair), PairState { count: change.count, start, n: change.n });
        }
        Ok(())
    }

    /// Learn one merge. Returns None when no pair is left, or when `go_on` says no in the middle of it:
    /// then the trainer is of no further use.
    pub fn step(&mut self, go_on: &dyn Fn() -> bool) -> Option<Pair> {
        let (left_id, right_id) = self.pop_most_frequent()?;
        let state = self.pairs.remove(&pack((left_id, right_id))).expect("it was just found");
        let new_id = 256 + self.merges.len() as Id;
        self.lengths.push(self.lengths[left_id as usize] + self.lengths[right_id as usize]);
        for side in [&mut self.left, &mut self.right] {
            side.changes.resize(self.lengths.len(), Change::default());
        }
        if !self.merge_places((left_id, right_id), new_id, state, go_on) {
            return None;
        }
        self.update_pairs((left_id, right_id), new_id, state);
        self.merges.push((left_id, right_id));
        Some((left_id, right_id))
    }

    /// Put the new token into the text and sum up what changes around it.
    fn merge_places(
        &mut self,
        (left_id, right_id): Pair,
        new_id: Id,
        state: PairState,
        go_on: &dyn Fn() -> bool,
    ) -> bool {
        let left_len = self.lengths[left_id as usize] as usize;
        let new_len = self.lengths[new_id as usize] as usize;
        for i in 0..state.n as usize {
            let place = if state.n == 1 {
                state.start
            } else {
                let at = state.start as usize + i;
                if i + AHEAD < state.n as usize {
                    prefetch(&self.text[self.places[at + AHEAD] as usize]);
                }
                self.places[at]
            };
            if i % 65_536 == 65_535 && !go_on() {
                return false;
            }
            let start = place as usize;
            let (middle, end) = (start + left_len, start + new_len);
            // One of the two may be part of another token by now; in `aaa` the first `aa` takes it.
            if self.text[start] != left_id || self.text[middle] != right_id {
                continue;
            }
            let (before, after) = (self.text[start - 1], self.text[end]);
            let weight = self.weight_at(start);
            self.text[middle] = DEAD;
            self.text[start] = new_id;
            self.text[end - 1] = new_id;
            if before < HEADER {
                self.left.add(before, place - self.lengths[before as usize], weight);
            }
            if after < HEADER {
                self.right.add(after, place, weight);
            }
        }
        true
    }

    /// Enter the new pairs into the map, and take from the old ones what they lost.
    fn update_pairs(&mut self, (left_id, right_id): Pair, new_id: Id, merged: PairState) {
        // The merged pair's list is done with: the new pairs on the left go into its space.
        let free = if merged.n == 1 { 0..0 } else { merged.start..merged.start + merged.n };
        self.left.group_places(&mut self.places, free);
        self.right.group_places(&mut self.places, 0..0);
        // In `abab` the first new token is followed by an `a` that the second one takes.
        let taken = self.left.changes[new_id as usize].count;
        for i in 0..self.right.neighbours.len() {
            let neighbour = self.right.neighbours[i];
            let lost = self.right.changes[neighbour as usize].count;
            let mut state = self.right.state(neighbour);
            if neighbour == left_id {
                state.count -= taken;
            }
            self.enter((new_id, neighbour), state);
            self.lose((right_id, neighbour), lost);
            self.right.changes[neighbour as usize] = Change::default();
        }
        for i in 0..self.left.neighbours.len() {
            let neighbour = self.left.neighbours[i];
            let lost = self.left.changes[neighbour as usize].count;
            self.enter((neighbour, new_id), self.left.state(neighbour));
            if neighbour != new_id {
                self.lose((neighbour, left_id), lost);
            }
            self.left.changes[neighbour as usize] = Change::default();
        }
        self.left.neighbours.clear();
        self.right.neighbours.clear();
    }

    fn enter(&mut self, pair: Pair, state: PairState) {
        if state.count == 0 {
            return;
        }
        if state.count >= self.threshold {
            self.heap.push((state.count, Reverse(pack(pair))));
        }
        self.pairs.insert(pack(pair), state);
    }

    fn lose(&mut self, pair: Pair, count: u64) {
        // The merged pair itself may be asked for, in `aaa`, and is gone from the map.
        if let Some(state) = self.pairs.get_mut(&pack(pair)) {
            state.count -= count;
            if state.count == 0 {
                self.pairs.remove(&pack(pair));
            }
        }
    }

    pub fn merges(&self) -> &[Pair] {
        &self.merges
    }

    pub fn into_merges(self) -> Vec<Pair> {
        self.merges
    }

    fn pop_most_frequent(&mut self) -> Option<Pair> {
        loop {
            while let Some((claimed, Reverse(pair))) = self.heap.pop() {
                match self.pairs.get(&pair).map(|state| state.count) {
                    Some(count) if count == claimed => return Some(unpack(pair)),
                    Some(count) if count >= self.threshold => {
                        self.heap.push((count, Reverse(pair)));
                    }
                    _ => {}
                }
            }
            // All that is left lies below the threshold: the heap is empty, and everything else was dropped.
            if self.threshold == 1 {
                return None;
            }
            let most = self.pairs.values().map(|state| state.count).max()?;
            self.threshold = (most / 4).max(1);
            let above = self.pairs.iter().filter(|(_, state)| state.count >= self.threshold);
            self.heap = above.map(|(&pair, state)| (state.count, Reverse(pair))).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Splitter;
    use crate::count::LocalCounter;
    use crate::split::DEFAULT_PATTERN;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn count(texts: &[String]) -> WordCounts {
        let counts = WordCounts::default();
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let mut local = LocalCounter::new(&counts);
        for text in texts {
            local.add_text(&splitter, text, || true).unwrap();
        }
        local.finish();
        counts
    }

    fn fast(texts: &[String], n: usize) -> Vec<Pair> {
        let mut trainer = Trainer::new(count(texts), &|| true).unwrap();
        while trainer.merges().len() < n && trainer.step(&|| true).is_some() {}
        trainer.into_merges()
    }

    /// Count everything anew for every merge.
    fn naive(texts: &[String], n: usize) -> Vec<Pair> {
        let shards: Vec<_> = count(texts).into_shards().collect();
        let words = shards.iter().flat_map(|shard| shard.iter());
        let mut words: Vec<(Vec<Id>, u64)> =
            words.map(|(word, n)| (word.iter().map(|&b| Id::from(b)).collect(), n)).collect();
        let mut merges = Vec::new();
        while merges.len() < n {
            let mut pairs: BTreeMap<Pair, u64> = BTreeMap::new();
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

    #[test]
    fn by_hand() {
        // aaabdaaabac: aa (97,97) comes 4 times, then (256 'aa', 97) twice, as 'ab' does: 97,98 is smaller.
        let merges = fast(&["aaabdaaabac".to_string()], 3);
        assert_eq!(merges, [(97, 97), (97, 98), (256, 257)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Few letters, where runs, overlaps and ties are the rule.
        #[test]
        fn equals_counting_anew(
            texts in prop::collection::vec("[ab é]{0,60}|a{0,40}|(ab){0,20}|[ab]{60,200}", 0..6)
        ) {
            prop_assert_eq!(fast(&texts, 40), naive(&texts, 40));
        }

        #[test]
        fn equals_counting_anew_on_wider_alphabets(texts in prop::collection::vec("[a-f 1\\n]{0,200}", 0..4)) {
            prop_assert_eq!(fast(&texts, 60), naive(&texts, 60));
        }
    }

    #[test]
    fn counts_beyond_30_bits_have_a_place_of_their_own() {
        let mut trainer = Trainer::new(WordCounts::default(), &|| true).unwrap();
        for count in [1, u64::from(LARGE) - 1, u64::from(LARGE), 1 << 40] {
            trainer.push_header(count);
            let header = *trainer.text.last().unwrap();
            assert!(header >= HEADER);
            assert_eq!(trainer.weight(header), count);
        }
    }

    #[test]
    fn stops_when_told_to() {
        let counts = count(&["the cat that sat".to_owned()]);
        assert!(matches!(Trainer::new(counts, &|| false), Err(Error::Stopped)));
    }

    #[test]
    fn takes_a_word_of_a_million_letters() {
        let letters = "a".repeat(1 << 20);
        let merges = fast(&[letters], 20);
        assert_eq!(merges[0], (97, 97));
        assert_eq!(merges[1..], (256..275).map(|id| (id, id)).collect::<Vec<_>>());
    }

    #[test]
    fn runs_out_of_pairs() {
        assert_eq!(fast(&["ab".to_string()], 10), [(97, 98)]);
        assert_eq!(fast(&[], 10), []);
    }
}
