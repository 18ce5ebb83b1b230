//! The parameters of `POST /build`, every one of them.

use std::collections::BTreeMap;

use lapstrake_layerstore_oci::{Platform, Reference};
use serde::de::DeserializeOwned;

use crate::{ApiTypeError, ApiVersion, BuildOutput, ContextSource, Form, HostEntry, NetworkMode, Ulimit};

/// Which of Moby's two builders a client believes it talks to. Both are the same engine here; what differs is the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BuilderVersion {
    /// `version=1`, the default: the classic transcript.
    #[default]
    Classic,
    /// `version=2`: BuildKit's progress trace.
    BuildKit,
}

/// How a build's progress is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressForm {
    /// `{"stream":"Step 1/2 : …"}`, which every client can print.
    Classic,
    /// `{"id":"moby.buildkit.trace","aux":"…"}`, which BuildKit's clients decode.
    Trace,
}

/// Whether what a failed `RUN` leaves is kept as an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepFailed {
    /// It is not.
    No,
    /// It is, under a name that the daemon makes up.
    Yes,
    /// It is, under this name.
    As(Reference),
}

/// A `/build` request's parameters, parsed and checked. Unsupported ones were refused by name, none is ignored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildQuery {
    /// `version`.
    pub version: BuilderVersion,
    /// `t`: names for the image, normalised, without duplicates.
    pub tags: Vec<Reference>,
    /// `remote`.
    pub context: ContextSource,
    /// `dockerfile`: path within the context.
    pub dockerfile: Option<String>,
    /// `q`: print the image's id and nothing else.
    pub quiet: bool,
    /// `nocache`.
    pub no_cache: bool,
    /// `pull`: look for newer base images.
    pub pull: bool,
    /// `rm`: leave no intermediate containers of steps that go well. There are none here that outlive a step, so this has no effect
    /// beyond the transcript's wording.
    pub remove: bool,
    /// `forcerm`: the same, of steps that fail too.
    pub force_remove: bool,
    /// `target`: the stage to build.
    pub target: Option<String>,
    /// `platform`.
    pub platforms: Vec<Platform>,
    /// `buildargs`; `None` is an argument named without a value.
    pub build_args: BTreeMap<String, Option<String>>,
    /// `labels`.
    pub labels: BTreeMap<String, String>,
    /// `cachefrom`: image names, and BuildKit's `type=…` forms as they are.
    pub cache_from: Vec<String>,
    /// `networkmode`.
    pub network: NetworkMode,
    /// `extrahosts`.
    pub extra_hosts: Vec<HostEntry>,
    /// `shmsize`: bytes.
    pub shm_size: Option<u64>,
    /// `ulimits`.
    pub ulimits: Vec<Ulimit>,
    /// `cgroupparent`.
    pub cgroup_parent: Option<String>,
    /// `memory`: bytes.
    pub memory: Option<u64>,
    /// `memswap`: bytes; -1 is unlimited.
    pub memory_swap: Option<i64>,
    /// `cpushares`.
    pub cpu_shares: Option<u64>,
    /// `cpuperiod`: microseconds.
    pub cpu_period: Option<u64>,
    /// `cpuquota`: microseconds.
    pub cpu_quota: Option<i64>,
    /// `cpusetcpus`.
    pub cpuset_cpus: Option<String>,
    /// `cpusetmems`.
    pub cpuset_mems: Option<String>,
    /// `pidslimit`, ours: processes and threads of a step.
    pub pids: Option<u64>,
    /// `session`.
    pub session: Option<String>,
    /// `buildid`, without `upload-request:`.
    pub build_id: Option<String>,
    /// Whether `buildid` said `upload-request:`: this request only brings a context to another one.
    pub is_upload: bool,
    /// `outputs`; empty means an image in the store.
    pub outputs: Vec<BuildOutput>,
    /// `keepfailed`, ours: `1`, `0`, or a name for the image; `None` leaves it to the daemon.
    pub keep_failed: Option<KeepFailed>,
    /// `progress`, ours: `classic` or `trace`. See [`Self::progress_form`].
    pub progress: Option<ProgressForm>,
}

