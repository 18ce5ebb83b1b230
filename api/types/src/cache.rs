//! Build cache: records, and what `POST /build/prune` asks and answers.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{ApiTypeError, ApiVersion, Filters, Form, Timestamp, parse_time};

/// One record of the build cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRecord {
    /// Its id.
    pub id: String,
    /// The records it was made from.
    pub parents: Vec<String>,
    /// `regular`, `source.local`, `exec.cachemount`, … in BuildKit's words.
    pub kind: String,
    /// The step that made it.
    pub description: String,
    /// A build uses it now.
    pub in_use: bool,
    /// An image has the same data.
    pub shared: bool,
    /// Bytes on disk.
    pub size: i64,
    /// When it was made.
    pub created: Timestamp,
    /// When it was last used.
    pub last_used: Option<Timestamp>,
    /// How often.
    pub usage_count: i64,
}

impl CacheRecord {
    /// The layout of a version: before 1.42 there is one `Parent`.
    pub fn to_json(&self, api: ApiVersion) -> Value {
        let mut out = Map::new();
        let mut put = |name: &str, value: Value| out.insert(name.to_owned(), value);
        put("ID", json!(self.id));
        if api.at_least(42) {
            if !self.parents.is_empty() {
                put("Parents", json!(self.parents));
            }
        } else {
            put("Parent", json!(self.parents.first().map_or("", String::as_str)));
        }
        put("Type", json!(self.kind));
        put("Description", json!(self.description));
        put("InUse", json!(self.in_use));
        put("Shared", json!(self.shared));
        put("Size", json!(self.size));
        put("CreatedAt", json!(self.created));
        put("LastUsedAt", json!(self.last_used));
        put("UsageCount", json!(self.usage_count));
        Value::Object(out)
    }
}

/// What `POST /build/prune` asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PruneQuery {
    /// Also records that are shared with images or internal.
    pub all: bool,
    /// Only records not used since then.
    pub unused_since: Option<Timestamp>,
    /// Bytes to leave.
    pub reserved_space: u64,
    /// Bytes above which to remove, whatever `reserved_space` says.
    pub max_used_space: u64,
    /// Bytes of the disk to leave free.
    pub min_free_space: u64,
    // Names are checked, and there is at most one value for each.
    filters: Filters,
}

/// Filters by a record's fields; a filter without a value asks whether the field is set. With `!` behind the name the field is to differ, with `~` the
/// value is a regular expression, as buildx has it; Moby has neither, nor `parents`, which is what BuildKit calls its `parent`.
const FIELDS: [&str; 8] = ["id", "parent", "parents", "type", "description", "inuse", "shared", "private"];
const ONE_VALUE: &str = "filters expect only one value";

impl PruneQuery {
    /// Reads and checks the parameters.
    pub fn parse(form: &Form, api: ApiVersion, now: Timestamp) -> Result<PruneQuery, ApiTypeError> {
        let filters = Filters::parse(form.get("filters"))?;
        for label in ["label", "label!"] {
            if filters.contains(label) {
                return Err(ApiTypeError::Unsupported(format!(
                    "filter '{label}' does not apply to the build cache: its records have no labels"
                )));
            }
        }
        let fields = FIELDS.iter().flat_map(|field| ["", "!", "~"].map(|suffix| format!("{field}{suffix}")));
        let known: Vec<String> = fields.chain(["unused-for", "until"].map(str::to_owned)).collect();
        filters.validate(&known.iter().map(String::as_str).collect::<Vec<_>>())?;
        if filters.contains("until") && filters.contains("unused-for") {
            return Err(ApiTypeError::FilterConflict("until", "unused-for"));
        }
        let mut unused_since = None;
        for name in ["until", "unused-for"] {
            if let Some(value) = filters.single(name, ONE_VALUE)? {
                let time = parse_time(value, now).map_err(|error| ApiTypeError::Time {
                    what: format!("{name:?} filter expects a duration (e.g., '24h') or a timestamp"),
                    reason: error.to_string(),
                })?;
                unused_since = Some(time);
            }
        }
        for name in &known {
            filters.single(name, ONE_VALUE)?;
        }
        let space = |name: &'static str| {
            let bytes = form.bytes(name)?;
            u64::try_from(bytes)
                .map_err(|_| ApiTypeError::Bytes { parameter: name, value: form.get(name).to_owned() })
        };
        let mut query = PruneQuery { all: form.flag("all"), unused_since, filters, ..PruneQuery::default() };
        if api.at_least(48) {
            query.reserved_space = match space("reserved-space")? {
                0 => space("keep-storage")?,
                bytes => bytes,
            };
            query.max_used_space = space("max-used-space")?;
            query.min_free_space = space("min-free-space")?;
        } else {
            query.reserved_space = space("keep-storage")?;
        }
        Ok(query)
    }

    /// The field filters: each name, with its value if it has one.
    pub fn fields(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let fields = self.filters.names().filter(|name| !["until", "unused-for"].contains(name));
        fields.map(|name| (name, self.filters.get(name).next()))
    }
}

