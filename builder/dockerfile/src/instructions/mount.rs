//! `RUN --mount` and `RUN --device`.

use crate::shell::WordError;
use crate::text::{csv_fields, go_quote, parse_bool, parse_ram_bytes, suggestion, with_suggestion};

/// One `--mount` as written. Its values may contain variables, so it is understood only when [resolved](MountSpec::resolve).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    raw: String,
    from: Option<String>,
}

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MountType {
    /// A directory or file of a stage, an image or the build context.
    #[default]
    Bind,
    /// A directory that outlives the build.
    Cache,
    /// Memory.
    Tmpfs,
    /// A file with a secret's value.
    Secret,
    /// The client's ssh agent.
    Ssh,
}

/// How builds share a cache mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CacheSharing {
    /// All at once.
    Shared,
    /// Each concurrent writer its own.
    Private,
    /// One after the other.
    Locked,
}

/// A mount, its variables expanded. Empty strings are as good as absent, as in BuildKit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `type`
    pub kind: MountType,
    /// `from`
    pub from: String,
    /// `source`, `src`
    pub source: String,
    /// `target`, `dst`, `destination`
    pub target: String,
    /// `readonly`, `ro`, or the opposite of `readwrite`, `rw`; by default true but for `cache` and `tmpfs`.
    pub read_only: bool,
    /// `size` in bytes; 0 for none.
    pub size_limit: i64,
    /// `id`
    pub id: String,
    /// `sharing`
    pub sharing: Option<CacheSharing>,
    /// `required`
    pub required: bool,
    /// `env`: the variable a secret is put in; the empty string means the secret's own name.
    pub env: Option<String>,
    /// `mode`
    pub mode: Option<u32>,
    /// `uid`
    pub uid: Option<u32>,
    /// `gid`
    pub gid: Option<u32>,
}

/// A CDI device for a `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The device's qualified name, or a class or alias of devices.
    pub name: String,
    /// Whether its absence is an error.
    pub required: bool,
}

