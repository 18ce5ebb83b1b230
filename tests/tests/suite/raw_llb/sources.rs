//! Sources by their identifiers and attributes.

use std::fs;

use lapstrake_layerstore_oci::Digest;
use lapstrake_tests::{Client, Workbench};

use crate::raw_llb::support::{Llb, failure, look, solve, solve_with};

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_a_clients_layout_is_a_file() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let layout = tempfile::tempdir().unwrap();
    let digest = Digest::sha256_of("content");
    fs::create_dir_all(layout.path().join("blobs/sha256")).unwrap();
    fs::write(layout.path().join("blobs/sha256").join(digest.hex()), "content").unwrap();
    let client = Client::default().layout("store", layout.path());
    let session = client.connect(&bench.sessions);
    let identifier = format!("oci-layout+blob://not/real@{digest}");
    let attrs = [("oci.store", "store"), ("http.filename", "blob"), ("http.perm", "0755"), ("http.uid", "7")];
    let blob = llb.source(&identifier, &attrs);
    solve_with(&bench, session.clone(), &llb, &blob).await.unwrap();
    assert_eq!(bench.read("app", "blob"), "content");
    // A client that sends other bytes is not believed.
    client.damage(digest.as_str());
    let again = llb.source(&identifier, &[("oci.store", "store")]);
    let error = solve_with(&bench, session, &llb, &again).await.unwrap_err().to_string();
    assert!(error.contains(&format!("does not match expected checksum {digest}")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_takes_the_lower_layers_of_an_image() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let more = llb.run(&busybox, "echo x > /second");
    solve(&bench, &llb, &more).await.unwrap();
    let whole = llb.source("docker-image://docker.io/library/app:latest", &[("image.resolvemode", "local")]);
    let lower = llb.source("docker-image://docker.io/library/app:latest", &[("image.layerlimit", "1")]);
    assert_eq!(look(&bench, &mut llb, &lower, "ls second 2>/dev/null || echo none").await, "none\n");
    let _ = whole;
    for attrs in [
        [("image.layerlimit", "0")],
        [("image.layerlimit", "-1")],
        [("image.layerlimit", "x")],
        [("image.resolvemode", "maybe")],
        [("image.recordtype", "odd")],
        [("image.checksum", "sha256:1")],
    ] {
        let bad = llb.source("docker-image://docker.io/library/busybox:latest", &attrs);
        let error = failure(&bench, &llb, &bad).await;
        assert!(error.contains("invalid"), "{attrs:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_mean_nothing_are_refused_by_name() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    for (identifier, attrs, told) in [
        ("busybox", &[][..], "invalid source busybox: no scheme"),
        ("ftp://x/y", &[], "ftp:// is not supported"),
        ("docker-image://UPPER", &[], "invalid source docker-image://UPPER"),
        ("local://x", &[("local.includepattern", "not json")], "invalid local.includepattern"),
        ("https://x/y", &[("http.checksum", "1")], "invalid http.checksum"),
        ("https://x/y", &[("http.perm", "999999999999")], "invalid http.perm"),
        ("https://x/y", &[("http.sig.pubkey", "key")], "requires both pubkey and signature"),
        (
            "local://x",
            &[("local.metadatatransfer", "true")],
            "attribute local.metadatatransfer is not supported",
        ),
        ("git://x/y", &[("git.checksum", "zz")], "expected hex commit hash"),
        ("git://-x/y", &[], "invalid source git://-x/y"),
        ("git://file:///etc", &[], "invalid source"),
        ("oci-layout://x/y:z", &[("oci.store", "s")], "no digest"),
        ("docker-image+blob://x/y:z", &[], "invalid reference digest"),
    ] {
        let source = llb.source(identifier, attrs);
        let error = solve(&bench, &llb, &source).await.unwrap_err();
        let words = error.to_string();
        assert!(words.contains(told), "{identifier}: {words}");
        assert_eq!(error.failed_vertex(), Some(&source.digest), "{identifier}");
    }
}
