//! Cut text into words.
//!
//! One general engine serves every pattern. A faster scanner for a known pattern would be a second
//! arm of [`Splitter::for_each_word`]; nothing else needs to know.

use fancy_regex::{Regex, RegexBuilder};

use crate::Error;

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
pub struct Splitter {
    regex: Regex,
}

impl Splitter {
    pub fn new(pattern: &str) -> Result<Self, Error> {
        RegexBuilder::new(pattern)
            .backtrack_limit(BACKTRACK_LIMIT)
            .build()
            .map(|regex| Splitter { regex })
            .map_err(|e| Error::Pattern { pattern: pattern.to_owned(), reason: e.to_string() })
    }

    pub fn pattern(&self) -> &str {
        self.regex.as_str()
    }

    /// Call `visit` with each word of `text`, in order. Text between matches is no word: it is dropped.
    pub fn for_each_word<'t>(
        &self,
        text: &'t str,
        mut visit: impl FnMut(&'t str),
    ) -> Result<(), Error> {
        let mut end = 0;
        for found in self.regex.find_iter(text) {
            let word = found.map_err(|e| Error::Split { byte: end, reason: e.to_string() })?;
            end = word.end();
            if word.start() < end {
                visit(word.as_str());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<&str> {
        let mut out = Vec::new();
        Splitter::new(DEFAULT_PATTERN).unwrap().for_each_word(text, |w| out.push(w)).unwrap();
        out
    }

    #[test]
    fn splits_as_gpt4_but_two_digits() {
        assert_eq!(words("Don't pay $12345!"), ["Don", "'t", " pay", " $", "12", "34", "5", "!"]);
        assert_eq!(words("a  b\n\n c"), ["a", " ", " b", "\n\n", " c"]);
    }

    #[test]
    fn loses_nothing() {
        for text in
            ["", " ", "\r\n\t x", "你好,世界 1½", "\u{1f44b}\u{200d}a\u{301}", "a \n \n b  "]
        {
            assert_eq!(words(text).concat(), text);
        }
    }

    #[test]
    fn takes_long_runs_of_space_and_says_when_they_are_too_long() {
        assert_eq!(words(&format!("{}x", " ".repeat(900_000))).len(), 2);
        let splitter = Splitter::new(DEFAULT_PATTERN).unwrap();
        let error = splitter.for_each_word(&" ".repeat(3_000_000), |_| ()).unwrap_err();
        assert!(matches!(error, Error::Split { byte: 0, .. }), "{error}");
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let error = Splitter::new("(a").unwrap_err().to_string();
        assert!(error.contains("\"(a\""), "{error}");
    }

    #[test]
    fn empty_matches_are_no_words() {
        let mut n = 0;
        Splitter::new("x*").unwrap().for_each_word("abxx", |_| n += 1).unwrap();
        assert_eq!(n, 1);
    }
}
