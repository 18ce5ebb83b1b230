//! The lexer's one pass over a text.
//!
//! A text is read as one word (white space kept), and where it is asked for as words (split at white space) as well.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;

use super::pattern::{remove_prefix, remove_suffix, replace};
use super::{Lexer, Quotes, Unset, WordProblem};

/// `${a:-${b:-…}}` is read by recursion; nobody nests this deep, and the stack has to end somewhere.
const MAX_DEPTH: usize = 64;

/// How much longer than its text a result may get. A doubling variable (`ENV a=$a$a`, many times) ends here and not at the end of memory;
/// the kernel takes no argument or variable of more than 128 KiB.
const MAX_GROWTH: usize = 1 << 20;

// Ranges as in Go's unicode.IsLetter and unicode.IsDigit; `char::is_alphabetic` also has marks and letter numbers.
static LETTER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^\p{L}$").expect("a constant, covered by tests"));
static DIGIT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^\p{Nd}$").expect("a constant, covered by tests"));

/// One pass.
pub(super) struct Run<'a> {
    lexer: Lexer,
    escape: char,
    keep_escapes: bool,
    rest: std::str::Chars<'a>,
    lookup: &'a dyn Fn(&str) -> Option<&'a str>,
    depth: usize,
    limit: usize,
    /// Whether `${name-word}` or its like was read since the last look.
    nested: bool,
    /// Whether words are wanted.
    split: bool,
    words: Vec<String>,
    pub(super) used: BTreeSet<String>,
    pub(super) missing: BTreeSet<String>,
}

type Parsed = Result<String, WordProblem>;

