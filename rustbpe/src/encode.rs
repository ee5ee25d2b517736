//! Encode text: look words up, and merge those that are no tokens.
//!
//! Most words are tokens, and most of the others have been met shortly before. So each encoder has a
//! small cache from words to ids, asked for many words at once; what it lacks is looked up in the
//! vocabulary, and what that lacks is merged, pair by pair.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::prefetch::prefetch;
use crate::vocabulary::{Index, SpecialFinder, Vocabulary};
use crate::word::{self, Key};
use crate::{Error, Id, Splitter};

/// From this many bytes on, a word is merged with a heap: O(n log n), where scanning takes O(n^2).
const LONG_WORD: usize = 128;
/// Sets of the cache: two words of 32 bytes each, 4 MB in all.
const SETS: usize = 1 << 16;
/// Ids that a slot has room for; more lie in the cache's `more`.
const SLOT_IDS: usize = 3;
/// When `more` holds this many ids, the cache starts afresh.
const MOST_IDS: usize = 1 << 20;
/// Caches kept for the next encoders: enough for a large machine's cores, 4 MB each.
const MOST_CACHES: usize = 64;
/// Words that are looked up together.
const AHEAD: usize = 32;

/// A pattern and a vocabulary: all that encoding and decoding need.
#[derive(Debug)]
pub struct Model {
    pub splitter: Splitter,
    pub vocabulary: Vocabulary,
    caches: Mutex<Vec<Cache>>, // of encoders that have finished, for the next ones
}

/// Which special tokens a text may hold: allowed ones become their ids, forbidden ones are an error, and
/// the others are ordinary characters.
#[derive(Debug, Default)]
pub struct SpecialRule {
    pub allowed: Option<SpecialFinder>,
    pub forbidden: Option<SpecialFinder>,
}

/// A stretch of ordinary text, or a special token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part<'t> {
    Text(&'t str),
    Special(Id),
}

/// A word and its `n` ids: `ids`, or, where they have no room, those from `ids[0]` on in `more`.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    key: Key,
    ids: [Id; SLOT_IDS],
    n: u32,
}

/// The two places where a word may be, in one line of the processor's cache.
#[derive(Debug, Clone, Default)]
#[repr(align(64))]
struct Set([Slot; 2]);

/// Words that were encoded lately.
#[derive(Debug)]
struct Cache {
    sets: Box<[Set]>,
    more: Vec<Id>,
}

impl Default for Cache {
    fn default() -> Self {
        Cache { sets: vec![Set::default(); SETS].into(), more: Vec::new() }
    }
}

impl Cache {
    fn put(&mut self, key: Key, hash: u64, ids: &[Id]) {
        let mut slot = Slot { key, n: ids.len() as u32, ..Slot::default() };
        if ids.len() <= SLOT_IDS {
            slot.ids[..ids.len()].copy_from_slice(ids);
        } else {
            if self.more.len() > MOST_IDS {
                *self = Cache::default();
            }
            slot.ids[0] = self.more.len() as u32;
            self.more.extend_from_slice(ids);
        }
        let Set([newer, older]) = &mut self.sets[hash as usize % SETS];
        *older = std::mem::replace(newer, slot);
    }
}

/// One thread's encoder.
#[derive(Debug)]
pub struct Encoder<'m> {
    model: &'m Model,
    index: &'m Index,
    cache: Cache,
    stop: &'m AtomicBool,
}

/// The flag of work that nobody wants to stop.
pub static NEVER: AtomicBool = AtomicBool::new(false);

impl Model {
    pub fn new(splitter: Splitter, vocabulary: Vocabulary) -> Arc<Self> {
        Arc::new(Model { splitter, vocabulary, caches: Mutex::default() })
    }

    /// Run `work` with an encoder, which stops with an error when somebody sets `stop`.
    ///
    /// Its cache comes from one that has finished, and goes to the next.
    pub fn with_encoder<R>(&self, stop: &AtomicBool, work: impl FnOnce(&mut Encoder) -> R) -> R {
        let cache = self.caches.lock().expect("nobody panics with the caches").pop();
        let index = self.vocabulary.index();
        let mut encoder = Encoder { model: self, index, cache: cache.unwrap_or_default(), stop };
        let result = work(&mut encoder);
        let mut caches = self.caches.lock().expect("nobody panics with the caches");
        if caches.len() < MOST_CACHES {
            caches.push(encoder.cache);
        }
        result
    }

