//! The whole file: joined lines with their heredocs.

use super::directives::{DirectiveName, DirectiveReader};
use super::heredoc::heredocs_of_line;
use super::lines::{Lines, continued, is_comment, without_bom, without_leading_space, without_line_end};
use super::words::{json_strings, pairs, plain_words, quoted_words, split_line};
use super::{EscapeToken, MAX_FILE_BYTES, MAX_INSTRUCTIONS, MAX_TEXT_BYTES, SyntaxError};
use crate::error::Error;
use crate::instructions::{Heredoc, KeyValue};
use crate::location::LineRange;

/// A file that divides into instructions.
pub(crate) struct ParsedDocument {
    pub(crate) escape: EscapeToken,
    pub(crate) instructions: Vec<ParsedLine>,
    /// The last lines of instructions that have an empty line among their continuation lines.
    pub(crate) empty_continuations: Vec<u32>,
}

/// One instruction, divided but not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParsedLine {
    pub(crate) keyword: String,
    pub(crate) flags: Vec<String>,
    pub(crate) arguments: Arguments,
    pub(crate) heredocs: Vec<Heredoc>,
    /// The joined line.
    pub(crate) original: String,
    pub(crate) lines: LineRange,
    pub(crate) comments: Vec<String>,
}

/// Arguments in the shape that their keyword asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// Separate words.
    Words(Vec<String>),
    /// A JSON array.
    Json(Vec<String>),
    /// All the rest as one text; empty if there is none.
    Text(String),
    /// Names and values.
    Pairs(Vec<KeyValue>),
    /// `HEALTHCHECK`'s first word, and what follows.
    Health { kind: String, rest: Box<Arguments> },
    /// `ONBUILD`'s instruction, as far as it matters here.
    Trigger { keyword: String, takes_heredocs: bool },
    /// The keyword is unknown.
    Unknown,
}

/// Divides a file into instructions.
pub(crate) fn parse_document(file: &[u8]) -> Result<ParsedDocument, Error> {
    if file.len() > MAX_FILE_BYTES {
        let problem = SyntaxError::FileTooLarge { limit: MAX_FILE_BYTES };
        return Err(Error::Syntax { problem, lines: LineRange::line(1) });
    }
    let mut reader = Reader {
        lines: Lines::new(without_bom(file)),
        directives: DirectiveReader::new("#"),
        escape: EscapeToken::default(),
        text_bytes: 0,
        empty_continuations: Vec::new(),
    };
    let mut instructions = Vec::new();
    loop {
        let (start, parsed) = reader.instruction();
        let problem = match parsed {
            Ok(Some(_)) if instructions.len() == MAX_INSTRUCTIONS => {
                SyntaxError::TooManyInstructions { limit: MAX_INSTRUCTIONS }
            }
            Ok(Some(line)) => {
                instructions.push(line);
                continue;
            }
            Ok(None) if instructions.is_empty() => SyntaxError::NoInstructions,
            Ok(None) => break,
            Err(problem) => problem,
        };
        return Err(Error::Syntax { problem, lines: LineRange::new(start, reader.lines.read.max(1)) });
    }
    let Reader { escape, empty_continuations, .. } = reader;
    Ok(ParsedDocument { escape, instructions, empty_continuations })
}

struct Reader<'a> {
    lines: Lines<'a>,
    directives: DirectiveReader,
    escape: EscapeToken,
    text_bytes: usize,
    empty_continuations: Vec<u32>,
}

impl<'a> Reader<'a> {
    /// The line at which the next instruction (or the trouble) starts, and the instruction.
    fn instruction(&mut self) -> (u32, Result<Option<ParsedLine>, SyntaxError>) {
        let mut comments = Vec::new();
        loop {
            let first = match self.first_line(&mut comments) {
                Ok(Some(first)) => first,
                Ok(None) => return (self.lines.read.max(1), Ok(None)),
                Err(problem) => return (self.lines.read.max(1), Err(problem)),
            };
            let start = self.lines.read;
            let (text, open) = match continued(first, self.escape) {
                Some(text) => (text, true),
                None => (first, false),
            };
            if text.is_empty() && !open {
                continue;
            }
            return (start, self.rest_of_instruction(start, text, open, comments).map(Some));
        }
    }

