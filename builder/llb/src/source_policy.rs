//! Source policies: rules that a client gives with its build, about which sources it may use, and which are used in their place.
//!
//! ```text
//!   SourceOp ─► policy 1 ─► policy 2 ─► …        the last ALLOW or DENY of a policy that matches counts there
//!      ▲            │ CONVERT changed it
//!      └────────────┘ from the start; at most 20 times
//! ```
//!
//! Semantics and words are those of BuildKit's `sourcepolicy`: whoever wrote a policy for it means the same here.

use std::collections::BTreeMap;

use lapstrake_api_proto::sourcepolicy as wire;
use regex::Regex;

use crate::pb;

/// How often one source may be changed.
const CHANGES: usize = 20;
/// No identifier is longer than this in bytes: what a conversion doubles twenty times is no source.
const LONGEST: usize = 64 << 10;
/// Most bytes that a conversion may come to on its way.
const LARGEST: usize = 16 << 20;

/// Several policies, in the order in which they are asked.
#[derive(Debug, Clone, Default)]
pub struct SourcePolicies(Vec<Policy>);

/// The rules of one policy.
#[derive(Debug, Clone)]
struct Policy(Vec<Rule>);

#[derive(Debug, Clone)]
struct Rule {
    action: Action,
    pattern: Pattern,
    /// As it was written.
    identifier: String,
    constraints: Vec<Constraint>,
}

#[derive(Debug, Clone)]
enum Action {
    Allow,
    Deny,
    /// To another identifier, unless that is empty; with these attributes.
    Convert(Option<(String, BTreeMap<String, String>)>),
    Unknown(i32),
}

/// What is wrong with a pattern is said when somebody is asked whether it matches, and not before: as BuildKit does.
#[derive(Debug, Clone)]
enum Pattern {
    Exact,
    Regex(Result<Regex, String>),
    Wildcard(Result<Regex, String>),
    Unknown(i32),
}

#[derive(Debug, Clone)]
struct Constraint {
    key: String,
    value: String,
    condition: Condition,
}

#[derive(Debug, Clone)]
enum Condition {
    Equal,
    NotEqual,
    Matches(Result<Regex, String>),
    Unknown(i32),
}

/// Why a policy does not let a source pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A policy that is none.
    #[error("{0} in policy")]
    Malformed(&'static str),
    /// A rule denies the source.
    #[error("source {identifier:?} denied by policy: source denied by policy")]
    Denied {
        /// Which source.
        identifier: String,
    },
    /// The client denies the source.
    #[error("source {identifier:?} not allowed by policy: action {action}")]
    NotAllowed {
        /// Which source.
        identifier: String,
        /// What the client decided, by its name on the wire.
        action: String,
        /// What the client says about it.
        messages: Vec<String>,
    },
    /// Conversions that never come to an end.
    #[error("too many mutations on a single source: too many operations")]
    TooManyChanges,
    /// Whether a rule matches cannot be told.
    #[error("error matching source policy: {0}")]
    Match(String),
    /// A conversion that cannot be made.
    #[error("error mutating source policy: {0}")]
    Convert(String),
    /// A rule that does something unknown.
    #[error("source policy: rule {action} {identifier}: unknown type {source_identifier:?}")]
    UnknownAction {
        /// What it would do.
        action: i32,
        /// What it is about.
        identifier: String,
        /// The source.
        source_identifier: String,
    },
    /// What the client's policy session answers means nothing.
    #[error("{0}")]
    Session(String),
}