    /// Encode one text; special tokens in it are ordinary characters.
    pub fn encode(&self, text: &str) -> Result<Vec<Id>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        self.with_encoder(&NEVER, |encoder| encoder.encode_into(text, &mut ids))?;
        Ok(ids)
    }

    /// Cut a text at the special tokens that the rule allows.
    ///
    /// Fails where the text holds one that the rule forbids.
    pub fn parts<'t>(&self, text: &'t str, rule: &SpecialRule) -> Result<Vec<Part<'t>>, Error> {
        if let Some(found) = rule.forbidden.as_ref().and_then(|finder| finder.first(text)) {
            let token = text[found.clone()].to_owned();
            return Err(Error::SpecialToken { token, byte: found.start });
        }
        let Some(allowed) = &rule.allowed else { return Ok(vec![Part::Text(text)]) };
        let (mut parts, mut start) = (Vec::new(), 0);
        for (place, id) in allowed.all(text) {
            parts.extend([Part::Text(&text[start..place.start]), Part::Special(id)]);
            start = place.end;
        }
        parts.push(Part::Text(&text[start..]));
        Ok(parts)
    }

    /// Encode bytes: valid UTF-8 as text, and each stretch of other bytes as a word of its own. Special
    /// tokens in it are ordinary characters.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<Id>, Error> {
        let mut ids = Vec::with_capacity(bytes.len() / 3);
        self.with_encoder(&NEVER, |encoder| {
            let mut chunks = bytes.utf8_chunks().peekable();
            let mut broken = Vec::new();
            while let Some(chunk) = chunks.next() {
                encoder.encode_into(chunk.valid(), &mut ids)?;
                broken.extend_from_slice(chunk.invalid());
                let goes_on = chunks.peek().is_some_and(|next| next.valid().is_empty());
                if !broken.is_empty() && !goes_on {
                    encoder.encode_long(&broken, &mut ids);
                    broken.clear();
                }
            }
            Ok(ids)
        })
    }
}

