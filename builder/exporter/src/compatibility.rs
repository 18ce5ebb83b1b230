//! How results were made by older versions of BuildKit, for clients that want the same bytes as then (`SolveRequest.CompatibilityVersion`).

use lapstrake_layerstore_transfer::BlobCompression;

use crate::{ExportError, ImageOptions, Output};

/// The way in which results are made. BuildKit numbers those that it has had; each is called by the first version that had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub enum Compatibility {
    /// 10. Layers are not compressed with zstd, and files of git repositories that nobody can run may be written by all.
    BuildKit013,
    /// 20. Media types are Docker's where nothing is attested, and attestations are images.
    BuildKit015,
    /// 30. Media types are OCI's, and attestations are artifacts.
    #[default]
    BuildKit031,
}

impl Compatibility {
    const ALL: [Self; 3] = [Self::BuildKit013, Self::BuildKit015, Self::BuildKit031];

    /// The way with this number; 0 is the newest.
    ///
    /// # Errors
    /// [`ExportError::Conflict`], in BuildKit's words.
    pub fn of_number(number: i64) -> Result<Self, ExportError> {
        let newest = Self::default();
        let unsupported = || {
            let why = match number > i64::from(newest.number()) {
                true => format!("upgrade buildkit (max supported: {})", newest.number()),
                false => format!("(supported: {})", Self::ALL.map(|one| one.number().to_string()).join(" ")),
            };
            ExportError::conflict(format!("unsupported compatibility-version {number}: {why}"))
        };
        match number {
            0 => Ok(newest),
            number => {
                Self::ALL.into_iter().find(|one| i64::from(one.number()) == number).ok_or_else(unsupported)
            }
        }
    }

    /// Its number.
    pub fn number(self) -> u32 {
        match self {
            Self::BuildKit013 => 10,
            Self::BuildKit015 => 20,
            Self::BuildKit031 => 30,
        }
    }
}

impl Output {
    /// The output as it was in an older way: what its attributes leave open is as it was then. `attested` is whether anything is attested of the result.
    ///
    /// # Errors
    /// [`ExportError::Conflict`], where there was no such output then.
    pub fn as_of(mut self, version: Compatibility, attested: bool) -> Result<Self, ExportError> {
        if version == Compatibility::default() {
            return Ok(self);
        }
        let kind = self.kind();
        let (image, is_layout): (&mut ImageOptions, bool) = match &mut self {
            Self::Image(output) => (&mut output.image, false),
            Self::Docker(output) => (&mut output.image, false),
            Self::Oci(output) => (&mut output.image, true),
            Self::CacheOnly | Self::Local(_) | Self::Tar(_) => return Ok(self),
        };
        if version == Compatibility::BuildKit013 && image.layers.compression == BlobCompression::Zstd {
            let why = format!(
                "unsupported compatibility-version {} feature {kind} exporter compression=zstd",
                version.number()
            );
            return Err(ExportError::conflict(why));
        }
        image.oci_types.get_or_insert(is_layout || attested);
        image.oci_artifact.get_or_insert(false);
        image.check()?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn parsed(kind: &str, attrs: &[(&str, &str)]) -> Output {
        let attrs: BTreeMap<_, _> =
            attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Output::parse(kind, &attrs).unwrap()
    }

    fn types(output: &Output) -> (bool, bool) {
        let image = output.image_options().unwrap();
        (image.is_oci(), image.has_artifacts())
    }

    #[test]
    fn numbers_that_are_none_are_refused_in_buildkits_words() {
        assert_eq!(Compatibility::of_number(0).unwrap(), Compatibility::BuildKit031);
        for version in Compatibility::ALL {
            assert_eq!(Compatibility::of_number(version.number().into()).unwrap(), version);
        }
        let refused = |number| Compatibility::of_number(number).unwrap_err().to_string();
        assert_eq!(refused(31), "unsupported compatibility-version 31: upgrade buildkit (max supported: 30)");
        assert_eq!(refused(-1), "unsupported compatibility-version -1: (supported: 10 20 30)");
    }

    #[test]
    fn what_is_left_open_is_as_it_was_then() {
        let old = Compatibility::BuildKit015;
        let of = |kind: &str, version, attested| types(&parsed(kind, &[]).as_of(version, attested).unwrap());
        assert_eq!(of("image", Compatibility::BuildKit031, false), (true, true));
        assert_eq!(of("image", old, false), (false, false));
        assert_eq!(of("image", old, true), (true, false));
        assert_eq!(of("docker", old, false), (false, false));
        assert_eq!(of("oci", old, false), (true, false));
        let said = parsed("image", &[("oci-mediatypes", "true"), ("oci-artifact", "true")]);
        assert_eq!(types(&said.as_of(old, false).unwrap()), (true, true));
    }

    #[test]
    fn what_was_not_there_then_is_refused_by_name() {
        let zstd = || parsed("oci", &[("compression", "zstd")]);
        assert!(zstd().as_of(Compatibility::BuildKit015, false).is_ok());
        let refused = zstd().as_of(Compatibility::BuildKit013, false).unwrap_err().to_string();
        assert_eq!(refused, "unsupported compatibility-version 10 feature oci exporter compression=zstd");
        let estargz = parsed("image", &[("compression", "estargz")]);
        let refused = estargz.as_of(Compatibility::BuildKit015, false).unwrap_err().to_string();
        assert!(refused.contains("oci-mediatypes=false"), "{refused}");
    }
}
