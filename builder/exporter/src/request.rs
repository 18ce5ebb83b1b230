//! What is to be left behind, and what was.

use std::{collections::BTreeMap, path::PathBuf};

use base64::Engine as _;
use lapstrake_layerstore_oci::{Descriptor, Digest, ImageConfig, ImageId, Platform, Reference, gojson};
use lapstrake_layerstore_registry::RegistryClient;
use lapstrake_layerstore_store::Tree;
use lapstrake_layerstore_transfer::BlobOptions;
use lapstrake_session::{ExporterId, SessionId};

use crate::{Annotations, Attestation, ExportError};

/// One thing that a build leaves behind. A build may leave several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Nothing but cache.
    CacheOnly,
    /// An image: in the store, in a registry, or both.
    Image(ImageOutput),
    /// The image as an OCI layout.
    Oci(LayoutOutput),
    /// The image as `docker load` takes it.
    Docker(LayoutOutput),
    /// The tree, as a directory.
    Local(LocalOutput),
    /// The tree, as a tar stream.
    Tar(TreeOutput),
}

/// What an image is to be, wherever it goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageOptions {
    /// Its names.
    pub names: Names,
    /// Whether its documents have OCI's media types, or Docker's; if not said, OCI's.
    pub oci_types: Option<bool>,
    /// Whether attestations are OCI artifacts that name their subject, or images of a platform that nobody has; if not said, artifacts where media types are OCI's.
    pub oci_artifact: Option<bool>,
    /// How layers are compressed.
    pub layers: BlobOptions,
    /// Facts about it.
    pub annotations: Annotations,
    /// The time of what is new in it.
    pub epoch: Epoch,
    /// Whether files in new layers are no younger than that.
    pub rewrite_timestamp: bool,
    /// Whether attestations that make no sense outside of an image are with it.
    pub inline_attestations: bool,
    /// What else the client said: it goes before what the frontend said of the image (`containerimage.config`), and nobody minds what means nothing.
    pub metadata: BTreeMap<String, String>,
}

/// An image's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// These; none make a dangling image.
    Given(Vec<Reference>),
    /// Those that the frontend says (`image.name`).
    OfResult,
}

impl Default for Names {
    fn default() -> Self {
        Self::Given(Vec::new())
    }
}

/// The time that exporters give to what is new (`SOURCE_DATE_EPOCH`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Epoch {
    /// What the frontend says, if it says something.
    #[default]
    OfResult,
    /// None, whatever the frontend says.
    Never,
    /// This, in seconds since 1970.
    At(i64),
}

impl Epoch {
    /// The time, for a result whose frontend said `result`.
    pub fn or(self, result: Option<i64>) -> Option<i64> {
        match self {
            Self::OfResult => result,
            Self::Never => None,
            Self::At(seconds) => Some(seconds),
        }
    }
}

/// An image in the store, in a registry, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageOutput {
    /// What it is to be.
    pub image: ImageOptions,
    /// Whether it goes to the registries of its names.
    pub push: Option<PushOptions>,
    /// Whether it goes into the image store.
    pub store: bool,
    /// Whether it has a manifest, and compressed layers, also when nothing needs them yet.
    pub manifest: bool,
    /// Whether it is named by its digest, too: `name@digest`.
    pub canonical: bool,
    /// A repository in which it is named by its digest.
    pub dangling: Option<DanglingName>,
}

/// A name for images that have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DanglingName {
    /// The repository.
    pub repository: Reference,
    /// Whether images with names do without.
    pub only_nameless: bool,
}

/// How an image goes to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PushOptions {
    /// Without a tag.
    pub by_digest: bool,
    /// Whether plain HTTP, and TLS that nobody vouches for, will do.
    pub insecure: bool,
}

/// An image in a layout or an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutOutput {
    /// What it is to be.
    pub image: ImageOptions,
    /// Whether it is a tar stream, or files in a directory.
    pub tar: bool,
    /// Where it goes.
    pub to: Destination,
}

/// A tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeOutput {
    /// Where it goes.
    pub to: Destination,
    /// The time that all its files get.
    pub epoch: Epoch,
    /// What the names of attestations begin with.
    pub attestation_prefix: String,
    /// Whether each platform gets a directory of its own, such as `linux_arm64`; if not said, when there may be several.
    pub split: Option<bool>,
}

impl TreeOutput {
    /// A tree as it is.
    pub fn to(to: Destination) -> Self {
        Self { to, epoch: Epoch::default(), attestation_prefix: String::new(), split: None }
    }
}

