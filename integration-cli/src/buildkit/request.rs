//! Parts of requests, in few words.

use std::collections::HashMap;

use lapstrake_api_proto::{
    control::Exporter,
    sourcepolicy::{MatchType, Policy, PolicyAction, Rule, Selector, Update},
};

/// Attributes by name.
pub fn attrs(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// An output.
pub fn exporter(kind: &str, pairs: &[(&str, &str)]) -> Exporter {
    Exporter { r#type: kind.to_owned(), attrs: attrs(pairs) }
}

/// A policy of one rule: what is done about sources that match `identifier`, and what takes their place.
pub fn source_policy(action: PolicyAction, identifier: &str, to: Option<&str>) -> Policy {
    let selector = Selector {
        identifier: identifier.to_owned(),
        match_type: MatchType::Wildcard.into(),
        constraints: Vec::new(),
    };
    let updates = to.map(|to| Update { identifier: to.to_owned(), attrs: HashMap::new() });
    Policy { version: 1, rules: vec![Rule { action: action.into(), selector: Some(selector), updates }] }
}
