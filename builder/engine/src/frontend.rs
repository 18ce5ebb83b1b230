//! Who reads a Dockerfile: the built-in frontend, or an image (`# syntax=`, `BUILDKIT_SYNTAX`, `gateway.v0`).
//!
//! ```text
//!   options, Dockerfile ─► Frontend::choose ─► BuiltIn  ─► plan
//!                                         └──► Gateway  ─► bridge/gateway.rs, the one place that external frontends come to
//! ```

use lapstrake_builder_dockerfile::{
    Dialect, DockerfileOptions, LineRange,
    options::{Channel, FrontendOrigin},
};
use lapstrake_layerstore_oci::Reference;

use crate::EngineError;

/// The newest version of `docker/dockerfile` that the built-in frontend is.
const VERSION: (u64, u64) = (1, 26);
/// The same as it is told: the version of the Dockerfile frontend that is built in.
pub const DOCKERFILE_VERSION: &str = "1.26.0";

/// Which frontends are served by the built-in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontends {
    /// Whether Docker's own images of the Dockerfile frontend (`docker/dockerfile`, `docker/dockerfile-upstream`) are: no registry is asked for
    /// them then. Otherwise they are images as any other.
    pub official_built_in: bool,
}

impl Default for Frontends {
    fn default() -> Self {
        Self { official_built_in: true }
    }
}

/// Who reads a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frontend {
    /// The built-in frontend.
    BuiltIn {
        /// The version that was asked for, where it is newer than what the built-in frontend is.
        newer: Option<Newer>,
    },
    /// An image.
    Gateway(GatewayFrontend),
}

/// A version of the official frontend that did not exist when this was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Newer {
    /// As it was asked for.
    pub(crate) asked: String,
    /// Where, if it was in the Dockerfile.
    pub(crate) lines: Option<LineRange>,
}

/// A frontend that is an image: BuildKit's `gateway.v0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GatewayFrontend {
    /// The image.
    pub(crate) image: Reference,
    /// Image and arguments, as they were asked for.
    pub(crate) command_line: String,
    /// Where, if it was in the Dockerfile.
    pub(crate) lines: Option<LineRange>,
}

impl Frontend {
    /// Who reads this Dockerfile.
    pub(crate) fn choose(
        options: &DockerfileOptions,
        dockerfile: &[u8],
        frontends: Frontends,
    ) -> Result<Self, EngineError> {
        let built_in = Self::BuiltIn { newer: None };
        // To the classic builder a syntax directive is a comment.
        if options.dialect == Dialect::Classic {
            return Ok(built_in);
        }
        let passed = |key| options.passed.get(key).filter(|value| !value.is_empty());
        // `gateway.v0`: the client names the image itself. An official one then looks at the Dockerfile, as the built-in one does.
        if let Some(source) = passed("source") {
            let command_line = passed("cmdline").unwrap_or(source).clone();
            let chosen = Self::of(source, command_line, None, frontends)?;
            if matches!(chosen, Self::Gateway(_)) {
                return Ok(chosen);
            }
        }
        let Some(request) = options.frontend(dockerfile) else { return Ok(built_in) };
        let lines = match request.origin {
            FrontendOrigin::Directive(lines) => Some(lines),
            FrontendOrigin::BuildArg => None,
            // A command line means that a frontend was asked already: asking again would go round in circles.
            FrontendOrigin::Client if passed("source").is_none() => return Ok(built_in),
            FrontendOrigin::Client => None,
        };
        Self::of(&request.image, request.command_line, lines, frontends)
    }

    /// Who that is.
    pub(crate) fn of(
        name: &str,
        command_line: String,
        lines: Option<LineRange>,
        frontends: Frontends,
    ) -> Result<Self, EngineError> {
        let image = Reference::parse(name).map_err(|error| EngineError::FrontendName {
            name: name.to_owned(),
            why: error.to_string(),
            lines,
        })?;
        if frontends.official_built_in && Channel::of(&image).is_some() {
            let newer = is_newer(&image).then(|| Newer { asked: name.to_owned(), lines });
            return Ok(Self::BuiltIn { newer });
        }
        let image = image.with_default_tag();
        Ok(Self::Gateway(GatewayFrontend { image, command_line, lines }))
    }
}

/// Whether a tag such as `1.27`, `2-labs` or `1.99.3` says a version that the built-in frontend is older than.
fn is_newer(image: &Reference) -> bool {
    let Some(tag) = image.tag().filter(|_| image.digest().is_none()) else { return false };
    let version = tag.split('-').next().unwrap_or_default();
    let mut numbers = version.split('.').map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) > VERSION,
        (Some(Ok(major)), None) => major > VERSION.0,
        _ => false,
    }
}

impl Newer {
    /// What the client is told.
    pub(crate) fn warning(&self) -> String {
        let (major, minor) = VERSION;
        format!(
            "{} is newer than the built-in Dockerfile frontend ({major}.{minor}), which reads this file: what is newer in it is not understood",
            self.asked
        )
    }
}

