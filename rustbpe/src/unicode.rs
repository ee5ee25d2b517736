//! What a character is to a split pattern: a letter, a number, white space, a line end, or other.
//!
//! The table is built at first use from the regex engine's own Unicode data, so that the hand-written
//! scanner and the engine can never disagree about a character.

use std::sync::LazyLock;

use regex_syntax::hir::{Class as HirClass, HirKind};

/// `\p{L}`
pub const LETTER: u8 = 0;
/// `\p{N}`
pub const NUMBER: u8 = 1;
/// `\s` without the two below
pub const SPACE: u8 = 2;
/// `[\r\n]`
pub const NEWLINE: u8 = 3;
/// anything else
pub const OTHER: u8 = 4;
/// Of a byte, not of a character: it begins or continues a character outside ASCII.
pub const NOT_ASCII: u8 = 5;

/// The class of each byte that is a character of its own.
pub static OF_BYTE: [u8; 256] = {
    let mut table = [NOT_ASCII; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => LETTER,
            b'0'..=b'9' => NUMBER,
            b'\r' | b'\n' => NEWLINE,
            b' ' | b'\t' | 0x0b | 0x0c => SPACE,
            _ => OTHER,
        };
        byte += 1;
    }
    table
};

const BLOCK: usize = 256;

/// All of Unicode in two steps: most blocks of 256 characters are alike and are stored once.
struct Table {
    block_of: Vec<u16>,
    blocks: Vec<[u8; BLOCK]>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut classes = vec![OTHER; char::MAX as usize + 1];
    for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
        let hir = regex_syntax::parse(pattern).expect("a fixed pattern");
        let HirKind::Class(HirClass::Unicode(ranges)) = hir.into_kind() else {
            unreachable!("{pattern} is a class of characters")
        };
        for range in ranges.iter() {
            classes[range.start() as usize..=range.end() as usize].fill(class);
        }
    }
    classes['\r' as usize] = NEWLINE;
    classes['\n' as usize] = NEWLINE;
    let mut table = Table { block_of: Vec::new(), blocks: Vec::new() };
    for block in classes.chunks_exact(BLOCK) {
        let known = table.blocks.iter().position(|other| other == block);
        table.block_of.push(known.unwrap_or(table.blocks.len()) as u16);
        if known.is_none() {
            table.blocks.push(block.try_into().expect("a whole block"));
        }
    }
    table
});

pub fn of_char(character: char) -> u8 {
    let code = character as usize;
    let table = &*TABLE;
    table.blocks[table.block_of[code / BLOCK] as usize][code % BLOCK]
}

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;

    #[test]
    fn every_character_is_what_the_regex_engine_says() {
        let patterns =
            [(r"^\p{L}$", LETTER), (r"^\p{N}$", NUMBER), (r"^\s$", SPACE), (r"^[\r\n]$", NEWLINE)]
                .map(|(pattern, class)| (Regex::new(pattern).unwrap(), class));
        for character in '\0'..=char::MAX {
            let mut buffer = [0; 4];
            let text = character.encode_utf8(&mut buffer);
            let found = patterns.iter().rev().find(|(regex, _)| regex.is_match(text).unwrap());
            let expected = found.map_or(OTHER, |&(_, class)| class);
            assert_eq!(of_char(character), expected, "{character:?}");
            if character.is_ascii() {
                assert_eq!(OF_BYTE[character as usize], expected, "{character:?}");
            }
        }
    }
}
