//! Where caches come from and go to, as people write it: `type=registry,ref=…`, as `docker buildx build` takes it.

use std::{collections::BTreeMap, path::PathBuf};

use lapstrake_builder_dockerfile::parse_bool;
use lapstrake_builder_exporter::split_fields;
use lapstrake_layerstore_oci::{Digest, LayerCompression, Reference};

use crate::EngineError;

/// Where a cache comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheSource {
    /// A name: an exported cache in a registry, or an image that carries its own records, here or in a registry.
    Registry {
        /// The name.
        reference: Reference,
        /// Whether plain HTTP, and TLS that nobody vouches for, will do.
        insecure: bool,
    },
    /// A directory of this machine.
    Local {
        /// The directory, an OCI layout.
        directory: PathBuf,
        /// What to take of it.
        manifest: LocalManifest,
    },
    /// A directory of the client's machine, which its session serves.
    Client {
        /// The directory, as the client calls it.
        directory: String,
        /// The manifest: its client has looked the tag up.
        digest: Digest,
    },
}

/// What to take of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalManifest {
    /// What its index names so.
    Tag(String),
    /// Just this.
    Digest(Digest),
}

/// Where a cache goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheTarget {
    /// Into the config of the image that is built.
    Inline,
    /// To a registry.
    Registry {
        /// The name.
        reference: Reference,
        /// Whether plain HTTP, and TLS that nobody vouches for, will do.
        insecure: bool,
        /// What goes there.
        options: CacheExportOptions,
    },
    /// To a directory of this machine.
    Local {
        /// The directory. What it has of other caches stays.
        directory: PathBuf,
        /// What its index is to name it.
        tag: String,
        /// Whether blobs go that nothing in its index leads to any more.
        reset: bool,
        /// What goes there.
        options: CacheExportOptions,
    },
    /// To a place that is not supported, by a client who does not mind (`ignore-error`): it is told, and the build goes on.
    Unsupported {
        /// What kind of place: `gha`, `s3`, `azblob`.
        kind: String,
    },
    /// To a directory of the client's machine, which its session serves. The client names the manifest in its index, and tidies up, itself.
    Client {
        /// The directory, as the client calls it.
        directory: String,
        /// What goes there.
        options: CacheExportOptions,
    },
}

/// What is exported, and in which form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheExportOptions {
    /// Which results.
    pub mode: CacheMode,
    /// The manifest.
    pub form: CacheForm,
    /// How layers are compressed that have no blob yet.
    pub compression: LayerCompression,
    /// How hard; `None` is the compression's own default.
    pub level: Option<u32>,
    /// Whether blobs in other compressions are made anew.
    pub force: bool,
    /// Whether the build is good although this failed.
    pub ignore_error: bool,
}

/// Which results are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// The layers of what is built.
    Min,
    /// All of the build.
    Max,
}

/// What names a cache's blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheForm {
    /// An OCI image manifest, which every registry takes.
    ImageManifest,
    /// An OCI index of layers, as BuildKit made them before 0.21.
    OciIndex,
    /// A Docker manifest list of layers, as BuildKit made them before 0.8.
    DockerList,
}

impl Default for CacheExportOptions {
    /// BuildKit's.
    fn default() -> Self {
        Self {
            mode: CacheMode::Min,
            form: CacheForm::ImageManifest,
            compression: LayerCompression::Gzip,
            level: None,
            force: false,
            ignore_error: false,
        }
    }
}

impl CacheSource {
    /// Reads `type=registry,ref=NAME`, `type=local,src=DIRECTORY[,tag=TAG][,digest=DIGEST]`, or a name alone.
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        Self::of(Fields::parse(text)?)
    }

    /// The same as clients of the daemon send it: its type, and everything else. Their directories are theirs, and not of this machine.
    pub fn from_attrs(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Self, EngineError> {
        let mut fields = Fields::of(kind, attrs);
        if kind != "local" {
            return Self::of(fields);
        }
        let directory = fields.required("src")?;
        let digest = fields.required("digest")?;
        let digest = Digest::parse(&digest).map_err(|error| fields.refuse(format!("digest: {error}")))?;
        // The client found the digest by it.
        fields.take("tag");
        fields.end()?;
        Ok(Self::Client { directory, digest })
    }

    fn of(mut fields: Fields) -> Result<Self, EngineError> {
        let source = match fields.kind.as_str() {
            "registry" => Self::Registry {
                reference: fields.reference()?,
                insecure: fields.flag("registry.insecure", false)?,
            },
            "local" => {
                let directory = PathBuf::from(fields.required("src")?);
                let tag = fields.take("tag");
                let manifest = match (fields.take("digest"), tag) {
                    (Some(digest), None) => LocalManifest::Digest(
                        Digest::parse(&digest).map_err(|error| fields.refuse(format!("digest: {error}")))?,
                    ),
                    (Some(_), Some(_)) => return Err(fields.refuse("tag and digest exclude each other")),
                    (None, tag) => LocalManifest::Tag(fields.tag(tag)?),
                };
                Self::Local { directory, manifest }
            }
            _ => return Err(fields.no_such_type()),
        };
        fields.end()?;
        Ok(source)
    }
}