/// Why a `--mount` or `--device` is not valid; the texts are BuildKit's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// Not a line of comma-separated values.
    #[error("failed to parse csv {what}: {problem}")]
    Csv {
        /// `mounts` or `devices`.
        what: &'static str,
        /// The fault.
        problem: String,
    },
    /// A word without `=` that needs one.
    #[error("invalid field '{0}' must be a key=value pair")]
    NotAPair(String),
    /// A variable in `from`.
    #[error("'from' doesn't support variable expansion, define alias stage instead")]
    VariableInFrom,
    /// An option that this type of mount does not have.
    #[error("unexpected key '{key}' for mount type '{kind}'")]
    KeyNotForType {
        /// The option.
        key: String,
        /// The type.
        kind: &'static str,
    },
    /// An option that does not exist.
    #[error("{}", with_suggestion(format!("unexpected key '{key}' in '{field}'"), suggestion))]
    UnknownKey {
        /// The option.
        key: String,
        /// Where it stood.
        field: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// A type that does not exist.
    #[error("{}", with_suggestion(format!("unsupported mount type {}", go_quote(value)), suggestion))]
    UnknownType {
        /// The type.
        value: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// A sharing mode that does not exist.
    #[error("{}", with_suggestion(format!("unsupported sharing value {}", go_quote(value)), suggestion))]
    UnknownSharing {
        /// The mode.
        value: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// A boolean or size that is none.
    #[error("invalid value for {key}: {value}")]
    InvalidValue {
        /// The option.
        key: String,
        /// Its value.
        value: String,
    },
    /// A number that is none.
    #[error("invalid value {value} for {key}")]
    InvalidNumber {
        /// The option.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// `mode`, `uid` or `gid` where the mount has no such thing.
    #[error("{key} not allowed for \"{kind}\" type mounts")]
    OwnerNotAllowed {
        /// The option.
        key: &'static str,
        /// The type.
        kind: &'static str,
    },
    /// A secret `from` somewhere.
    #[error("secret mount should not have a from")]
    SecretWithFrom,
    /// A secret with `sharing`.
    #[error("secret mount should not define sharing")]
    SecretWithSharing,
    /// A secret without a name.
    #[error("invalid secret mount. one of source, target required")]
    SecretWithoutName,
    /// A secret with two names.
    #[error("both source and id can't be set")]
    SecretWithTwoNames,
    /// `sharing` for a mount that is no cache.
    #[error("invalid cache sharing set for {0} mount")]
    SharingNotAllowed(&'static str),
    /// `name` twice.
    #[error("device name already set to {0}")]
    DeviceNamedTwice(String),
    /// A value's variables cannot be expanded.
    #[error(transparent)]
    Word(#[from] WordError),
}

const MOUNT_KEYS: &[&str] = &[
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl MountType {
    const ALL: [MountType; 5] =
        [MountType::Bind, MountType::Cache, MountType::Tmpfs, MountType::Secret, MountType::Ssh];

    /// The type's name in a Dockerfile.
    pub fn as_str(self) -> &'static str {
        match self {
            MountType::Bind => "bind",
            MountType::Cache => "cache",
            MountType::Tmpfs => "tmpfs",
            MountType::Secret => "secret",
            MountType::Ssh => "ssh",
        }
    }

    fn parse(value: &str) -> Result<MountType, MountError> {
        let lower = value.to_lowercase();
        MountType::ALL.into_iter().find(|kind| kind.as_str() == lower).ok_or_else(|| {
            MountError::UnknownType {
                value: value.to_owned(),
                suggestion: suggestion(value, &MountType::ALL.map(MountType::as_str)),
            }
        })
    }
}

impl CacheSharing {
    const ALL: [CacheSharing; 3] = [CacheSharing::Shared, CacheSharing::Private, CacheSharing::Locked];

    /// The mode's name in a Dockerfile.
    pub fn as_str(self) -> &'static str {
        match self {
            CacheSharing::Shared => "shared",
            CacheSharing::Private => "private",
            CacheSharing::Locked => "locked",
        }
    }

    fn parse(value: &str) -> Result<CacheSharing, MountError> {
        let lower = value.to_lowercase();
        CacheSharing::ALL.into_iter().find(|mode| mode.as_str() == lower).ok_or_else(|| {
            MountError::UnknownSharing {
                value: value.to_owned(),
                suggestion: suggestion(value, &CacheSharing::ALL.map(CacheSharing::as_str)),
            }
        })
    }
}

impl MountSpec {
    /// Takes the flag's value as written. Only what cannot depend on a variable is checked: that it is one line of comma-separated
    /// values, and that `from` has no variable.
    pub fn new(raw: impl Into<String>) -> Result<MountSpec, MountError> {
        let raw = raw.into();
        let mut from = None;
        for field in fields(&raw, "mounts")? {
            let Some((key, value)) = field.split_once('=') else { continue };
            if key.to_lowercase() != "from" {
                continue;
            }
            // A lone `$` at the end is no variable.
            if value.find('$').is_some_and(|at| at != value.len() - 1) {
                return Err(MountError::VariableInFrom);
            }
            from = Some(value.to_owned()).filter(|value| !value.is_empty());
        }
        Ok(MountSpec { raw, from })
    }

    /// The flag's value as written.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// The stage, image or named context that it needs; known before expansion, because `from` takes no variables.
    pub fn from(&self) -> Option<&str> {
        self.from.as_deref()
    }

    /// Expands each value and checks the whole.
    pub fn resolve(
        &self,
        expand: &mut dyn FnMut(&str) -> Result<String, WordError>,
    ) -> Result<Mount, MountError> {
        let mut draft = Draft::default();
        for field in fields(&self.raw, "mounts")? {
            match field.split_once('=') {
                Some((key, value)) => draft.set(&key.to_lowercase(), expand(value)?, &field)?,
                None => draft.set_bare(&field)?,
            }
        }
        draft.finish()
    }
}

fn fields(raw: &str, what: &'static str) -> Result<Vec<String>, MountError> {
    csv_fields(raw).map_err(|problem| MountError::Csv { what, problem })
}

/// A mount whose fields are still being read.
#[derive(Default)]
struct Draft {
    kind: MountType,
    from: String,
    source: String,
    target: String,
    read_only: Option<bool>,
    size_limit: i64,
    id: String,
    sharing: Option<CacheSharing>,
    required: bool,
    env: Option<String>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Draft {
    fn set_bare(&mut self, field: &str) -> Result<(), MountError> {
        let key = field.to_lowercase();
        match key.as_str() {
            "readonly" | "ro" => self.read_only = Some(true),
            "readwrite" | "rw" => self.read_only = Some(false),
            "required" => {
                self.require_kind(&key, &[MountType::Secret, MountType::Ssh])?;
                self.required = true;
            }
            _ => return Err(MountError::NotAPair(field.to_owned())),
        }
        Ok(())
    }

    // The order of fields matters, as in BuildKit: `required` and `size` look at the type set so far.
    fn set(&mut self, key: &str, value: String, field: &str) -> Result<(), MountError> {
        let flag =
            |value: String| parse_bool(&value).ok_or(MountError::InvalidValue { key: key.to_owned(), value });
        match key {
            "type" => self.kind = MountType::parse(&value)?,
            "from" => self.from = value,
            "source" | "src" => self.source = value,
            "target" | "dst" | "destination" => self.target = value,
            "readonly" | "ro" => self.read_only = Some(flag(value)?),
            "readwrite" | "rw" => self.read_only = Some(!flag(value)?),
            "required" => {
                self.require_kind(key, &[MountType::Secret, MountType::Ssh])?;
                self.required = flag(value)?;
            }
            "size" => {
                self.require_kind(key, &[MountType::Tmpfs])?;
                self.size_limit =
                    parse_ram_bytes(&value).ok_or(MountError::InvalidValue { key: key.to_owned(), value })?;
            }
            "id" => self.id = value,
            "sharing" => self.sharing = Some(CacheSharing::parse(&value)?),
            "mode" => self.mode = Some(number("mode", &value, 8)?),
            "uid" => self.uid = Some(number("uid", &value, 10)?),
            "gid" => self.gid = Some(number("gid", &value, 10)?),
            "env" => self.env = Some(value),
            _ => {
                return Err(MountError::UnknownKey {
                    key: key.to_owned(),
                    field: field.to_owned(),
                    suggestion: suggestion(key, MOUNT_KEYS),
                });
            }
        }
        Ok(())
    }

    fn require_kind(&self, key: &str, kinds: &[MountType]) -> Result<(), MountError> {
        if kinds.contains(&self.kind) {
            return Ok(());
        }
        Err(MountError::KeyNotForType { key: key.to_owned(), kind: self.kind.as_str() })
    }

    fn finish(self) -> Result<Mount, MountError> {
        let kind = self.kind.as_str();
        if matches!(self.kind, MountType::Bind | MountType::Tmpfs) {
            for (key, set) in
                [("mode", self.mode.is_some()), ("uid", self.uid.is_some()), ("gid", self.gid.is_some())]
            {
                if set {
                    return Err(MountError::OwnerNotAllowed { key, kind });
                }
            }
        }
        if self.kind == MountType::Secret {
            if !self.from.is_empty() {
                return Err(MountError::SecretWithFrom);
            }
            if self.sharing.is_some() {
                return Err(MountError::SecretWithSharing);
            }
            if self.source.is_empty() && self.target.is_empty() && self.id.is_empty() {
                return Err(MountError::SecretWithoutName);
            }
            if !self.source.is_empty() && !self.id.is_empty() {
                return Err(MountError::SecretWithTwoNames);
            }
        }
        if self.sharing.is_some() && self.kind != MountType::Cache {
            return Err(MountError::SharingNotAllowed(kind));
        }
        let read_only_by_default = !matches!(self.kind, MountType::Cache | MountType::Tmpfs);
        Ok(Mount {
            kind: self.kind,
            from: self.from,
            source: self.source,
            target: self.target,
            read_only: self.read_only.unwrap_or(read_only_by_default),
            size_limit: self.size_limit,
            id: self.id,
            sharing: self.sharing,
            required: self.required,
            env: self.env,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
        })
    }
}

fn number(key: &'static str, value: &str, radix: u32) -> Result<u32, MountError> {
    // `from_str_radix` would take a leading `+`, which Go's ParseUint does not.
    let digits = Some(value).filter(|value| !value.starts_with('+'));
    digits
        .and_then(|value| u32::from_str_radix(value, radix).ok())
        .ok_or_else(|| MountError::InvalidNumber { key, value: value.to_owned() })
}

impl Device {
    /// Reads a `--device` flag's value: `name`, `name=…` and `required[=bool]`, separated by commas.
    pub fn parse(raw: &str) -> Result<Device, MountError> {
        let mut device = Device { name: String::new(), required: false };
        for field in fields(raw, "devices")? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_lowercase(), Some(value)),
                None => (field.to_lowercase(), None),
            };
            match (key.as_str(), value) {
                ("required", None) => device.required = true,
                ("required", Some(value)) => {
                    device.required = parse_bool(value).ok_or_else(|| MountError::InvalidValue {
                        key: key.clone(),
                        value: value.to_owned(),
                    })?;
                }
                ("name", Some(value)) => {
                    if !device.name.is_empty() {
                        return Err(MountError::DeviceNamedTwice(device.name));
                    }
                    device.name = value.to_owned();
                }
                // A CDI name has a `=` of its own, so an unknown key is the name as long as there is none.
                _ if device.name.is_empty() => device.name = field,
                (_, None) => return Err(MountError::NotAPair(field)),
                (_, Some(_)) => {
                    let suggestion = suggestion(&key, &["name", "required"]);
                    return Err(MountError::UnknownKey { key, field, suggestion });
                }
            }
        }
        Ok(device)
    }
}
