//! Which builds of the history are meant, in BuildKit's language (`solver/llbsolver/history/filter.go`).
//!
//! ```text
//! filter := field (',' field)*        all must hold, of several filters one; a field may be quoted as in CSV
//! field  := ('startedAt' │ 'completedAt') compare (age │ RFC 3339)
//!        │  'duration' compare duration
//!        │  name [operator value]       containerd's: == != ~=; the value may be quoted, after ~= also /…/ or |…|
//! name   := 'ref' │ 'status' │ 'repository'
//! ```

use std::{
    cmp::Ordering,
    time::{SystemTime, UNIX_EPOCH},
};

use lapstrake_api_types::{Timestamp, parse_duration, parse_time};
use lapstrake_builder_history::{BuildStatus, BuildSummary};
use regex::Regex;

/// Which builds: those for which one of the filters holds, or all where there is none.
#[derive(Debug)]
pub(super) struct HistoryFilter(Vec<Vec<Test>>);

#[derive(Debug)]
enum Test {
    Time {
        field: TimeField,
        compare: Compare,
        than: i64,
    },
    Text {
        field: TextField,
        is: Is,
    },
    /// A field that no build has: only a difference holds.
    Absent(bool),
}

#[derive(Debug, Clone, Copy)]
enum TimeField {
    /// Seconds since 1970, as are ends; durations are nanoseconds.
    Started,
    Completed,
    Duration,
}

#[derive(Debug, Clone, Copy)]
struct Compare {
    wanted: Ordering,
    or_equal: bool,
}

#[derive(Debug, Clone, Copy)]
enum TextField {
    Reference,
    Status,
    Repository,
}

#[derive(Debug)]
enum Is {
    Present,
    Equal(String),
    Not(String),
    Like(Regex),
}

impl HistoryFilter {
    /// Reads filters; what is wrong with one otherwise.
    pub(super) fn parse(filters: &[String]) -> Result<Self, String> {
        let read = |filter: &String| {
            let fields =
                fields(filter).map_err(|why| format!("failed to parse history filters {filter:?}: {why}"))?;
            fields.iter().map(|field| test(field, filter)).collect()
        };
        filters.iter().map(read).collect::<Result<_, String>>().map(Self)
    }

    /// Whether a build is meant.
    pub(super) fn matches(&self, build: &BuildSummary) -> bool {
        self.0.is_empty() || self.0.iter().any(|tests| tests.iter().all(|test| test.holds(build)))
    }
}

/// Fields of a line of CSV.
fn fields(line: &str) -> Result<Vec<String>, &'static str> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, next) = match rest.split_once(',') {
                Some((field, next)) => (field, Some(next)),
                None => (rest, None),
            };
            fields.push(field.to_owned());
            match next {
                Some(next) => rest = next,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        let mut chars = quoted.char_indices().peekable();
        let end = loop {
            match chars.next() {
                None => return Err("a quote has no end"),
                Some((at, '"')) if chars.peek().is_none_or(|(_, next)| *next != '"') => break at,
                Some((_, '"')) => {
                    chars.next();
                    field.push('"');
                }
                Some((_, other)) => field.push(other),
            }
        };
        fields.push(field);
        match quoted[end + 1..].strip_prefix(',') {
            Some(next) => rest = next,
            None if quoted.len() == end + 1 => return Ok(fields),
            None => return Err("something follows a quote's end"),
        }
    }
}

fn test(field: &str, filter: &str) -> Result<Test, String> {
    if let Some(test) = time_test(field)? {
        return Ok(test);
    }
    let wrong =
        |why: &str| format!("failed to parse history filters {filter:?}: parse error: {why} in {field:?}");
    let name_end = field
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')))
        .unwrap_or(field.len());
    let (name, rest) = field.split_at(name_end);
    if name.is_empty() {
        return Err(wrong("no field"));
    }
    let is = match rest.get(..2) {
        None if rest.is_empty() => Is::Present,
        Some("==") => Is::Equal(value(&rest[2..], false).ok_or_else(|| wrong("a value that means nothing"))?),
        Some("!=") => Is::Not(value(&rest[2..], false).ok_or_else(|| wrong("a value that means nothing"))?),
        Some("~=") => {
            let text = value(&rest[2..], true).ok_or_else(|| wrong("a value that means nothing"))?;
            Is::Like(Regex::new(&text).map_err(|error| wrong(&error.to_string()))?)
        }
        _ => return Err(wrong("no operator")),
    };
    Ok(match (name, is) {
        ("ref", is) => Test::Text { field: TextField::Reference, is },
        ("status", is) => Test::Text { field: TextField::Status, is },
        ("repository", is) => Test::Text { field: TextField::Repository, is },
        (_, is) => Test::Absent(matches!(is, Is::Not(_))),
    })
}

/// A value, without its quotes.
fn value(text: &str, is_pattern: bool) -> Option<String> {
    let between = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote).map(str::to_owned);
    if text.starts_with('"') {
        return serde_json::from_str(text).ok();
    }
    if is_pattern && let Some(inner) = between('/').or_else(|| between('|')) {
        return Some(inner);
    }
    (!text.is_empty() && !text.contains(char::is_whitespace)).then(|| text.to_owned())
}

