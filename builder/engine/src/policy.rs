//! What a client's source policy makes of the sources of its build. Asked before anything of a graph runs, and before anybody is asked what an image is.
//!
//! ```text
//!   graph ─► each source ─► rules (builder/llb) ─► the client itself, through a session ─► passes │ is another source │ is refused
//! ```

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use futures::{StreamExt, TryStreamExt, stream};
use lapstrake_api_proto::{gateway::ResolveSourceMetaResponse, sourcepolicy::PolicyAction};
use lapstrake_builder_dockerfile::{DockerfileOptions, ImageOrigin, ImageQuery};
use lapstrake_builder_llb::{Definition, PolicyError, ResolveMode, SourcePolicies, pb};
use lapstrake_builder_source::{SourceError, canonical_identifier};
use lapstrake_layerstore_oci::{Digest, Reference};
use lapstrake_session::{PolicyAnswer, SessionId, Wait};
use tokio_util::sync::CancellationToken;

use crate::{Engine, EngineError, scope::BuildScope};

/// How often a client may be asked about one source.
const QUESTIONS: usize = 10;
/// Sources of a graph that are asked about at once.
const AT_ONCE: usize = 16;

/// What a client says about the sources of its build.
#[derive(Debug, Clone, Default)]
pub struct SourcePolicy {
    /// Rules that came with the request.
    pub rules: SourcePolicies,
    /// The session that is asked about each source.
    pub session: Option<SessionId>,
}

impl SourcePolicy {
    /// Whether every source passes as it is.
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.session.is_none()
    }

    /// The same, with rules of one call of a frontend: those of a graph are asked after the build's own.
    pub(crate) fn and(&self, more: &SourcePolicies) -> Self {
        Self { rules: self.rules.and(more), session: self.session.clone() }
    }

    /// The same, with rules of one call of a frontend: those of a single source are asked before the build's own.
    pub(crate) fn after(&self, first: &SourcePolicies) -> Self {
        Self { rules: first.and(&self.rules), session: self.session.clone() }
    }

    /// A Dockerfile's options in which named contexts are not the images that they name, but what the rules want in their place. Where that is an image,
    /// too, it is found when the image is asked about; whoever asks about an image is answered with one.
    pub(crate) fn contexts<'a>(&self, options: &'a DockerfileOptions) -> Cow<'a, DockerfileOptions> {
        let mut governed = Cow::Borrowed(options);
        for (key, context) in &options.named_contexts {
            if let Some(specifier) = other_context(&self.rules, &context.specifier)
                && let Some(context) = governed.to_mut().named_contexts.get_mut(key)
            {
                context.specifier = specifier;
            }
        }
        governed
    }
}

/// What rules want in the place of a named context that is an image, if that is none. What they refuse is refused when it is asked about.
fn other_context(rules: &SourcePolicies, specifier: &str) -> Option<String> {
    let name = specifier.strip_prefix("docker-image:")?;
    let reference = Reference::parse(name.trim_start_matches("//")).ok()?.with_default_tag();
    let mut source =
        pb::SourceOp { identifier: format!("docker-image://{reference}"), ..pb::SourceOp::default() };
    if !rules.evaluate(&mut source).ok()? {
        return None;
    }
    match source.identifier.split_once("://")? {
        ("docker-image" | "oci-layout", _) => None,
        ("local", name) => Some(format!("local:{name}")),
        _ => Some(source.identifier),
    }
}

impl Engine {
    /// A graph as a policy leaves it.
    pub(crate) async fn govern(
        &self,
        definition: &Arc<Definition>,
        policy: &SourcePolicy,
        scope: &BuildScope,
    ) -> Result<Arc<Definition>, EngineError> {
        if policy.is_empty() {
            return Ok(Arc::clone(definition));
        }
        let judged = definition.sources()?.into_iter().map(|(digest, op)| async move {
            match self.judge(&op, policy, scope).await {
                Ok(None) => Ok(None),
                Ok(Some(source)) => {
                    let op = pb::Op { op: Some(pb::op::Op::Source(source)), ..op };
                    Ok(Some((digest, op)))
                }
                Err(source) => Err(EngineError::Policy { vertex: Some(digest), source }),
            }
        });
        // In a list first: a stream of borrowing futures made on the way is no future that can be sent.
        let judged: Vec<_> = judged.collect();
        let judged: Vec<Option<(Digest, pb::Op)>> =
            stream::iter(judged).buffered(AT_ONCE).try_collect().await?;
        let changed: BTreeMap<Digest, pb::Op> = judged.into_iter().flatten().collect();
        match changed.is_empty() {
            true => Ok(Arc::clone(definition)),
            false => Ok(Arc::new(definition.with_sources(&changed)?)),
        }
    }

