//! A vocabulary: which bytes each id stands for, and everything encoding looks up.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::OnceLock;

use aho_corasick::{AhoCorasick, MatchKind};
use hashbrown::HashTable;
use rustc_hash::FxHashMap;

use crate::word::{self, Key};
use crate::{Error, Id, MAX_TOKENS, Pair};

/// The tokens, fixed once made. Special tokens have ids and names of their own.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    ends: Vec<usize>, // of each id in `bytes`; an id that no token has is empty
    specials: Vec<(String, Id)>, // by rising id
    all_specials: OnceLock<SpecialFinder>,
    index: OnceLock<Index>,
}

/// What encoding looks up. Training alone never needs it, so it is built at the first call.
#[derive(Debug, Clone)]
pub struct Index {
    pub byte_ids: [Id; 256],
    short: HashTable<(Key, Id)>,
    long: FxHashMap<Box<[u8]>, Id>,
    merges: HashTable<(u64, Id)>,
}

impl Vocabulary {
    /// 256 bytes, then one token for each merge. Merges name earlier ids.
    pub fn from_merges(merges: &[Pair]) -> Self {
        let mut bytes: Vec<u8> = (0..=255).collect();
        let mut ends: Vec<usize> = (1..=256).collect();
        for &(left, right) in merges {
            for id in [left as usize, right as usize] {
                let start = if id == 0 { 0 } else { ends[id - 1] };
                bytes.extend_from_within(start..ends[id]);
            }
            ends.push(bytes.len());
        }
        Vocabulary { bytes, ends, ..Vocabulary::default() }
    }

    /// Any tokens with any ids, as tiktoken's `mergeable_ranks`: lower ids merge first.
    pub fn from_ranks(mut ranks: Vec<(Vec<u8>, i64)>) -> Result<Self, Error> {
        let wrong = |reason: String| Err(Error::Vocabulary(reason));
        ranks.sort_by_key(|(_, id)| *id);
        let (mut bytes, mut ends) = (Vec::new(), Vec::<usize>::new());
        for (token, id) in &ranks {
            if !(0..MAX_TOKENS).contains(id) {
                return wrong(format!(
                    "token {} has id {id}: ids are 0 to {}",
                    show(token),
                    MAX_TOKENS - 1
                ));
            }
            if token.is_empty() {
                return wrong(format!("the token with id {id} is empty"));
            }
            if ends.len() as i64 > *id {
                return wrong(format!(
                    "id {id} is given twice, the second time to {}",
                    show(token)
                ));
            }
            ends.resize(*id as usize, bytes.len());
            bytes.extend_from_slice(token);
            ends.push(bytes.len());
        }
        let vocabulary = Vocabulary { bytes, ends, ..Vocabulary::default() };
        let mut ids: FxHashMap<&[u8], Id> = FxHashMap::default();
        for (id, token) in vocabulary.iter() {
            if let Some(other) = ids.insert(token, id) {
                return wrong(format!(
                    "token {} is given twice, as {other} and as {id}",
                    show(token)
                ));
            }
        }
        match (0..=255u8).find(|byte| !ids.contains_key(&[*byte][..])) {
            Some(byte) => {
                wrong(format!("byte {byte} has no token: text with it could not be encoded"))
            }
            None => Ok(vocabulary),
        }
    }

    /// The same tokens with these special ones.
    pub fn with_specials(&self, specials: Vec<(String, i64)>) -> Result<Self, Error> {
        let mut checked: Vec<(String, Id)> = Vec::new();
        for (name, id) in specials {
            let taken = |other: &(String, Id)| i64::from(other.1) == id || other.0 == name;
            let reason = if name.is_empty() {
                format!("the special token with id {id} has no name")
            } else if !(0..MAX_TOKENS).contains(&id) {
                format!("special token {name:?} has id {id}: ids are 0 to {}", MAX_TOKENS - 1)
            } else if let Some(token) = self.token(id as Id) {
                format!("special token {name:?} has id {id}, which is {} already", show(token))
            } else if let Some((other, _)) = checked.iter().find(|other| taken(other)) {
                format!("special token {name:?} has the id or the name of {other:?}")
            } else {
                checked.push((name, id as Id));
                continue;
            };
            return Err(Error::Vocabulary(reason));
        }
        checked.sort_by_key(|(_, id)| *id);
        Ok(Vocabulary { specials: checked, all_specials: OnceLock::new(), ..self.clone() })
    }