/// A tree as a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalOutput {
    /// The tree.
    pub tree: TreeOutput,
    /// Whether files that were there and are not in the tree go (`mode=delete`).
    pub delete: bool,
}

impl Output {
    /// An image in the store, with nothing made that it does not need yet.
    pub fn image(names: Vec<Reference>) -> Self {
        let inline_attestations = true;
        let image =
            ImageOptions { names: Names::Given(names), inline_attestations, ..ImageOptions::default() };
        Self::Image(ImageOutput {
            image,
            push: None,
            store: true,
            manifest: false,
            canonical: false,
            dangling: None,
        })
    }

    /// An OCI layout in a tar stream.
    pub fn oci(names: Vec<Reference>, to: Destination) -> Self {
        Self::Oci(LayoutOutput::tar(names, to))
    }

    /// An archive for `docker load`.
    pub fn docker(names: Vec<Reference>, to: Destination) -> Self {
        Self::Docker(LayoutOutput::tar(names, to))
    }

    /// The tree as a directory, split where there may be several platforms.
    pub fn local(to: Destination) -> Self {
        Self::Local(LocalOutput { tree: TreeOutput::to(to), delete: false })
    }

    /// The tree as a tar stream.
    pub fn tar(to: Destination) -> Self {
        Self::Tar(TreeOutput::to(to))
    }

    /// Sends it elsewhere; an error where it goes nowhere but to its place.
    pub fn send_to(mut self, to: Destination) -> Result<Self, ExportError> {
        match &mut self {
            Self::CacheOnly | Self::Image(_) => {
                let output = self.kind();
                return Err(ExportError::Unsupported { output, why: "it goes to no file" });
            }
            Self::Oci(layout) | Self::Docker(layout) => layout.to = to,
            Self::Local(local) => local.tree.to = to,
            Self::Tar(tree) => tree.to = to,
        }
        Ok(self)
    }

    /// Its type, as clients name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CacheOnly => "cacheonly",
            Self::Image(_) => "image",
            Self::Local(_) => "local",
            Self::Tar(_) => "tar",
            Self::Oci(_) => "oci",
            Self::Docker(_) => "docker",
        }
    }

    /// What the image is to be, if it is one.
    pub fn image_options(&self) -> Option<&ImageOptions> {
        match self {
            Self::Image(output) => Some(&output.image),
            Self::Oci(output) | Self::Docker(output) => Some(&output.image),
            Self::CacheOnly | Self::Local(_) | Self::Tar(_) => None,
        }
    }

    /// The names that it was given.
    pub fn names(&self) -> &[Reference] {
        match self.image_options().map(|options| &options.names) {
            Some(Names::Given(names)) => names,
            Some(Names::OfResult) | None => &[],
        }
    }

    /// Adds annotations that the frontend gives; what it says goes before what the client says, as with BuildKit. Only images have them.
    pub fn annotate(&mut self, annotations: &Annotations) {
        if annotations.is_empty() {
            return;
        }
        match self {
            Self::Image(output) => {
                output.image.annotations.extend(annotations);
                output.manifest = true;
            }
            Self::Oci(output) | Self::Docker(output) => output.image.annotations.extend(annotations),
            Self::CacheOnly | Self::Local(_) | Self::Tar(_) => {}
        }
    }

    /// Names that go before those that it has (`-t`), each once.
    pub fn name_first(&mut self, names: &[Reference]) {
        let options = match self {
            Self::Image(output) => &mut output.image,
            Self::Oci(output) | Self::Docker(output) => &mut output.image,
            Self::CacheOnly | Self::Local(_) | Self::Tar(_) => return,
        };
        if names.is_empty() {
            return;
        }
        let mut all = names.to_vec();
        if let Names::Given(own) = std::mem::take(&mut options.names) {
            all.extend(own);
        }
        let mut unique = Vec::with_capacity(all.len());
        for name in all {
            let tagged = name.clone().with_default_tag();
            if !unique.iter().any(|other: &Reference| other.clone().with_default_tag() == tagged) {
                unique.push(name);
            }
        }
        options.names = Names::Given(unique);
    }

    /// Whether it has room for images of several platforms, or an error that says why not.
    pub fn admits(&self, multi_platform: bool) -> Result<(), ExportError> {
        match self {
            Self::Docker(_) if multi_platform => Err(ExportError::ManifestList),
            _ => Ok(()),
        }
    }
}