#[cfg(test)]
mod tests {
    use lapstrake_layerstore_oci::Platform;

    use super::*;

    fn options(passed: &[(&str, &str)], argument: Option<&str>) -> DockerfileOptions {
        let mut options = DockerfileOptions::new(Platform::new("linux", "amd64"));
        options.passed = passed.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        options.build_args.extend(argument.map(|value| ("BUILDKIT_SYNTAX".to_owned(), value.to_owned())));
        options
    }

    fn choose(options: &DockerfileOptions, dockerfile: &str) -> Frontend {
        Frontend::choose(options, dockerfile.as_bytes(), Frontends::default()).unwrap()
    }

    fn directive(image: &str) -> Frontend {
        choose(&options(&[], None), &format!("# syntax={image}\nFROM scratch\n"))
    }

    const BUILT_IN: Frontend = Frontend::BuiltIn { newer: None };

    #[test]
    fn official_frontends_are_the_built_in_one() {
        let digest = format!("docker/dockerfile@sha256:{}", "a".repeat(64));
        for image in [
            "docker/dockerfile",
            "docker/dockerfile:1",
            "docker.io/docker/dockerfile:1",
            "docker/dockerfile:1.7",
            "docker/dockerfile:1.26.0",
            "docker/dockerfile:1-labs",
            "docker/dockerfile:labs",
            "docker/dockerfile:1.0-experimental",
            "docker/dockerfile-upstream:master",
            "docker/dockerfile-upstream:master-labs",
            digest.as_str(),
        ] {
            assert_eq!(directive(image), BUILT_IN, "{image}");
        }
        assert_eq!(choose(&options(&[], None), "FROM scratch\n"), BUILT_IN);
    }

    #[test]
    fn newer_versions_are_served_and_doubted() {
        for image in ["docker/dockerfile:1.27", "docker/dockerfile:1.99-labs", "docker/dockerfile:2"] {
            let lines = Some(LineRange::line(1));
            let newer = Some(Newer { asked: image.to_owned(), lines });
            assert_eq!(directive(image), Frontend::BuiltIn { newer }, "{image}");
        }
    }

    #[test]
    fn other_frontends_are_images() {
        let gateway = |image: &str, command_line: &str, line: Option<u32>| {
            let image = Reference::parse(image).unwrap();
            let lines = line.map(LineRange::line);
            Frontend::Gateway(GatewayFrontend { image, command_line: command_line.to_owned(), lines })
        };
        assert_eq!(directive("x/y a b"), gateway("docker.io/x/y:latest", "x/y a b", Some(1)));
        let mirrored = "mirror.example/docker/dockerfile:1";
        assert_eq!(directive(mirrored), gateway(mirrored, mirrored, Some(1)));
        // The client's word counts more than the argument's, that more than the file's.
        let file = "# syntax=from/file\nFROM scratch\n";
        let by_argument = options(&[], Some(" from/arg x"));
        assert_eq!(choose(&by_argument, file), gateway("docker.io/from/arg:latest", " from/arg x", None));
        let by_client = options(&[("source", "from/client")], Some("from/arg"));
        assert_eq!(choose(&by_client, file), gateway("docker.io/from/client:latest", "from/client", None));
        assert_eq!(choose(&options(&[], Some("docker/dockerfile:1")), file), BUILT_IN);
        let official = ("source", "docker/dockerfile:1");
        assert_eq!(choose(&options(&[official, ("cmdline", "docker/dockerfile:1 x")], None), file), BUILT_IN);
        // The official image asks the file in its turn.
        let by_file = gateway("docker.io/from/file:latest", "from/file", Some(1));
        assert_eq!(choose(&options(&[official], None), file), by_file);
        // Who says a command line was asked by a frontend: asking again would go round in circles.
        assert_eq!(choose(&options(&[("cmdline", "from/client")], Some("from/arg")), file), BUILT_IN);
    }

    #[test]
    fn official_frontends_may_be_images_too() {
        let file = b"# syntax=docker/dockerfile:1\n";
        let chosen =
            Frontend::choose(&options(&[], None), file, Frontends { official_built_in: false }).unwrap();
        assert!(matches!(chosen, Frontend::Gateway(_)), "{chosen:?}");
    }

    #[test]
    fn the_classic_builder_sees_a_comment() {
        let mut classic = options(&[], None);
        classic.dialect = Dialect::Classic;
        assert_eq!(choose(&classic, "# syntax=x/y\n"), BUILT_IN);
    }

    #[test]
    fn what_is_no_image_is_named() {
        for (argument, file) in [(None, "# syntax=Not/An/Image\n"), (Some(""), "")] {
            let error = Frontend::choose(&options(&[], argument), file.as_bytes(), Frontends::default());
            assert!(matches!(error, Err(EngineError::FrontendName { .. })), "{file}: {error:?}");
        }
    }
}
