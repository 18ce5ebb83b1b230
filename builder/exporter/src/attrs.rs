//! Outputs as clients say them: a type and attributes, with BuildKit's names, defaults and errors (`exporter/*/opts.go`, `export.go`).

use std::collections::BTreeMap;

use lapstrake_layerstore_oci::Reference;
use lapstrake_layerstore_transfer::{BlobCompression, BlobOptions};

use crate::{
    DanglingName, Destination, Epoch, ExportError, ImageOptions, ImageOutput, LayoutOutput, LocalOutput,
    Names, Output, PushOptions, TreeOutput,
};

impl Output {
    /// Reads an exporter's type and attributes, as they are in BuildKit's `SolveRequest.Exporters`, in `/build?outputs=`, and after `-o`.
    ///
    /// What goes to a place goes to the client; [`Output::send_to`] changes that. `registry` is an image that is pushed. `moby` (and no type at all) is an
    /// image as Moby's daemon keeps it: nothing is compressed before something needs it. Attributes that no exporter knows are ignored, as BuildKit
    /// ignores them; whoever wants `SOURCE_DATE_EPOCH` of the build's arguments to count puts it in as `source-date-epoch`.
    pub fn parse(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Self, ExportError> {
        let mut attrs = attrs.clone();
        match kind {
            "cacheonly" => Ok(Self::CacheOnly),
            "" | "moby" => image(attrs, true).map(Self::Image),
            "image" => image(attrs, false).map(Self::Image),
            "registry" => {
                attrs.entry("push".to_owned()).or_insert_with(|| "true".to_owned());
                image(attrs, false).map(Self::Image)
            }
            "oci" => layout(attrs).map(Self::Oci),
            "docker" => layout(attrs).map(Self::Docker),
            "local" => local(attrs).map(Self::Local),
            "tar" => tree(&mut attrs).map(Self::Tar),
            other => Err(ExportError::NoSuchExporter { kind: other.to_owned() }),
        }
    }
}

fn image(attrs: BTreeMap<String, String>, moby: bool) -> Result<ImageOutput, ExportError> {
    let mut image = image_options(attrs, true)?;
    let rest = &mut image.metadata;
    let push = take_flag(rest, "push", false)?;
    let options = PushOptions {
        by_digest: take_flag(rest, "push-by-digest", false)?,
        insecure: take_flag(rest, "registry.insecure", false)?,
    };
    // The files of an image in the store are always there.
    take_flag(rest, "unpack", false)?;
    // For BuildKit's own tests.
    take_flag(rest, "unsafe-internal-store-allow-incomplete", false)?;
    let only_nameless = take_flag(rest, "danging-name-empty-only", false)?;
    let dangling = match take(rest, "dangling-name-prefix").filter(|prefix| !prefix.is_empty()) {
        // Moby's own prefix is for images without a name, which are in our store without one.
        Some(_) if moby => None,
        Some(prefix) => Some(DanglingName {
            repository: Reference::parse(&prefix)
                .map_err(|error| ExportError::option("dangling-name-prefix", error.to_string()))?
                .trimmed(),
            only_nameless,
        }),
        None => None,
    };
    let store = take_flag(rest, "store", true)?;
    let canonical = take_flag(rest, "name-canonical", false)?;
    let asked =
        image.layers != BlobOptions::default() || image.oci_types.is_some() || !image.annotations.is_empty();
    Ok(ImageOutput {
        push: push.then_some(options),
        store,
        manifest: !moby || asked,
        canonical,
        dangling,
        image,
    })
}

fn layout(attrs: BTreeMap<String, String>) -> Result<LayoutOutput, ExportError> {
    let mut image = image_options(attrs, false)?;
    let tar = take_flag(&mut image.metadata, "tar", true)?;
    Ok(LayoutOutput { image, tar, to: Destination::Session })
}

/// Attributes that all images have; what is left is in `metadata`.
fn image_options(
    attrs: BTreeMap<String, String>,
    inline_attestations: bool,
) -> Result<ImageOptions, ExportError> {
    let mut options = ImageOptions { inline_attestations, ..ImageOptions::default() };
    let mut rest = BTreeMap::new();
    for (key, value) in attrs {
        if !options.annotations.take(&key, &value)? {
            rest.insert(key, value);
        }
    }
    options.epoch = take_epoch(&mut rest)?;
    options.layers = take_compression(&mut rest)?;
    options.names = names(take(&mut rest, "name").as_deref().unwrap_or_default())?;
    options.oci_types = take_bool(&mut rest, "oci-mediatypes")?;
    options.oci_artifact = take_bool(&mut rest, "oci-artifact")?;
    options.rewrite_timestamp = take_bool(&mut rest, "rewrite-timestamp")?.unwrap_or(false);
    // There are none in our stores: layers that only their vendor may distribute are not unpacked.
    take_bool(&mut rest, "prefer-nondist-layers")?;
    options.inline_attestations =
        take_bool(&mut rest, "attestation-inline")?.unwrap_or(options.inline_attestations);
    options.metadata = rest;
    options.check()?;
    Ok(options)
}

impl ImageOptions {
    /// Whether media types are OCI's.
    pub(crate) fn is_oci(&self) -> bool {
        self.oci_types.unwrap_or(true)
    }

