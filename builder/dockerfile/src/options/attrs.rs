//! Options as BuildKit's clients send them: a map of strings (`docker buildx build` and the classic `/build?version=2` both end here).

use std::collections::BTreeMap;

use lapstrake_builder_llb::{HostIp, ResolveMode, Ulimit, pb};
use lapstrake_layerstore_oci::{Platform, Reference};

use super::{
    CacheImport, ContextSource, DockerfileOptions, DockerfileSource, LocalContext, NamedContextSource,
    NoCache, Sbom,
};
use crate::Error;
use crate::lower::LowerError;
use crate::text::{csv_fields, parse_bool};

/// What does not concern the plan: who asked, where the source is kept, what goes beside the image, and limits, which hold for the whole build.
const PASSED: &[&str] = &[
    "source",
    "cmdline",
    "frontend.caps",
    "requestid-format",
    "no-warn",
    "memory",
    "memswap",
    "cpushares",
    "cpuperiod",
    "cpuquota",
    "cpusetcpus",
    "cpusetmems",
];
const PASSED_PREFIXES: &[&str] = &["attest:", "vcs:", "local-sessionid:", "sharedkey:", "input-metadata:"];

type Attrs = BTreeMap<String, String>;

fn refuse(problem: impl Into<String>) -> Error {
    LowerError::Option(problem.into()).nowhere()
}

impl DockerfileOptions {
    /// Reads frontend options.
    ///
    /// `session_id` is the session that local contexts are in unless they say otherwise. `inputs` are the names of the graphs that the
    /// client gave: one named `context` or `dockerfile` takes the place of the local directory.
    ///
    /// Fails for a value that is malformed. An option that this builder does not know is [`DockerfileOptions::unknown`]: it changes nothing, as
    /// with BuildKit, and the client is to be told.
    pub fn from_frontend_attrs(
        attrs: &Attrs,
        build_platform: Platform,
        session_id: Option<String>,
        inputs: &[String],
    ) -> Result<DockerfileOptions, Error> {
        let mut options = DockerfileOptions { session_id, ..DockerfileOptions::new(build_platform) };
        // The client may keep the main context's URL under a key of its choice.
        let context_key = attrs.get("contextkey").map_or("context", String::as_str);
        for (key, value) in attrs.iter().filter(|(key, _)| *key != context_key) {
            options.set(key, value)?;
        }
        options.set_contexts(attrs, inputs);
        options.set_named_contexts(attrs);
        options.set_multi_platform(attrs)?;
        if let Some(hostname) =
            options.build_args.get("BUILDKIT_SANDBOX_HOSTNAME").filter(|name| !name.is_empty())
        {
            options.hostname = hostname.clone();
        }
        options.cache_mount_namespace =
            options.build_args.get("BUILDKIT_CACHE_MOUNT_NS").cloned().unwrap_or_default();
        options.check = options.build_args.get("BUILDKIT_DOCKERFILE_CHECK").cloned();
        if let Some(check) = &options.check {
            let failed = |e| refuse(format!("failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: {e}"));
            crate::lint::Config::parse(check).map_err(failed)?;
        }
        options.sbom = sbom(attrs)?;
        options.attrs.clone_from(attrs);
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Error> {
        if let Some(name) = key.strip_prefix("build-arg:") {
            if name == "BUILDKIT_DISABLE_FILEOP" && parse_bool(value) == Some(true) {
                return Err(refuse(
                    "support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11",
                ));
            }
            self.build_args.insert(name.to_owned(), value.to_owned());
            return Ok(());
        }
        if let Some(name) = key.strip_prefix("label:") {
            self.labels.insert(name.to_owned(), value.to_owned());
            return Ok(());
        }
        if let Some(name) = key.strip_prefix("local-sessionid:") {
            self.local_sessions.insert(name.to_owned(), value.to_owned());
            return Ok(());
        }
        if PASSED.contains(&key) || PASSED_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) {
            self.passed.insert(key.to_owned(), value.to_owned());
            return Ok(());
        }
        match key {
            "target" => self.target = Some(value.to_owned()).filter(|target| !target.is_empty()),
            "filename" => self.dockerfile_name = value.to_owned(),
            "platform" => self.platforms = platforms(value)?,
            "no-cache" => {
                self.no_cache = match value {
                    "" => NoCache::All,
                    stages => NoCache::Stages(stages.split(',').map(str::to_owned).collect()),
                };
            }
            "image-resolve-mode" => {
                self.resolve_mode = match value {
                    "" | "default" => ResolveMode::Default,
                    "pull" => ResolveMode::ForcePull,
                    "local" => ResolveMode::PreferLocal,
                    _ => return Err(refuse(format!("invalid image-resolve-mode: {value}"))),
                };
            }
            "force-network-mode" => {
                self.network = match value {
                    "" | "sandbox" => pb::NetMode::Unset,
                    "none" => pb::NetMode::None,
                    "host" => pb::NetMode::Host,
                    _ => return Err(refuse(format!("invalid netmode {value}"))),
                };
            }
            "add-hosts" => self.extra_hosts = extra_hosts(value)?,
            "shm-size" => self.shm_size = shm_size(value)?,
            "ulimit" => self.ulimits = ulimits(value)?,
            "cgroup-parent" => self.cgroup_parent = value.to_owned(),
            "hostname" => self.hostname = value.to_owned(),
            "cache-imports" if value.is_empty() => {}
            "cache-imports" => {
                let imports: Option<Vec<CacheImport>> = serde_json::from_str(value)
                    .map_err(|e| refuse(format!("failed to unmarshal cache-imports ({value:?}): {e}")))?;
                // Before those of the older option, whichever is read first.
                self.cache_imports.splice(0..0, imports.unwrap_or_default());
            }
            "cache-from" => {
                self.cache_imports.extend(value.split(',').filter(|r| !r.is_empty()).map(registry_cache));
            }
            "requestid" => self.subrequest = Some(value.to_owned()).filter(|id| !id.is_empty()),
            "contextsubdir" => self.context_subdir = Some(value.to_owned()),
            // Read together, once all are known.
            "contextkey" | "dockerfilekey" | "multi-platform" => {}
            key if key.starts_with("context:") => {}
            "override-copy-image" if value.is_empty() => {}
            "override-copy-image" => {
                return Err(refuse("support for \"override-copy-image\" was removed in BuildKit 0.11"));
            }
            _ => self.unknown.push(key.to_owned()),
        }
        Ok(())
    }

