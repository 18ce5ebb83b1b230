//! Directives: comments in the first lines that say how to read the rest.

use super::lines::{Lines, without_bom, without_leading_space};
use super::{EscapeToken, SyntaxError};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DirectiveName {
    Syntax,
    Escape,
    Check,
}

impl DirectiveName {
    fn as_str(self) -> &'static str {
        match self {
            DirectiveName::Syntax => "syntax",
            DirectiveName::Escape => "escape",
            DirectiveName::Check => "check",
        }
    }
}

pub(super) struct Directive {
    pub(super) name: DirectiveName,
    pub(super) value: String,
}

/// Reads directives until the first line that is none.
pub(super) struct DirectiveReader {
    comment: &'static [u8],
    seen: Vec<DirectiveName>,
    done: bool,
}

impl DirectiveReader {
    pub(super) fn new(comment: &'static str) -> DirectiveReader {
        DirectiveReader { comment: comment.as_bytes(), seen: Vec::new(), done: false }
    }

    /// `line` is without its end and, in a Dockerfile, without white space at its start.
    pub(super) fn read(&mut self, line: &[u8]) -> Result<Option<Directive>, SyntaxError> {
        if self.done {
            return Ok(None);
        }
        let found = line.strip_prefix(self.comment).and_then(|line| split(without_leading_space(line)));
        let Some((name, value)) = found else {
            self.done = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(SyntaxError::DuplicateDirective(name.as_str()));
        }
        self.seen.push(name);
        Ok(Some(Directive { name, value: String::from_utf8_lossy(value).into_owned() }))
    }

    /// The first directive of that name, if it comes before anything else and before an error.
    fn find(mut self, text: &[u8], name: DirectiveName) -> Option<(String, u32)> {
        let mut lines = Lines::new(text);
        while let Ok(Some(line)) = lines.next() {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            match self.read(line) {
                Ok(Some(directive)) if directive.name == name => return Some((directive.value, lines.read)),
                Ok(_) if self.done => return None,
                Ok(_) => {}
                Err(_) => return None,
            }
        }
        None
    }
}

/// `name = value`; the name is one that we know, the value not empty.
fn split(line: &[u8]) -> Option<(DirectiveName, &[u8])> {
    const SPACE: &[u8] = b"\t\n\x0c\r ";
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let name = match trim_end(&line[..equals], SPACE).to_ascii_lowercase().as_slice() {
        b"syntax" => DirectiveName::Syntax,
        b"escape" => DirectiveName::Escape,
        b"check" => DirectiveName::Check,
        _ => return None,
    };
    let mut value = &line[equals + 1..];
    while let [first, rest @ ..] = value
        && SPACE.contains(first)
        && !rest.is_empty()
    {
        value = rest;
    }
    let trimmed = trim_end(value, SPACE);
    // White space alone is a value of one character, and then not a valid one.
    let value = if trimmed.is_empty() { value } else { trimmed };
    (!value.is_empty()).then_some((name, value))
}

fn trim_end<'a>(mut text: &'a [u8], set: &[u8]) -> &'a [u8] {
    while let [start @ .., last] = text
        && set.contains(last)
    {
        text = start;
    }
    text
}

impl EscapeToken {
    pub(super) fn from_directive(value: &str) -> Result<EscapeToken, SyntaxError> {
        match value {
            "\\" => Ok(EscapeToken::Backslash),
            "`" => Ok(EscapeToken::Backtick),
            _ => Err(SyntaxError::InvalidEscape(value.to_owned())),
        }
    }
}

/// `# syntax=`: which frontend is to read the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxDirective {
    /// The frontend's image.
    pub image: String,
    /// The whole value: image and arguments.
    pub command_line: String,
    /// The line it is on.
    pub line: u32,
}

/// Finds the frontend that a file asks for. The file need not be a Dockerfile: a first line `#!…` is skipped, and `// syntax=…` and a JSON
/// object with a `syntax` string count as well.
pub fn detect_syntax(file: &[u8]) -> Option<SyntaxDirective> {
    let (text, skipped) = without_shebang(without_bom(file));
    let from_comments = |comment| DirectiveReader::new(comment).find(text, DirectiveName::Syntax);
    if let Some((value, line)) = from_comments("#").or_else(|| from_comments("//")) {
        let image = value.split(' ').next().unwrap_or_default().to_owned();
        return Some(SyntaxDirective { image, command_line: value, line: line + skipped });
    }
    // Anything that is not an object is none, so do not hand megabytes of Dockerfile to the JSON reader.
    if without_leading_space(text).first() != Some(&b'{') {
        return None;
    }
    #[derive(serde::Deserialize)]
    struct Syntax {
        syntax: String,
    }
    let Syntax { syntax } = serde_json::from_slice(text).ok()?;
    Some(SyntaxDirective { image: syntax.clone(), command_line: syntax, line: skipped + 1 })
}

/// The value of `# check=`, if there is one, and its line.
pub fn check_directive(file: &[u8]) -> Option<(String, u32)> {
    let (text, skipped) = without_shebang(without_bom(file));
    let (value, line) = DirectiveReader::new("#").find(text, DirectiveName::Check)?;
    Some((value.split(' ').next().unwrap_or_default().to_owned(), line + skipped))
}

/// The value of a `check=` directive in the text of a comment.
pub(crate) fn check_in_comment(comment: &str) -> Option<String> {
    let directive = DirectiveReader::new("").read(comment.as_bytes()).ok()??;
    (directive.name == DirectiveName::Check)
        .then(|| directive.value.split(' ').next().unwrap_or_default().to_owned())
}

fn without_shebang(text: &[u8]) -> (&[u8], u32) {
    if !text.starts_with(b"#!") {
        return (text, 0);
    }
    match text.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&text[at + 1..], 1),
        None => (&b""[..], 1),
    }
}
