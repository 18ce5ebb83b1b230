//! What a frontend gives, and what of it is exported.

use std::collections::BTreeMap;

use lapstrake_api_proto::gateway;
use lapstrake_builder_exporter::{
    Annotations, Attestation, AttestationContent, AttestationKind, Subject, SubjectKind,
};
use lapstrake_layerstore_oci::{Digest, ImageConfig, Platform, Reference};
use serde::{Deserialize, Serialize};

use super::Ref;
use crate::EngineError;

/// The platforms of a result, as JSON of [`Platforms`].
const PLATFORMS: &str = "refs.platforms";
/// The image's config; `/` and a platform's key behind it, if it is that platform's.
const CONFIG: &str = "containerimage.config";
/// The config of the image that it was built from; as [`CONFIG`].
const BASE_CONFIG: &str = "containerimage.base.config";
/// `SOURCE_DATE_EPOCH` in seconds; as [`CONFIG`].
const EPOCH: &str = "source.date.epoch";

/// The image's names, between commas.
const NAME: &str = "image.name";

/// What a frontend gives: the one form in which every frontend's answer goes on to the exporter.
#[derive(Debug, Clone, Default)]
pub struct FrontendResult {
    /// What was made.
    pub refs: Refs,
    /// What is said of it: images' configs, platforms, answers to questions.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// Attestations, by platform key.
    pub attestations: BTreeMap<String, Vec<GatewayAttestation>>,
}

/// Results of a frontend. No [`Ref`] is the empty tree.
#[derive(Debug, Clone)]
pub enum Refs {
    /// One result.
    One(Option<Ref>),
    /// One for each platform, by its key.
    ByKey(BTreeMap<String, Option<Ref>>),
}

impl Default for Refs {
    fn default() -> Self {
        Self::One(None)
    }
}

impl Refs {
    /// All there are.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Ref> {
        let (one, several) = match self {
            Self::One(one) => (one.as_ref(), None),
            Self::ByKey(several) => (None, Some(several)),
        };
        one.into_iter().chain(several.into_iter().flat_map(|refs| refs.values().flatten()))
    }
}

/// An attestation as frontends give it: a predicate in a file of a result, or of all its files.
#[derive(Debug, Clone, PartialEq)]
pub struct GatewayAttestation {
    /// What it is.
    pub kind: gateway::AttestationKind,
    /// What is said of it: why it was made, whether it is for the inline form only.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// The result that it is in.
    pub reference: Option<Ref>,
    /// Its path there.
    pub path: String,
    /// The predicate's type.
    pub predicate_type: String,
    /// What it is about.
    pub subjects: Vec<gateway::InTotoSubject>,
}

impl PartialEq for Ref {
    /// Two results are equal when they have one name.
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

/// The result for one platform, before it is solved.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Its key.
    pub(crate) key: String,
    pub(crate) platform: Platform,
    pub(crate) source: Option<Ref>,
    pub(crate) config: ImageConfig,
    pub(crate) epoch: Option<i64>,
}

/// Go's names: `exptypes.Platforms`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Platforms {
    #[serde(default, deserialize_with = "null_is_none")]
    platforms: Vec<PlatformKey>,
}

#[derive(Serialize, Deserialize)]
struct PlatformKey {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Platform", default)]
    platform: Platform,
}