    /// Whether attestations are OCI artifacts.
    pub(crate) fn has_artifacts(&self) -> bool {
        self.oci_artifact.unwrap_or(self.is_oci())
    }

    pub(crate) fn check(&self) -> Result<(), ExportError> {
        if self.is_oci() {
            return Ok(());
        }
        if self.layers.compression == BlobCompression::Estargz {
            let why = "exporter option \"compression=estargz\" conflicts with \"oci-mediatypes=false\"";
            return Err(ExportError::conflict(why));
        }
        if self.has_artifacts() {
            let why = "exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\"";
            return Err(ExportError::conflict(why));
        }
        Ok(())
    }
}

/// Names between commas, as they are: a tag is added where one is needed.
fn names(text: &str) -> Result<Names, ExportError> {
    if text == "*" {
        return Ok(Names::OfResult);
    }
    let mut names = Vec::new();
    for name in text.split(',').filter(|name| !name.is_empty()) {
        let refuse = |why: String| ExportError::option("name", format!("{name:?}: {why}"));
        let name = Reference::parse(name).map_err(|error| refuse(error.to_string()))?;
        if name.digest().is_some() {
            return Err(refuse("build tag cannot contain a digest".to_owned()));
        }
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(Names::Given(names))
}

fn take_compression(attrs: &mut BTreeMap<String, String>) -> Result<BlobOptions, ExportError> {
    let compression = match take(attrs, "compression") {
        None => BlobCompression::Gzip,
        Some(name) => BlobCompression::parse(&name)
            .ok_or_else(|| ExportError::conflict(format!("unsupported compression type {name}")))?,
    };
    let force = take_flag(attrs, "force-compression", false)?;
    let level = match take(attrs, "compression-level") {
        None => None,
        Some(text) => level(compression, &text)?,
    };
    Ok(BlobOptions { compression, level, force })
}

/// The level that a number means: of zstd the nearest that there is; gzip takes no others than it has, and -1 for its default.
fn level(compression: BlobCompression, text: &str) -> Result<Option<u32>, ExportError> {
    let refuse =
        |kind| ExportError::conflict(format!("non-{kind} value {text} specified for compression-level"));
    let level: i64 = text.parse().map_err(|_| refuse("integer"))?;
    let most = match compression {
        BlobCompression::Uncompressed => return Ok(None),
        BlobCompression::Zstd => 22,
        BlobCompression::Gzip | BlobCompression::Estargz if level == -1 => return Ok(None),
        BlobCompression::Gzip | BlobCompression::Estargz if (0..=9).contains(&level) => 9,
        BlobCompression::Gzip | BlobCompression::Estargz => return Err(refuse("level")),
    };
    Ok(u32::try_from(level.clamp(0, most)).ok())
}

fn local(mut attrs: BTreeMap<String, String>) -> Result<LocalOutput, ExportError> {
    let delete = match take(&mut attrs, "mode").unwrap_or_default().trim().to_lowercase().as_str() {
        "" | "copy" => false,
        "delete" => true,
        other => return Err(ExportError::conflict(format!("invalid local exporter mode {other:?}"))),
    };
    Ok(LocalOutput { tree: tree(&mut attrs)?, delete })
}

fn tree(attrs: &mut BTreeMap<String, String>) -> Result<TreeOutput, ExportError> {
    let epoch = take_epoch(attrs)?;
    let split = match take(attrs, "platform-split") {
        None => None,
        Some(text) => Some(
            parse_bool(&text)
                .ok_or_else(|| ExportError::conflict(format!("non-bool value for platform-split: {text}")))?,
        ),
    };
    let attestation_prefix = take(attrs, "attestation-prefix").unwrap_or_default();
    Ok(TreeOutput { to: Destination::Session, epoch, attestation_prefix, split })
}

fn take_epoch(attrs: &mut BTreeMap<String, String>) -> Result<Epoch, ExportError> {
    match take(attrs, "source-date-epoch").as_deref() {
        None => Ok(Epoch::OfResult),
        Some("") => Ok(Epoch::Never),
        Some(text) => text.parse().map(Epoch::At).map_err(|_| {
            ExportError::option("source-date-epoch", format!("{text:?} is no number of seconds"))
        }),
    }
}

fn take(attrs: &mut BTreeMap<String, String>, key: &str) -> Option<String> {
    attrs.remove(key)
}

/// A boolean that is true when it is there without a value.
fn take_flag(attrs: &mut BTreeMap<String, String>, key: &str, default: bool) -> Result<bool, ExportError> {
    match attrs.get(key).map(String::as_str) {
        Some("") => {
            attrs.remove(key);
            Ok(true)
        }
        _ => Ok(take_bool(attrs, key)?.unwrap_or(default)),
    }
}

fn take_bool(attrs: &mut BTreeMap<String, String>, key: &str) -> Result<Option<bool>, ExportError> {
    let Some(text) = take(attrs, key) else { return Ok(None) };
    let why = || ExportError::conflict(format!("non-bool value specified for {key}: {text:?}"));
    parse_bool(&text).map(Some).ok_or_else(why)
}

/// The fields of a line of CSV (`type=image,"name=a,b"`), as outputs and caches stand on command lines; `None` when a quotation mark is missing.
pub fn split_fields(text: &str) -> Option<Vec<String>> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            other => field.push(other),
        }
    }
    fields.push(field);
    (!quoted).then_some(fields)
}