    /// (id, bytes) of every token that is not special, by rising id.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &[u8])> {
        (0..self.ends.len() as Id).filter_map(|id| Some((id, self.token(id)?)))
    }

    fn token(&self, id: Id) -> Option<&[u8]> {
        let end = *self.ends.get(id as usize)?;
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] };
        (start < end).then(|| &self.bytes[start..end])
    }

    pub fn specials(&self) -> &[(String, Id)] {
        &self.specials
    }

    /// Ids below this may be tokens that are not special.
    pub fn n_ordinary(&self) -> usize {
        self.ends.len()
    }

    /// The highest id and one: rows that an embedding needs.
    pub fn size(&self) -> usize {
        let special = self.specials.last().map_or(0, |(_, id)| *id as usize + 1);
        self.ends.len().max(special)
    }

    /// The bytes of one id; a special token stands for its name.
    pub fn decode_one(&self, id: i64) -> Result<&[u8], Error> {
        let unknown = || Error::UnknownId { id: id.to_string(), vocab_size: self.size() };
        let known = Id::try_from(id).map_err(|_| unknown())?;
        if let Some(token) = self.token(known) {
            return Ok(token);
        }
        let special = self.specials.binary_search_by_key(&known, |(_, id)| *id);
        special.map(|i| self.specials[i].0.as_bytes()).map_err(|_| unknown())
    }

    /// A finder of the special tokens that `wanted` accepts; None if it accepts none.
    pub fn find_specials(&self, wanted: impl Fn(&str) -> bool) -> Option<SpecialFinder> {
        let chosen: Vec<_> = self.specials.iter().filter(|(name, _)| wanted(name)).collect();
        if chosen.is_empty() {
            return None;
        }
        if chosen.len() == self.specials.len() {
            return Some(self.all_specials.get_or_init(|| SpecialFinder::new(&chosen)).clone());
        }
        Some(SpecialFinder::new(&chosen))
    }

    pub fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::new(self))
    }
}

/// Finds special tokens in text: the leftmost, and of those that begin together the longest.
#[derive(Debug, Clone)]
pub struct SpecialFinder {
    automaton: AhoCorasick,
    ids: Vec<Id>,
}

impl SpecialFinder {
    fn new(specials: &[&(String, Id)]) -> Self {
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(specials.iter().map(|(name, _)| name))
            .expect("special tokens are few and short");
        SpecialFinder { automaton, ids: specials.iter().map(|(_, id)| *id).collect() }
    }

    pub fn first(&self, text: &str) -> Option<Range<usize>> {
        self.automaton.find(text).map(|found| found.range())
    }

    pub fn all(&self, text: &str) -> impl Iterator<Item = (Range<usize>, Id)> {
        self.automaton
            .find_iter(text)
            .map(|found| (found.range(), self.ids[found.pattern().as_usize()]))
    }
}

fn show(token: &[u8]) -> String {
    format!("b\"{}\"", token.escape_ascii())
}

#[inline(always)]
fn hash_pair(pair: u64) -> u64 {
    let product = u128::from(pair ^ 0x9e37_79b9_7f4a_7c15) * 0xf1bb_cdcb_fa53_e0af;
    (product >> 64) as u64 ^ product as u64
}

impl Index {
    fn new(vocabulary: &Vocabulary) -> Self {
        let n = vocabulary.ends.len();
        let mut index = Index {
            byte_ids: [0; 256],
            short: HashTable::with_capacity(n),
            long: FxHashMap::default(),
            merges: HashTable::with_capacity(2 * n),
        };
        for (id, token) in vocabulary.iter() {
            if let &[byte] = token {
                index.byte_ids[byte as usize] = id;
            }
            match word::key(token, 0, token.len()) {
                Some(key) => {
                    index.short.insert_unique(word::hash(key), (key, id), |e| word::hash(e.0));
                }
                None => {
                    index.long.insert(token.into(), id);
                }
            }
        }
        // Any two tokens that together are a token merge into it, whichever two training has met. To try
        // lengths that no token has would take the square of a very long token's length.
        let lengths: BTreeSet<usize> = vocabulary.iter().map(|(_, token)| token.len()).collect();
        for (id, token) in vocabulary.iter() {
            for &middle in lengths.range(..token.len()) {
                if !lengths.contains(&(token.len() - middle)) {
                    continue;
                }
                let Some(left) = index.id(&token[..middle]) else { continue };
                let Some(right) = index.id(&token[middle..]) else { continue };
                let pair = u64::from(left) << 32 | u64::from(right);
                index.merges.insert_unique(hash_pair(pair), (pair, id), |e| hash_pair(e.0));
            }
        }
        index
    }

