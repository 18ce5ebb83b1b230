//! What results were made of: what provenance lists as materials, and what it says of how complete the list is.

use std::collections::BTreeMap;

use lapstrake_builder_llb::{Graph, pb};
use lapstrake_builder_progress::redact;
use lapstrake_builder_source::{BlobMaterial, Material};
use lapstrake_layerstore_oci::{Digest, Platform, Reference};

/// What results were made of. BuildKit's `provenance.Capture`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Capture {
    pub(crate) images: Vec<ImageUsed>,
    pub(crate) blobs: Vec<BlobMaterial>,
    pub(crate) git: Vec<GitUsed>,
    pub(crate) http: Vec<HttpUsed>,
    /// Clients' directories, by name.
    pub(crate) locals: Vec<String>,
    /// Secrets by id, and whether nobody minds if they are not there.
    pub(crate) secrets: BTreeMap<String, bool>,
    /// SSH agents, as secrets.
    pub(crate) ssh: BTreeMap<String, bool>,
    /// Whether a process had a network.
    pub(crate) has_network: bool,
    /// Whether something was made in a way that is not looked into.
    pub(crate) is_incomplete: bool,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageUsed {
    /// As it was asked for.
    pub(crate) reference: String,
    pub(crate) platform: Option<Platform>,
    pub(crate) digest: Option<Digest>,
    /// Whether it came of a client's layout.
    pub(crate) is_local: bool,
}

/// A repository's tree. No credentials are in the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GitUsed {
    pub(crate) url: String,
    pub(crate) commit: String,
    /// The blob that took the repository's place.
    pub(crate) bundle: Option<BlobMaterial>,
}

/// A server's file. No credentials are in the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpUsed {
    pub(crate) url: String,
    pub(crate) digest: Digest,
}

impl Capture {
    /// What a graph's result was made of: `told` is what its sources turned out to be.
    pub(crate) fn of(graph: &Graph, told: Vec<Material>) -> Self {
        let mut capture = Self::default();
        for material in told {
            capture.add(material);
        }
        for vertex in graph.vertices() {
            match &vertex.op.op {
                Some(pb::op::Op::Exec(op)) => capture.add_process(op),
                Some(pb::op::Op::Build(_)) => capture.is_incomplete = true,
                _ => {}
            }
        }
        capture
    }

    fn add_process(&mut self, op: &pb::ExecOp) {
        for mount in &op.mounts {
            if let Some(secret) = &mount.secret_opt
                && mount.mount_type() == pb::MountType::Secret
            {
                add_access(&mut self.secrets, &secret.id, secret.optional);
            }
            if let Some(agent) = &mount.ssh_opt
                && mount.mount_type() == pb::MountType::Ssh
            {
                self.add_ssh(&agent.id, agent.optional);
            }
        }
        for secret in &op.secretenv {
            add_access(&mut self.secrets, &secret.id, secret.optional);
        }
        self.has_network |= op.network() != pb::NetMode::None;
    }

    fn add_ssh(&mut self, id: &str, optional: bool) {
        add_access(&mut self.ssh, if id.is_empty() { "default" } else { id }, optional);
    }

    /// Adds what a source turned out to be, unless it is there.
    pub(crate) fn add(&mut self, material: Material) {
        match material {
            Material::Image { reference, platform, digest, is_local } => {
                self.add_image(ImageUsed { reference, platform, digest, is_local });
            }
            Material::Blob(blob) => {
                let is_same = |known: &BlobMaterial| {
                    known.reference == blob.reference && known.is_local == blob.is_local
                };
                if !self.blobs.iter().any(is_same) {
                    self.blobs.push(blob);
                }
            }
            Material::Git { url, commit, secrets, ssh_agent, bundle } => {
                let git = GitUsed { url: redact(&url).into_owned(), commit, bundle };
                if !self.git.iter().any(|known| known.url == git.url) {
                    self.git.push(git);
                }
                secrets.iter().for_each(|id| add_access(&mut self.secrets, id, true));
                if let Some(agent) = ssh_agent {
                    self.add_ssh(&agent, true);
                }
            }
            Material::Http { url, digest } => {
                let http = HttpUsed { url: redact(&url).into_owned(), digest };
                if !self.http.iter().any(|known| known.url == http.url) {
                    self.http.push(http);
                }
            }
            Material::Local { name } => {
                if !self.locals.contains(&name) {
                    self.locals.push(name);
                }
            }
        }
    }

    /// Adds an image, unless it is there for the same platform.
    pub(crate) fn add_image(&mut self, image: ImageUsed) {
        // An index has no images that differ by features of the operating system alone.
        let kind = |platform: &Option<Platform>| {
            let fields = |p: &Platform| {
                (p.os.clone(), p.architecture.clone(), p.os_version.clone(), p.variant.clone())
            };
            platform.as_ref().map(fields)
        };
        let is_same = |known: &ImageUsed| {
            known.reference == image.reference
                && known.is_local == image.is_local
                && kind(&known.platform) == kind(&image.platform)
        };
        if !self.images.iter().any(is_same) {
            self.images.push(image);
        }
    }