    fn set_contexts(&mut self, attrs: &Attrs, inputs: &[String]) {
        let key = attrs.get("contextkey").map_or("context", String::as_str);
        let context = attrs.get(key).map_or("", String::as_str);
        let keep_git_dir =
            self.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR").and_then(|value| parse_bool(value));
        let remote = if crate::lower::is_git_context(context) {
            Some(ContextSource::Git { reference: context.to_owned(), keep_git_dir })
        } else if context.starts_with("http://") || context.starts_with("https://") {
            Some(ContextSource::Http { url: context.to_owned() })
        } else {
            None
        };
        let has_input = |name: &str| inputs.iter().any(|input| input == name);
        let input = |name: &str| has_input(name).then(|| name.to_owned());
        self.dockerfile_source = match (attrs.get("dockerfilekey"), &remote) {
            // Named by its key, it is with the client wherever the context is.
            (Some(name), _) => DockerfileSource::Local(LocalContext::named(name)),
            (None, Some(_)) => DockerfileSource::MainContext,
            (None, None) => match input("dockerfile") {
                Some(name) => DockerfileSource::Input { name },
                None => DockerfileSource::Local(LocalContext::named("dockerfile")),
            },
        };
        self.context = remote.unwrap_or_else(|| match input("context") {
            Some(name) => ContextSource::Input { name },
            None => ContextSource::Local(LocalContext::named("context")),
        });
    }

    fn set_named_contexts(&mut self, attrs: &Attrs) {
        for (key, specifier) in attrs {
            let Some(name) = key.strip_prefix("context:") else { continue };
            let input = specifier.strip_prefix("input:");
            let source = NamedContextSource {
                specifier: specifier.clone(),
                shared_key: attrs.get(&format!("sharedkey:localdir:{name}")).cloned().unwrap_or_default(),
                input_metadata: input
                    .and_then(|input| attrs.get(&format!("input-metadata:{input}")).cloned()),
            };
            self.named_contexts.insert(name.to_owned(), source);
        }
    }

    fn set_multi_platform(&mut self, attrs: &Attrs) -> Result<(), Error> {
        let argument = self.build_args.get("BUILDKIT_MULTI_PLATFORM").filter(|value| !value.is_empty());
        let Some(value) = argument.or_else(|| attrs.get("multi-platform")).filter(|value| !value.is_empty())
        else {
            return Ok(());
        };
        let on = parse_bool(value)
            .ok_or_else(|| refuse(format!("invalid boolean value for multi-platform: {value}")))?;
        if !on && self.platforms.len() > 1 {
            return Err(refuse("conflicting config: returning multiple target platforms is not allowed"));
        }
        self.multi_platform = Some(on);
        Ok(())
    }
}

fn platforms(value: &str) -> Result<Vec<Platform>, Error> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let parse = |text: &str| match Platform::parse(text) {
        Ok(platform) => Ok(platform.normalized()),
        Err(e) => {
            let problem = crate::lower::platform_problem(&e);
            Err(refuse(format!("failed to parse target platform {text}: {problem}")))
        }
    };
    value.split(',').map(parse).collect()
}

