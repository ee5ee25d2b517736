//! A hand-written scanner for the split patterns of GPT-2 and GPT-4.
//!
//! A regex engine tries alternative after alternative at each position and steps back where one fails.
//! For these patterns the class of one or two characters decides which alternative it will be, so a
//! scanner needs no step back, except inside a run of white space. Tests compare it with the engine.

use crate::unicode::{LETTER, NEWLINE, NOT_ASCII, NUMBER, OF_BYTE, OTHER, SPACE, of_char};

/// The longest run of digits for which GPT-4's pattern is recognised.
const MOST_DIGITS: usize = 9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanner {
    /// `'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// `'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+`
    ///
    /// `digits` stands for the 3. `whole_end` says that white space at the end of a text is one word, even
    /// with a line end in it: tiktoken's spelling has `|\s++$` before the line ends.
    Gpt4 { digits: usize, whole_end: bool },
}

impl Scanner {
    /// Recognise a pattern, in any of the spellings that tiktoken, nanochat and Hugging Face use.
    pub fn of_pattern(pattern: &str) -> Option<Self> {
        let gpt2 = [
            r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        ];
        if gpt2.contains(&pattern) {
            return Some(Scanner::Gpt2);
        }
        let gpt4 = [
            (
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}",
                r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
                false,
            ),
            (
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}",
                r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
                true,
            ),
            (
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                false,
            ),
        ];
        gpt4.into_iter().find_map(|(before, after, whole_end)| {
            let count = pattern.strip_prefix(before)?.strip_suffix(after)?;
            let digits = (1..=MOST_DIGITS).find(|digits| {
                count == format!("{{1,{digits}}}")
                    || count == format!("{{1,{digits}}}+")
                    || (count.is_empty() && *digits == 1)
            })?;
            Some(Scanner::Gpt4 { digits, whole_end })
        })
    }

    /// Return where the word that begins at `start` ends. The words of these patterns cover all text.
    #[inline]
    pub fn word_end(self, text: &str, start: usize) -> usize {
        match self {
            Scanner::Gpt2 => gpt2_end(text, start),
            Scanner::Gpt4 { digits, whole_end } => gpt4_end(text, start, digits, whole_end),
        }
    }
}

#[inline]
fn gpt4_end(text: &str, start: usize, digits: usize, whole_end: bool) -> usize {
    let (class, width) = class_at(text, start);
    let next = start + width;
    match class {
        LETTER => letters_end(text, next),
        SPACE if next < text.len() => match class_at(text, next).0 {
            LETTER => letters_end(text, next),
            OTHER if text.as_bytes()[start] == b' ' => punctuation_end(text, next),
            _ => space_end(text, start, true, whole_end),
        },
        OTHER => {
            if let Some(end) = contraction_end(text, start, true) {
                end
            } else if next < text.len() && class_at(text, next).0 == LETTER {
                letters_end(text, next)
            } else {
                punctuation_end(text, next)
            }
        }
        NUMBER => {
            let mut end = next;
            for _ in 1..digits {
                match text[end..].chars().next() {
                    Some(c) if of_char(c) == NUMBER => end += c.len_utf8(),
                    _ => break,
                }
            }
            end
        }
        _ => space_end(text, start, true, whole_end),
    }
}

#[inline]
fn gpt2_end(text: &str, start: usize) -> usize {
    if let Some(end) = contraction_end(text, start, false) {
        return end;
    }
    let (class, width) = class_at(text, start);
    let next = start + width;
    if class == SPACE || class == NEWLINE {
        if text.as_bytes()[start] == b' ' && next < text.len() {
            let (class, width) = class_at(text, next);
            if class == LETTER {
                return letters_end(text, next + width);
            }
            if class != SPACE && class != NEWLINE {
                return run_end(text, next + width, class);
            }
        }
        return space_end(text, start, false, false);
    }
    if class == LETTER {
        return letters_end(text, next);
    }
    run_end(text, next, class)
}

/// The class of the character at `at`, and its width in bytes.
#[inline(always)]
fn class_at(text: &str, at: usize) -> (u8, usize) {
    match OF_BYTE[text.as_bytes()[at] as usize] {
        NOT_ASCII => wide_class_at(text, at),
        class => (class, 1),
    }
}

#[inline(never)]
fn wide_class_at(text: &str, at: usize) -> (u8, usize) {
    let character = text[at..].chars().next().expect("a byte is part of a character");
    (of_char(character), character.len_utf8())
}

/// Skip characters of one class.
#[inline(always)]
fn run_end(text: &str, mut at: usize, class: u8) -> usize {
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let found = OF_BYTE[bytes[at] as usize];
        if found == class {
            at += 1;
            continue;
        }
        if found != NOT_ASCII {
            break;
        }
        let (wide, width) = wide_class_at(text, at);
        if wide != class {
            break;
        }
        at += width;
    }
    at
}