impl LayoutOutput {
    fn tar(names: Vec<Reference>, to: Destination) -> Self {
        let image = ImageOptions { names: Names::Given(names), ..ImageOptions::default() };
        Self { image, tar: true, to }
    }
}

/// Where a directory or a stream goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To the client, through its session.
    Session,
    /// To a path of this machine.
    Path(PathBuf),
    /// To this process's standard output (streams only).
    Stdout,
}

/// The result for one platform.
#[derive(Debug, Clone)]
pub struct PlatformResult {
    /// Which.
    pub platform: Platform,
    /// Its files.
    pub tree: Tree,
    /// Its config, complete but for layers and times.
    pub config: ImageConfig,
    /// The config of the image that it was made from: what is of it keeps its times.
    pub base: Option<ImageConfig>,
    /// `SOURCE_DATE_EPOCH` in seconds since 1970: the time that the config says it was created at.
    pub epoch: Option<i64>,
    /// What is attested of it.
    pub attestations: Vec<Attestation>,
}

/// One export.
#[derive(Debug)]
pub struct ExportRequest {
    /// What to leave behind.
    pub output: Output,
    /// Which of the build's outputs it is.
    pub number: ExporterId,
    /// What was built; one for each platform, at least one.
    pub results: Vec<PlatformResult>,
    /// Whether it is one result of several, also where there is but one: an index, or directories by platform.
    pub multi_platform: bool,
    /// The names that the frontend gives (`image.name`), for who asks for them.
    pub names: Vec<Reference>,
    /// The client's session.
    pub session: Option<SessionId>,
    /// Registries, with the build's credentials.
    pub registry: Option<RegistryClient>,
}

/// What was left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// The image: its config's digest. Of several platforms' images in the store, the one that its names point at.
    pub image: Option<ImageId>,
    /// Names that were put on it, in the order asked for.
    pub names: Vec<Reference>,
    /// The manifest or index, when one was made.
    pub manifest: Option<Descriptor>,
    /// What names the cache that was left for others, if one was.
    pub cache: Option<Descriptor>,
    /// What the frontend says to the client: what of its metadata is called `frontend.…`.
    pub frontend: BTreeMap<String, String>,
}

impl Exported {
    /// What is called the image's digest where there is room for one: that of its index (BuildKit's `containerimage.digest`), or else of its config.
    pub fn digest(&self) -> Option<&Digest> {
        let index = self.manifest.as_ref().filter(|manifest| manifest.media_type.is_index());
        index.map(|index| &index.digest).or(self.image.as_ref().map(ImageId::digest))
    }

    /// What BuildKit's exporters answer (`exporter/containerimage/exptypes`): `containerimage.digest`, `containerimage.config.digest`,
    /// `containerimage.descriptor`, `image.name`, and `cache.manifest`. Where no manifest was made, the digest is the image's id, as Moby's exporter has it. Nothing of
    /// an image for what is none.
    pub fn response(&self) -> BTreeMap<String, String> {
        let mut response = BTreeMap::new();
        let mut say = |key: &str, value: String| _ = response.insert(key.to_owned(), value);
        let digest = self.manifest.as_ref().map(|manifest| &manifest.digest);
        if let Some(digest) = digest.or(self.image.as_ref().map(ImageId::digest)) {
            say("containerimage.digest", digest.to_string());
        }
        // An index has no one config.
        if let Some(image) = &self.image
            && !self.manifest.as_ref().is_some_and(|manifest| manifest.media_type.is_index())
        {
            say("containerimage.config.digest", image.to_string());
        }
        if let Some(manifest) = &self.manifest {
            let json = gojson::to_vec(manifest).expect("a descriptor is JSON");
            say("containerimage.descriptor", base64::engine::general_purpose::STANDARD.encode(json));
        }
        if !self.names.is_empty() {
            let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
            say("image.name", names.join(","));
        }
        // The client writes it into the index of its cache's directory.
        if let Some(cache) = &self.cache {
            let json = gojson::to_vec(cache).expect("a descriptor is JSON");
            say("cache.manifest", String::from_utf8(json).expect("JSON is text"));
        }
        response.extend(self.frontend.clone());
        response
    }

    /// What several outputs left, as one: of what each has, the last counts, as in BuildKit's answers.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        Self {
            image: later.image.or(self.image),
            names: if later.names.is_empty() { self.names } else { later.names },
            manifest: later.manifest.or(self.manifest),
            cache: later.cache.or(self.cache),
            frontend: self.frontend.into_iter().chain(later.frontend).collect(),
        }
    }
}