impl CacheTarget {
    /// Reads `type=inline`, `type=registry,ref=NAME[,…]`, `type=local,dest=DIRECTORY[,…]`, or a name alone.
    pub fn parse(text: &str) -> Result<Self, EngineError> {
        Self::of(Fields::parse(text)?)
    }

    /// The same as clients of the daemon send it: its type, and everything else. Their directories are theirs, and not of this machine.
    pub fn from_attrs(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Self, EngineError> {
        let mut fields = Fields::of(kind, attrs);
        if matches!(kind, "gha" | "s3" | "azblob") && fields.flag("ignore-error", false)? {
            return Ok(Self::Unsupported { kind: kind.to_owned() });
        }
        if kind != "local" {
            return Self::of(fields);
        }
        let directory = fields.required("dest")?;
        // What the client does when the cache is there.
        let (tag, _) = (fields.take("tag"), fields.flag("reset", false)?);
        fields.tag(tag)?;
        let options = fields.options()?;
        fields.end()?;
        Ok(Self::Client { directory, options })
    }

    fn of(mut fields: Fields) -> Result<Self, EngineError> {
        let target = match fields.kind.as_str() {
            "inline" => {
                // There is one mode; `buildctl` names it.
                match fields.take("mode").as_deref() {
                    None | Some("min") => Self::Inline,
                    Some(other) => return Err(fields.refuse(format!("mode={other}: an inline cache is min"))),
                }
            }
            "registry" => Self::Registry {
                reference: fields.reference()?,
                insecure: fields.flag("registry.insecure", false)?,
                options: fields.options()?,
            },
            "local" => {
                let directory = PathBuf::from(fields.required("dest")?);
                let tag = fields.take("tag");
                let (tag, reset) = (fields.tag(tag)?, fields.flag("reset", false)?);
                Self::Local { directory, tag, reset, options: fields.options()? }
            }
            _ => return Err(fields.no_such_type()),
        };
        fields.end()?;
        Ok(target)
    }
}

/// `key=value` pairs, each taken once.
struct Fields {
    text: String,
    kind: String,
    values: BTreeMap<String, String>,
}

impl Fields {
    fn parse(text: &str) -> Result<Self, EngineError> {
        let refuse = |why: String| EngineError::CacheOption { text: text.to_owned(), why };
        if !text.contains('=') {
            let values = BTreeMap::from([("ref".to_owned(), text.to_owned())]);
            return Ok(Self { text: text.to_owned(), kind: "registry".to_owned(), values });
        }
        let mut values = BTreeMap::new();
        for field in split_fields(text).ok_or_else(|| refuse("a quotation mark is missing".to_owned()))? {
            let Some((key, value)) = field.split_once('=') else {
                return Err(refuse(format!("{field:?} is not key=value")));
            };
            let key = key.trim().to_ascii_lowercase();
            if values.insert(key.clone(), value.to_owned()).is_some() {
                return Err(refuse(format!("{key} is there twice")));
            }
        }
        let kind = values.remove("type").ok_or_else(|| refuse("type is missing".to_owned()))?;
        Ok(Self { text: text.to_owned(), kind, values })
    }

    fn of(kind: &str, attrs: &BTreeMap<String, String>) -> Self {
        let values: BTreeMap<String, String> =
            attrs.iter().map(|(key, value)| (key.to_ascii_lowercase(), value.clone())).collect();
        let shown: String = values.iter().map(|(key, value)| format!(",{key}={value}")).collect();
        Self { text: format!("type={kind}{shown}"), kind: kind.to_owned(), values }
    }

    fn refuse(&self, why: impl Into<String>) -> EngineError {
        EngineError::CacheOption { text: self.text.clone(), why: why.into() }
    }

    fn no_such_type(&self) -> EngineError {
        // Without their attributes: there are keys of the cloud among them.
        let why = format!("caches of type {} are not supported; registry, local and inline are", self.kind);
        EngineError::CacheOption { text: format!("type={}", self.kind), why }
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.values.remove(key)
    }

    fn required(&mut self, key: &str) -> Result<String, EngineError> {
        let value = self.take(key).filter(|value| !value.is_empty());
        value.ok_or_else(|| self.refuse(format!("{key} is missing")))
    }