    /// Adds what something else was made of.
    pub(crate) fn merge(&mut self, other: &Self) {
        other.images.iter().for_each(|image| self.add_image(image.clone()));
        other.blobs.iter().for_each(|blob| self.add(Material::Blob(blob.clone())));
        for GitUsed { url, commit, bundle } in other.git.iter().cloned() {
            self.add(Material::Git { url, commit, secrets: Vec::new(), ssh_agent: None, bundle });
        }
        for HttpUsed { url, digest } in other.http.iter().cloned() {
            self.add(Material::Http { url, digest });
        }
        other.locals.iter().for_each(|name| self.add(Material::Local { name: name.clone() }));
        other.secrets.iter().for_each(|(id, optional)| add_access(&mut self.secrets, id, *optional));
        other.ssh.iter().for_each(|(id, optional)| add_access(&mut self.ssh, id, *optional));
        self.has_network |= other.has_network;
        self.is_incomplete |= other.is_incomplete;
    }

    /// Puts all in the order in which it is told. An image that was asked for by tag is not told once more by the digest that it was then fetched with.
    pub(crate) fn finish(&mut self) {
        let name = |image: &ImageUsed| {
            let reference = Reference::parse(&image.reference).ok()?;
            let tagged = format!("{}:{}", reference.name(), reference.tag().unwrap_or("latest"));
            Some((tagged, reference.digest().is_some()))
        };
        let by_tag: Vec<String> = self
            .images
            .iter()
            .filter_map(name)
            .filter(|(_, by_digest)| !by_digest)
            .map(|(tagged, _)| tagged)
            .collect();
        self.images.retain(|image| {
            !name(image).is_some_and(|(tagged, by_digest)| by_digest && by_tag.contains(&tagged))
        });
        self.images.sort_by(|a, b| a.reference.cmp(&b.reference));
        self.blobs.sort_by(|a, b| a.reference.cmp(&b.reference));
        self.git.sort_by(|a, b| a.url.cmp(&b.url));
        self.http.sort_by(|a, b| a.url.cmp(&b.url));
        self.locals.sort();
    }
}

/// Who needs a thing once needs it.
fn add_access(all: &mut BTreeMap<String, bool>, id: &str, optional: bool) {
    all.entry(id.to_owned()).and_modify(|known| *known &= optional).or_insert(optional);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(reference: &str, platform: Option<&str>) -> Material {
        let digest = Some(Digest::sha256_of("x"));
        let platform = platform.map(|architecture| Platform::new("linux", architecture));
        Material::Image { reference: reference.to_owned(), platform, digest, is_local: false }
    }

    fn references(capture: &Capture) -> Vec<&str> {
        capture.images.iter().map(|image| image.reference.as_str()).collect()
    }

    #[test]
    fn an_image_is_told_once_for_each_platform_and_by_the_name_it_was_asked_for() {
        let mut capture = Capture::default();
        let by_digest = format!("docker.io/library/b:1@{}", Digest::sha256_of("x"));
        for (reference, platform) in [
            (by_digest.as_str(), Some("amd64")),
            ("docker.io/library/b:1", Some("amd64")),
            ("docker.io/library/b:1", Some("amd64")),
            ("docker.io/library/b:1", Some("arm64")),
            ("docker.io/library/a:1", None),
        ] {
            capture.add(image(reference, platform));
        }
        capture.finish();
        assert_eq!(
            references(&capture),
            ["docker.io/library/a:1", "docker.io/library/b:1", "docker.io/library/b:1"]
        );
        let only = format!("docker.io/library/c@{}", Digest::sha256_of("x"));
        capture.add(image(&only, None));
        capture.finish();
        assert_eq!(references(&capture)[3], only);
    }

    #[test]
    fn credentials_of_urls_are_not_told() {
        let mut capture = Capture::default();
        let url = "https://user:s3cret@host.example/x".to_owned();
        capture.add(Material::Http { url: url.clone(), digest: Digest::sha256_of("x") });
        let secrets = vec!["token".to_owned()];
        let (commit, ssh_agent) = ("c".to_owned(), Some(String::new()));
        capture.add(Material::Git { url, commit, secrets, ssh_agent, bundle: None });
        assert_eq!(capture.http[0].url, "https://xxxxx:xxxxx@host.example/x");
        assert_eq!(capture.git[0].url, "https://xxxxx:xxxxx@host.example/x");
        assert_eq!(capture.secrets, [("token".to_owned(), true)].into());
        assert_eq!(capture.ssh, [("default".to_owned(), true)].into());
    }

    #[test]
    fn what_is_needed_once_is_needed() {
        let mut capture = Capture::default();
        for optional in [true, false, true] {
            let mut other = Capture::default();
            add_access(&mut other.secrets, "s", optional);
            other.has_network = !optional;
            capture.merge(&other);
        }
        assert_eq!(capture.secrets, [("s".to_owned(), false)].into());
        assert!(capture.has_network && !capture.is_incomplete);
    }
}
