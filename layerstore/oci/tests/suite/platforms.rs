//! Platforms: what is parsed, what is the same, what runs what.

use lapstrake_layerstore_oci::{Descriptor, MediaType, Platform, PlatformMatcher};

fn p(s: &str) -> Platform {
    Platform::parse(s).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn specifiers_parse_as_containerd_parses_them() {
    for (input, text) in [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64/v8"),
        ("linux/arm64/8", "linux/arm64/v8"),
        ("linux/arm64/9.0", "linux/arm64/v9"),
        ("linux/arm", "linux/arm"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
        ("arm64", "linux/arm64"),
        ("s390x", "linux/s390x"),
        ("linux/madeup", "linux/madeup"),
    ] {
        assert_eq!(p(input).to_string(), text, "{input}");
    }
    assert_eq!(p("linux").architecture, Platform::host().architecture);
    let w = p("windows(10.0.17763+win32k)/amd64");
    assert_eq!(
        (w.os.as_str(), w.os_version.as_str(), &*w.os_features[0]),
        ("windows", "10.0.17763", "win32k")
    );
    assert_eq!(w.to_full_string(), "windows(10.0.17763+win32k)/amd64");
    assert_eq!(w.to_string(), "windows/amd64");
}

#[test]
fn bad_specifiers_are_refused_by_name() {
    for bad in [
        "",
        "*",
        "linux/*",
        "a/b/c/d",
        "linux/",
        "/amd64",
        "linux/am d64",
        "windows(/amd64",
        "madeup",
        "linux(%zz)/arm",
    ] {
        let e = Platform::parse(bad).expect_err(bad);
        assert!(e.to_string().contains(&format!("{bad:?}")), "{e}");
    }
}

#[test]
fn spellings_of_one_platform_normalise_alike() {
    for (a, b) in [
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/x86_64", "linux/amd64"),
    ] {
        assert_eq!(p(a).normalized(), p(b).normalized(), "{a} {b}");
    }
}

#[test]
fn a_machine_runs_what_containerd_says_it_runs() {
    for (machine, image, runs) in [
        ("linux/amd64", "linux/amd64", true),
        ("linux/amd64", "linux/386", true),
        ("linux/amd64", "linux/amd64/v2", false),
        ("linux/amd64/v3", "linux/amd64/v2", true),
        ("linux/arm64", "linux/arm64/v8", true),
        ("linux/arm64", "linux/arm/v7", true),
        ("linux/arm64", "linux/arm64/v9", false),
        ("linux/arm64/v9.1", "linux/arm64/v8.6", true),
        ("linux/arm64/v9.1", "linux/arm64/v8.7", false),
        ("linux/arm/v6", "linux/arm/v7", false),
        ("linux/arm", "linux/arm/v5", true),
        ("linux/amd64", "windows/amd64", false),
        ("linux/s390x", "linux/s390x", true),
        ("windows(10.0.20348)/amd64", "windows(10.0.17763.1)/amd64", false),
        ("windows(10.0.26100)/amd64", "windows(10.0.20348.5)/amd64", true),
        ("windows(10.0.17763)/amd64", "windows(10.0.17763.99)/amd64", true),
    ] {
        assert_eq!(PlatformMatcher::only(&p(machine)).matches(&p(image)), runs, "{machine} runs {image}");
    }
    assert!(!PlatformMatcher::strict(&p("linux/amd64")).matches(&p("linux/386")));
}

fn index(platforms: &[&str]) -> Vec<Descriptor> {
    platforms
        .iter()
        .map(|s| Descriptor::of(MediaType::OCI_MANIFEST, s.as_bytes()).with_platform(p(s)))
        .collect()
}

#[test]
fn the_best_manifest_of_an_index_is_chosen() {
    for (machine, offered, chosen) in [
        ("linux/arm64", &["linux/arm/v7", "linux/arm64/v8", "linux/amd64"][..], Some("linux/arm64/v8")),
        ("linux/arm64", &["linux/arm/v5", "linux/arm/v7"], Some("linux/arm/v7")),
        ("linux/amd64/v3", &["linux/386", "linux/amd64", "linux/amd64/v2"], Some("linux/amd64/v2")),
        ("linux/amd64", &["linux/386", "linux/amd64"], Some("linux/amd64")),
        ("linux/s390x", &["linux/386", "linux/amd64"], None),
    ] {
        let index = index(offered);
        let got = PlatformMatcher::only(&p(machine)).choose(&index);
        assert_eq!(got.and_then(|d| d.platform.clone()), chosen.map(p), "{machine}");
    }
    let attestation =
        Descriptor::of(MediaType::OCI_MANIFEST, b"a").with_platform(Platform::new("unknown", "unknown"));
    assert_eq!(PlatformMatcher::only(&p("linux/amd64")).choose(&[attestation]), None);
}

#[test]
fn platform_json_has_gos_field_order() {
    let w = p("windows(10.0.17763+win32k)/arm/v6");
    assert_eq!(
        serde_json::to_string(&w).unwrap(),
        r#"{"architecture":"arm","os":"windows","os.version":"10.0.17763","os.features":["win32k"],"variant":"v6"}"#
    );
}
