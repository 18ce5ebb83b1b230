//! API versions.

use std::{fmt, str::FromStr};

use crate::ApiTypeError;

/// A version of the Engine API, `major.minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiVersion {
    major: u16,
    minor: u16,
}

impl ApiVersion {
    /// The oldest version served, Moby's own floor.
    pub const MIN: ApiVersion = ApiVersion::v1(24);
    /// The newest version served, and the one meant by a path without a version.
    ///
    /// Later ones exist in Moby's development branch; 1.55 brings `GET /images/{name}/attestations`, which is not here.
    pub const MAX: ApiVersion = ApiVersion::v1(54);

    /// Version 1.`minor`.
    pub const fn v1(minor: u16) -> ApiVersion {
        ApiVersion { major: 1, minor }
    }

    /// Whether this is 1.`minor` or newer.
    pub fn at_least(self, minor: u16) -> bool {
        self >= ApiVersion::v1(minor)
    }

    /// The version in a request's path (`1.41`), checked against what is served.
    pub fn negotiate(text: &str) -> Result<ApiVersion, ApiTypeError> {
        let version: ApiVersion = text.parse()?;
        if version < Self::MIN {
            return Err(ApiTypeError::VersionTooOld { version: text.to_owned(), min: Self::MIN.to_string() });
        }
        if version > Self::MAX {
            return Err(ApiTypeError::VersionTooNew { version: text.to_owned(), max: Self::MAX.to_string() });
        }
        Ok(version)
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ApiVersion {
    type Err = ApiTypeError;

    /// As Moby's `versions.compare`: components are compared as numbers, missing ones are 0, further ones do not matter here.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ApiTypeError::Version(text.to_owned());
        let mut parts = text.split('.');
        let mut next = || match parts.next() {
            None => Ok(0),
            Some(part) => part.parse::<u16>().map_err(|_| wrong()),
        };
        Ok(ApiVersion { major: next()?, minor: next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_outside_the_range_are_refused_in_mobys_words() {
        assert_eq!(ApiVersion::negotiate("1.41").unwrap(), ApiVersion::v1(41));
        assert_eq!(
            ApiVersion::negotiate("1.99").unwrap_err().to_string(),
            "client version 1.99 is too new. Maximum supported API version is 1.54"
        );
        assert_eq!(
            ApiVersion::negotiate("1.12").unwrap_err().to_string(),
            "client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"
        );
        assert!(ApiVersion::negotiate("2").is_err());
        assert!(ApiVersion::negotiate("1..4").is_err());
        assert!(ApiVersion::negotiate("99999999.1").is_err());
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(ApiVersion::v1(100) > ApiVersion::v1(54));
        assert!(ApiVersion::v1(44).at_least(44));
        assert!(!ApiVersion::v1(43).at_least(44));
    }
}
