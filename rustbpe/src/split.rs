//! Cut text into words: with the hand-written scanner where it knows the pattern, else with a regex engine.

use std::ops::Range;

use fancy_regex::{Regex, RegexBuilder};

use crate::Error;
use crate::scan::Scanner;
use crate::unicode::{LETTER, of_char};

/// GPT-4's pattern with numbers cut into groups of at most two digits.
pub const DEFAULT_PATTERN: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)",       // a contraction's tail
    r"|[^\r\n\p{L}\p{N}]?+\p{L}+",  // letters, with at most one other character before them
    r"|\p{N}{1,2}",                 // one or two digits
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*", // punctuation, with the line ends after it
    r"|\s*[\r\n]",                  // space up to a line end
    r"|\s+(?!\S)",                  // space, but for the last one before a word
    r"|\s+",
);

/// Steps back the engine may take on one word. Its default, a million, is less than its stack can hold.
const BACKTRACK_LIMIT: usize = 1 << 30;

#[derive(Debug, Clone)]
enum Engine {
    Scanner(Scanner),
    Regex(Box<Regex>),
}

#[derive(Debug, Clone)]
pub struct Splitter {
    pattern: String,
    engine: Engine,
}

impl Splitter {
    pub fn new(pattern: &str) -> Result<Self, Error> {
        match Scanner::of_pattern(pattern) {
            Some(scanner) => {
                Ok(Splitter { pattern: pattern.to_owned(), engine: Engine::Scanner(scanner) })
            }
            None => Self::with_engine(pattern),
        }
    }

    /// Leave even a known pattern to the regex engine: what the scanner is tested against.
    pub fn with_engine(pattern: &str) -> Result<Self, Error> {
        let regex = RegexBuilder::new(pattern)
            .backtrack_limit(BACKTRACK_LIMIT)
            .build()
            .map_err(|e| Error::Pattern { pattern: pattern.to_owned(), reason: e.to_string() })?;
        Ok(Splitter { pattern: pattern.to_owned(), engine: Engine::Regex(Box::new(regex)) })
    }

    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Call `visit` with the place of each word of `text`, in order, until it returns an error.
    /// Text between matches is dropped.
    #[inline]
    pub fn for_each_word(
        &self,
        text: &str,
        mut visit: impl FnMut(Range<usize>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match &self.engine {
            // A loop for each pattern, so that the choice is made once and not for every word.
            Engine::Scanner(Scanner::Gpt2) => scan(Scanner::Gpt2, text, visit),
            Engine::Scanner(known) => scan(*known, text, visit),
            Engine::Regex(regex) => {
                let mut end = 0;
                for found in regex.find_iter(text) {
                    let word =
                        found.map_err(|e| Error::Split { byte: end, reason: e.to_string() })?;
                    end = word.end();
                    if word.start() < end {
                        visit(word.start()..end)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Cut a text into pieces of at least `size` bytes that may be split one by one, on any thread.
    ///
    /// Between a letter and anything else all known patterns cut, whatever stands around them, and none
    /// looks behind. With any other pattern the text stays whole.
    pub fn pieces<'t>(&self, text: &'t str, size: usize) -> impl Iterator<Item = &'t str> {
        let known = matches!(self.engine, Engine::Scanner(_));
        let mut rest = text;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let cut = if known { cut_after(rest, size) } else { None };
            let (piece, after) = rest.split_at(cut.unwrap_or(rest.len()));
            rest = after;
            Some(piece)
        })
    }
}

#[inline(always)]
fn scan(
    scanner: Scanner,
    text: &str,
    mut visit: impl FnMut(Range<usize>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut start = 0;
    while start < text.len() {
        let end = scanner.word_end(text, start);
        visit(start..end)?;
        start = end;
    }
    Ok(())
}

/// The first place behind `from` where a letter is followed by something else.
fn cut_after(text: &str, from: usize) -> Option<usize> {
    let start = (from..text.len()).find(|&at| text.is_char_boundary(at))?;
    let mut before_is_letter = false;
    let ends = text[start..].char_indices().find(|&(_, character)| {
        let is_letter = of_char(character) == LETTER;
        std::mem::replace(&mut before_is_letter, is_letter) && !is_letter
    });
    ends.map(|(at, _)| start + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t str> {
        let mut out = Vec::new();
        let push = |word| {
            out.push(&text[word]);
            Ok(())
        };
        splitter.for_each_word(text, push).unwrap();
        out
    }

    fn default_words(text: &str) -> Vec<&str> {
        words(&Splitter::new(DEFAULT_PATTERN).unwrap(), text)
    }

    #[test]
    fn splits_as_gpt4_but_two_digits() {
        let expected = ["Don", "'t", " pay", " $", "12", "34", "5", "!"];
        assert_eq!(default_words("Don't pay $12345!"), expected);
        assert_eq!(default_words("a  b\n\n c"), ["a", " ", " b", "\n\n", " c"]);
    }

    #[test]
    fn the_engine_says_when_a_run_of_space_is_too_long_and_the_scanner_takes_it() {
        let long = " ".repeat(3_000_000);
        let engine = Splitter::with_engine(DEFAULT_PATTERN).unwrap();
        let error = engine.for_each_word(&long, |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::Split { byte: 0, .. }), "{error}");
        assert_eq!(default_words(&long).len(), 1);
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let error = Splitter::new("(a").unwrap_err().to_string();
        assert!(error.contains("\"(a\""), "{error}");
    }

    #[test]
    fn empty_matches_are_no_words() {
        assert_eq!(words(&Splitter::new("x*").unwrap(), "abxx"), ["xx"]);
    }

    #[test]
    fn an_unknown_pattern_keeps_a_text_whole() {
        let text = "a b ".repeat(100);
        assert_eq!(Splitter::new(r"\S+").unwrap().pieces(&text, 10).count(), 1);
        assert!(Splitter::new(DEFAULT_PATTERN).unwrap().pieces(&text, 10).count() > 30);
    }

    proptest! {
        #[test]
        fn pieces_have_the_words_of_the_whole(
            text in "[ab 's1.\n\u{a0}é語]{0,60}", size in 1usize..20, gpt2 in any::<bool>()
        ) {
            let gpt2_pattern =
                r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
            let splitter =
                Splitter::new(if gpt2 { gpt2_pattern } else { DEFAULT_PATTERN }).unwrap();
            let pieces: Vec<&str> = splitter.pieces(&text, size).collect();
            prop_assert_eq!(pieces.concat(), text.clone());
            let apart: Vec<&str> = pieces.iter().flat_map(|p| words(&splitter, p)).collect();
            prop_assert_eq!(apart, words(&splitter, &text));
        }
    }
}