fn extra_hosts(value: &str) -> Result<Vec<HostIp>, Error> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |problem: String| refuse(format!("failed to parse additional hosts: {problem}"));
    let parse = |field: String| {
        let field = field.to_lowercase();
        let (host, ip) =
            field.split_once('=').ok_or_else(|| failed(format!("invalid key-value pair {field}")))?;
        let ip = ip.parse().map_err(|_| failed(format!("failed to parse IP {ip}")))?;
        Ok(HostIp { host: host.to_owned(), ip })
    };
    csv_fields(value).map_err(failed)?.into_iter().map(parse).collect()
}

fn shm_size(value: &str) -> Result<i64, Error> {
    if value.is_empty() {
        return Ok(0);
    }
    value.parse().map_err(|e| refuse(format!("failed to parse shm size: {value:?}: {e}")))
}

/// Whether they mean something is known to who sets them.
fn ulimits(value: &str) -> Result<Vec<Ulimit>, Error> {
    if value.is_empty() {
        return Ok(Vec::new());
    }
    let failed = |problem: String| refuse(format!("failed to parse ulimit: {problem}"));
    let parse = |field: String| {
        let (name, limits) =
            field.split_once('=').ok_or_else(|| failed(format!("invalid ulimit argument: {field}")))?;
        let number = |text: &str| text.parse::<i64>().map_err(|e| failed(format!("{text:?}: {e}")));
        let (soft, hard) = match limits.split_once(':') {
            Some((soft, hard)) => (number(soft)?, number(hard)?),
            None => (number(limits)?, number(limits)?),
        };
        Ok(Ulimit { name: name.to_owned(), soft, hard })
    };
    csv_fields(value).map_err(failed)?.into_iter().map(parse).collect()
}

fn registry_cache(reference: &str) -> CacheImport {
    CacheImport {
        kind: "registry".to_owned(),
        attrs: BTreeMap::from([("ref".to_owned(), reference.to_owned())]),
    }
}