impl Encoder<'_> {
    /// Append the ids of a text.
    ///
    /// Words are looked up a few at a time: while the first of them is at work, the memory of the others
    /// is on its way.
    pub fn encode_into(&mut self, text: &str, ids: &mut Vec<Id>) -> Result<(), Error> {
        let bytes = text.as_bytes();
        let mut waiting = [(0, 0); AHEAD];
        let mut n = 0;
        let result = self.model.splitter.for_each_word(text, |word| {
            let Some(key) = word::key(bytes, word.start, word.end) else {
                self.encode_short(&waiting[..n], ids);
                n = 0;
                self.encode_long(&bytes[word], ids);
                return self.go_on();
            };
            let hash = word::hash(key);
            prefetch(&self.cache.sets[hash as usize % SETS]);
            waiting[n] = (key, hash);
            n += 1;
            if n == AHEAD {
                self.encode_short(&waiting, ids);
                n = 0;
                return self.go_on();
            }
            Ok(())
        });
        self.encode_short(&waiting[..n], ids);
        result
    }

    fn go_on(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Stopped) } else { Ok(()) }
    }

    fn encode_short(&mut self, words: &[(Key, u64)], ids: &mut Vec<Id>) {
        // All ids of a slot are written, and only those that count are kept: no branch on how many.
        let (mut found, mut n) = ([0; AHEAD * SLOT_IDS], 0);
        for &(key, hash) in words {
            let Set([newer, older]) = &self.cache.sets[hash as usize % SETS];
            let slot = if newer.key == key { newer } else { older };
            if slot.key == key && slot.n as usize <= SLOT_IDS {
                found[n..n + SLOT_IDS].copy_from_slice(&slot.ids);
                n += slot.n as usize;
                continue;
            }
            ids.extend_from_slice(&found[..n]);
            n = 0;
            if slot.key == key {
                let start = slot.ids[0] as usize;
                ids.extend_from_slice(&self.cache.more[start..start + slot.n as usize]);
            } else {
                self.encode_new(key, hash, ids);
            }
        }
        ids.extend_from_slice(&found[..n]);
    }

    /// Encode a short word that the cache lacks, and remember it.
    #[inline(never)]
    fn encode_new(&mut self, key: Key, hash: u64, ids: &mut Vec<Id>) {
        let (bytes, len) = word::unpack(key);
        let before = ids.len();
        match self.index.id_of_key(key, hash) {
            Some(id) => ids.push(id),
            None => self.merge_short::<16>(&bytes[..len], ids),
        }
        self.cache.put(key, hash, &ids[before..]);
    }

    #[inline(never)]
    fn encode_long(&mut self, word: &[u8], ids: &mut Vec<Id>) {
        if let Some(id) = self.index.id(word) {
            ids.push(id);
        } else if word.len() < LONG_WORD {
            self.merge_short::<LONG_WORD>(word, ids);
        } else {
            self.merge_long(word, ids);
        }
    }

    /// Merge the pair with the lowest id until none is left, looking through all of them each time.
    fn merge_short<const MOST: usize>(&self, word: &[u8], out: &mut Vec<Id>) {
        const NONE: Id = Id::MAX;
        let merged = |left, right| self.index.merged(left, right).unwrap_or(NONE);
        let mut n = word.len();
        let (mut ids, mut next) = ([0; MOST], [NONE; MOST]);
        for (i, &byte) in word.iter().enumerate() {
            ids[i] = self.index.byte_ids[byte as usize];
        }
        // next[i] is what i and i + 1 merge into.
        for i in 1..n {
            next[i - 1] = merged(ids[i - 1], ids[i]);
        }
        loop {
            let (mut best, mut at) = (NONE, 0);
            for (i, &id) in next[..n - 1].iter().enumerate() {
                if id < best {
                    (best, at) = (id, i);
                }
            }
            if best == NONE {
                break;
            }
            ids[at] = best;
            ids.copy_within(at + 2..n, at + 1);
            next.copy_within(at + 1..n, at);
            n -= 1;
            next[n - 1] = NONE;
            if at + 1 < n {
                next[at] = merged(best, ids[at + 1]);
            }
            if at > 0 {
                next[at - 1] = merged(ids[at - 1], best);
            }
        }
        out.extend_from_slice(&ids[..n]);
    }

    /// The same with a heap of candidate merges over a linked list, for words without end.
    fn merge_long(&self, word: &[u8], out: &mut Vec<Id>) {
        let n = word.len();
        let mut ids: Vec<Id> = word.iter().map(|&b| self.index.byte_ids[b as usize]).collect();
        let mut next: Vec<usize> = (1..=n).collect();
        // previous[i] is one too high, so that 0 means none.
        let mut previous: Vec<usize> = (0..n).collect();
        let mut alive = vec![true; n];
        let candidate = |ids: &[Id], i: usize, j: usize| {
            Some(Reverse((self.index.merged(ids[i], ids[j])?, i, ids[i], ids[j])))
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
    use proptest::prelude::*;

    fn model() -> Arc<Model> {
        // 256 "aa", 257 "ab", 258 "aaab", 259 "aaaa"
        let merges = [(97, 97), (97, 98), (256, 257), (256, 256)];
        Model::new(Splitter::new(DEFAULT_PATTERN).unwrap(), Vocabulary::from_merges(&merges))
    }

    /// As the rule is stated: join the neighbours whose bytes are the lowest token, the leftmost first.
    fn by_the_rule(model: &Model, word: &[u8]) -> Vec<Id> {
        let index = model.vocabulary.index();
        if let Some(id) = index.id(word) {
            return vec![id];
        }
        let mut pieces: Vec<Vec<u8>> = word.iter().map(|&byte| vec![byte]).collect();
        loop {
            let joined = pieces.windows(2).map(|pair| index.id(&pair.concat()));
            let best = joined.enumerate().filter_map(|(i, id)| Some((id?, i))).min();
            let Some((_, i)) = best else { break };
            let right = pieces.remove(i + 1);
            pieces[i].extend(right);
        }
        pieces.iter().map(|piece| index.id(piece).unwrap()).collect()
    }

    #[test]
    fn earlier_merges_go_first() {
        assert_eq!(model().encode("aaab").unwrap(), [258]);
        assert_eq!(model().encode("aaaaa").unwrap(), [259, 97]);
    }

    #[test]
    fn takes_a_million_letters() {
        assert_eq!(model().encode(&"a".repeat(1_000_000)).unwrap(), [259; 250_000]);
    }

    #[test]
    fn broken_bytes_are_words_of_their_own() {
        let bytes = b"aa\xff\xfeaaab\xf0\x9f";
        let ids = model().encode_bytes(bytes).unwrap();
        assert_eq!(ids, [256, 255, 254, 258, 240, 159]);
        assert_eq!(model().encode_bytes("aé".as_bytes()), model().encode("aé"));
        assert_eq!(model().encode_bytes(b""), Ok(vec![]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        /// Random vocabularies, most of them none that training makes.
        #[test]
        fn all_ways_follow_the_rule(
            tokens in prop::collection::btree_set("[ab]{2,6}|[abé]{2,20}", 0..30), words in prop::collection::vec("[ab]{1,40}|[abé]{1,300}", 1..5)
        ) {
            let bytes = (0..=255u8).map(|byte| (vec![byte], i64::from(byte)));
            let longer = tokens.iter().enumerate().map(|(i, t)| (t.clone().into_bytes(), 256 + i as i64));
            let vocabulary = Vocabulary::from_ranks(bytes.chain(longer).collect()).unwrap();
            let model = Model::new(Splitter::new(r"\S+").unwrap(), vocabulary);
            for word in &words {
                let expected = by_the_rule(&model, word.as_bytes());
                prop_assert_eq!(&model.encode(word).unwrap(), &expected);
                // From the cache, and with the heap although the word may be short.
                prop_assert_eq!(&model.encode(word).unwrap(), &expected);
                let mut ids = Vec::new();
                model.with_encoder(&NEVER, |encoder| encoder.merge_long(word.as_bytes(), &mut ids));
                if model.vocabulary.index().id(word.as_bytes()).is_none() {
                    prop_assert_eq!(&ids, &expected);
                }
            }
        }
    }
}