    fn reference(&mut self) -> Result<Reference, EngineError> {
        let name = self.required("ref")?;
        let reference = Reference::parse(&name).map_err(|error| self.refuse(error.to_string()))?;
        Ok(reference.with_default_tag())
    }

    fn tag(&self, tag: Option<String>) -> Result<String, EngineError> {
        match tag {
            None => Ok("latest".to_owned()),
            Some(tag) if tag.is_empty() => Err(self.refuse("tag is empty")),
            Some(tag) => Ok(tag),
        }
    }

    fn flag(&mut self, key: &str, default: bool) -> Result<bool, EngineError> {
        let Some(value) = self.take(key) else { return Ok(default) };
        parse_bool(&value).ok_or_else(|| self.refuse(format!("{key}={value} is neither true nor false")))
    }

    fn options(&mut self) -> Result<CacheExportOptions, EngineError> {
        let mode = match self.take("mode").as_deref() {
            None | Some("min") => CacheMode::Min,
            Some("max") => CacheMode::Max,
            Some(other) => return Err(self.refuse(format!("mode={other}: it is min or max"))),
        };
        let oci = self.flag("oci-mediatypes", true)?;
        let form = match (self.flag("image-manifest", oci)?, oci) {
            (true, true) => CacheForm::ImageManifest,
            (true, false) => return Err(self.refuse("image-manifest=true needs oci-mediatypes=true")),
            (false, true) => CacheForm::OciIndex,
            (false, false) => CacheForm::DockerList,
        };
        let (compression, most) = match self.take("compression").as_deref() {
            None | Some("gzip") => (LayerCompression::Gzip, 9),
            Some("zstd") if !oci => return Err(self.refuse("compression=zstd needs oci-mediatypes=true")),
            Some("zstd") => (LayerCompression::Zstd, 22),
            Some("uncompressed") => (LayerCompression::None, 0),
            Some("estargz") => {
                return Err(
                    self.refuse("compression=estargz is not supported; gzip, zstd and uncompressed are")
                );
            }
            Some(other) => {
                return Err(self.refuse(format!("compression={other}: it is gzip, zstd or uncompressed")));
            }
        };
        let level = match self.take("compression-level") {
            None => None,
            Some(text) => match text.parse::<u32>() {
                Ok(level) if level <= most => Some(level),
                _ => {
                    return Err(
                        self.refuse(format!("compression-level={text}: it is a number from 0 to {most}"))
                    );
                }
            },
        };
        let force = match self.values.get("force-compression").map(String::as_str) {
            Some("") => self.take("force-compression").is_some(),
            _ => self.flag("force-compression", false)?,
        };
        let ignore_error = self.flag("ignore-error", false)?;
        Ok(CacheExportOptions { mode, form, compression, level, force, ignore_error })
    }

