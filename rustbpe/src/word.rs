//! Short words as numbers.
//!
//! Nearly all words fit into 15 bytes. With its length in the sixteenth such a word is a 128-bit number:
//! it is compared in one instruction and hashed with one multiplication.

/// A word of up to 15 bytes in little-endian order, its length in the highest byte. Never 0.
pub type Key = u128;

pub const LONGEST: usize = 15;

/// Pack the word `text[start..end]`; None if it is longer than a key.
#[inline(always)]
pub fn key(text: &[u8], start: usize, end: usize) -> Option<Key> {
    let len = end - start;
    if len > LONGEST {
        return None;
    }
    // 16 bytes at once wherever the text goes on that far; the end of a text byte by byte.
    let bytes = match text.get(start..start + 16) {
        Some(window) => u128::from_le_bytes(window.try_into().expect("16 bytes")),
        None => text[start..end].iter().rev().fold(0, |key, &byte| key << 8 | u128::from(byte)),
    };
    let (mask, high) = OF_LENGTH[len];
    Some(bytes & mask | high)
}

/// For each length: which bytes belong to the word, and the length where a key has it.
static OF_LENGTH: [(u128, u128); LONGEST + 1] = {
    let mut table = [(0, 0); LONGEST + 1];
    let mut len = 0;
    while len <= LONGEST {
        table[len] = ((1 << (8 * len)) - 1, (len as u128) << 120);
        len += 1;
    }
    table
};

/// Unpack a word: its bytes are the first of the result, as many as the second says.
#[inline]
pub fn unpack(key: Key) -> ([u8; 16], usize) {
    (key.to_le_bytes(), (key >> 120) as usize)
}

/// Hash a key. The constants are no UTF-8, so no word can zero a factor.
#[inline(always)]
pub fn hash(key: Key) -> u64 {
    let low = key as u64 ^ 0xf1bb_cdcb_fa53_e0af;
    let high = (key >> 64) as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let product = u128::from(low) * u128::from(high);
    (product >> 64) as u64 ^ product as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_words_apart_and_come_back() {
        let text = "aa\0\0, the rain in Spain stays";
        let mut seen = std::collections::HashMap::new();
        for start in 0..text.len() {
            for end in start + 1..=text.len() {
                let word = &text.as_bytes()[start..end];
                let Some(key) = key(text.as_bytes(), start, end) else {
                    assert!(word.len() > LONGEST);
                    continue;
                };
                let (bytes, len) = unpack(key);
                assert_eq!(&bytes[..len], word);
                assert_eq!(*seen.entry(key).or_insert(word), word);
            }
        }
    }
}
