//! Names of images, digests, platforms.

use lapstrake_layerstore_oci::{AnyReference, Digest, Platform, PlatformMatcher, Reference, Timestamp};

/// What is read is written so that it reads the same.
pub(crate) fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(reference) = Reference::parse(text) {
        assert_eq!(Reference::parse(&reference.to_string()).as_ref(), Ok(&reference), "{reference}");
        let familiar = reference.familiar();
        assert_eq!(Reference::parse(&familiar).as_ref(), Ok(&reference), "familiar {familiar}");
        let tagged = reference.clone().with_default_tag();
        assert!(!tagged.is_name_only());
        assert_eq!(tagged.clone().with_default_tag(), tagged);
        assert!(reference.clone().trimmed().is_name_only());
        // Both go into URLs and paths.
        let parts = [reference.domain(), reference.path(), reference.tag().unwrap_or_default()];
        let odd = |ch: char| ch.is_whitespace() || ch.is_control() || "?#%\\\"'<>".contains(ch);
        assert!(parts.iter().all(|part| !part.contains(odd)), "{parts:?}");
        assert!(!reference.path().split('/').any(|part| part.is_empty() || part == "." || part == ".."));
    }
    if let Ok(AnyReference::Name(reference)) = Reference::parse_any(text) {
        assert_eq!(Reference::parse(text).as_ref(), Ok(&reference));
    }
    if let Ok(digest) = Digest::parse(text) {
        assert_eq!(digest.to_string(), text);
        assert_eq!(digest.hex().len(), digest.algorithm().hex_len());
    }
    if let Ok(platform) = Platform::parse(text) {
        let normal = platform.normalized();
        assert_eq!(normal.normalized(), normal, "{text}");
        let written = normal.to_full_string();
        let read = Platform::parse(&written).unwrap_or_else(|error| panic!("{written}: {error}"));
        assert_eq!(read.normalized(), normal, "{written}");
        assert!(PlatformMatcher::only(&normal).matches(&normal), "{normal:?}");
    }
    if let Ok(time) = Timestamp::parse(text) {
        assert_eq!(time.as_str(), text);
        let _ = time.to_time();
    }
}
