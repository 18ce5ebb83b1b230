//! containerd's filters, as far as workers and blobs have fields: `id==…`, `labels."…"!=…`, `digest~=…`, joined by commas.

use regex::Regex;
use tonic::Status;

/// Which things are meant: those for which one of the filters holds, or all where there is none.
pub(super) struct Filters(Vec<Vec<Test>>);

/// One field, and what it must be.
struct Test {
    field: String,
    is: Is,
}

enum Is {
    /// It is there, and not empty.
    Present,
    Equal(String),
    Not(String),
    Like(Regex),
}

impl Filters {
    /// Reads them.
    pub(super) fn parse(filters: &[String]) -> Result<Self, Status> {
        let read = |filter: &String| {
            filter.split(',').filter(|test| !test.trim().is_empty()).map(Test::parse).collect()
        };
        filters.iter().map(read).collect::<Result<_, Status>>().map(Self)
    }

    /// Whether something is meant, of whose fields some have a value.
    pub(super) fn mean<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        let holds = |tests: &Vec<Test>| tests.iter().all(|test| test.holds(field(&test.field)));
        self.0.is_empty() || self.0.iter().any(holds)
    }
}

impl Test {
    fn parse(text: &str) -> Result<Self, Status> {
        let parts = ["==", "!=", "~="].iter().filter_map(|operator| Some((text.find(operator)?, *operator)));
        let Some((at, operator)) = parts.min() else {
            return Ok(Self { field: field(text), is: Is::Present });
        };
        let value = text[at + operator.len()..].trim().trim_matches('"').to_owned();
        let is = match operator {
            "==" => Is::Equal(value),
            "!=" => Is::Not(value),
            _ => Is::Like(
                Regex::new(value.trim_matches(['/', '|']))
                    .map_err(|error| Status::invalid_argument(format!("filter {text:?}: {error}")))?,
            ),
        };
        Ok(Self { field: field(&text[..at]), is })
    }

    fn holds(&self, has: Option<&str>) -> bool {
        match &self.is {
            Is::Present => has.is_some_and(|has| !has.is_empty()),
            Is::Equal(value) => has == Some(value),
            Is::Not(value) => has != Some(value),
            Is::Like(pattern) => has.is_some_and(|has| pattern.is_match(has)),
        }
    }
}

/// A field's name: that of a label without its quotes.
fn field(text: &str) -> String {
    match text.trim().strip_prefix("labels.") {
        Some(label) => format!("labels.{}", label.trim_matches('"')),
        None => text.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_mean_what_containerds_mean() {
        let fields = |name: &str| match name {
            "id" => Some("me"),
            "labels.a.b/c" => Some("v"),
            _ => None,
        };
        for (filter, meant) in [
            ("", true),
            ("id==me", true),
            ("id==you", false),
            ("id!=you", true),
            ("labels.\"a.b/c\"==v", true),
            ("labels.\"a.b/c\"==v,id==you", false),
            ("labels.\"a.b/c\"", true),
            ("labels.nothing", false),
            ("labels.nothing!=x", true),
            ("platform==x", false),
            ("id~=^m.$", true),
            ("id~=/^x/", false),
        ] {
            assert_eq!(Filters::parse(&[filter.to_owned()]).unwrap().mean(fields), meant, "{filter}");
        }
        assert!(Filters::parse(&[]).unwrap().mean(fields));
        let either = Filters::parse(&["id==you".to_owned(), "id==me".to_owned()]).unwrap();
        assert!(either.mean(fields));
        assert!(Filters::parse(&["id~=(".to_owned()]).is_err());
    }
}