/// `attest:sbom=generator=…,…`; off if it is disabled or not there.
fn sbom(attrs: &Attrs) -> Result<Option<Sbom>, Error> {
    let Some(value) = attrs.get("attest:sbom") else { return Ok(None) };
    let mut sbom = Sbom { generator: String::new(), parameters: BTreeMap::new() };
    let fields = if value.is_empty() { Vec::new() } else { csv_fields(value).map_err(refuse)? };
    for field in fields {
        match field.split_once('=') {
            Some(("disabled", on)) if parse_bool(on) == Some(true) => return Ok(None),
            Some(("disabled", _)) => {}
            Some(("generator", image)) => {
                let reference = Reference::parse(image)
                    .map_err(|e| refuse(format!("failed to parse sbom scanner {image}: {e}")))?;
                sbom.generator = reference.with_default_tag().to_string();
            }
            Some((key, value)) => _ = sbom.parameters.insert(key.to_owned(), value.to_owned()),
            None => return Err(refuse(format!("invalid value {field}"))),
        }
    }
    if sbom.generator.is_empty() {
        // BuildKit's own scanner is the default.
        sbom.generator = "docker/buildkit-syft-scanner:stable-1".to_owned();
    }
    Ok(Some(sbom))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(attrs: &[(&str, &str)], inputs: &[&str]) -> Result<DockerfileOptions, String> {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let inputs: Vec<String> = inputs.iter().map(|i| (*i).to_owned()).collect();
        let platform = Platform::new("linux", "amd64");
        DockerfileOptions::from_frontend_attrs(&attrs, platform, Some("s1".to_owned()), &inputs)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn nothing_said_is_a_local_build() {
        let options = read(&[], &[]).unwrap();
        let expected = DockerfileOptions {
            session_id: Some("s1".to_owned()),
            ..DockerfileOptions::new(Platform::new("linux", "amd64"))
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn what_docker_and_buildx_send_is_understood() {
        let options = read(
            &[
                ("filename", "sub/Dockerfile"),
                ("target", "test"),
                ("platform", "linux/arm64/v8,linux/amd64"),
                ("build-arg:A", "1"),
                ("label:l", "v"),
                ("no-cache", "a,b"),
                ("image-resolve-mode", "pull"),
                ("add-hosts", "Foo=10.0.0.1,bar=::1"),
                ("force-network-mode", "none"),
                ("shm-size", "1024"),
                ("ulimit", "nofile=10:20,core=-1"),
                ("cgroup-parent", "p"),
                ("hostname", "h"),
                ("source", "docker/dockerfile:1"),
                ("vcs:revision", "abc"),
                ("cache-imports", r#"[{"Type":"registry","Attrs":{"ref":"x"}}]"#),
                ("cache-from", "y,z"),
                ("local-sessionid:context", "s2"),
            ],
            &[],
        )
        .unwrap();
        assert_eq!(options.dockerfile_name, "sub/Dockerfile");
        assert_eq!(options.target.as_deref(), Some("test"));
        let platforms: Vec<String> = options.platforms.iter().map(ToString::to_string).collect();
        assert_eq!(platforms, ["linux/arm64", "linux/amd64"]);
        assert!(options.is_multi_platform());
        assert_eq!(options.build_args["A"], "1");
        assert_eq!(options.labels["l"], "v");
        assert_eq!(options.no_cache, NoCache::Stages(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(options.resolve_mode, ResolveMode::ForcePull);
        assert_eq!(options.extra_hosts[0].host, "foo");
        assert_eq!(options.extra_hosts[1].ip.to_string(), "::1");
        assert_eq!(options.network, pb::NetMode::None);
        assert_eq!(options.shm_size, 1024);
        assert_eq!((options.ulimits[0].soft, options.ulimits[0].hard, options.ulimits[1].soft), (10, 20, -1));
        assert_eq!((options.cgroup_parent.as_str(), options.hostname.as_str()), ("p", "h"));
        assert_eq!(options.passed["vcs:revision"], "abc");
        let caches: Vec<&str> = options.cache_imports.iter().map(|c| c.attrs["ref"].as_str()).collect();
        assert_eq!(caches, ["x", "y", "z"]);
        assert_eq!(options.local_sessions["context"], "s2");
    }

    #[test]
    fn contexts_are_local_remote_or_given() {
        let context = |attrs: &[(&str, &str)], inputs: &[&str]| {
            let options = read(attrs, inputs).unwrap();
            (options.context, options.dockerfile_source)
        };
        let local = |name: &str| LocalContext::named(name);
        let (main, dockerfile) = context(&[("context", "https://h/x.tar")], &[]);
        assert_eq!(main, ContextSource::Http { url: "https://h/x.tar".to_owned() });
        assert_eq!(dockerfile, DockerfileSource::MainContext);
        let (main, dockerfile) = context(&[("context", "https://h/x.git#v1"), ("dockerfilekey", "df")], &[]);
        assert_eq!(
            main,
            ContextSource::Git { reference: "https://h/x.git#v1".to_owned(), keep_git_dir: None }
        );
        assert_eq!(dockerfile, DockerfileSource::Local(local("df")));
        let (main, dockerfile) = context(&[], &["context", "dockerfile"]);
        assert_eq!(main, ContextSource::Input { name: "context".to_owned() });
        assert_eq!(dockerfile, DockerfileSource::Input { name: "dockerfile".to_owned() });
        let named = read(&[("context:alpine", "local:a"), ("sharedkey:localdir:alpine", "k")], &[]).unwrap();
        assert_eq!(named.named_contexts["alpine"].specifier, "local:a");
        assert_eq!(named.named_contexts["alpine"].shared_key, "k");
    }

    #[test]
    fn options_that_nobody_knows_change_nothing() {
        let options = read(&[("surprise", "1"), ("target", "x")], &[]).unwrap();
        assert_eq!((options.unknown, options.target.as_deref()), (vec!["surprise".to_owned()], Some("x")));
    }

    #[test]
    fn malformed_options_are_refused_by_name() {
        for (key, value, message) in [
            ("platform", "*", "failed to parse target platform *"),
            ("image-resolve-mode", "x", "invalid image-resolve-mode: x"),
            ("force-network-mode", "x", "invalid netmode x"),
            ("add-hosts", "a", "failed to parse additional hosts: invalid key-value pair a"),
            ("add-hosts", "a=b", "failed to parse additional hosts: failed to parse IP b"),
            ("shm-size", "1g", "failed to parse shm size"),
            ("ulimit", "nofile", "failed to parse ulimit: invalid ulimit argument: nofile"),
            ("multi-platform", "x", "invalid boolean value for multi-platform: x"),
            ("cache-imports", "{", "failed to unmarshal cache-imports"),
            (
                "build-arg:BUILDKIT_DISABLE_FILEOP",
                "1",
                "support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was",
            ),
            (
                "build-arg:BUILDKIT_DOCKERFILE_CHECK",
                "x",
                "failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK",
            ),
        ] {
            let error = read(&[(key, value)], &[]).unwrap_err();
            assert!(error.starts_with(message), "{key}={value}: {error}");
        }
        assert!(read(&[("platform", "linux/amd64,linux/arm64"), ("multi-platform", "0")], &[]).is_err());
    }
}
