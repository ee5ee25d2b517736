//! Count equal words, on any number of threads.
//!
//! Real text repeats itself: 1 GB of English has a few million different words. Everything after this
//! step works on the different words, each with its count.
//!
//! Most occurrences belong to few words. So each thread counts in a small table that stays in its
//! core's cache ([`LocalCounter`]); where two words want the same slot, the older goes to the table that
//! all threads share ([`WordCounts`]), and that table holds each different word once.

use std::hash::BuildHasher;
use std::sync::Mutex;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use crate::word::{self, Key};
use crate::{Error, Splitter};

/// Parts of the shared table, each with a lock of its own.
const SHARDS: usize = 64;
/// Slots of a thread's table: 32 bytes each, 512 kB in all.
const SLOTS: usize = 1 << 14;

/// How often each word occurs.
#[derive(Debug)]
pub struct WordCounts {
    shards: Vec<Mutex<Shard>>,
}

/// Words one after the other in `bytes`; `words` has the end and the count of each.
#[derive(Debug, Default)]
pub struct Shard {
    table: HashTable<u32>,
    words: Vec<(u64, u64)>,
    bytes: Vec<u8>,
}

impl Shard {
    fn word(&self, index: u32) -> &[u8] {
        word_at(&self.words, &self.bytes, index as usize)
    }

    fn add(&mut self, word: &[u8], hash: u64, count: u64) {
        if let Some(&index) = self.table.find(hash, |&index| self.word(index) == word) {
            self.words[index as usize].1 += count;
            return;
        }
        let index = u32::try_from(self.words.len()).expect("memory ends before 2^38 words");
        self.bytes.extend_from_slice(word);
        self.words.push((self.bytes.len() as u64, count));
        let (words, bytes) = (&self.words, &self.bytes);
        self.table
            .insert_unique(hash, index, |&index| hash_word(word_at(words, bytes, index as usize)));
    }

    /// The words with their counts, in no order that a caller may rely on.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        (0..self.words.len()).map(|i| (word_at(&self.words, &self.bytes, i), self.words[i].1))
    }
}

fn word_at<'b>(words: &[(u64, u64)], bytes: &'b [u8], index: usize) -> &'b [u8] {
    let start = if index == 0 { 0 } else { words[index - 1].0 as usize };
    &bytes[start..words[index].0 as usize]
}

fn hash_word(word: &[u8]) -> u64 {
    match word::key(word, 0, word.len()) {
        Some(key) => word::hash(key),
        None => FxBuildHasher.hash_one(word),
    }
}

