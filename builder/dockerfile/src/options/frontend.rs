//! Which frontend a file asks for.

use lapstrake_layerstore_oci::Reference;

use super::DockerfileOptions;
use crate::location::LineRange;
use crate::parser::detect_syntax;

/// The frontend that is to read a file, as the client or the file itself says. Running another one than this crate is the caller's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontendRequest {
    /// Its image, as written.
    pub image: String,
    /// The image and what follows it: the frontend option `cmdline`.
    pub command_line: String,
    /// Who asks for it, for errors.
    pub origin: FrontendOrigin,
}

/// Who asks for a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontendOrigin {
    /// The client chose it already: options `source` and `cmdline`.
    Client,
    /// The build argument `BUILDKIT_SYNTAX`.
    BuildArg,
    /// `# syntax=` on this line.
    Directive(LineRange),
}

/// Which of the official releases is meant. They differ in what they accept, not in what they make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Channel {
    /// What everybody has.
    #[default]
    Mainline,
    /// What is being tried out as well: `RUN --device`.
    Labs,
}

impl Channel {
    /// The channel of one of the official Dockerfile frontends, which this crate stands in for; `None` if it is none.
    ///
    /// A channel other than the main one is the end of the tag: `labs`, `1-labs`, `1.7-labs`, `master-labs`.
    pub fn of(reference: &Reference) -> Option<Channel> {
        let known = ["docker/dockerfile", "docker/dockerfile-upstream"];
        if reference.domain() != "docker.io" || !known.contains(&reference.path()) {
            return None;
        }
        let tag = reference.tag().unwrap_or_default();
        let labs = tag == "labs" || tag.ends_with("-labs");
        Some(if labs { Channel::Labs } else { Channel::Mainline })
    }
}

impl FrontendRequest {
    /// The channel, if the image is one of the official Dockerfile frontends.
    pub fn official(&self) -> Option<Channel> {
        Channel::of(&Reference::parse(&self.image).ok()?)
    }
}

impl DockerfileOptions {
    /// The frontend that `file` is to be read by; `None` if nobody says.
    ///
    /// A client that was sent on to a frontend already says so with `cmdline`, and then nothing in the file counts. Else it is the build
    /// argument, then the file.
    pub fn frontend(&self, file: &[u8]) -> Option<FrontendRequest> {
        let source = self.passed.get("source").cloned();
        if let Some(command_line) = self.passed.get("cmdline").cloned() {
            let image = source.unwrap_or_else(|| first_word(&command_line));
            return Some(FrontendRequest { image, command_line, origin: FrontendOrigin::Client });
        }
        if let Some(command_line) = self.build_args.get("BUILDKIT_SYNTAX") {
            let image = first_word(command_line.trim());
            let command_line = command_line.clone();
            return Some(FrontendRequest { image, command_line, origin: FrontendOrigin::BuildArg });
        }
        if let Some(directive) = detect_syntax(file) {
            let origin = FrontendOrigin::Directive(LineRange::line(directive.line));
            let command_line = directive.command_line;
            return Some(FrontendRequest { image: directive.image, command_line, origin });
        }
        let image = source?;
        Some(FrontendRequest { command_line: image.clone(), image, origin: FrontendOrigin::Client })
    }

    /// The channel by whose rules `file` is read.
    pub fn channel(&self, file: &[u8]) -> Channel {
        self.frontend(file).and_then(|request| request.official()).unwrap_or_default()
    }
}

fn first_word(text: &str) -> String {
    text.split(' ').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use lapstrake_layerstore_oci::Platform;

    use super::*;

    fn asked(passed: &[(&str, &str)], argument: Option<&str>, file: &str) -> Option<FrontendRequest> {
        let mut options = DockerfileOptions::new(Platform::new("linux", "amd64"));
        options.passed = passed.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        options.build_args.extend(argument.map(|a| ("BUILDKIT_SYNTAX".to_owned(), a.to_owned())));
        options.frontend(file.as_bytes())
    }

    #[test]
    fn the_client_comes_before_the_argument_and_that_before_the_file() {
        let file = "# check=skip=all\n# syntax=c d\nFROM x\n";
        let request = |image: &str, command_line: &str, origin| {
            Some(FrontendRequest { image: image.to_owned(), command_line: command_line.to_owned(), origin })
        };
        let client = FrontendOrigin::Client;
        assert_eq!(
            asked(&[("source", "a"), ("cmdline", "a b")], Some("b"), file),
            request("a", "a b", client)
        );
        assert_eq!(asked(&[("cmdline", "a b")], Some("b"), file), request("a", "a b", client));
        assert_eq!(asked(&[], Some(" b c "), file), request("b", " b c ", FrontendOrigin::BuildArg));
        let directive = FrontendOrigin::Directive(LineRange::line(2));
        assert_eq!(asked(&[("source", "a")], None, file), request("c", "c d", directive));
        assert_eq!(asked(&[("source", "a")], None, "FROM x"), request("a", "a", client));
        assert_eq!(asked(&[], None, "FROM x\n# syntax=a\n"), None);
    }

    #[test]
    fn official_frontends_are_known_by_name_and_their_channel_by_tag() {
        let official = |image: &str| {
            let origin = FrontendOrigin::Client;
            FrontendRequest { image: image.to_owned(), command_line: String::new(), origin }.official()
        };
        let digest = format!("sha256:{}", "1".repeat(64));
        for image in ["docker/dockerfile", "docker/dockerfile:1", "docker.io/docker/dockerfile:1.7.0"] {
            assert_eq!(official(image), Some(Channel::Mainline), "{image}");
        }
        assert_eq!(official("docker/dockerfile-upstream:master"), Some(Channel::Mainline));
        assert_eq!(official(&format!("docker/dockerfile@{digest}")), Some(Channel::Mainline));
        assert_eq!(official("docker/dockerfile:1-labser"), Some(Channel::Mainline));
        for image in
            ["docker/dockerfile:labs", "docker/dockerfile:1-labs", "docker/dockerfile-upstream:master-labs"]
        {
            assert_eq!(official(image), Some(Channel::Labs), "{image}");
        }
        assert_eq!(official(&format!("docker/dockerfile:1.20-labs@{digest}")), Some(Channel::Labs));
        for image in [
            "dockerfile:1",
            "ghcr.io/docker/dockerfile:1-labs",
            "docker/dockerfiles",
            "",
            "docker/Dockerfile",
        ] {
            assert_eq!(official(image), None, "{image}");
        }
    }
}