    /// The id of a whole token.
    pub fn id(&self, token: &[u8]) -> Option<Id> {
        match word::key(token, 0, token.len()) {
            Some(key) => self.id_of_key(key, word::hash(key)),
            None => self.long.get(token).copied(),
        }
    }

    #[inline]
    pub fn id_of_key(&self, key: Key, hash: u64) -> Option<Id> {
        self.short.find(hash, |entry| entry.0 == key).map(|entry| entry.1)
    }

    /// What two neighbours merge into.
    #[inline]
    pub fn merged(&self, left: Id, right: Id) -> Option<Id> {
        let pair = u64::from(left) << 32 | u64::from(right);
        self.merges.find(hash_pair(pair), |entry| entry.0 == pair).map(|entry| entry.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Extra<'a> = &'a [(&'a [u8], i64)];

    fn ranks(extra: Extra) -> Vec<(Vec<u8>, i64)> {
        let bytes = (0..=255u8).map(|byte| (vec![byte], i64::from(byte)));
        bytes.chain(extra.iter().map(|(token, id)| (token.to_vec(), *id))).collect()
    }

    #[test]
    fn merges_and_ranks_make_the_same() {
        let a = Vocabulary::from_merges(&[(97, 98), (256, 99)]);
        let b = Vocabulary::from_ranks(ranks(&[(b"abc", 257), (b"ab", 256)])).unwrap();
        assert!(a.iter().eq(b.iter()));
        assert_eq!(a.index().merged(256, 99), Some(257));
        assert_eq!((a.index().id(b"abc"), a.index().id(b"bc")), (Some(257), None));
    }

    #[test]
    fn ids_may_have_gaps() {
        let plain = Vocabulary::from_ranks(ranks(&[(b"ab", 300)])).unwrap();
        let vocabulary = plain.with_specials(vec![("<s>".into(), 299)]).unwrap();
        assert_eq!((plain.size(), vocabulary.size()), (301, 301));
        assert_eq!(vocabulary.decode_one(300), Ok(&b"ab"[..]));
        assert_eq!(vocabulary.decode_one(299), Ok(&b"<s>"[..]));
        for id in [-1, 256, 301, 1 << 40] {
            assert_eq!(
                vocabulary.decode_one(id),
                Err(Error::UnknownId { id: id.to_string(), vocab_size: 301 })
            );
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let cases: [(Extra, &str); 5] = [
            (&[(b"ab", 97)], "id 97 is given twice"),
            (&[(b"ab", -1)], "id -1"),
            (&[(b"ab", 1 << 40)], "1099511627776"),
            (&[(b"", 256)], "256 is empty"),
            (&[(b"a", 256)], "b\"a\" is given twice, as 97 and as 256"),
        ];
        for (extra, part) in cases {
            let error = Vocabulary::from_ranks(ranks(extra)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = Vocabulary::from_ranks(ranks(&[])[1..].to_vec()).unwrap_err().to_string();
        assert!(error.contains("byte 0 has no token"), "{error}");
        let plain = Vocabulary::from_merges(&[]);
        for (specials, part) in [
            (vec![("<s>", 65)], "which is b\"A\" already"),
            (vec![("<s>", -5)], "id -5"),
            (vec![("", 256)], "no name"),
            (vec![("a", 256), ("b", 256)], "of \"a\""),
            (vec![("a", 256), ("a", 257)], "of \"a\""),
        ] {
            let specials = specials.into_iter().map(|(s, id)| (s.to_owned(), id)).collect();
            let error = plain.with_specials(specials).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