impl Default for WordCounts {
    fn default() -> Self {
        WordCounts { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl WordCounts {
    fn add(&self, word: &[u8], hash: u64, count: u64) {
        // hashbrown uses the lowest and the highest bits.
        let shard = &self.shards[(hash >> 32) as usize % SHARDS];
        shard.lock().expect("no thread panics with a shard").add(word, hash, count);
    }

    /// Number of different words, and of the bytes in them.
    pub fn size(&mut self) -> (u64, u64) {
        let sizes = self.shards.iter_mut().map(|shard| {
            let shard = shard.get_mut().expect("no thread panics with a shard");
            (shard.words.len() as u64, shard.bytes.len() as u64)
        });
        sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
    }

    /// The words in portions, so that their memory can go portion by portion.
    pub fn into_shards(self) -> impl Iterator<Item = Shard> {
        self.shards
            .into_iter()
            .map(|shard| shard.into_inner().expect("no thread panics with a shard"))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    key: Key,
    count: u64,
}

/// One thread's counter. What it holds back reaches the shared table with [`LocalCounter::finish`].
#[derive(Debug)]
pub struct LocalCounter<'c> {
    shared: &'c WordCounts,
    slots: Box<[Slot]>,
}

impl<'c> LocalCounter<'c> {
    pub fn new(shared: &'c WordCounts) -> Self {
        LocalCounter { shared, slots: vec![Slot::default(); SLOTS].into() }
    }

    /// Count the words of a text, until `go_on` says no; it is asked every few thousand words.
    pub fn add_text(
        &mut self,
        splitter: &Splitter,
        text: &str,
        go_on: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let bytes = text.as_bytes();
        let mut n_words = 0u32;
        splitter.for_each_word(text, |word| {
            n_words = n_words.wrapping_add(1);
            if n_words & 4095 == 0 && !go_on() {
                return Err(Error::Stopped);
            }
            self.add_word(bytes, word.start, word.end);
            Ok(())
        })
    }

    #[inline(always)]
    fn add_word(&mut self, text: &[u8], start: usize, end: usize) {
        let Some(key) = word::key(text, start, end) else {
            let word = &text[start..end];
            return self.shared.add(word, hash_word(word), 1);
        };
        let slot = &mut self.slots[word::hash(key) as usize % SLOTS];
        if slot.key == key {
            slot.count += 1;
        } else {
            let old = std::mem::replace(slot, Slot { key, count: 1 });
            self.hand_over(old);
        }
    }

    #[inline(never)]
    fn hand_over(&self, slot: Slot) {
        if slot.count > 0 {
            let (bytes, len) = word::unpack(slot.key);
            self.shared.add(&bytes[..len], word::hash(slot.key), slot.count);
        }
    }

    pub fn finish(self) {
        for &slot in &self.slots {
            self.hand_over(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn counted(texts: &[&str], threads: usize) -> BTreeMap<Vec<u8>, u64> {
        let splitter = Splitter::new(crate::split::DEFAULT_PATTERN).unwrap();
        let mut counts = WordCounts::default();
        std::thread::scope(|scope| {
            for part in texts.chunks(texts.len().div_ceil(threads).max(1)) {
                let (splitter, counts) = (&splitter, &counts);
                scope.spawn(move || {
                    let mut local = LocalCounter::new(counts);
                    for text in part {
                        local.add_text(splitter, text, || true).unwrap();
                    }
                    local.finish();
                });
            }
        });
        let (n_words, n_bytes) = counts.size();
        let found: BTreeMap<Vec<u8>, u64> = counts
            .into_shards()
            .flat_map(|shard| shard.iter().map(|(w, n)| (w.to_vec(), n)).collect::<Vec<_>>())
            .collect();
        assert_eq!(n_words, found.len() as u64, "no word is stored twice");
        assert_eq!(n_bytes, found.keys().map(|word| word.len() as u64).sum::<u64>());
        found
    }

    #[test]
    fn adds_over_texts_and_threads() {
        let expected = BTreeMap::from([(b" b".to_vec(), 2), (b"a".to_vec(), 3)]);
        for threads in 1..4 {
            assert_eq!(counted(&["a b", "a", " b", "a"], threads), expected);
        }
    }

    #[test]
    fn stops_when_told_to() {
        let shared = WordCounts::default();
        let splitter = Splitter::new(r"\S+").unwrap();
        let stopped = LocalCounter::new(&shared).add_text(&splitter, &"a ".repeat(9000), || false);
        assert_eq!(stopped, Err(Error::Stopped));
    }

    proptest! {
        /// More different words than slots, long ones among them, so that words are handed over often.
        #[test]
        fn equals_a_plain_map(numbers in prop::collection::vec(0u32..60_000, 0..3000), threads in 1usize..4) {
            let words: Vec<String> = numbers.iter().map(|n| match n % 5 {
                0 => format!(" {}", "x".repeat((n % 40) as usize)),
                _ => format!(" w{}", char::from_u32(0x4e00 + n / 3).unwrap()),
            }).collect();
            let texts: Vec<&str> = words.iter().map(String::as_str).collect();
            let mut expected: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
            for word in &words {
                *expected.entry(word.as_bytes().to_vec()).or_default() += 1;
            }
            prop_assert_eq!(counted(&texts, threads), expected);
        }
    }
}