fn time_test(field: &str) -> Result<Option<Test>, String> {
    let compare = |wanted, or_equal| Compare { wanted, or_equal };
    let signs = [
        (">=", compare(Ordering::Greater, true)),
        ("<=", compare(Ordering::Less, true)),
        (">", compare(Ordering::Greater, false)),
        ("<", compare(Ordering::Less, false)),
    ];
    let Some((name, compare, value)) = signs
        .iter()
        .find_map(|(sign, compare)| field.split_once(sign).map(|(name, value)| (name, *compare, value)))
    else {
        return Ok(None);
    };
    let (field, than) = match name {
        "duration" => {
            let duration =
                parse_duration(value).and_then(|time| i64::try_from(time.whole_nanoseconds()).ok());
            (TimeField::Duration, duration.ok_or_else(|| format!("invalid duration {value}"))?)
        }
        "startedAt" | "completedAt" => {
            let time = parse_time(value, Timestamp::now()).map_err(|_| format!("invalid time {value}"))?;
            (if name == "startedAt" { TimeField::Started } else { TimeField::Completed }, time.unix())
        }
        _ => return Ok(None),
    };
    Ok(Some(Test::Time { field, compare, than }))
}

impl Test {
    fn holds(&self, build: &BuildSummary) -> bool {
        match self {
            Self::Time { field, compare, than } => {
                let is = field.of(build).cmp(than);
                is == compare.wanted || (compare.or_equal && is == Ordering::Equal)
            }
            Self::Text { field, is } => {
                let has = field.of(build);
                match is {
                    Is::Present => has.is_some(),
                    Is::Equal(text) => has.as_ref() == Some(text),
                    Is::Not(text) => has.as_ref() != Some(text),
                    Is::Like(pattern) => has.is_some_and(|has| pattern.is_match(&has)),
                }
            }
            Self::Absent(holds) => *holds,
        }
    }
}

impl TimeField {
    /// 0 for what has not happened yet, as in BuildKit.
    fn of(self, build: &BuildSummary) -> i64 {
        let seconds = |time: SystemTime| {
            time.duration_since(UNIX_EPOCH)
                .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
        };
        match self {
            Self::Started => seconds(build.created),
            Self::Completed => build.completed.map_or(0, seconds),
            Self::Duration => {
                let took = build.completed.and_then(|end| end.duration_since(build.created).ok());
                took.map_or(0, |took| i64::try_from(took.as_nanos()).unwrap_or(i64::MAX))
            }
        }
    }
}

impl TextField {
    fn of(self, build: &BuildSummary) -> Option<String> {
        match self {
            Self::Reference => Some(build.id.clone()),
            Self::Status => {
                // What the daemon's end cut short is an error to BuildKit's clients.
                let status = match build.status {
                    BuildStatus::Interrupted => BuildStatus::Error,
                    status => status,
                };
                Some(status.as_str().to_owned())
            }
            Self::Repository => build.options.get("vcs:source").cloned().or_else(|| {
                let context = build.options.get("context").filter(|context| context.contains("://"))?;
                Some(context.split('#').next().unwrap_or_default().to_owned())
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn builds() -> Vec<BuildSummary> {
        let epoch = SystemTime::now() - Duration::from_secs(24 * 3600);
        let build = |id: &str, start: u64, took: Option<u64>, option: Option<(&str, &str)>| BuildSummary {
            id: id.to_owned(),
            status: if took.is_some() { BuildStatus::Completed } else { BuildStatus::Running },
            created: epoch + Duration::from_secs(start),
            completed: took.map(|took| epoch + Duration::from_secs(start + took)),
            options: option.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect(),
            ..crate::grpc::history::tests::summary()
        };
        vec![
            build("foo123", 0, Some(60), None),
            build("bar456", 3600, None, Some(("context", "https://github.com/user/repo.git#abcdef123"))),
            build("foo789", 7200, Some(600), Some(("vcs:source", "testrepo"))),
        ]
    }

    /// The cases of BuildKit's own test of its filters, and some more.
    #[test]
    fn filters_mean_what_buildkits_mean() {
        let builds = builds();
        for (filters, expected) in [
            (&["ref==foo"][..], &[][..]),
            (&["ref~=foo"], &["foo123", "foo789"]),
            (&["repository!=testrepo"], &["foo123", "bar456"]),
            (&["repository==https://github.com/user/repo.git"], &["bar456"]),
            (&["repository"], &["bar456", "foo789"]),
            (&["repository!=testrepo,ref~=foo"], &["foo123"]),
            (&["completedAt>23h"], &["foo789"]),
            (&["startedAt<23h"], &["foo123"]),
            (&["startedAt<=23h"], &["foo123", "bar456"]),
            (&["duration>5m"], &["foo789"]),
            (&["startedAt>24h,completedAt>22h"], &["foo789"]),
            (&["startedAt>=23h", "completedAt>22h"], &["bar456", "foo789"]),
            (&["startedAt>24h,ref~=foo"], &["foo789"]),
            (&["status==running"], &["bar456"]),
            (&["status!=running,\"ref~=/^foo[0-9]{3}$/\""], &["foo123", "foo789"]),
            (&["ref==\"foo123\""], &["foo123"]),
            (&["nothing==x"], &[]),
            (&["nothing!=x,ref==foo123"], &["foo123"]),
            (&[], &["foo123", "bar456", "foo789"]),
        ] {
            let filters: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
            let filter = HistoryFilter::parse(&filters).unwrap();
            let meant: Vec<&str> =
                builds.iter().filter(|build| filter.matches(build)).map(|build| build.id.as_str()).collect();
            assert_eq!(meant, expected, "{filters:?}");
        }
    }

    #[test]
    fn filters_that_mean_nothing_are_refused() {
        for (filter, why) in [
            ("ref+foo", "parse error"),
            ("ref==", "parse error"),
            ("ref~=(", "parse error"),
            ("==x", "no field"),
            ("\"ref==x", "a quote has no end"),
            ("startedAt>soon", "invalid time soon"),
            ("duration<1", "invalid duration 1"),
        ] {
            let error = HistoryFilter::parse(&[filter.to_owned()]).unwrap_err();
            assert!(error.contains(why), "{filter}: {error}");
        }
    }
}