impl BuildQuery {
    /// Reads and checks all parameters.
    pub fn parse(form: &Form, api: ApiVersion) -> Result<BuildQuery, ApiTypeError> {
        let text = |name: &str| (!form.get(name).is_empty()).then(|| form.get(name).to_owned());
        refuse_unsupported(form)?;
        let version = match form.get("version") {
            "" | "1" => BuilderVersion::Classic,
            "2" => BuilderVersion::BuildKit,
            other => {
                return Err(ApiTypeError::Value { parameter: "version", value: other.to_owned() });
            }
        };
        let (build_id, is_upload) = match form.get("buildid") {
            "" => (None, false),
            id => match id.strip_prefix("upload-request:") {
                Some("") => return Err(ApiTypeError::Invalid("build ID not provided")),
                Some(id) => (Some(id.to_owned()), true),
                None => (Some(id.to_owned()), false),
            },
        };
        let dockerfile = text("dockerfile").filter(|path| path != ".");
        if let Some(path) = dockerfile.as_ref().filter(|path| path.contains('\0')) {
            return Err(ApiTypeError::Value { parameter: "dockerfile", value: path.clone() });
        }
        let query = BuildQuery {
            version,
            tags: tags(form)?,
            context: ContextSource::parse(form.get("remote")),
            dockerfile,
            quiet: form.flag("q"),
            no_cache: form.flag("nocache"),
            pull: form.flag("pull"),
            force_remove: form.flag("forcerm"),
            remove: form.flag("forcerm") || form.get("rm").is_empty() || form.flag("rm"),
            target: text("target"),
            platforms: if api.at_least(32) { platforms(form.get("platform"), version)? } else { Vec::new() },
            build_args: json(form, "buildargs", "error reading build args")?,
            labels: json(form, "labels", "error reading labels")?,
            cache_from: json(form, "cachefrom", "error reading cache-from")?,
            network: NetworkMode::parse(form.get("networkmode"))?,
            extra_hosts: form
                .all("extrahosts")
                .filter(|host| !host.is_empty())
                .map(HostEntry::parse)
                .collect::<Result<_, _>>()?,
            shm_size: limit(form, "shmsize")?,
            ulimits: ulimits(form)?,
            cgroup_parent: text("cgroupparent"),
            memory: limit(form, "memory")?,
            memory_swap: signed_limit(form, "memswap", -1)?,
            cpu_shares: limit(form, "cpushares")?,
            cpu_period: limit(form, "cpuperiod")?,
            cpu_quota: signed_limit(form, "cpuquota", -1)?,
            cpuset_cpus: text("cpusetcpus"),
            cpuset_mems: text("cpusetmems"),
            pids: limit(form, "pidslimit")?,
            session: text("session"),
            build_id,
            is_upload,
            outputs: if api.at_least(40) { outputs(form)? } else { Vec::new() },
            keep_failed: keep_failed(form)?,
            progress: match form.get("progress") {
                "" => None,
                "classic" => Some(ProgressForm::Classic),
                "trace" => Some(ProgressForm::Trace),
                other => {
                    return Err(ApiTypeError::Value { parameter: "progress", value: other.to_owned() });
                }
            },
        };
        query.check()?;
        Ok(query)
    }

    /// How progress is to be written: as asked; else a trace for a BuildKit client (one with a session), and the
    /// classic transcript for everybody else.
    pub fn progress_form(&self) -> ProgressForm {
        self.progress.unwrap_or(match self.version {
            BuilderVersion::BuildKit if self.session.is_some() => ProgressForm::Trace,
            _ => ProgressForm::Classic,
        })
    }

    /// What single parameters cannot tell.
    fn check(&self) -> Result<(), ApiTypeError> {
        if self.context == ContextSource::Session {
            if self.version == BuilderVersion::Classic {
                return Err(ApiTypeError::Invalid(
                    "experimental session with v1 builder is no longer supported, use builder version v2 (BuildKit) instead",
                ));
            }
            if self.session.is_none() {
                return Err(ApiTypeError::Invalid(
                    "remote=client-session needs a session: parameter session is missing",
                ));
            }
        }
        if self.context == ContextSource::UploadRequest && self.build_id.is_none() {
            return Err(ApiTypeError::Invalid(
                "remote=upload-request needs a build ID: parameter buildid is missing",
            ));
        }
        if self.version == BuilderVersion::Classic && !self.outputs.is_empty() {
            return Err(ApiTypeError::Invalid("outputs are only supported with version=2 (BuildKit)"));
        }
        Ok(())
    }
}

