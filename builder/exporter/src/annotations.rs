//! Facts about an image that go into its documents, and about a manifest into what names it (`annotation…` of BuildKit's exporters).

use std::collections::BTreeMap;

use lapstrake_layerstore_oci::Platform;

use crate::ExportError;

/// What annotations are attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AnnotationLevel {
    /// A platform's manifest.
    Manifest,
    /// A platform's entry in the index, or in what names the manifest.
    ManifestDescriptor,
    /// The index.
    Index,
    /// What names the index.
    IndexDescriptor,
}

/// Annotations of an image, by where they go: a level, and a platform (in full) or all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Annotations(BTreeMap<(AnnotationLevel, Option<String>), BTreeMap<String, String>>);

impl Annotations {
    /// Takes `annotation-<level>[<platform>].<key>`; `false` when the option is no annotation.
    pub(crate) fn take(&mut self, option: &str, value: &str) -> Result<bool, ExportError> {
        let Some(key) = Key::parse(option) else { return Ok(false) };
        let level = match key.level {
            "" | "manifest" => AnnotationLevel::Manifest,
            "manifest-descriptor" => AnnotationLevel::ManifestDescriptor,
            "index" => AnnotationLevel::Index,
            "index-descriptor" => AnnotationLevel::IndexDescriptor,
            other => {
                return Err(ExportError::option(option, format!("unrecognized annotation type {other}")));
            }
        };
        let platform = match key.platform {
            "" => None,
            text => Some(
                Platform::parse(text)
                    .map_err(|error| ExportError::option(option, error.to_string()))?
                    .to_full_string(),
            ),
        };
        self.add(level, platform, key.name, value);
        Ok(true)
    }

    /// Those that a frontend says with its result (its metadata), beside what else it says there.
    pub fn of_result<'a>(
        metadata: impl IntoIterator<Item = (&'a String, &'a Vec<u8>)>,
    ) -> Result<Self, ExportError> {
        let mut all = Self::default();
        for (key, value) in metadata {
            all.take(key, &String::from_utf8_lossy(value))?;
        }
        Ok(all)
    }

    /// Adds others; where both have one, theirs counts.
    pub(crate) fn extend(&mut self, others: &Self) {
        for (place, facts) in &others.0 {
            self.0.entry(place.clone()).or_default().extend(facts.clone());
        }
    }

    /// Adds one; an earlier one with the same key goes.
    pub fn add(&mut self, level: AnnotationLevel, platform: Option<String>, key: &str, value: &str) {
        self.0.entry((level, platform)).or_default().insert(key.to_owned(), value.to_owned());
    }

    /// Those of the index, or of what names it. They go there whatever platform they were given with.
    pub fn of_index(&self, level: AnnotationLevel) -> BTreeMap<String, String> {
        let those = self.0.iter().filter(|((at, _), _)| *at == level);
        those.flat_map(|(_, facts)| facts.clone()).collect()
    }

    /// Those of a platform's manifest, or of what names it; one given for the platform goes before one for all.
    pub fn of_manifest(
        &self,
        level: AnnotationLevel,
        platform: Option<&Platform>,
    ) -> BTreeMap<String, String> {
        let mut all = self.0.get(&(level, None)).cloned().unwrap_or_default();
        if let Some(platform) = platform
            && let Some(own) = self.0.get(&(level, Some(platform.to_full_string())))
        {
            all.extend(own.clone());
        }
        all
    }

    /// An error when they cannot be attached: to a platform that was not built, or to documents of Docker's, which have no place for them.
    pub(crate) fn check(&self, platforms: &[Platform], oci: bool) -> Result<(), ExportError> {
        for (level, platform) in self.0.keys() {
            if let Some(platform) = platform
                && !platforms.iter().any(|built| built.to_full_string() == *platform)
            {
                return Err(ExportError::NoSuchPlatform { platform: platform.clone() });
            }
            if !oci && *level != AnnotationLevel::Manifest {
                return Err(ExportError::conflict("cannot export annotations with \"oci-mediatypes=false\""));
            }
        }
        Ok(())
    }

    /// Whether any is of the index, or of what names it.
    pub(crate) fn has_index(&self) -> bool {
        let of_index = |level| matches!(level, AnnotationLevel::Index | AnnotationLevel::IndexDescriptor);
        self.0.keys().any(|(level, _)| of_index(*level))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// An option that is an annotation. BuildKit's pattern: `^annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/-]+)\])?\.(\S+)$`.
struct Key<'a> {
    level: &'a str,
    platform: &'a str,
    name: &'a str,
}