fn null_is_none<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<PlatformKey>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl FrontendResult {
    /// A result of one graph, of which nothing is said.
    pub(crate) fn one(reference: Ref) -> Self {
        Self { refs: Refs::One(Some(reference)), ..Self::default() }
    }

    /// Whether it says which platforms there are.
    pub(super) fn names_platforms(&self) -> bool {
        self.metadata.contains_key(PLATFORMS)
    }

    /// Whether it is one result of several, also where there is but one.
    pub(crate) fn is_multi_platform(&self) -> bool {
        matches!(self.refs, Refs::ByKey(_))
    }

    /// Says what is known of a target; as the last one, [`Self::finish`].
    pub(crate) fn add(&mut self, target: &Target, base: Option<&ImageConfig>) -> Result<(), EngineError> {
        let of_several = match &mut self.refs {
            Refs::One(one) => {
                one.clone_from(&target.source);
                false
            }
            Refs::ByKey(refs) => {
                refs.insert(target.key.clone(), target.source.clone());
                true
            }
        };
        let key = |name: &str| match of_several {
            true => format!("{name}/{}", target.key),
            false => name.to_owned(),
        };
        let written = |config: &ImageConfig| {
            config.to_frontend_json().map_err(|error| unusable(CONFIG, error.to_string()))
        };
        self.metadata.insert(key(CONFIG), written(&target.config)?);
        if let Some(base) = base {
            self.metadata.insert(key(BASE_CONFIG), written(base)?);
        }
        if let Some(epoch) = target.epoch {
            self.metadata.insert(key(EPOCH), epoch.to_string().into_bytes());
        }
        Ok(())
    }

    /// Says which platforms there are.
    pub(crate) fn finish<'a>(&mut self, targets: impl IntoIterator<Item = &'a Target>) {
        let platforms = targets
            .into_iter()
            .map(|target| PlatformKey { id: target.key.clone(), platform: target.platform.clone() });
        let platforms = Platforms { platforms: platforms.collect() };
        let json = serde_json::to_vec(&platforms).expect("names and platforms serialise");
        self.metadata.insert(PLATFORMS.to_owned(), json);
    }

    /// What is to be exported, one for each platform.
    pub(crate) fn targets(&self) -> Result<Vec<Target>, EngineError> {
        let platforms = self.platforms()?;
        let mut targets = Vec::with_capacity(platforms.len());
        if !self.is_multi_platform() && platforms.len() > 1 {
            return Err(unusable(PLATFORMS, "several platforms, and one result".to_owned()));
        }
        for PlatformKey { id, platform } in platforms {
            let source = match &self.refs {
                Refs::One(one) => one.clone(),
                Refs::ByKey(refs) => {
                    // Who gave one result, gave it for the one platform that there is.
                    let only = (refs.len() == 1).then(|| refs.values().next()).flatten();
                    let found = refs.get(&id).or(only).cloned();
                    found.ok_or_else(|| unusable(PLATFORMS, format!("no result for platform {id}")))?
                }
            };
            let config = match self.of(CONFIG, &id) {
                Some(b"null") => {
                    return Err(unusable(CONFIG, "invalid null image config for export".to_owned()));
                }
                Some(json) => {
                    ImageConfig::from_json(json).map_err(|error| unusable(CONFIG, error.to_string()))?
                }
                None => ImageConfig::for_platform(&platform),
            };
            let epoch = self.of(EPOCH, &id).map(|text| {
                let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                number
                    .ok_or_else(|| unusable(EPOCH, format!("{:?} is no time", String::from_utf8_lossy(text))))
            });
            targets.push(Target { key: id, platform, source, config, epoch: epoch.transpose()? });
        }
        Ok(targets)
    }

    /// The config of the image that a platform's result was made from, where the frontend says it.
    pub(crate) fn base(&self, key: &str) -> Result<Option<ImageConfig>, EngineError> {
        let read =
            |json| ImageConfig::from_json(json).map_err(|error| unusable(BASE_CONFIG, error.to_string()));
        self.of(BASE_CONFIG, key).map(read).transpose()
    }

    /// The image's names, where the frontend gives some.
    pub(crate) fn names(&self) -> Result<Vec<Reference>, EngineError> {
        let text = self.metadata.get(NAME).map(|name| String::from_utf8_lossy(name)).unwrap_or_default();
        let parse = |name| Reference::parse(name).map_err(|error| unusable(NAME, error.to_string()));
        text.split(',').filter(|name| !name.is_empty()).map(parse).collect()
    }

    /// Facts about the image for its documents.
    pub(crate) fn annotations(&self) -> Result<Annotations, EngineError> {
        Ok(Annotations::of_result(&self.metadata)?)
    }

    /// What is attested of a platform's result, with the trees that it is in.
    pub(crate) async fn attested(&self, key: &str) -> Result<Vec<Attestation>, EngineError> {
        let mut all = Vec::new();
        for attestation in self.attestations.get(key).into_iter().flatten() {
            let GatewayAttestation { kind, metadata, reference, path, predicate_type, subjects } =
                attestation;
            let tree = match reference {
                Some(reference) => reference.evaluate().await?,
                None => return Err(unusable("attestation", "no ref provided for attestation".to_owned())),
            };
            let subjects = subjects.iter().map(subject).collect::<Result<Vec<_>, EngineError>>()?;
            all.push(Attestation {
                kind: match kind {
                    gateway::AttestationKind::InToto => AttestationKind::InToto,
                    gateway::AttestationKind::Bundle => AttestationKind::Bundle,
                },
                metadata: metadata.clone(),
                path: path.into(),
                content: AttestationContent::Tree(tree),
                predicate_type: predicate_type.clone(),
                subjects,
            });
        }
        Ok(all)
    }

    /// What is for the client itself: metadata whose name begins with `frontend.`, as text.
    pub(crate) fn told(&self) -> BTreeMap<String, String> {
        let told = self.metadata.iter().filter(|(name, _)| name.starts_with("frontend."));
        told.map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned())).collect()
    }

    fn of(&self, name: &str, key: &str) -> Option<&[u8]> {
        let found = self.metadata.get(&format!("{name}/{key}")).or_else(|| self.metadata.get(name));
        found.map(Vec::as_slice)
    }

    /// As BuildKit's `exptypes.ParsePlatforms`: those that are said, or else the image's, or else this machine's.
    fn platforms(&self) -> Result<Vec<PlatformKey>, EngineError> {
        if let Some(json) = self.metadata.get(PLATFORMS) {
            let fail = |why: String| unusable(PLATFORMS, why);
            let platforms: Platforms = match json.as_slice() {
                b"" | b"null" => Platforms { platforms: Vec::new() },
                json => serde_json::from_slice(json).map_err(|error| fail(error.to_string()))?,
            };
            if platforms.platforms.is_empty() {
                return Err(fail("invalid empty platforms index for exporter".to_owned()));
            }
            return platforms
                .platforms
                .into_iter()
                .map(|PlatformKey { id, platform }| {
                    if id.is_empty() {
                        return Err(fail("invalid empty platform key for exporter".to_owned()));
                    }
                    if platform.os.is_empty() || platform.architecture.is_empty() {
                        return Err(fail(format!("invalid platform value {platform} for exporter")));
                    }
                    Ok(PlatformKey { id, platform: platform.normalized() })
                })
                .collect();
        }
        let mut platform = Platform::host();
        if let Some(json) = self.metadata.get(CONFIG).filter(|json| *json != b"null") {
            let config = ImageConfig::from_json(json).map_err(|error| unusable(CONFIG, error.to_string()))?;
            let said = config.platform();
            match (said.os.is_empty(), said.architecture.is_empty()) {
                (false, false) => platform = said.normalized(),
                (true, true) => {}
                _ => {
                    let why = "invalid image config: os and architecture must be specified together";
                    return Err(unusable(CONFIG, why.to_owned()));
                }
            }
        }
        Ok(vec![PlatformKey { id: platform.to_full_string(), platform }])
    }
}

fn subject(subject: &gateway::InTotoSubject) -> Result<Subject, EngineError> {
    let kind = match subject.kind() {
        gateway::InTotoSubjectKind::Self_ => SubjectKind::Result,
        gateway::InTotoSubjectKind::Raw => SubjectKind::Other,
    };
    let parse = |text: &String| {
        Digest::parse(text).map_err(|error| unusable("attestation", format!("digest {text:?}: {error}")))
    };
    let digests = subject.digest.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    Ok(Subject { kind, name: subject.name.clone(), digests })
}

fn unusable(what: &str, why: String) -> EngineError {
    EngineError::Result { what: what.to_owned(), why }
}