/// Skip letters, eight bytes at a time while they are ASCII.
///
/// A loop over bytes leaves a word at a place that the processor cannot predict; here nearly all words
/// take one round.
#[inline(always)]
fn letters_end(text: &str, mut at: usize) -> usize {
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    const fn every(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    while let Some(eight) = text.as_bytes().get(at..at + 8) {
        let bytes = u64::from_le_bytes(eight.try_into().expect("8 bytes"));
        // Of each byte without its high bit and as a small letter: is it at least `a`, is it above `z`?
        let small = bytes & !HIGH | every(0x20);
        let letters = (small + every(0x80 - b'a')) & !(small + every(0x7f - b'z')) & !bytes & HIGH;
        let n = (!letters & HIGH).trailing_zeros() as usize / 8;
        at += n;
        if n < 8 {
            break;
        }
    }
    // What ends the run may be a letter after all, outside ASCII; and the end of a text is short of eight.
    match text.as_bytes().get(at) {
        Some(&byte) if matches!(OF_BYTE[byte as usize], LETTER | NOT_ASCII) => {
            run_end(text, at, LETTER)
        }
        _ => at,
    }
}

fn punctuation_end(text: &str, at: usize) -> usize {
    run_end(text, run_end(text, at, OTHER), NEWLINE)
}

/// `'s`, `'ll` and their like at `start`. Without regard to case, `'ſ` counts too: it is an old form of s.
#[inline(always)]
fn contraction_end(text: &str, start: usize, any_case: bool) -> Option<usize> {
    if text.as_bytes()[start] != b'\'' {
        return None;
    }
    let rest = &text.as_bytes()[start + 1..];
    let letter = |i: usize| {
        let byte = *rest.get(i)?;
        Some(if any_case { byte.to_ascii_lowercase() } else { byte })
    };
    match letter(0)? {
        b's' | b'd' | b'm' | b't' => Some(start + 2),
        b'l' if letter(1) == Some(b'l') => Some(start + 3),
        b'v' | b'r' if letter(1) == Some(b'e') => Some(start + 3),
        0xc5 if any_case && rest.starts_with("ſ".as_bytes()) => Some(start + 3),
        _ => None,
    }
}

/// White space: up to its last line end if `lines`, else all but the character before the next word.
fn space_end(text: &str, start: usize, lines: bool, whole_end: bool) -> usize {
    let (mut at, mut last, mut line_end) = (start, start, None);
    while at < text.len() {
        let (class, width) = class_at(text, at);
        if class != SPACE && class != NEWLINE {
            break;
        }
        last = at;
        at += width;
        if class == NEWLINE {
            line_end = Some(at);
        }
    }
    match line_end {
        _ if at == text.len() && whole_end => at,
        Some(end) if lines => end,
        _ if at == text.len() || last == start => at,
        _ => last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Splitter;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
    const OLD_CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn patterns() -> Vec<String> {
        let ours = crate::split::DEFAULT_PATTERN;
        let mut patterns = vec![
            GPT2.to_owned(),
            GPT2.replace("(?:[sdmt]|ll|ve|re)", "s|'t|'re|'ve|'m|'ll|'d"),
            r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
                .into(),
            CL100K.to_owned(),
            OLD_CL100K.to_owned(),
            OLD_CL100K.replace("{1,3}", ""),
        ];
        patterns.extend([1, 2, 3, 9].map(|n| ours.replace("{1,2}", &format!("{{1,{n}}}"))));
        patterns
    }

    fn scanned(scanner: Scanner, text: &str) -> Vec<&str> {
        let (mut words, mut at) = (Vec::new(), 0);
        while at < text.len() {
            let end = scanner.word_end(text, at);
            words.push(&text[at..end]);
            at = end;
        }
        words
    }

    static ENGINES: LazyLock<Vec<(Scanner, Splitter)>> = LazyLock::new(|| {
        let both = |pattern: &String| {
            let scanner = Scanner::of_pattern(pattern).expect(pattern);
            (scanner, Splitter::with_engine(pattern).unwrap())
        };
        patterns().iter().map(both).collect()
    });

    fn assert_equal_on(text: &str) {
        for (scanner, engine) in ENGINES.iter() {
            let mut expected = Vec::new();
            let push = |word| {
                expected.push(&text[word]);
                Ok(())
            };
            engine.for_each_word(text, push).unwrap();
            assert_eq!(scanned(*scanner, text), expected, "{}, text {text:?}", engine.pattern());
        }
    }

    #[test]
    fn hard_cases() {
        for text in [
            "",
            " ",
            "  ",
            "a  b",
            "a \n b",
            "a \n ",
            "a\n  ",
            "\r\n\r\n x",
            "'s 'S 'LL 'lL 'x 'ſ 'ſt",
            "don't DON'T we'Re",
            " 's",
            "x'",
            "'",
            "\t\tx",
            "\u{a0}x \u{3000}y",
            "!x !!x !!\r\n\nx",
            "12345x1",
            "½⅓¼x",
            "a\u{301}e",
            "語彙 語",
            "\u{85}\u{2028}x",
            "-1",
            " -1",
            "  1",
            " \u{1f44b}!",
        ] {
            assert_equal_on(text);
        }
    }

    #[test]
    fn other_patterns_are_left_to_the_engine() {
        for pattern in ["", r"\w+", &CL100K[1..], &OLD_CL100K.replace("{1,3}", "{1,10}")] {
            assert_eq!(Scanner::of_pattern(pattern), None);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn equals_the_engine_on_crowded_texts(
            text in "[a-c 'sSlLvVrReEtTdDmMſ1-3½.!\r\n\t\u{a0}\u{85}é語\u{301}\u{1f44b}\u{3000}]{0,24}"
        ) {
            assert_equal_on(&text);
        }

        #[test]
        fn equals_the_engine_on_long_words(text in "[ @-\\[`-{é]{0,40}|[a-zA-Z]{0,30}") {
            assert_equal_on(&text);
        }

        #[test]
        fn equals_the_engine_on_white_space(text in "[ \n\rx!]{0,12}") {
            assert_equal_on(&text);
        }

        #[test]
        fn equals_the_engine_on_any_text(text in any::<String>()) {
            assert_equal_on(&text);
        }
    }
}