    /// What a source is to be replaced with; `None` when it passes as it is.
    pub(crate) async fn judge(
        &self,
        op: &pb::Op,
        policy: &SourcePolicy,
        scope: &BuildScope,
    ) -> Result<Option<pb::SourceOp>, PolicyError> {
        let Some(pb::op::Op::Source(given)) = &op.op else { return Ok(None) };
        let mut source = given.clone();
        let mut is_changed = false;
        let mut left = QUESTIONS;
        loop {
            source.identifier = canonical_identifier(&source);
            is_changed |= policy.rules.evaluate(&mut source)?;
            let Some(session) = &policy.session else { break };
            let asked = self.ask_client(session, &source, op.platform.as_ref(), &mut left, scope);
            match Box::pin(asked).await? {
                None => break,
                // What it says in its place is looked at as if it had been there from the beginning.
                Some(other) => {
                    source = other;
                    is_changed = true;
                }
            }
        }
        Ok(is_changed.then_some(source))
    }

    /// Asks a client about a source. Answers with what it wants in its place.
    async fn ask_client(
        &self,
        session: &SessionId,
        source: &pb::SourceOp,
        platform: Option<&pb::Platform>,
        left: &mut usize,
        scope: &BuildScope,
    ) -> Result<Option<pb::SourceOp>, PolicyError> {
        let failed = |error: lapstrake_session::Error| PolicyError::Session(error.to_string());
        let meaningless = |what: &str| PolicyError::Session(what.to_owned());
        let caller = self.workshop().sessions.get(session.as_str(), Wait::default()).await.map_err(failed)?;
        let mut known = ResolveSourceMetaResponse {
            source: Some(source.clone()),
            ..ResolveSourceMetaResponse::default()
        };
        loop {
            *left = left.checked_sub(1).ok_or_else(|| meaningless("too many policy requests"))?;
            let answer = caller.check_policy(known, platform.cloned()).await.map_err(failed)?;
            let decision = match answer {
                None => return Err(meaningless("no decision in policy response")),
                Some(PolicyAnswer::Decision(decision)) => decision,
                Some(PolicyAnswer::Question(question)) => {
                    let asked = question.source.clone().unwrap_or_default();
                    if asked.identifier != source.identifier {
                        let (theirs, ours) = (asked.identifier, &source.identifier);
                        let why =
                            format!("policy requested different source identifier: {theirs:?} != {ours:?}");
                        return Err(PolicyError::Session(why));
                    }
                    if asked.attrs != source.attrs {
                        return Err(meaningless("policy requested different source attrs"));
                    }
                    // Whoever asks stops it by dropping the future.
                    let found = self.source_meta(*question, scope, &CancellationToken::new()).await;
                    known = found.map_err(|error| {
                        let why = crate::classic::words(&error);
                        PolicyError::Session(format!(
                            "error resolving source metadata from policy request: {why}"
                        ))
                    })?;
                    continue;
                }
            };
            return match PolicyAction::try_from(decision.action) {
                Ok(PolicyAction::Allow) => Ok(None),
                Ok(PolicyAction::Convert) => match decision.update {
                    Some(update) => Ok(Some(update)),
                    None => Err(meaningless("convert action requires updated source")),
                },
                Ok(PolicyAction::Deny) | Err(_) => Err(PolicyError::NotAllowed {
                    identifier: source.identifier.clone(),
                    action: PolicyAction::try_from(decision.action).map_or_else(
                        |_| decision.action.to_string(),
                        |action| action.as_str_name().to_owned(),
                    ),
                    messages: decision.deny_messages.into_iter().map(|message| message.message).collect(),
                }),
            };
        }
    }

    /// What a policy makes of an image that a frontend asks about.
    pub(crate) async fn judge_image(
        &self,
        query: &ImageQuery,
        policy: &SourcePolicy,
        scope: &BuildScope,
    ) -> Result<ImageQuery, SourceError> {
        if policy.is_empty() {
            return Ok(query.clone());
        }
        let op = image_op(query);
        match self.judge(&op, policy, scope).await {
            Err(source) => Err(SourceError::Policy(source)),
            Ok(None) => Ok(query.clone()),
            Ok(Some(source)) => query_of(&source, query),
        }
    }