    /// Nothing is left.
    fn end(self) -> Result<(), EngineError> {
        match self.values.keys().next() {
            None => Ok(()),
            Some(key) => Err(self.refuse(format!("option {key} is not supported for type {}", self.kind))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str) -> Reference {
        Reference::parse(name).unwrap().with_default_tag()
    }

    #[test]
    fn sources_are_as_buildx_has_them() {
        let registry = |name: &str| CacheSource::Registry { reference: reference(name), insecure: false };
        assert_eq!(CacheSource::parse("app").unwrap(), registry("app"));
        assert_eq!(CacheSource::parse("type=registry,ref=r:5000/a:b").unwrap(), registry("r:5000/a:b"));
        assert_eq!(
            CacheSource::parse("type=registry,ref=a,registry.insecure=1").unwrap(),
            CacheSource::Registry { reference: reference("a"), insecure: true }
        );
        let local = |manifest| CacheSource::Local { directory: "/c".into(), manifest };
        assert_eq!(
            CacheSource::parse("type=local,src=/c").unwrap(),
            local(LocalManifest::Tag("latest".into()))
        );
        assert_eq!(
            CacheSource::parse("type=local,src=/c,tag=x").unwrap(),
            local(LocalManifest::Tag("x".into()))
        );
        let digest = Digest::sha256_of(b"x");
        assert_eq!(
            CacheSource::parse(&format!("type=local,src=/c,digest={digest}")).unwrap(),
            local(LocalManifest::Digest(digest))
        );
        assert_eq!(
            CacheSource::parse("type=local,\"src=/a,b\"").unwrap(),
            CacheSource::Local { directory: "/a,b".into(), manifest: LocalManifest::Tag("latest".into()) }
        );
    }

    #[test]
    fn targets_are_as_buildx_has_them() {
        assert_eq!(CacheTarget::parse("type=inline").unwrap(), CacheTarget::Inline);
        assert_eq!(CacheTarget::parse("type=inline,mode=min").unwrap(), CacheTarget::Inline);
        assert_eq!(
            CacheTarget::parse("app").unwrap(),
            CacheTarget::Registry {
                reference: reference("app"),
                insecure: false,
                options: Default::default()
            }
        );
        let parsed = CacheTarget::parse(
            "type=local,dest=/c,mode=max,image-manifest=false,compression=zstd,compression-level=19,force-compression=true,ignore-error=true",
        );
        let options = CacheExportOptions {
            mode: CacheMode::Max,
            form: CacheForm::OciIndex,
            compression: LayerCompression::Zstd,
            level: Some(19),
            force: true,
            ignore_error: true,
        };
        assert_eq!(
            parsed.unwrap(),
            CacheTarget::Local { directory: "/c".into(), tag: "latest".into(), reset: false, options }
        );
        let parsed = CacheTarget::parse("type=local,dest=/c,reset=true").unwrap();
        assert!(matches!(parsed, CacheTarget::Local { reset: true, .. }), "{parsed:?}");
    }

    #[test]
    fn clients_directories_are_theirs() {
        let attrs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let digest = Digest::sha256_of(b"x");
        let all = attrs(&[("src", "/c"), ("tag", "t"), ("digest", digest.as_str())]);
        let client = CacheSource::Client { directory: "/c".into(), digest };
        assert_eq!(CacheSource::from_attrs("local", &all).unwrap(), client);
        let error = CacheSource::from_attrs("local", &attrs(&[("src", "/c")])).unwrap_err();
        assert!(error.to_string().contains("digest is missing"), "{error}");
        let all = attrs(&[("dest", "/c"), ("mode", "max"), ("tag", "t"), ("reset", "true")]);
        let options = CacheExportOptions { mode: CacheMode::Max, ..Default::default() };
        let client = CacheTarget::Client { directory: "/c".into(), options };
        assert_eq!(CacheTarget::from_attrs("local", &all).unwrap(), client);
        let ignored = attrs(&[("bucket", "b"), ("ignore-error", "true")]);
        let unsupported = CacheTarget::Unsupported { kind: "s3".into() };
        assert_eq!(CacheTarget::from_attrs("s3", &ignored).unwrap(), unsupported);
        let error = CacheTarget::from_attrs("s3", &attrs(&[("bucket", "b")])).unwrap_err();
        assert!(error.to_string().contains("caches of type s3 are not supported"), "{error}");
        for (pairs, why) in [
            (&[("mode", "max")][..], "dest is missing"),
            (&[("dest", "/c"), ("reset", "maybe")], "reset=maybe"),
            (&[("dest", "/c"), ("tag", "")], "tag is empty"),
            (&[("dest", "/c"), ("nonsense", "1")], "option nonsense"),
        ] {
            let error = CacheTarget::from_attrs("local", &attrs(pairs)).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, why) in [
            ("type=gha", "type gha"),
            ("type=s3,bucket=x", "type s3"),
            ("type=azblob", "type azblob"),
            ("type=registry", "ref is missing"),
            ("type=registry,ref=A", "lowercase"),
            ("ref=a", "type is missing"),
            ("type=local,dest=x,nonsense=1", "option nonsense"),
            ("type=local,dest=x,reset=maybe", "reset=maybe"),
            ("type=registry,ref=a,reset=true", "option reset"),
            ("type=local,dest=", "dest is missing"),
            ("type=local,dest=x,tag=", "tag is empty"),
            ("type=inline,mode=max", "mode=max"),
            ("type=registry,ref=a,mode=all", "mode=all"),
            ("type=registry,ref=a,compression=estargz", "estargz is not supported"),
            ("type=registry,ref=a,compression=lz4", "lz4"),
            ("type=registry,ref=a,compression-level=10", "from 0 to 9"),
            ("type=registry,ref=a,compression=zstd,oci-mediatypes=false", "oci-mediatypes"),
            ("type=registry,ref=a,oci-mediatypes=false,image-manifest=true", "image-manifest"),
            ("type=registry,ref=a,ignore-error=maybe", "maybe"),
            ("type=registry,ref=a,ref=b", "twice"),
            ("type=registry,\"ref=a", "quotation"),
            ("type=registry,x", "\"x\""),
        ] {
            let error = CacheTarget::parse(text).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("cache"), "{text}: {error}");
        }
        assert!(CacheSource::parse("type=local").unwrap_err().to_string().contains("src is missing"));
        assert!(CacheSource::parse("type=inline").unwrap_err().to_string().contains("type inline"));
    }
}