/// Parameters that Moby knows and that are not served here, or not on Linux.
fn refuse_unsupported(form: &Form) -> Result<(), ApiTypeError> {
    if form.has("securityopt") {
        return Err(ApiTypeError::Invalid("security options are not supported on linux"));
    }
    if form.flag("squash") {
        return Err(ApiTypeError::Invalid("squash is only supported with experimental mode"));
    }
    match form.get("isolation").to_ascii_lowercase().as_str() {
        "" | "default" => {}
        _ => {
            return Err(ApiTypeError::Unsupported(format!(
                "unsupported isolation: {:?}",
                form.get("isolation")
            )));
        }
    }
    Ok(())
}

/// A boolean as Moby reads them, or else a name.
fn keep_failed(form: &Form) -> Result<Option<KeepFailed>, ApiTypeError> {
    let text = form.get("keepfailed");
    Ok(Some(match text.to_ascii_lowercase().as_str() {
        "" => return Ok(None),
        "1" | "true" | "yes" => KeepFailed::Yes,
        "0" | "false" | "no" | "none" => KeepFailed::No,
        _ => {
            let name = Reference::parse(text)?;
            if name.digest().is_some() {
                return Err(ApiTypeError::Invalid("the name of a failed step cannot contain a digest"));
            }
            KeepFailed::As(name.with_default_tag())
        }
    }))
}

fn tags(form: &Form) -> Result<Vec<Reference>, ApiTypeError> {
    let mut tags: Vec<Reference> = Vec::new();
    for name in form.all("t").filter(|name| !name.is_empty()) {
        let reference = Reference::parse(name)?;
        if reference.digest().is_some() {
            return Err(ApiTypeError::Invalid("build tag cannot contain a digest"));
        }
        let reference = reference.with_default_tag();
        if !tags.contains(&reference) {
            tags.push(reference);
        }
    }
    Ok(tags)
}

/// The classic builder knows one platform at a time.
fn platforms(text: &str, version: BuilderVersion) -> Result<Vec<Platform>, ApiTypeError> {
    if version == BuilderVersion::Classic && !text.is_empty() {
        return Ok(vec![Platform::parse(text)?]);
    }
    text.split(',').filter(|one| !one.is_empty()).map(|one| Ok(Platform::parse(one)?)).collect()
}

fn json<T: DeserializeOwned + Default>(
    form: &Form,
    name: &str,
    what: &'static str,
) -> Result<T, ApiTypeError> {
    match form.get(name) {
        "" => Ok(T::default()),
        text => serde_json::from_str::<Option<T>>(text)
            .map(Option::unwrap_or_default)
            .map_err(|error| ApiTypeError::Json { what, reason: error.to_string() }),
    }
}

fn ulimits(form: &Form) -> Result<Vec<Ulimit>, ApiTypeError> {
    json(form, "ulimits", "error reading ulimit settings")
}

fn outputs(form: &Form) -> Result<Vec<BuildOutput>, ApiTypeError> {
    let outputs: Vec<BuildOutput> = json(form, "outputs", "invalid outputs specified")?;
    if outputs.len() > 1 {
        return Err(ApiTypeError::Invalid("multiple outputs not supported"));
    }
    Ok(outputs)
}

/// A limit where 0 and absence mean "none". Moby ignores what is no number; a limit that silently is not applied is worse
/// than an error.
fn signed_limit(form: &Form, name: &'static str, least: i64) -> Result<Option<i64>, ApiTypeError> {
    match form.number(name)? {
        None | Some(0) => Ok(None),
        Some(value) if value < least => {
            Err(ApiTypeError::Number { parameter: name, value: form.get(name).to_owned() })
        }
        Some(value) => Ok(Some(value)),
    }
}