impl<'a> Run<'a> {
    pub(super) fn new(lexer: Lexer, text: &'a str, lookup: &'a dyn Fn(&str) -> Option<&'a str>) -> Run<'a> {
        Run {
            lexer,
            escape: lexer.escape.as_char(),
            keep_escapes: lexer.keep_escapes,
            rest: text.chars(),
            lookup,
            depth: 0,
            nested: false,
            split: false,
            words: Vec::new(),
            limit: text.len() + MAX_GROWTH,
            used: BTreeSet::new(),
            missing: BTreeSet::new(),
        }
    }

    /// Reads everything, as one word.
    pub(super) fn value(&mut self) -> Parsed {
        self.until(None, self.lexer.keep_escapes)
    }

    /// Reads everything, as words.
    pub(super) fn words(&mut self) -> Result<Vec<String>, WordProblem> {
        self.split = true;
        self.until(None, self.lexer.keep_escapes)?;
        Ok(std::mem::take(&mut self.words))
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    /// Reads up to and including `stop`, or everything when there is none. A missing `stop` is reported as `OpenBrace`; the caller knows
    /// better where `/` was wanted.
    fn until(&mut self, stop: Option<char>, keep_escapes: bool) -> Parsed {
        if self.depth >= MAX_DEPTH {
            return Err(WordProblem::TooDeep(MAX_DEPTH));
        }
        self.depth += 1;
        let outer = std::mem::replace(&mut self.keep_escapes, keep_escapes);
        let read = self.until_inner(stop);
        self.keep_escapes = outer;
        self.depth -= 1;
        self.nested = true;
        read
    }

    fn until_inner(&mut self, stop: Option<char>) -> Parsed {
        let mut value = String::new();
        // A word inside `${…}` is one word.
        let wanted = self.split && self.depth == 1;
        let mut words = Words::default();
        while let Some(ch) = self.peek() {
            if Some(ch) == stop {
                self.rest.next();
                return Ok(value);
            }
            match ch {
                '$' => {
                    let part = self.dollar()?;
                    self.forget_if_nested(&mut words);
                    value.push_str(&part);
                    if wanted {
                        part.chars().for_each(|ch| words.push(ch));
                    }
                }
                '<' => {
                    let part = self.less_than();
                    value.push_str(&part);
                    words.push_quoted(&part);
                }
                '\'' | '"' if self.lexer.quotes != Quotes::Ignore => {
                    let part = if ch == '"' { self.double_quote()? } else { self.single_quote()? };
                    self.forget_if_nested(&mut words);
                    value.push_str(&part);
                    words.push_quoted(&part);
                }
                _ if ch == self.escape => {
                    self.rest.next();
                    if self.keep_escapes {
                        value.push(ch);
                        words.push_escaped(ch);
                    }
                    // An escape at the very end stands for nothing.
                    let Some(escaped) = self.rest.next() else { break };
                    value.push(escaped);
                    words.push_escaped(escaped);
                }
                _ => {
                    let text = self.rest.as_str();
                    let special =
                        |ch| matches!(ch, '$' | '<' | '\'' | '"') || ch == self.escape || Some(ch) == stop;
                    // A quote that is none is here as well: what comes first is taken whatever it is.
                    let first = ch.len_utf8();
                    let end = text[first..].find(special).map_or(text.len(), |at| first + at);
                    let (plain, rest) = text.split_at(end);
                    self.rest = rest.chars();
                    value.push_str(plain);
                    if wanted {
                        plain.chars().for_each(|ch| words.push(ch));
                    }
                }
            }
            if value.len() > self.limit {
                return Err(WordProblem::TooLong(self.limit));
            }
        }
        if stop.is_some() {
            return Err(WordProblem::OpenBrace);
        }
        if wanted {
            self.words = words.finish();
        }
        Ok(value)
    }

    /// Where words are split, a word in `${name-word}` costs what stands before it in the same word: `EXPOSE 80${x:-81}` is port 81.
    /// BuildKit's buffer is one for both, and what is exposed, and which heredocs there are, depends on it.
    fn forget_if_nested(&mut self, words: &mut Words) {
        if std::mem::take(&mut self.nested) {
            words.current.clear();
        }
    }

    /// `'…'`: nothing in it is special.
    fn single_quote(&mut self) -> Parsed {
        let mut value = String::new();
        let keep = self.lexer.quotes == Quotes::Keep;
        self.rest.next();
        if keep {
            value.push('\'');
        }
        for ch in self.rest.by_ref() {
            if ch == '\'' {
                if keep {
                    value.push(ch);
                }
                return Ok(value);
            }
            value.push(ch);
        }
        Err(WordProblem::OpenSingleQuote)
    }

    /// `"…"`: variables are expanded, and the escape works before `"`, `$` and itself.
    fn double_quote(&mut self) -> Parsed {
        let mut value = String::new();
        let keep = self.lexer.quotes == Quotes::Keep;
        self.rest.next();
        if keep {
            value.push('"');
        }
        while let Some(ch) = self.peek() {
            match ch {
                '"' => {
                    self.rest.next();
                    if keep {
                        value.push(ch);
                    }
                    return Ok(value);
                }
                '$' => value.push_str(&self.dollar()?),
                _ if ch == self.escape => {
                    self.rest.next();
                    if self.keep_escapes {
                        value.push(ch);
                    }
                    match self.peek() {
                        None => break,
                        Some(next) if next == '"' || next == '$' || next == self.escape => {
                            self.rest.next();
                            value.push(next);
                        }
                        Some(_) => value.push(ch),
                    }
                }
                _ => {
                    self.rest.next();
                    value.push(ch);
                }
            }
            if value.len() > self.limit {
                return Err(WordProblem::TooLong(self.limit));
            }
        }
        Err(WordProblem::OpenDoubleQuote)
    }

    /// `<<` takes the white space behind it into its word, so that `<< EOF` is one word.
    fn less_than(&mut self) -> String {
        self.rest.next();
        if self.peek() != Some('<') {
            return "<".to_owned();
        }
        self.rest.next();
        let mut part = "<<".to_owned();
        while let Some(ch @ ('\t' | '\r' | ' ')) = self.peek() {
            self.rest.next();
            part.push(ch);
        }
        part
    }

    /// `$name` and `${…}`.
    fn dollar(&mut self) -> Parsed {
        self.rest.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match (self.value_of(&name), self.lexer.unset) {
                (Some(value), _) => value.to_owned(),
                (None, Unset::Keep) => format!("${name}"),
                (None, Unset::Empty) => String::new(),
            });
        }
        self.rest.next();
        match self.peek() {
            None => return Err(WordProblem::OpenBrace),
            Some('{' | '}' | ':') => return Err(WordProblem::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.rest.next() {
            None => Err(WordProblem::OpenBrace),
            Some('}') => Ok(match (self.value_of(&name), self.lexer.unset) {
                (Some(value), _) => value.to_owned(),
                (None, Unset::Keep) => format!("${{{name}}}"),
                (None, Unset::Empty) => String::new(),
            }),
            Some(':') => match self.rest.next() {
                None => Err(WordProblem::OpenBrace),
                Some(modifier @ ('#' | '%')) => Err(WordProblem::UnsupportedModifier(format!(":{modifier}"))),
                Some(modifier) => self.modified(&name, modifier, true),
            },
            Some(modifier @ ('+' | '-' | '?')) => self.modified(&name, modifier, false),
            Some(end @ ('#' | '%')) => self.trimmed(&name, end),
            Some('/') => self.replaced(&name),
            Some(modifier) => Err(WordProblem::UnsupportedModifier(modifier.to_string())),
        }
    }

    /// `${name-word}`, `${name+word}`, `${name?word}`, and with `:` before the modifier.
    fn modified(&mut self, name: &str, modifier: char, empty_is_unset: bool) -> Parsed {
        let word = self.until(Some('}'), false).map_err(|problem| self.unless_at_end(problem))?;
        let colon = if empty_is_unset { ":" } else { "" };
        let value = self.value_of(name);
        if value.is_none() && self.lexer.unset == Unset::Keep {
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let usable = value.filter(|value| !(empty_is_unset && value.is_empty()));
        match modifier {
            '-' => Ok(usable.map_or(word, str::to_owned)),
            '+' => Ok(usable.map_or(String::new(), |_| word)),
            '?' => usable.map(str::to_owned).ok_or_else(|| {
                let default = match value {
                    None => "is not allowed to be unset",
                    Some(_) => "is not allowed to be empty",
                };
                let message = if word.is_empty() { default.to_owned() } else { word };
                WordProblem::Required { name: name.to_owned(), message }
            }),
            _ => Err(WordProblem::UnsupportedModifier(format!("{colon}{modifier}"))),
        }
    }

    /// `${name#pattern}`, `${name##pattern}`, `${name%pattern}`, `${name%%pattern}`.
    fn trimmed(&mut self, name: &str, end: char) -> Parsed {
        let word = self.until(Some('}'), true).map_err(|problem| self.unless_at_end(problem))?;
        let value = self.value_of(name);
        if value.is_none() && self.lexer.unset == Unset::Keep {
            return Ok(format!("${{{name}{end}{word}}}"));
        }
        let (greedy, pattern) = match word.strip_prefix(end) {
            Some(pattern) => (true, pattern),
            None => (false, word.as_str()),
        };
        let value = value.unwrap_or_default();
        if end == '%' { remove_suffix(value, pattern, greedy) } else { remove_prefix(value, pattern, greedy) }
    }

    /// `${name/pattern/replacement}`, `${name//pattern/replacement}`.
    fn replaced(&mut self, name: &str) -> Parsed {
        let all = self.peek() == Some('/');
        if all {
            self.rest.next();
        }
        let pattern = self.until(Some('/'), true).map_err(|problem| match self.unless_at_end(problem) {
            WordProblem::OpenBrace => WordProblem::MissingSlash,
            other => other,
        })?;
        let replacement = self.until(Some('}'), true).map_err(|problem| self.unless_at_end(problem))?;
        let value = self.value_of(name);
        if value.is_none() && self.lexer.unset == Unset::Keep {
            return Ok(format!("${{{name}/{}/{replacement}}}", pattern));
        }
        replace(value.unwrap_or_default(), &pattern, &replacement, all, self.limit)
    }

    /// Whatever went wrong inside `${…`, at the end of the text the news is that `}` is missing.
    fn unless_at_end(&self, problem: WordProblem) -> WordProblem {
        match problem {
            WordProblem::TooLong(_) | WordProblem::TooDeep(_) => problem,
            _ if self.peek().is_none() => WordProblem::OpenBrace,
            other => other,
        }
    }

    /// A variable's name: letters, digits and `_`; or digits alone; or one special parameter of the shell.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.peek() {
            Some(first) if is_digit(first) => {
                while let Some(ch) = self.peek().filter(|ch| is_digit(*ch)) {
                    self.rest.next();
                    name.push(ch);
                }
            }
            Some(first @ ('@' | '*' | '#' | '?' | '-' | '$' | '!')) => {
                self.rest.next();
                name.push(first);
            }
            _ => {
                while let Some(ch) = self.peek().filter(|ch| is_letter(*ch) || is_digit(*ch) || *ch == '_') {
                    self.rest.next();
                    name.push(ch);
                }
            }
        }
        name
    }

    fn value_of(&mut self, name: &str) -> Option<&'a str> {
        let value = (self.lookup)(name);
        let seen = if value.is_some() { &mut self.used } else { &mut self.missing };
        if !seen.contains(name) {
            seen.insert(name.to_owned());
        }
        value
    }
}

pub(super) fn is_letter(ch: char) -> bool {
    if ch.is_ascii() { ch.is_ascii_alphabetic() } else { LETTER.is_match(ch.encode_utf8(&mut [0; 4])) }
}

pub(super) fn is_digit(ch: char) -> bool {
    if ch.is_ascii() { ch.is_ascii_digit() } else { DIGIT.is_match(ch.encode_utf8(&mut [0; 4])) }
}

/// The text as words.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
}

impl Words {
    fn push(&mut self, ch: char) {
        if !ch.is_whitespace() {
            self.current.push(ch);
        } else if !self.current.is_empty() {
            self.done.push(std::mem::take(&mut self.current));
        }
    }

    fn push_escaped(&mut self, ch: char) {
        self.current.push(ch);
    }

    fn push_quoted(&mut self, part: &str) {
        self.current.push_str(part);
    }

    fn finish(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.done.push(self.current);
        }
        self.done
    }
}