impl<'a> Key<'a> {
    fn parse(option: &'a str) -> Option<Self> {
        let mut rest = option.strip_prefix("annotation")?;
        let mut level = "";
        if let Some(after) = rest.strip_prefix('-') {
            let end = after.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(after.len());
            (level, rest) = after.split_at(end);
            if level.is_empty() {
                return None;
            }
        }
        let mut platform = "";
        if let Some(after) = rest.strip_prefix('[') {
            (platform, rest) = after.split_once(']')?;
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '-');
            if platform.is_empty() || !platform.chars().all(fits) {
                return None;
            }
        }
        let name = rest.strip_prefix('.')?;
        // Go's `\s` is of ASCII.
        let fits = !name.is_empty() && !name.contains(['\t', '\n', '\x0c', '\r', ' ']);
        fits.then_some(Self { level, platform, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(options: &[(&str, &str)]) -> Annotations {
        let mut all = Annotations::default();
        for (option, value) in options {
            assert!(all.take(option, value).unwrap(), "{option}");
        }
        all
    }

    #[test]
    fn each_level_and_platform_gets_its_own() {
        let all = taken(&[
            ("annotation.a", "all"),
            ("annotation[linux/arm64].a", "arm"),
            ("annotation-manifest.b", "b"),
            ("annotation-manifest-descriptor[linux/amd64].org.opencontainers.image.title", "t"),
            ("annotation-index.c", "c"),
            ("annotation-index-descriptor[linux/arm64].d", "d"),
        ]);
        let of = |level, platform| all.of_manifest(level, Some(&Platform::new("linux", platform)));
        assert_eq!(of(AnnotationLevel::Manifest, "arm64")["a"], "arm");
        assert_eq!(of(AnnotationLevel::Manifest, "amd64")["a"], "all");
        assert_eq!(of(AnnotationLevel::Manifest, "amd64")["b"], "b");
        let title = "org.opencontainers.image.title";
        assert_eq!(of(AnnotationLevel::ManifestDescriptor, "amd64")[title], "t");
        assert!(of(AnnotationLevel::ManifestDescriptor, "arm64").is_empty());
        assert_eq!(all.of_index(AnnotationLevel::Index)["c"], "c");
        assert_eq!(all.of_index(AnnotationLevel::IndexDescriptor)["d"], "d");
    }

    #[test]
    fn what_a_frontend_says_goes_before_what_the_client_says() {
        let said = [("annotation-index.a", "frontend"), ("annotation.b", "b"), ("refs.platforms", "{}")];
        let said: BTreeMap<_, _> =
            said.map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec())).into();
        let mut all = taken(&[("annotation-index.a", "client"), ("annotation-index.c", "c")]);
        all.extend(&Annotations::of_result(&said).unwrap());
        let index = [("a", "frontend"), ("c", "c")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(all.of_index(AnnotationLevel::Index), index.into());
        assert_eq!(all.of_manifest(AnnotationLevel::Manifest, None)["b"], "b");
        let wrong = BTreeMap::from([("annotation-layer.a".to_owned(), Vec::new())]);
        Annotations::of_result(&wrong).unwrap_err();
    }

    #[test]
    fn what_is_no_annotation_is_left_and_what_is_a_wrong_one_refused() {
        let mut all = Annotations::default();
        for option in [
            "annotation",
            "annotationx.a",
            "annotation.",
            "annotation.a b",
            "annotation-.a",
            "annotation[].a",
        ] {
            assert!(!all.take(option, "").unwrap(), "{option}");
        }
        let error = all.take("annotation-layer.a", "").unwrap_err();
        assert!(error.to_string().contains("unrecognized annotation type layer"), "{error}");
        all.take("annotation[linux/amd64/v1/x/y].a", "").unwrap_err();
        assert!(all.is_empty());
    }

    #[test]
    fn they_go_only_where_there_is_a_place() {
        let platforms = [Platform::new("linux", "amd64")];
        taken(&[("annotation.a", "")]).check(&platforms, false).unwrap();
        taken(&[("annotation-index.a", "")]).check(&platforms, false).unwrap_err();
        taken(&[("annotation-index.a", "")]).check(&platforms, true).unwrap();
        let error = taken(&[("annotation[linux/arm64].a", "")]).check(&platforms, true).unwrap_err();
        assert_eq!(error.to_string(), "invalid annotation: no platform linux/arm64 found in source");
    }
}