    /// Whether an URL may be asked for: a build context is looked at before it is part of a graph.
    pub(crate) async fn judge_url(&self, url: &str, scope: &BuildScope) -> Result<String, EngineError> {
        if scope.policy.is_empty() {
            return Ok(url.to_owned());
        }
        let attrs = [("http.filename".to_owned(), "context".to_owned())].into();
        let source = pb::SourceOp { identifier: url.to_owned(), attrs };
        let op = pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() };
        let judged = self.judge(&op, &scope.policy, scope).await;
        let judged = judged.map_err(|source| EngineError::Policy { vertex: None, source })?;
        Ok(judged.map_or_else(|| url.to_owned(), |source| source.identifier))
    }
}

fn image_op(query: &ImageQuery) -> pb::Op {
    let mut attrs = BTreeMap::new();
    let scheme = match &query.origin {
        ImageOrigin::Registry { .. } => {
            match query.origin.resolve_mode() {
                ResolveMode::Default => {}
                ResolveMode::ForcePull => _ = attrs.insert("image.resolvemode".to_owned(), "pull".to_owned()),
                ResolveMode::PreferLocal => {
                    _ = attrs.insert("image.resolvemode".to_owned(), "local".to_owned());
                }
            }
            "docker-image"
        }
        ImageOrigin::OciLayout { store_id, session_id } => {
            attrs.insert("oci.store".to_owned(), store_id.clone());
            attrs.insert("oci.session".to_owned(), session_id.clone());
            "oci-layout"
        }
    };
    let platform = &query.platform;
    pb::Op {
        op: Some(pb::op::Op::Source(pb::SourceOp {
            identifier: format!("{scheme}://{}", query.reference),
            attrs,
        })),
        platform: Some(pb::Platform {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            os_version: platform.os_version.clone(),
            os_features: platform.os_features.clone(),
        }),
        ..pb::Op::default()
    }
}

/// The question about the image that a policy wants in the place of the one that was asked about.
fn query_of(source: &pb::SourceOp, asked: &ImageQuery) -> Result<ImageQuery, SourceError> {
    let bad = |why: String| SourceError::Identifier { origin: source.identifier.clone(), why };
    let (scheme, rest) = source.identifier.split_once("://").unwrap_or_default();
    let attr = |name: &str| source.attrs.get(name).cloned().unwrap_or_default();
    let origin = match scheme {
        "docker-image" => ImageOrigin::registry(match attr("image.resolvemode").as_str() {
            "pull" => ResolveMode::ForcePull,
            "local" => ResolveMode::PreferLocal,
            _ => ResolveMode::Default,
        }),
        "oci-layout" => {
            ImageOrigin::OciLayout { store_id: attr("oci.store"), session_id: attr("oci.session") }
        }
        _ => return Err(bad("no image can be had of it".to_owned())),
    };
    let reference = Reference::parse(rest).map_err(|error| bad(error.to_string()))?.with_default_tag();
    Ok(ImageQuery { origin, reference, platform: asked.platform.clone() })
}

#[cfg(test)]
mod tests {
    use lapstrake_api_proto::sourcepolicy::{Policy, Rule, Selector, Update};

    use super::*;

    #[test]
    fn a_named_context_that_is_an_image_becomes_what_rules_want_in_its_place() {
        let rule = |name: &str, action: PolicyAction, to: &str| Rule {
            action: action.into(),
            selector: Some(Selector { identifier: format!("docker-image://{name}"), ..Selector::default() }),
            updates: Some(Update { identifier: to.to_owned(), ..Update::default() }),
        };
        let convert = PolicyAction::Convert;
        let rules = vec![
            rule("docker.io/library/a:latest", convert, "local://files"),
            rule("docker.io/library/b:latest", convert, "https://host/b.tar"),
            rule("docker.io/library/c:latest", convert, "docker-image://docker.io/library/d:1"),
            rule("docker.io/library/e:latest", PolicyAction::Deny, ""),
        ];
        let rules = SourcePolicies::from_proto(&Some(Policy { version: 1, rules })).unwrap();
        let other = |specifier: &str| other_context(&rules, specifier);
        for name in ["docker-image:a", "docker-image://a", "docker-image:docker.io/library/a:latest"] {
            assert_eq!(other(name).as_deref(), Some("local:files"), "{name}");
        }
        assert_eq!(other("docker-image://b").as_deref(), Some("https://host/b.tar"));
        for name in ["docker-image://c", "docker-image://e", "docker-image://f", "local:a", "https://a", "a"]
        {
            assert_eq!(other(name), None, "{name}");
        }
    }
}
