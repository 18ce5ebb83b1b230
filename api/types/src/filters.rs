//! The `filters` parameter.

use std::collections::{BTreeMap, BTreeSet};

use crate::ApiTypeError;

/// Filters by name, each with a set of values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters {
    fields: BTreeMap<String, BTreeSet<String>>,
}

impl Filters {
    /// Reads the JSON of the parameter in either form: `{"label":{"a":true}}`, or the older `{"label":["a"]}`.
    /// The empty text is no filters.
    pub fn parse(text: &str) -> Result<Filters, ApiTypeError> {
        if text.is_empty() {
            return Ok(Filters::default());
        }
        if let Ok(Some(fields)) =
            serde_json::from_str::<Option<BTreeMap<String, Option<BTreeMap<String, bool>>>>>(text)
        {
            let fields = fields
                .into_iter()
                .map(|(name, values)| {
                    let set = values.unwrap_or_default().into_iter().filter(|(_, on)| *on);
                    (name, set.map(|(value, _)| value).collect())
                })
                .collect();
            return Ok(Filters { fields });
        }
        serde_json::from_str::<Option<BTreeMap<String, Option<Vec<String>>>>>(text)
            .map(|fields| Filters {
                fields: fields
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(name, values)| (name, values.unwrap_or_default().into_iter().collect()))
                    .collect(),
            })
            .map_err(|_| ApiTypeError::Filters)
    }

    /// Adds a value.
    pub fn add(&mut self, name: &str, value: &str) {
        self.fields.entry(name.to_owned()).or_default().insert(value.to_owned());
    }

    /// Whether there are no filters.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The names of all filters that were given.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// Whether the filter was given, be it without values.
    pub fn contains(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// The filter's values; empty when it was not given.
    pub fn get(&self, name: &str) -> impl Iterator<Item = &str> {
        self.fields.get(name).into_iter().flatten().map(String::as_str)
    }

    /// Refuses filters that are not among `accepted`.
    pub fn validate(&self, accepted: &[&str]) -> Result<(), ApiTypeError> {
        match self.fields.keys().find(|name| !accepted.contains(&name.as_str())) {
            Some(name) => Err(ApiTypeError::FilterName(name.clone())),
            None => Ok(()),
        }
    }

    /// A filter that is `true`/`1` or `false`/`0`.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool, ApiTypeError> {
        let Some(values) = self.fields.get(name) else { return Ok(default) };
        let any = |wanted: [&str; 2]| wanted.iter().any(|value| values.contains(*value));
        match (any(["1", "true"]), any(["0", "false"])) {
            (true, false) => Ok(true),
            (false, true) => Ok(false),
            _ if values.is_empty() => Err(ApiTypeError::FilterName(name.to_owned())),
            _ => {
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                Err(ApiTypeError::FilterValue {
                    name: name.to_owned(),
                    values: format!("[{}]", values.join(" ")),
                })
            }
        }
    }

    /// The one value of a filter that may have only one. `too_many` is the error's whole text.
    pub fn single(&self, name: &str, too_many: &'static str) -> Result<Option<&str>, ApiTypeError> {
        let mut values = self.get(name);
        match (values.next(), values.next()) {
            (first, None) => Ok(first),
            _ => Err(ApiTypeError::FilterCount(too_many)),
        }
    }

    /// Whether every `key` or `key=value` of the filter is among `labels`; true when there are none.
    pub fn match_labels(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.get(name).all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        })
    }

    /// What prune endpoints ask of an object: all of `label`, and not all of `label!`.
    pub fn match_prune_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels("label", labels)
            && !(self.get("label!").next().is_some() && self.match_labels("label!", labels))
    }

    /// Whether `text` is one of the filter's values; true when there are none.
    pub fn match_exact(&self, name: &str, text: &str) -> bool {
        let Some(values) = self.fields.get(name) else { return true };
        values.is_empty() || values.contains(text)
    }

    /// Whether one of the filter's values is a prefix of `text`; true when there are none.
    pub fn match_prefix(&self, name: &str, text: &str) -> bool {
        self.match_exact(name, text) || self.get(name).any(|prefix| text.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(text: &str) -> Filters {
        Filters::parse(text).unwrap()
    }

    #[test]
    fn both_forms_are_the_same_filters() {
        assert_eq!(filters(r#"{"label":{"a":true,"b=1":true}}"#), filters(r#"{"label":["b=1","a","a"]}"#));
        for empty in ["", "{}", "null"] {
            assert!(filters(empty).is_empty(), "{empty}");
        }
        for bad in ["x", "[]", r#"{"a":1}"#, r#"{"a":{"b":1}}"#, r#"{"a":[1]}"#] {
            assert_eq!(Filters::parse(bad), Err(ApiTypeError::Filters), "{bad}");
        }
    }

    #[test]
    fn switches_must_be_one_of_four_words_and_not_both() {
        assert!(filters(r#"{"dangling":["true"]}"#).flag_or("dangling", false).unwrap());
        assert!(!filters(r#"{"dangling":["0"]}"#).flag_or("dangling", true).unwrap());
        assert!(filters("").flag_or("dangling", true).unwrap());
        let error = |text| filters(text).flag_or("dangling", true).unwrap_err().to_string();
        assert_eq!(error(r#"{"dangling":["maybe"]}"#), "invalid filter 'dangling=[maybe]'");
        assert_eq!(error(r#"{"dangling":["true","0"]}"#), "invalid filter 'dangling=[0 true]'");
        assert_eq!(error(r#"{"dangling":[]}"#), "invalid filter 'dangling'");
    }

    #[test]
    fn labels_match_by_key_or_by_key_and_value() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        assert!(filters(r#"{"label":["a"]}"#).match_labels("label", &labels));
        assert!(filters(r#"{"label":["a=1"]}"#).match_labels("label", &labels));
        assert!(!filters(r#"{"label":["a=2"]}"#).match_labels("label", &labels));
        assert!(!filters(r#"{"label":["a","b"]}"#).match_labels("label", &labels));
        assert!(!filters(r#"{"label!":["a"]}"#).match_prune_labels(&labels));
        assert!(filters(r#"{"label!":["b"]}"#).match_prune_labels(&labels));
    }

    #[test]
    fn unknown_names_are_refused() {
        assert_eq!(
            filters(r#"{"nope":["x"]}"#).validate(&["label"]).unwrap_err().to_string(),
            "invalid filter 'nope'"
        );
    }
}