impl SourcePolicies {
    /// Reads policies as they come over the wire.
    ///
    /// # Errors
    /// [`PolicyError::Malformed`]. Patterns are looked at when they are used.
    pub fn from_proto<'a>(policies: impl IntoIterator<Item = &'a wire::Policy>) -> Result<Self, PolicyError> {
        policies
            .into_iter()
            .map(|policy| policy.rules.iter().map(Rule::from_proto).collect::<Result<_, _>>().map(Policy))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|policy| policy.0.is_empty())
    }

    /// These policies, and then others.
    pub fn and(&self, others: &Self) -> Self {
        Self(self.0.iter().chain(&others.0).cloned().collect())
    }

    /// Asks all policies about a source. Changes it as they say, and answers whether it was changed.
    ///
    /// # Errors
    /// Why the source may not be used.
    pub fn evaluate(&self, source: &mut pb::SourceOp) -> Result<bool, PolicyError> {
        for changes in 0..=CHANGES {
            if !self.round(source)? {
                return Ok(changes > 0);
            }
        }
        Err(PolicyError::TooManyChanges)
    }

    fn round(&self, source: &mut pb::SourceOp) -> Result<bool, PolicyError> {
        for policy in &self.0 {
            if policy.evaluate(source)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Policy {
    fn evaluate(&self, source: &mut pb::SourceOp) -> Result<bool, PolicyError> {
        let mut is_denied = false;
        for rule in &self.0 {
            if !rule.matches(source).map_err(PolicyError::Match)? {
                continue;
            }
            match &rule.action {
                Action::Allow => is_denied = false,
                Action::Deny => is_denied = true,
                Action::Convert(update) => {
                    // From the start, with what it is now.
                    if rule.convert(update.as_ref(), source).map_err(PolicyError::Convert)? {
                        return Ok(true);
                    }
                }
                Action::Unknown(action) => {
                    return Err(PolicyError::UnknownAction {
                        action: *action,
                        identifier: rule.identifier.clone(),
                        source_identifier: source.identifier.clone(),
                    });
                }
            }
        }
        match is_denied {
            true => Err(PolicyError::Denied { identifier: source.identifier.clone() }),
            false => Ok(false),
        }
    }
}

impl Rule {
    fn from_proto(rule: &wire::Rule) -> Result<Self, PolicyError> {
        let selector = rule.selector.as_ref().ok_or(PolicyError::Malformed("invalid nil selector"))?;
        let action =
            match wire::PolicyAction::try_from(rule.action) {
                Ok(wire::PolicyAction::Allow) => Action::Allow,
                Ok(wire::PolicyAction::Deny) => Action::Deny,
                Ok(wire::PolicyAction::Convert) => {
                    let update = rule.updates.as_ref();
                    Action::Convert(update.map(|update| {
                        (update.identifier.clone(), update.attrs.clone().into_iter().collect())
                    }))
                }
                Err(_) => Action::Unknown(rule.action),
            };
        let pattern = match wire::MatchType::try_from(selector.match_type) {
            Ok(wire::MatchType::Exact) => Pattern::Exact,
            Ok(wire::MatchType::Regex) => Pattern::Regex(compile(&selector.identifier)),
            Ok(wire::MatchType::Wildcard) => Pattern::Wildcard(wildcard(&selector.identifier)),
            Err(_) => Pattern::Unknown(selector.match_type),
        };
        let constraints = selector.constraints.iter().map(Constraint::from_proto).collect();
        Ok(Self { action, pattern, identifier: selector.identifier.clone(), constraints })
    }

    fn matches(&self, source: &pb::SourceOp) -> Result<bool, String> {
        for constraint in &self.constraints {
            if !constraint.holds(source)? {
                return Ok(false);
            }
        }
        if self.identifier == source.identifier {
            return Ok(true);
        }
        match &self.pattern {
            Pattern::Exact => Ok(false),
            Pattern::Regex(regex) | Pattern::Wildcard(regex) => {
                Ok(regex.as_ref().map_err(Clone::clone)?.is_match(&source.identifier))
            }
            Pattern::Unknown(kind) => Err(format!("unknown match type: {kind}")),
        }
    }

    /// Answers whether anything is different now.
    fn convert(
        &self,
        update: Option<&(String, BTreeMap<String, String>)>,
        source: &mut pb::SourceOp,
    ) -> Result<bool, String> {
        let (identifier, attrs) = update.ok_or("missing destination for convert rule")?;
        let template = if identifier.is_empty() { &self.identifier } else { identifier };
        let formatting = |error: &String| format!("error formatting destination: {error}");
        let groups = template.bytes().filter(|byte| *byte == b'$').count();
        let length = source.identifier.len().saturating_add(1);
        let most = groups.saturating_mul(length).saturating_add(template.len()).saturating_mul(length);
        if most > LARGEST {
            return Err(formatting(&"too long".to_owned()));
        }
        let now = match &self.pattern {
            Pattern::Exact => template.clone(),
            Pattern::Regex(regex) => {
                let regex = regex.as_ref().map_err(formatting)?;
                regex.replace_all(&source.identifier, template.as_str()).into_owned()
            }
            Pattern::Wildcard(regex) => {
                match regex.as_ref().map_err(formatting)?.captures(&source.identifier) {
                    None => source.identifier.clone(),
                    Some(captures) => {
                        let mut now = String::new();
                        captures.expand(template, &mut now);
                        now
                    }
                }
            }
            Pattern::Unknown(kind) => {
                return Err(formatting(&format!("unknown match type: {kind}")));
            }
        };
        if now.len() > LONGEST {
            return Err(formatting(&"too long".to_owned()));
        }
        let mut is_changed = false;
        if !now.is_empty() && now != source.identifier {
            source.identifier = now;
            is_changed = true;
        }
        for (key, value) in attrs {
            if source.attrs.get(key).map_or("", String::as_str) != value {
                source.attrs.insert(key.clone(), value.clone());
                is_changed = true;
            }
        }
        Ok(is_changed)
    }
}

impl Constraint {
    fn from_proto(constraint: &wire::AttrConstraint) -> Self {
        let condition = match wire::AttrMatch::try_from(constraint.condition) {
            Ok(wire::AttrMatch::Equal) => Condition::Equal,
            Ok(wire::AttrMatch::Notequal) => Condition::NotEqual,
            Ok(wire::AttrMatch::Matches) => Condition::Matches(compile(&constraint.value)),
            Err(_) => Condition::Unknown(constraint.condition),
        };
        Self { key: constraint.key.clone(), value: constraint.value.clone(), condition }
    }

    /// An attribute that is not there is empty.
    fn holds(&self, source: &pb::SourceOp) -> Result<bool, String> {
        let value = source.attrs.get(&self.key).map_or("", String::as_str);
        match &self.condition {
            Condition::Equal => Ok(value == self.value),
            Condition::NotEqual => Ok(value != self.value),
            Condition::Matches(regex) => Ok(regex.as_ref().map_err(Clone::clone)?.is_match(value)),
            Condition::Unknown(condition) => Err(format!("unknown attr condition: {condition}")),
        }
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    Regex::new(pattern).map_err(|error| format!("invalid regex {pattern:?}: {error}"))
}

/// BuildKit's wildcards: `*` is any text, and a group that a conversion may name; nothing else is special.
fn wildcard(pattern: &str) -> Result<Regex, String> {
    if pattern.contains("**") {
        return Err(format!("failed to translate wildcard {pattern:?} to regexp: invalid wildcard: \"**\""));
    }
    let parts: Vec<String> = pattern.split('*').map(regex::escape).collect();
    Regex::new(&format!("^{}$", parts.join("(.*)")))
        .map_err(|error| format!("failed to compile wildcard {pattern:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPINE: &str = "docker-image://docker.io/library/alpine:latest";

    fn selector(identifier: &str, kind: wire::MatchType) -> wire::Selector {
        wire::Selector { identifier: identifier.to_owned(), match_type: kind.into(), constraints: Vec::new() }
    }

    fn rule(action: wire::PolicyAction, identifier: &str, kind: wire::MatchType) -> wire::Rule {
        wire::Rule { action: action.into(), selector: Some(selector(identifier, kind)), updates: None }
    }

    fn convert(from: &str, kind: wire::MatchType, to: &str, attrs: &[(&str, &str)]) -> wire::Rule {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        wire::Rule {
            updates: Some(wire::Update { identifier: to.to_owned(), attrs }),
            ..rule(wire::PolicyAction::Convert, from, kind)
        }
    }

    fn policy(rules: Vec<wire::Rule>) -> wire::Policy {
        wire::Policy { version: 1, rules }
    }

    fn source(identifier: &str, attrs: &[(&str, &str)]) -> pb::SourceOp {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        pb::SourceOp { identifier: identifier.to_owned(), attrs }
    }

    fn ask(policies: &[wire::Policy], identifier: &str) -> Result<(bool, String), String> {
        let policies = SourcePolicies::from_proto(policies).unwrap();
        let mut source = source(identifier, &[]);
        let changed = policies.evaluate(&mut source).map_err(|error| error.to_string())?;
        Ok((changed, source.identifier))
    }

    use wire::{
        MatchType::{Exact, Regex as Re, Wildcard},
        PolicyAction::{Allow, Convert, Deny},
    };

    #[test]
    fn the_last_rule_that_matches_counts() {
        let denied = Err(format!("source {ALPINE:?} denied by policy: source denied by policy"));
        let passes = Ok((false, ALPINE.to_owned()));
        for (rules, expected) in [
            (vec![], &passes),
            (vec![rule(Deny, "docker-image://*", Wildcard)], &denied),
            (vec![rule(Deny, "docker-image://*", Wildcard), rule(Allow, ALPINE, Exact)], &passes),
            (vec![rule(Allow, ALPINE, Exact), rule(Deny, "*", Wildcard)], &denied),
            (vec![rule(Deny, "docker-image://docker.io/library/*", Exact)], &passes),
            (vec![rule(Deny, "alpine", Re)], &denied),
            (vec![rule(Deny, "^alpine", Re)], &passes),
            // Points are points.
            (vec![rule(Deny, "docker-image://dockerxio/library/*", Wildcard)], &passes),
        ] {
            assert_eq!(&ask(&[policy(rules.clone())], ALPINE), expected, "{rules:?}");
        }
    }

    #[test]
    fn what_one_policy_allows_another_may_deny() {
        let allow = policy(vec![rule(Deny, "*", Wildcard), rule(Allow, ALPINE, Exact)]);
        let deny = policy(vec![rule(Deny, ALPINE, Exact)]);
        assert!(ask(&[allow.clone(), deny.clone()], ALPINE).is_err());
        assert!(ask(&[deny, allow], ALPINE).is_err());
    }

    #[test]
    fn conversions_put_groups_in_their_places() {
        for (from, kind, to, expected) in [
            (ALPINE, Exact, "docker-image://x/$1", "docker-image://x/$1"),
            (
                "docker-image://docker.io/library/*:*",
                Wildcard,
                "docker-image://mirror/${1}:${2}-x",
                "docker-image://mirror/alpine:latest-x",
            ),
            (r"(\w+):latest$", Re, "${1}:3", "docker-image://docker.io/library/alpine:3"),
        ] {
            let converted = ask(&[policy(vec![convert(from, kind, to, &[])])], ALPINE);
            assert_eq!(converted, Ok((true, expected.to_owned())), "{from}");
        }
    }

    #[test]
    fn a_converted_source_is_asked_about_again() {
        let rules = vec![
            convert(ALPINE, Exact, "docker-image://x/y", &[]),
            rule(Deny, "docker-image://x/*", Wildcard),
        ];
        let error = ask(&[policy(rules)], ALPINE).unwrap_err();
        assert!(error.starts_with("source \"docker-image://x/y\" denied"), "{error}");
        // The first that changes it ends the round: a denial before it is forgotten.
        let rules = vec![rule(Deny, ALPINE, Exact), convert(ALPINE, Exact, "docker-image://x/y", &[])];
        assert_eq!(ask(&[policy(rules)], ALPINE), Ok((true, "docker-image://x/y".to_owned())));
    }

    #[test]
    fn conversions_in_circles_come_to_an_end() {
        let rules = vec![convert("a://1", Exact, "a://2", &[]), convert("a://2", Exact, "a://1", &[])];
        assert_eq!(
            ask(&[policy(rules)], "a://1").unwrap_err(),
            "too many mutations on a single source: too many operations"
        );
        let grows = vec![convert("a://*", Wildcard, "a://${1}x", &[])];
        assert!(ask(&[policy(grows)], "a://1").is_err());
        let doubles = vec![convert("a://*", Wildcard, "a://${1}${1}", &[])];
        assert!(ask(&[policy(doubles)], "a://123456").unwrap_err().ends_with("too long"));
        let many = vec![convert("a://*", Wildcard, &format!("a://{}", "$1".repeat(1 << 20)), &[])];
        assert!(ask(&[policy(many)], "a://123456").unwrap_err().ends_with("too long"));
    }

    #[test]
    fn attributes_are_asked_for_and_set() {
        let mut constrained = rule(Deny, "https://*", Wildcard);
        let constraint = |key: &str, value: &str, condition: wire::AttrMatch| wire::AttrConstraint {
            key: key.to_owned(),
            value: value.to_owned(),
            condition: condition.into(),
        };
        constrained.selector.as_mut().unwrap().constraints = vec![
            constraint("http.checksum", "", wire::AttrMatch::Equal),
            constraint("http.filename", "known", wire::AttrMatch::Notequal),
            constraint("http.perm", "^0?6", wire::AttrMatch::Matches),
        ];
        let policies = SourcePolicies::from_proto(&[policy(vec![constrained])]).unwrap();
        let passes = |attrs: &[(&str, &str)]| policies.evaluate(&mut source("https://x/y", attrs)).is_ok();
        assert!(!passes(&[("http.perm", "0600")]));
        assert!(passes(&[("http.perm", "0700")]));
        assert!(passes(&[("http.perm", "0600"), ("http.checksum", "sha256:1")]));
        assert!(passes(&[("http.perm", "0600"), ("http.filename", "known")]));

        let sets = convert("https://x/y", Exact, "", &[("http.checksum", "sha256:1")]);
        let policies = SourcePolicies::from_proto(&[policy(vec![sets])]).unwrap();
        let mut op = source("https://x/y", &[]);
        assert_eq!(policies.evaluate(&mut op), Ok(true));
        assert_eq!(op, source("https://x/y", &[("http.checksum", "sha256:1")]));
        assert_eq!(policies.evaluate(&mut op), Ok(false));
    }

    #[test]
    fn policies_that_mean_nothing_are_refused() {
        let nil = wire::Rule { selector: None, ..rule(Deny, "", Exact) };
        let error = SourcePolicies::from_proto(&[policy(vec![nil])]).unwrap_err();
        assert_eq!(error.to_string(), "invalid nil selector in policy");
        for (bad, told) in [
            (rule(Deny, "(", Re), "error matching source policy: invalid regex \"(\""),
            (
                rule(Deny, "a**", Wildcard),
                "error matching source policy: failed to translate wildcard \"a**\"",
            ),
            (
                rule(Convert, ALPINE, Exact),
                "error mutating source policy: missing destination for convert rule",
            ),
            (wire::Rule { action: 9, ..rule(Deny, ALPINE, Exact) }, "source policy: rule 9 docker-image"),
        ] {
            let error = ask(&[policy(vec![bad])], ALPINE).unwrap_err();
            assert!(error.starts_with(told), "{error}");
        }
        let mut unknown = rule(Deny, "x", Exact);
        unknown.selector.as_mut().unwrap().match_type = 7;
        assert!(ask(&[policy(vec![unknown])], ALPINE).unwrap_err().ends_with("unknown match type: 7"));
    }
}