/// Go's `strconv.ParseBool`.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(kind: &str, attrs: &[(&str, &str)]) -> Result<Output, String> {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Output::parse(kind, &attrs).map_err(|error| error.to_string())
    }

    fn parsed_image(kind: &str, attrs: &[(&str, &str)]) -> ImageOutput {
        match parsed(kind, attrs) {
            Ok(Output::Image(image)) => image,
            other => panic!("{other:?}"),
        }
    }

    fn refused(kind: &str, attrs: &[(&str, &str)]) -> String {
        parsed(kind, attrs).unwrap_err()
    }

    #[test]
    fn an_image_is_what_its_attributes_say() {
        let image = parsed_image(
            "image",
            &[
                ("name", "a:1,example.org/b"),
                ("push", ""),
                ("push-by-digest", "false"),
                ("registry.insecure", "true"),
                ("name-canonical", "1"),
                ("dangling-name-prefix", "danglers"),
                ("danging-name-empty-only", "true"),
                ("store", "false"),
                ("unpack", "true"),
                ("oci-artifact", "false"),
                ("compression", "zstd"),
                ("compression-level", "99"),
                ("force-compression", ""),
                ("rewrite-timestamp", "true"),
                ("source-date-epoch", "17"),
                ("annotation.org.example", "x"),
                ("buildinfo", "true"),
                ("containerimage.config", "{}"),
            ],
        );
        assert_eq!(image.push, Some(PushOptions { by_digest: false, insecure: true }));
        assert!(image.canonical && !image.store && image.manifest);
        let dangling = image.dangling.unwrap();
        assert_eq!((dangling.repository.familiar().as_str(), dangling.only_nameless), ("danglers", true));
        let options = image.image;
        let names = ["a:1", "example.org/b"].map(|name| Reference::parse(name).unwrap()).to_vec();
        assert_eq!(options.names, Names::Given(names));
        let layers = BlobOptions { compression: BlobCompression::Zstd, level: Some(22), force: true };
        assert_eq!(options.layers, layers);
        assert_eq!((options.epoch, options.rewrite_timestamp), (Epoch::At(17), true));
        assert!(options.inline_attestations && options.is_oci() && !options.has_artifacts());
        assert_eq!(options.metadata.keys().collect::<Vec<_>>(), ["buildinfo", "containerimage.config"]);
    }

    #[test]
    fn mobys_image_waits_with_compressing_unless_its_form_matters() {
        assert_eq!(parsed("moby", &[]), Ok(Output::image(Vec::new())));
        assert_eq!(parsed("", &[]), Ok(Output::image(Vec::new())));
        assert!(parsed_image("image", &[]).manifest);
        assert!(parsed_image("moby", &[("compression", "zstd")]).manifest);
        assert!(parsed_image("moby", &[("annotation.a", "b")]).manifest);
        assert_eq!(parsed_image("moby", &[("dangling-name-prefix", "moby-dangling")]).dangling, None);
        assert!(parsed_image("registry", &[("name", "a")]).push.is_some());
    }

    #[test]
    fn trees_and_layouts_are_what_their_attributes_say() {
        let local = parsed("local", &[("mode", " Delete "), ("platform-split", "f"), ("dest", "x")]);
        let tree = TreeOutput { split: Some(false), ..TreeOutput::to(Destination::Session) };
        assert_eq!(local, Ok(Output::Local(LocalOutput { tree, delete: true })));
        let tar = parsed("tar", &[("attestation-prefix", "att-"), ("source-date-epoch", "")]);
        let tree = TreeOutput {
            epoch: Epoch::Never,
            attestation_prefix: "att-".to_owned(),
            ..TreeOutput::to(Destination::Session)
        };
        assert_eq!(tar, Ok(Output::Tar(tree)));
        assert!(matches!(
            parsed("oci", &[("tar", "false")]),
            Ok(Output::Oci(LayoutOutput { tar: false, .. }))
        ));
        assert!(matches!(parsed("docker", &[]), Ok(Output::Docker(LayoutOutput { tar: true, .. }))));
        assert_eq!(parsed("cacheonly", &[]), Ok(Output::CacheOnly));
        let Ok(Output::Oci(named)) = parsed("oci", &[("name", "*")]) else { panic!("it is a layout") };
        assert_eq!(named.image.names, Names::OfResult);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (kind, attrs, expected) in [
            ("image", &[("push", "maybe")][..], "push"),
            ("image", &[("name", "UPPER")], "UPPER"),
            (
                "image",
                &[("name", "a@sha256:0000000000000000000000000000000000000000000000000000000000000000")],
                "digest",
            ),
            ("image", &[("compression", "lzma")], "unsupported compression type lzma"),
            ("image", &[("compression-level", "high")], "non-integer value high"),
            ("image", &[("compression-level", "10")], "non-level value 10"),
            ("image", &[("compression", "estargz"), ("oci-mediatypes", "false")], "compression=estargz"),
            ("image", &[("oci-artifact", "true"), ("oci-mediatypes", "false")], "oci-artifact=true"),
            ("image", &[("source-date-epoch", "yesterday")], "yesterday"),
            ("image", &[("annotation-x.a", "b")], "annotation type x"),
            ("oci", &[("tar", "?")], "tar"),
            ("local", &[("mode", "move")], "invalid local exporter mode \"move\""),
            ("local", &[("platform-split", "?")], "non-bool value for platform-split: ?"),
            ("zip", &[], "exporter \"zip\" could not be found"),
        ] {
            let error = refused(kind, attrs);
            assert!(error.contains(expected), "{error}");
        }
    }
}