fn limit(form: &Form, name: &'static str) -> Result<Option<u64>, ApiTypeError> {
    match signed_limit(form, name, 0)? {
        None => Ok(None),
        Some(value) => u64::try_from(value)
            .map(Some)
            .map_err(|_| ApiTypeError::Number { parameter: name, value: form.get(name).to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<BuildQuery, ApiTypeError> {
        BuildQuery::parse(&Form::parse(query).unwrap(), ApiVersion::MAX)
    }

    fn error(query: &str) -> String {
        parse(query).unwrap_err().to_string()
    }

    #[test]
    fn failed_steps_are_kept_when_asked_for() {
        let keep = |query: &str| parse(query).unwrap().keep_failed;
        assert_eq!(keep(""), None);
        assert_eq!(
            (keep("keepfailed=1"), keep("keepfailed=True")),
            (Some(KeepFailed::Yes), Some(KeepFailed::Yes))
        );
        assert_eq!(
            (keep("keepfailed=0"), keep("keepfailed=false")),
            (Some(KeepFailed::No), Some(KeepFailed::No))
        );
        let name = Reference::parse("r:5000/broken:latest").unwrap();
        assert_eq!(keep("keepfailed=r:5000/broken"), Some(KeepFailed::As(name)));
        assert!(parse("keepfailed=A/B").is_err());
        let digest = "0".repeat(64);
        assert!(error(&format!("keepfailed=a@sha256:{digest}")).contains("digest"));
    }

    #[test]
    fn nothing_asked_for_is_a_classic_build_of_the_body() {
        let query = parse("").unwrap();
        assert_eq!(query.version, BuilderVersion::Classic);
        assert_eq!(query.context, ContextSource::Body);
        assert!(query.remove && !query.quiet && query.tags.is_empty() && query.outputs.is_empty());
        assert_eq!(query.progress_form(), ProgressForm::Classic);
    }

    #[test]
    fn what_docker_py_sends_is_understood() {
        let query = parse(
            "t=app%3A1&remote&q=False&nocache=True&rm=False&forcerm=False&pull=True&dockerfile=Dockerfile.dev\
             &memory=1048576&memswap=-1&cpushares=512&cpusetcpus=0-1&buildargs=%7B%22A%22%3A+%221%22%2C+%22B%22%3A+null%7D\
             &shmsize=67108864&labels=%7B%22l%22%3A+%22v%22%7D&cachefrom=%5B%22a%3A1%22%5D&target=final&networkmode=none\
             &extrahosts=db%3A10.0.0.1&platform=linux%2Farm64&pidslimit=99",
        )
        .unwrap();
        assert_eq!(query.tags, [Reference::parse("app:1").unwrap()]);
        assert!(!query.quiet && query.no_cache && query.pull && !query.remove);
        assert_eq!(query.dockerfile.as_deref(), Some("Dockerfile.dev"));
        assert_eq!(
            (query.memory, query.memory_swap, query.cpu_shares, query.pids),
            (Some(1_048_576), Some(-1), Some(512), Some(99))
        );
        assert_eq!(query.build_args["A"].as_deref(), Some("1"));
        assert_eq!(query.build_args["B"], None);
        assert_eq!((query.shm_size, query.network), (Some(67_108_864), NetworkMode::None));
        assert_eq!(query.extra_hosts[0].host, "db");
        assert_eq!(query.platforms[0].architecture, "arm64");
        assert_eq!(query.cache_from, ["a:1"]);
    }

    #[test]
    fn what_the_cli_sends_for_buildkit_is_understood() {
        let query = parse(
            "buildargs=%7B%7D&buildid=abc&cachefrom=%5B%5D&cgroupparent=&cpuperiod=0&cpuquota=0&cpusetcpus=&cpusetmems=&cpushares=0\
             &dockerfile=Dockerfile&labels=%7B%7D&memory=0&memswap=0&networkmode=default&remote=client-session&rm=1&session=s1\
             &shmsize=0&t=x&target=&ulimits=null&version=2\
             &outputs=%5B%7B%22Type%22%3A%22local%22%2C%22Attrs%22%3A%7B%22dest%22%3A%22o%22%7D%7D%5D",
        )
        .unwrap();
        assert_eq!(query.version, BuilderVersion::BuildKit);
        assert_eq!(query.context, ContextSource::Session);
        assert_eq!(query.session.as_deref(), Some("s1"));
        assert_eq!(query.outputs[0].kind, "local");
        assert_eq!(query.outputs[0].attrs["dest"], "o");
        assert_eq!(query.progress_form(), ProgressForm::Trace);
        assert_eq!((query.memory, query.shm_size), (None, None));
    }

    #[test]
    fn uploads_name_the_build_they_are_for() {
        let query = parse("version=2&buildid=upload-request%3Aabc").unwrap();
        assert!(query.is_upload);
        assert_eq!(query.build_id.as_deref(), Some("abc"));
        assert_eq!(
            parse("version=2&remote=upload-request&buildid=abc").unwrap().context,
            ContextSource::UploadRequest
        );
        assert!(error("remote=upload-request").contains("buildid is missing"));
    }

    #[test]
    fn sessions_decide_the_stream_unless_asked() {
        assert_eq!(parse("version=2").unwrap().progress_form(), ProgressForm::Classic);
        assert_eq!(parse("version=2&progress=trace").unwrap().progress_form(), ProgressForm::Trace);
        assert_eq!(
            parse("version=2&session=s&progress=classic").unwrap().progress_form(),
            ProgressForm::Classic
        );
        assert_eq!(error("progress=tty"), r#"invalid progress "tty""#);
    }

    #[test]
    fn wrong_values_are_named() {
        let cases = [
            ("version=3", r#"invalid version "3""#),
            ("t=UPPER", "invalid reference format: repository name (library/UPPER) must be lowercase"),
            (
                "t=a@sha256:0123456789012345678901234567890123456789012345678901234567890123",
                "build tag cannot contain a digest",
            ),
            ("securityopt=seccomp%3Dunconfined", "security options are not supported on linux"),
            ("squash=1", "squash is only supported with experimental mode"),
            ("isolation=hyperv", r#"unsupported isolation: "hyperv""#),
            ("shmsize=1.5", r#"shmsize is not a valid number: "1.5""#),
            ("memory=lots", r#"memory is not a valid number: "lots""#),
            ("memory=-5", r#"memory is not a valid number: "-5""#),
            ("pidslimit=some", r#"pidslimit is not a valid number: "some""#),
            (
                "networkmode=container:x",
                r#"network mode "container:x" not supported: use default, none or host"#,
            ),
            ("extrahosts=nonsense", "invalid host nonsense"),
            (
                "remote=client-session",
                "experimental session with v1 builder is no longer supported, use builder version v2 (BuildKit) instead",
            ),
            ("version=2&outputs=[{\"Type\":\"a\"},{\"Type\":\"b\"}]", "multiple outputs not supported"),
        ];
        for (query, message) in cases {
            assert_eq!(error(query), message, "{query}");
        }
        assert!(error("buildargs=[]").starts_with("error reading build args: "));
        assert!(error("labels={\"a\":1}").starts_with("error reading labels: "));
        assert!(error("cachefrom={}").starts_with("error reading cache-from: "));
        assert!(error("ulimits=x").starts_with("error reading ulimit settings: "));
        assert!(error("outputs=x&version=2").starts_with("invalid outputs specified: "));
        assert!(parse("platform=%2F").is_err());
        let two = "platform=linux/amd64,linux/arm64";
        assert_eq!(parse(&format!("version=2&{two}")).unwrap().platforms.len(), 2);
        assert!(parse(two).unwrap_err().to_string().contains("linux/amd64,linux/arm64"));
    }

    #[test]
    fn names_are_normalised_once() {
        let query = parse("t=a&t=a:latest&t=docker.io/library/a&t=&t=b:2").unwrap();
        let names: Vec<String> = query.tags.iter().map(Reference::familiar).collect();
        assert_eq!(names, ["a:latest", "b:2"]);
    }

    #[test]
    fn old_api_versions_lack_parameters() {
        let form = Form::parse("platform=linux/arm64&outputs=x").unwrap();
        let query = BuildQuery::parse(&form, ApiVersion::v1(31)).unwrap();
        assert!(query.platforms.is_empty() && query.outputs.is_empty());
    }
}