/// The answer to `POST /build/prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CachePruneReport {
    /// Ids of the records that went; `null` for none, as Moby's.
    pub caches_deleted: Option<Vec<String>>,
    /// Bytes freed on disk.
    pub space_reclaimed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        parse_time("1700000000", Timestamp::now()).unwrap()
    }

    fn parse(query: &str, api: u16) -> Result<PruneQuery, ApiTypeError> {
        PruneQuery::parse(&Form::parse(query).unwrap(), ApiVersion::v1(api), now())
    }

    #[test]
    fn space_parameters_depend_on_the_version() {
        let old = parse("keep-storage=5&reserved-space=7&max-used-space=9", 47).unwrap();
        assert_eq!((old.reserved_space, old.max_used_space), (5, 0));
        let new =
            parse("keep-storage=5&reserved-space=7&max-used-space=9&min-free-space=1&all=1", 48).unwrap();
        assert_eq!((new.reserved_space, new.max_used_space, new.min_free_space, new.all), (7, 9, 1, true));
        assert_eq!(parse("keep-storage=5", 48).unwrap().reserved_space, 5);
        assert_eq!(
            parse("keep-storage=1GB", 41).unwrap_err().to_string(),
            "keep-storage is in bytes and expects an integer, got 1GB"
        );
        assert!(parse("keep-storage=-1", 41).is_err());
    }

    #[test]
    fn filters_are_checked() {
        let query = parse(r#"filters={"until":["24h"],"type":["regular"]}"#, 41).unwrap();
        assert_eq!(query.unused_since.unwrap().unix(), 1_700_000_000 - 86400);
        for (filters, message) in [
            (r#"{"nope":["1"]}"#, "invalid filter 'nope'"),
            (r#"{"mutable":["1"]}"#, "invalid filter 'mutable'"),
            (r#"{"id":["1","2"]}"#, "filters expect only one value"),
            (r#"{"until":["1h"],"unused-for":["1h"]}"#, r#"conflicting filters: "until" and "unused-for""#),
            (
                r#"{"label":["a"]}"#,
                "filter 'label' does not apply to the build cache: its records have no labels",
            ),
        ] {
            assert_eq!(parse(&format!("filters={filters}"), 41).unwrap_err().to_string(), message);
        }
        assert!(
            parse(r#"filters={"until":["soon"]}"#, 41)
                .unwrap_err()
                .to_string()
                .starts_with("\"until\" filter expects a duration (e.g., '24h') or a timestamp: ")
        );
    }

    #[test]
    fn fields_are_named_with_their_operator_and_value() {
        let query = parse(
            r#"filters={"until":["24h"],"type!":["regular"],"description~":["^a"],"shared":[],"id":["x"]}"#,
            41,
        )
        .unwrap();
        let fields: Vec<_> = query.fields().collect();
        assert_eq!(
            fields,
            [("description~", Some("^a")), ("id", Some("x")), ("shared", None), ("type!", Some("regular"))]
        );
    }

    #[test]
    fn records_have_one_parent_before_1_42() {
        let record = CacheRecord {
            id: "x".to_owned(),
            parents: vec!["p".to_owned(), "q".to_owned()],
            kind: "regular".to_owned(),
            description: "RUN true".to_owned(),
            in_use: false,
            shared: true,
            size: 7,
            created: now(),
            last_used: None,
            usage_count: 2,
        };
        insta::assert_snapshot!(record.to_json(ApiVersion::v1(41)), @r#"{"ID":"x","Parent":"p","Type":"regular","Description":"RUN true","InUse":false,"Shared":true,"Size":7,"CreatedAt":"2023-11-14T22:13:20Z","LastUsedAt":null,"UsageCount":2}"#);
        insta::assert_snapshot!(record.to_json(ApiVersion::v1(42)), @r#"{"ID":"x","Parents":["p","q"],"Type":"regular","Description":"RUN true","InUse":false,"Shared":true,"Size":7,"CreatedAt":"2023-11-14T22:13:20Z","LastUsedAt":null,"UsageCount":2}"#);
    }
}