    /// The next line that may start an instruction: without its end, without white space at its start, empty if it was a comment.
    fn first_line(&mut self, comments: &mut Vec<String>) -> Result<Option<&'a [u8]>, SyntaxError> {
        let Some(raw) = self.text_line()? else { return Ok(None) };
        let line = without_leading_space(without_line_end(raw));
        let directive = self.directives.read(line)?;
        if let Some(directive) = directive {
            if directive.name == DirectiveName::Escape {
                self.escape = EscapeToken::from_directive(&directive.value)?;
            }
            return Ok(Some(b""));
        }
        if !is_comment(raw) {
            return Ok(Some(line));
        }
        // One byte is taken off, not the `#`: of an indented comment BuildKit keeps the `#`.
        let comment = String::from_utf8_lossy(&raw[1..]);
        match comment.trim() {
            "" => comments.clear(),
            comment => comments.push(comment.to_owned()),
        }
        Ok(Some(b""))
    }

    fn rest_of_instruction(
        &mut self,
        start: u32,
        first: &[u8],
        mut open: bool,
        comments: Vec<String>,
    ) -> Result<ParsedLine, SyntaxError> {
        let mut joined = first.to_owned();
        let mut has_empty_line = false;
        while open && let Some(raw) = self.text_line()? {
            if is_comment(raw) {
                continue;
            }
            let line = without_line_end(raw);
            if without_leading_space(line).is_empty() {
                has_empty_line = true;
                continue;
            }
            // White space at the start of these stays, as it always has.
            let text = continued(line, self.escape);
            open = text.is_some();
            joined.extend_from_slice(text.unwrap_or(line));
        }
        if has_empty_line {
            self.empty_continuations.push(self.lines.read);
        }
        let joined = String::from_utf8(joined).map_err(|_| SyntaxError::NotUtf8)?;
        let mut parsed = parse_instruction_line(joined, self.escape)?;
        if parsed.takes_heredocs() {
            for word in heredocs_of_line(&parsed.original)? {
                let content = self.heredoc_body(&word.name, word.strip_tabs)?;
                parsed.heredocs.push(Heredoc {
                    name: word.name,
                    file_descriptor: word.file_descriptor,
                    expand: word.expand,
                    strip_tabs: word.strip_tabs,
                    content,
                });
            }
        }
        parsed.lines = LineRange::new(start, self.lines.read);
        parsed.comments = comments;
        Ok(parsed)
    }

    fn heredoc_body(&mut self, name: &str, strip_tabs: bool) -> Result<String, SyntaxError> {
        let mut content = Vec::new();
        while let Some(raw) = self.lines.next()? {
            let mut line = without_line_end(raw);
            while strip_tabs && let [b'\t', rest @ ..] = line {
                line = rest;
            }
            if line == name.as_bytes() {
                return String::from_utf8(content).map_err(|_| SyntaxError::NotUtf8);
            }
            content.extend_from_slice(raw);
        }
        Err(SyntaxError::UnterminatedHeredoc)
    }

    /// A line outside heredocs.
    fn text_line(&mut self) -> Result<Option<&'a [u8]>, SyntaxError> {
        let line = self.lines.next()?;
        self.text_bytes += line.map_or(0, <[u8]>::len);
        if self.text_bytes > MAX_TEXT_BYTES {
            return Err(SyntaxError::TextTooLarge { limit: MAX_TEXT_BYTES });
        }
        Ok(line)
    }
}

/// Divides one joined line; heredocs, comments and line numbers are for the caller to add.
fn parse_instruction_line(line: String, escape: EscapeToken) -> Result<ParsedLine, SyntaxError> {
    let (keyword, flags, rest) = split_line(&line, escape);
    let arguments = if keyword.eq_ignore_ascii_case("onbuild") && !rest.is_empty() {
        // Its own arguments are checked here, one level deep: a chain of ONBUILDs is refused later whatever is at its end.
        let (keyword, _, rest) = split_line(rest, escape);
        let inner = arguments(&keyword.to_lowercase(), rest, escape)?;
        let takes_heredocs = takes_heredocs(keyword) && !matches!(inner, Arguments::Json(_));
        Arguments::Trigger { keyword: keyword.to_owned(), takes_heredocs }
    } else {
        arguments(&keyword.to_lowercase(), rest, escape)?
    };
    let keyword = keyword.to_owned();
    Ok(ParsedLine {
        keyword,
        flags,
        arguments,
        heredocs: Vec::new(),
        original: line,
        lines: LineRange::line(1),
        comments: Vec::new(),
    })
}

fn arguments(keyword: &str, rest: &str, escape: EscapeToken) -> Result<Arguments, SyntaxError> {
    Ok(match keyword {
        "add" | "copy" | "volume" => match json_strings(rest)? {
            Some(strings) => Arguments::Json(strings),
            None => Arguments::Words(plain_words(rest)),
        },
        "arg" => Arguments::Words(quoted_words(rest, escape)),
        "expose" | "from" => Arguments::Words(plain_words(rest)),
        "cmd" | "entrypoint" | "run" | "shell" => text_or_json(rest)?,
        "env" => Arguments::Pairs(pairs(rest, "ENV", escape)?),
        "label" => Arguments::Pairs(pairs(rest, "LABEL", escape)?),
        "maintainer" | "stopsignal" | "user" | "workdir" => Arguments::Text(rest.to_owned()),
        "healthcheck" => {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            let (kind, rest) = rest.split_at(end);
            Arguments::Health {
                kind: kind.to_owned(),
                rest: Box::new(text_or_json(
                    rest.trim_start_matches(['\t', '\n', '\u{b}', '\u{c}', '\r', ' ']),
                )?),
            }
        }
        // With an argument it does not get here from a line of its own; inside another ONBUILD it is refused later.
        "onbuild" => Arguments::Trigger { keyword: String::new(), takes_heredocs: false },
        _ => Arguments::Unknown,
    })
}

fn text_or_json(rest: &str) -> Result<Arguments, SyntaxError> {
    Ok(match json_strings(rest)? {
        Some(strings) => Arguments::Json(strings),
        None => Arguments::Text(rest.to_owned()),
    })
}

fn takes_heredocs(keyword: &str) -> bool {
    ["add", "copy", "run"].iter().any(|known| keyword.eq_ignore_ascii_case(known))
}

impl ParsedLine {
    fn takes_heredocs(&self) -> bool {
        match &self.arguments {
            Arguments::Trigger { takes_heredocs, .. } => *takes_heredocs,
            Arguments::Json(_) => false,
            _ => takes_heredocs(&self.keyword),
        }
    }
}
