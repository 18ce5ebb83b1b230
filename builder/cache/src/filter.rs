//! Filters: which entries are meant.
//!
//! The text form is BuildKit's, which is containerd's (`pkg/filters`):
//!
//! ```text
//! expression := selector (',' selector)*          all must hold
//! selector   := field [operator value]            without an operator: the field is there, or is true
//! operator   := '==' │ '!=' │ '~='                the last: a regular expression is found in it
//! value      := [^\s,]+ │ '"' … '"'               after '~=' also '/' … '/' and '|' … '|'
//! ```
//!
//! Of several expressions one must hold. Fields are `id`, `type`, `description`, `parents` (joined by `;`; one of them alone is equal, too), and
//! the flags `inuse`, `shared`, `private`, `mutable`, `immutable`.
//!
//! Two things differ from BuildKit, where both silently select nothing: a field that does not exist is an error, and a flag may be compared with
//! `true` and `false` (`shared==true`), because that is the only form that `docker --filter` can say.

use std::fmt;

use regex::Regex;

use crate::{CacheEntry, CacheError};

/// Which entries: those for which any of the expressions holds, or all where there is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EntryFilter(Vec<Expression>);

/// Selectors that must all hold.
type Expression = Vec<Selector>;

#[derive(Debug, Clone, PartialEq)]
enum Selector {
    Text(TextField, Test),
    Flag(FlagField, bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextField {
    Id,
    Kind,
    Description,
    Parents,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlagField {
    InUse,
    Shared,
    Mutable,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl PartialEq for Test {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Present, Self::Present) => true,
            (Self::Equal(a), Self::Equal(b)) | (Self::NotEqual(a), Self::NotEqual(b)) => a == b,
            (Self::Matches(a), Self::Matches(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Matches,
}

/// All fields, for messages.
const FIELDS: &str = "id, type, description, parents, inuse, shared, private, mutable, immutable";

impl EntryFilter {
    /// Reads expressions, one of which must hold. An empty one holds for everything.
    pub fn parse<T: AsRef<str>>(expressions: &[T]) -> Result<Self, CacheError> {
        let parse = |text: &T| Parser { text: text.as_ref(), at: 0 }.expression();
        Ok(Self(expressions.iter().map(parse).collect::<Result<_, _>>()?))
    }

    /// Fields that must all be as said, in the form of `docker --filter NAME=VALUE`: a name that ends in `!` is to differ, one that ends in `~`
    /// is a regular expression, and so is `id`, as in Moby. Without a value the field must be there, or be true.
    pub fn of_fields<'a>(
        fields: impl IntoIterator<Item = (&'a str, Option<&'a str>)>,
    ) -> Result<Self, CacheError> {
        let selector = |(name, value): (&str, Option<&str>)| {
            let told = value.map_or_else(|| name.to_owned(), |value| format!("{name}={value}"));
            let (field, operator) = match (name.strip_suffix('!'), name.strip_suffix('~')) {
                (Some(field), _) => (field, Operator::NotEqual),
                (_, Some(field)) => (field, Operator::Matches),
                _ if name == "id" => (name, Operator::Matches),
                _ => (name, Operator::Equal),
            };
            Selector::new(field, value.map(|value| (operator, value)), &told)
        };
        let selectors: Expression = fields.into_iter().map(selector).collect::<Result<_, _>>()?;
        Ok(Self(if selectors.is_empty() { Vec::new() } else { vec![selectors] }))
    }

    /// The expressions, in the form in which [`Self::parse`] takes them.
    pub fn expressions(&self) -> Vec<String> {
        let written = |expression: &Expression| {
            expression.iter().map(Selector::to_string).collect::<Vec<_>>().join(",")
        };
        self.0.iter().map(written).collect()
    }

    /// Whether an entry is meant.
    pub fn matches(&self, entry: &CacheEntry) -> bool {
        self.0.is_empty() || self.0.iter().any(|expression| expression.iter().all(|one| one.holds(entry)))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &str| match text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
            true if !text.is_empty() => text.to_owned(),
            _ => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")),
        };
        match self {
            Self::Flag(field, wanted) => {
                let name = match field {
                    FlagField::InUse => "inuse",
                    FlagField::Shared => "shared",
                    FlagField::Mutable => "mutable",
                };
                write!(f, "{name}=={wanted}")
            }
            Self::Text(field, test) => {
                let name = match field {
                    TextField::Id => "id",
                    TextField::Kind => "type",
                    TextField::Description => "description",
                    TextField::Parents => "parents",
                };
                match test {
                    Test::Present => f.write_str(name),
                    Test::Equal(value) => write!(f, "{name}=={}", quoted(value)),
                    Test::NotEqual(value) => write!(f, "{name}!={}", quoted(value)),
                    Test::Matches(regex) => write!(f, "{name}~={}", quoted(regex.as_str())),
                }
            }
        }
    }
}

impl Selector {
    fn new(field: &str, test: Option<(Operator, &str)>, told: &str) -> Result<Self, CacheError> {
        let wrong = |why: String| CacheError::Filter { filter: told.to_owned(), why };
        let text = |field| {
            let test = match test {
                None => Test::Present,
                Some((Operator::Equal, value)) => Test::Equal(value.to_owned()),
                Some((Operator::NotEqual, value)) => Test::NotEqual(value.to_owned()),
                Some((Operator::Matches, value)) => Test::Matches(
                    Regex::new(value)
                        .map_err(|error| wrong(format!("{value:?} is no regular expression: {error}")))?,
                ),
            };
            Ok(Self::Text(field, test))
        };
        let flag = |field, positive: bool| {
            let wanted = match test {
                None => true,
                Some((Operator::Matches, _)) => {
                    return Err(wrong(format!("{told:?} asks for text, and this is true or false")));
                }
                Some((operator, value)) => {
                    let value = match value {
                        "true" | "1" => true,
                        "false" | "0" => false,
                        _ => return Err(wrong(format!("{value:?} is neither true nor false"))),
                    };
                    value == (operator == Operator::Equal)
                }
            };
            Ok(Self::Flag(field, wanted == positive))
        };
        match field {
            "id" => text(TextField::Id),
            "type" => text(TextField::Kind),
            "description" => text(TextField::Description),
            // Moby's name, and BuildKit's.
            "parent" | "parents" => text(TextField::Parents),
            "inuse" => flag(FlagField::InUse, true),
            "shared" => flag(FlagField::Shared, true),
            "private" => flag(FlagField::Shared, false),
            "mutable" => flag(FlagField::Mutable, true),
            "immutable" => flag(FlagField::Mutable, false),
            _ => Err(wrong(format!("no field {field:?}; there are {FIELDS}, and until"))),
        }
    }

    fn holds(&self, entry: &CacheEntry) -> bool {
        match self {
            Self::Flag(FlagField::InUse, wanted) => entry.in_use == *wanted,
            Self::Flag(FlagField::Shared, wanted) => entry.shared == *wanted,
            Self::Flag(FlagField::Mutable, wanted) => entry.mutable == *wanted,
            Self::Text(TextField::Id, test) => test.holds(&entry.id),
            Self::Text(TextField::Kind, test) => test.holds(entry.kind.as_str()),
            Self::Text(TextField::Description, test) => test.holds(&entry.description),
            Self::Text(TextField::Parents, test) => {
                let one = |value: &String| entry.parents.contains(value);
                match test {
                    Test::Equal(value) if one(value) => true,
                    Test::NotEqual(value) if one(value) => false,
                    _ => test.holds(&entry.parents.join(";")),
                }
            }
        }
    }
}

impl Test {
    fn holds(&self, text: &str) -> bool {
        match self {
            Self::Present => !text.is_empty(),
            Self::Equal(value) => !text.is_empty() && text == value,
            Self::NotEqual(value) => text != value,
            Self::Matches(regex) => regex.is_match(text),
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn expression(mut self) -> Result<Expression, CacheError> {
        let mut selectors = Expression::new();
        if self.text.is_empty() {
            return Ok(selectors);
        }
        loop {
            selectors.push(self.selector()?);
            self.space();
            match self.rest().chars().next() {
                None => return Ok(selectors),
                Some(',') => self.at += 1,
                Some(other) => return Err(self.wrong(format!("unexpected {other:?}"))),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, CacheError> {
        let field = self.field()?;
        let operator = self.operator()?;
        let test = match operator {
            None => None,
            Some(operator) => Some((operator, self.value(operator)?)),
        };
        Selector::new(&field, test.as_ref().map(|(operator, value)| (*operator, value.as_str())), self.text)
    }

    fn field(&mut self) -> Result<String, CacheError> {
        self.space();
        if self.rest().starts_with('"') {
            return self.quoted('"');
        }
        let field = self.take(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
        if field.is_empty() {
            return Err(self.wrong("expected a field".to_owned()));
        }
        Ok(field.to_owned())
    }

    fn operator(&mut self) -> Result<Option<Operator>, CacheError> {
        self.space();
        match self.take(|c| matches!(c, '=' | '!' | '~')) {
            "" => Ok(None),
            "==" => Ok(Some(Operator::Equal)),
            "!=" => Ok(Some(Operator::NotEqual)),
            "~=" => Ok(Some(Operator::Matches)),
            other => Err(self.wrong(format!("unsupported operator {other:?}; there are ==, != and ~="))),
        }
    }

    fn value(&mut self, operator: Operator) -> Result<String, CacheError> {
        self.space();
        match self.rest().chars().next() {
            Some(quote @ ('/' | '|')) if operator == Operator::Matches => self.quoted(quote),
            Some('"') => self.quoted('"'),
            _ => {
                let value = self.take(|c| c != ',' && !c.is_whitespace());
                if value.is_empty() {
                    return Err(self.wrong("expected a value".to_owned()));
                }
                Ok(value.to_owned())
            }
        }
    }

    /// Text between quotes, with Go's escapes. Between others than `"`, only the quote itself is escaped: what else a backslash means is for the
    /// regular expression.
    fn quoted(&mut self, quote: char) -> Result<String, CacheError> {
        let mut text = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((offset, c)) = chars.next() {
            match c {
                _ if c == quote => {
                    self.at += offset + c.len_utf8();
                    return Ok(text);
                }
                '\\' => match chars.next().map(|(_, escaped)| escaped) {
                    Some(escaped) if escaped == quote => text.push(quote),
                    Some(escaped) if quote != '"' => text.extend(['\\', escaped]),
                    Some('\\') => text.push('\\'),
                    Some('n') => text.push('\n'),
                    Some('r') => text.push('\r'),
                    Some('t') => text.push('\t'),
                    other => {
                        let escape = other.map(String::from).unwrap_or_default();
                        return Err(self.wrong(format!("no such escape: \\{escape}")));
                    }
                },
                _ => text.push(c),
            }
        }
        Err(self.wrong("a quote is not closed".to_owned()))
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let taken = &rest[..rest.find(|c| !wanted(c)).unwrap_or(rest.len())];
        self.at += taken.len();
        taken
    }

    fn space(&mut self) {
        self.take(char::is_whitespace);
    }

    fn wrong(&self, why: String) -> CacheError {
        CacheError::Filter {
            filter: self.text.to_owned(),
            why: format!("{why} at character {}", self.at + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::RecordKind;

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let all = [
            "type==source.local",
            "id~=/^a.b,\"/,inuse",
            "description!=\"a \\\"b\\\" \\\\c\",private",
            "parents",
            "",
        ];
        let filter = EntryFilter::parse(&all).unwrap();
        assert_eq!(filter.expressions()[0], "type==source.local");
        assert_eq!(EntryFilter::parse(&filter.expressions()).unwrap(), filter);
    }

    fn entry() -> CacheEntry {
        CacheEntry {
            id: "abc123".to_owned(),
            parents: vec!["p1".to_owned(), "p2".to_owned()],
            kind: RecordKind::SourceLocal,
            description: "local source for context, /x".to_owned(),
            in_use: false,
            shared: true,
            mutable: false,
            size: 1,
            created: SystemTime::UNIX_EPOCH,
            last_used: None,
            uses: 0,
        }
    }

    fn holds(expressions: &[&str]) -> bool {
        EntryFilter::parse(expressions).unwrap().matches(&entry())
    }

    #[test]
    fn expressions_are_containerds() {
        for yes in [
            "",
            "type==source.local",
            "type == source.local , shared",
            "type!=regular,id~=^abc",
            "description~=/context, \\/x$/",
            "description~=|context, /x|",
            "description==\"local source for context, /x\"",
            "description",
            "\"type\"==source.local",
            "parents==p1;p2",
            "parents==p2",
            "parent~=p1",
            "immutable",
            "inuse!=true",
            "shared==true",
            "private==false",
        ] {
            assert!(holds(&[yes]), "{yes}");
        }
        for no in
            ["type==regular", "inuse", "private", "mutable", "id==abc", "id~=^bc", "parents!=p1", "shared!=1"]
        {
            assert!(!holds(&[no]), "{no}");
        }
        assert!(holds(&[]));
        assert!(holds(&["type==regular", "type==source.local"]), "one of several is enough");
        assert!(!holds(&["type==regular", "inuse"]));
    }

    #[test]
    fn what_means_nothing_is_named() {
        for (text, why) in [
            ("tpye==regular", "no field \"tpye\""),
            ("type=regular", "unsupported operator \"=\""),
            ("type==", "expected a value at character 7"),
            ("==x", "expected a field at character 1"),
            ("type==a b", "unexpected 'b' at character 9"),
            ("type==a,", "expected a field"),
            ("id~=(", "is no regular expression"),
            ("description==\"a", "a quote is not closed"),
            ("shared==yes", "\"yes\" is neither true nor false"),
            ("inuse~=t", "true or false"),
        ] {
            let error = EntryFilter::parse(&[text]).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn fields_of_a_command_line_are_mobys() {
        let holds = |name: &str, value: Option<&str>| {
            EntryFilter::of_fields([(name, value)]).unwrap().matches(&entry())
        };
        assert!(holds("id", Some("c12")), "a part of it will do: it is a regular expression");
        assert!(holds("type", Some("source.local")) && !holds("type", Some("source")));
        assert!(holds("type!", Some("regular")) && holds("type~", Some("^source")));
        assert!(holds("description", Some("local source for context, /x")), "commas and spaces are its own");
        assert!(holds("parent", Some("p1")) && !holds("parent", Some("p")));
        assert!(holds("shared", None) && holds("shared", Some("true")) && !holds("inuse", None));
        assert!(EntryFilter::of_fields([("nope", None)]).is_err());
        assert!(EntryFilter::of_fields([]).unwrap().matches(&entry()));
    }
}
