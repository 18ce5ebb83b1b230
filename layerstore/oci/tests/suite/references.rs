//! The reference grammar, case by case.

use lapstrake_layerstore_oci::{AnyReference, OciError, Reference};
use proptest::prelude::*;

const HEX: &str = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";

#[test]
fn familiar_names_are_completed() {
    for (input, domain, path, familiar) in [
        ("busybox", "docker.io", "library/busybox", "busybox"),
        ("docker.io/busybox", "docker.io", "library/busybox", "busybox"),
        ("docker.io/library/busybox", "docker.io", "library/busybox", "busybox"),
        ("index.docker.io/busybox", "docker.io", "library/busybox", "busybox"),
        ("library/busybox", "docker.io", "library/busybox", "busybox"),
        ("docker.io/library/a/b", "docker.io", "library/a/b", "library/a/b"),
        ("user/app", "docker.io", "user/app", "user/app"),
        ("localhost/app", "localhost", "app", "localhost/app"),
        ("localhost:5000/app", "localhost:5000", "app", "localhost:5000/app"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000", "a/b/c", "127.0.0.1:5000/a/b/c"),
        ("[::1]:5000/app", "[::1]:5000", "app", "[::1]:5000/app"),
        ("[fe80:0:1]/app", "[fe80:0:1]", "app", "[fe80:0:1]/app"),
        ("UPPER/app", "UPPER", "app", "UPPER/app"),
        ("ghcr.io/o/p", "ghcr.io", "o/p", "ghcr.io/o/p"),
        ("xn--n3h.com/app", "xn--n3h.com", "app", "xn--n3h.com/app"),
        ("a__b---c.d_e", "docker.io", "library/a__b---c.d_e", "a__b---c.d_e"),
    ] {
        let r = Reference::parse(input).unwrap_or_else(|e| panic!("{input}: {e}"));
        assert_eq!((r.domain(), r.path()), (domain, path), "{input}");
        assert_eq!(r.familiar(), familiar, "{input}");
        assert!(r.is_name_only());
        assert_eq!(r.with_default_tag().tag(), Some("latest"));
    }
}

#[test]
fn tag_and_digest_are_kept_as_given() {
    let both = format!("localhost:5000/a:v1.2_3-X@sha256:{HEX}");
    let r = Reference::parse(&both).unwrap();
    assert_eq!(r.tag(), Some("v1.2_3-X"));
    assert_eq!(r.digest().map(|d| d.hex()), Some(HEX));
    assert_eq!(r.to_string(), both);
    assert_eq!(r.familiar(), both);
    assert_eq!(r.clone().with_default_tag(), r);

    let digested = Reference::parse(&format!("busybox@sha256:{HEX}")).unwrap().with_default_tag();
    assert_eq!(digested.tag(), None);
    assert_eq!(digested.to_string(), format!("docker.io/library/busybox@sha256:{HEX}"));
    assert_eq!(Reference::parse("busybox:1").unwrap().with_tag("2").unwrap().familiar(), "busybox:2");
    assert_eq!(r.trimmed().to_string(), "localhost:5000/a");
}

#[test]
fn bad_references_fail_in_distributions_words() {
    let long = format!("docker.io/{}", "a/".repeat(128) + "a");
    let tag129 = format!("a:{}", "t".repeat(129));
    for (input, message) in [
        ("", "invalid reference format"),
        (":tag", "invalid reference format"),
        ("@sha256:x", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("a@", "invalid reference format"),
        ("a@sha256:abc", "invalid reference format"),
        ("a:b:c", "invalid reference format"),
        ("-a", "invalid reference format"),
        ("a-", "invalid reference format"),
        ("a..b", "invalid reference format"),
        ("a___b", "invalid reference format"),
        ("a._b", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("/a", "invalid reference format"),
        ("a/", "invalid reference format"),
        ("a b", "invalid reference format"),
        ("a:-tag", "invalid reference format"),
        ("ä", "invalid reference format"),
        ("-bad.com/a", "invalid reference format"),
        ("bad-.com/a", "invalid reference format"),
        ("foo_bar.com/a", "invalid reference format"),
        ("host:port/a", "invalid reference format"),
        ("[::1/a", "invalid reference format"),
        ("[::1%25eth0]/a", "invalid reference format"),
        ("../../etc/passwd", "invalid reference format"),
        (tag129.as_str(), "invalid reference format"),
        ("Busybox", "invalid reference format: repository name (library/Busybox) must be lowercase"),
        ("user/App:1", "invalid reference format: repository name (user/App) must be lowercase"),
        (HEX, &format!("invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings")),
        (&long, "repository name must not be more than 255 characters"),
    ] {
        let e = Reference::parse(input).expect_err(input);
        assert_eq!(e.to_string(), message, "{input:?}");
    }
    assert!(matches!(
        Reference::parse(&format!("a@md5:{}", &HEX[..32])),
        Err(OciError::DigestUnsupported(_))
    ));
    assert!(matches!(
        Reference::parse("a@sha256:0123456789012345678901234567890123456789"),
        Err(OciError::DigestLength(_))
    ));
}

#[test]
fn ids_are_accepted_only_where_ids_may_be() {
    let AnyReference::Digest(d) = Reference::parse_any(HEX).unwrap() else { panic!("an id") };
    assert_eq!(d.hex(), HEX);
    assert!(matches!(Reference::parse_any(&format!("sha256:{HEX}")), Ok(AnyReference::Digest(_))));
    assert!(matches!(Reference::parse_any("abc"), Ok(AnyReference::Name(_))));
}

proptest! {
    #[test]
    fn parsing_never_panics_and_its_text_parses_to_the_same(s in "[a-zA-Z0-9./:@_\\[\\]-]{0,60}|\\PC{0,20}") {
        if let Ok(r) = Reference::parse(&s) {
            prop_assert_eq!(&Reference::parse(&r.to_string()).unwrap(), &r);
            prop_assert_eq!(Reference::parse(&r.familiar()).unwrap(), r);
        }
    }

    #[test]
    fn well_formed_references_are_accepted(
        host in "([a-z0-9]{1,8}\\.){1,3}[a-z]{2,4}(:[0-9]{1,5})?",
        path in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,3}",
        tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
    ) {
        let s = format!("{host}/{path}:{tag}");
        let r = Reference::parse(&s).unwrap();
        prop_assert_eq!(r.domain(), &host);
        prop_assert_eq!(r.tag(), Some(tag.as_str()));
        if host != "index.docker.io" {
            prop_assert_eq!(r.to_string(), s);
        }
    }
}

#[test]
fn a_familiar_name_is_not_that_of_another_image() {
    for name in ["docker.io/ghcr.io/app", "docker.io/localhost/app", &format!("docker.io/library/{HEX}")] {
        let reference = Reference::parse(name).unwrap();
        assert_eq!(reference.familiar(), name);
    }
}
