//! Repositories in one file: written, and read in a remote's place.

use std::sync::Arc;

use lapstrake_builder_source::{ErrorKind, Material, SourceError};
use lapstrake_layerstore_conformance::docker_registry::Registry;
use lapstrake_layerstore_oci::{Descriptor, Digest, MediaType};
use lapstrake_layerstore_registry::{ClientOptions, RegistryClient, RegistryConfig};
use lapstrake_layerstore_store::Tree;

use crate::common::{
    Bench,
    git::{Upstream, git, key},
};

async fn push(registry: &Registry, bench: &Bench, bytes: &[u8]) -> String {
    let digest = bench.stores.content.write_small(bytes).unwrap();
    let blob =
        Descriptor::new(MediaType::new("application/octet-stream"), digest.clone(), bytes.len() as u64);
    let client = RegistryClient::new(RegistryConfig::default(), ClientOptions::default());
    let reference = registry.reference("bundles/repo");
    client.push_blob(&reference, &blob, &Arc::clone(&bench.stores.content), Vec::new()).await.unwrap();
    format!("docker-image+blob://{}/bundles/repo@{digest}", registry.host())
}

/// What is in a bundle in the place of a remote that nobody can reach.
async fn unpack(
    bench: &Bench,
    fragment: &str,
    attrs: &[(&str, &str)],
) -> Result<(Digest, Tree), SourceError> {
    let mut all = vec![("git.fullurl", "git://127.0.0.1:1/repo")];
    all.extend(attrs);
    bench.get(&bench.context(), &format!("git://127.0.0.1:1/repo{fragment}"), &all).await
}

#[tokio::test]
async fn a_checkout_as_a_bundle_has_the_commit_by_its_name_and_all_before_it() {
    let (upstream, bench) = (Upstream::new(), Bench::new());
    let first = upstream.head("repo");
    let head = upstream.commit("repo", &[("a", "changed")]);
    git(&upstream.path("repo"), &["tag", "-a", "v1", "-m", "one", &first]);
    let as_bundle = [("git.checkoutbundle", "true")];
    // What others have made of it has no history, and is not what the bundle is made of.
    upstream.get(&bench, "#main", &[]).await.unwrap();
    let (digest, tree) = upstream.get(&bench, "#main", &as_bundle).await.unwrap();
    assert_eq!(digest, key(&format!("{head}(bundle)#refs/heads/main")));
    assert_eq!(bench.names(&tree), ["bundle"]);
    let bytes = bench.read(&tree, "bundle");
    let elsewhere = Bench::new();
    let (_, again) = upstream.get(&elsewhere, "#main", &as_bundle).await.unwrap();
    assert_eq!(elsewhere.read(&again, "bundle"), bytes, "the same commit is the same file");

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bundle"), &bytes).unwrap();
    git(dir.path(), &["clone", "-q", "-b", "main", "bundle", "clone"]);
    let clone = dir.path().join("clone");
    assert_eq!(git(&clone, &["log", "--format=%H"]), format!("{head}\n{first}"));

    for (fragment, name) in [("#v1", "refs/tags/v1"), (&*format!("#{first}"), "refs/heads/main")] {
        let (_, tree) = upstream.get(&bench, fragment, &as_bundle).await.unwrap();
        std::fs::write(dir.path().join("bundle"), bench.read(&tree, "bundle")).unwrap();
        let listed = git(dir.path(), &["bundle", "list-heads", "bundle"]);
        assert!(listed.ends_with(&format!(" {name}")), "{listed}");
    }
    for (fragment, attrs) in
        [("#main", &[as_bundle[0], ("git.keepgitdir", "true")][..]), ("#main:sub", &as_bundle)]
    {
        let error = upstream.get(&bench, fragment, attrs).await.unwrap_err();
        assert!(error.to_string().contains("git.checkoutbundle is incompatible with"), "{error}");
    }
}

#[tokio::test]
async fn a_bundle_takes_the_remotes_place() {
    let (registry, upstream, bench) = (Registry::start(), Upstream::new(), Bench::new());
    let head = upstream.head("repo");
    git(&upstream.path("repo"), &["tag", "-a", "v1", "-m", "one"]);
    let mut bundles = Vec::new();
    for fragment in ["#main", "#v1"] {
        let (_, tree) = upstream.get(&bench, fragment, &[("git.checkoutbundle", "true")]).await.unwrap();
        bundles.push(push(&registry, &bench, &bench.read(&tree, "bundle")).await);
    }
    let [branch, tag] = &bundles[..] else { unreachable!() };
    for (fragment, bundle) in
        [("#main", branch), ("", branch), (&*format!("#{head}"), branch), ("#v1", tag), ("#main:sub", branch)]
    {
        // Nothing is here that was unpacked before.
        let bench = Bench::new();
        let from = [("git.bundle", bundle.as_str()), ("git.checksum", &head)];
        let (digest, tree) = unpack(&bench, fragment, &from).await.unwrap();
        let (file, text, expected) = match fragment.ends_with(":sub") {
            true => ("b", "2", format!("{head}:sub")),
            false => ("a", "1", head.clone()),
        };
        assert_eq!(bench.read(&tree, file), text.as_bytes(), "{fragment}");
        assert_eq!(digest, key(&expected), "{fragment}: the key is the commit's, wherever it is from");
    }
    let identifier = "git://127.0.0.1:1/repo#main";
    let source = bench.open(identifier, &[("git.bundle", branch), ("git.checksum", &head)]).unwrap();
    let Material::Git { bundle: Some(blob), commit, .. } = source.material(&bench.context()).await.unwrap()
    else {
        panic!("a bundle is told");
    };
    assert_eq!(commit, head);
    assert!(!blob.is_local, "{blob:?}");
    let kept = [("git.bundle", branch.as_str()), ("git.checksum", &head), ("git.keepgitdir", "true")];
    let (_, tree) = unpack(&bench, "#main", &kept).await.unwrap();
    assert!(bench.names(&tree).contains(&".git/HEAD".to_owned()));
}

#[tokio::test]
async fn a_bundle_that_is_not_what_was_asked_for_is_refused() {
    let (registry, upstream, bench) = (Registry::start(), Upstream::new(), Bench::new());
    let head = upstream.head("repo");
    let (_, tree) = upstream.get(&bench, "#main", &[("git.checkoutbundle", "true")]).await.unwrap();
    let bundle = push(&registry, &bench, &bench.read(&tree, "bundle")).await;
    let rubbish = push(&registry, &bench, b"no bundle").await;
    let (other, absent) = ("b".repeat(40), bundle.replace(&bundle[bundle.len() - 4..], "0000"));
    for (fragment, bundle, checksum, why) in [
        ("#main", &bundle, Some(&other), "expected checksum to match"),
        ("#next", &bundle, Some(&head), "repository does not contain ref next"),
        ("", &bundle, Some(&other), &*other),
        ("#main", &bundle, None, "git.bundle requires git.checksum"),
        ("#main", &rubbish, Some(&head), "git ls-remote"),
        ("#main", &absent, Some(&head), "not found"),
    ] {
        let bench = Bench::new();
        let mut attrs = vec![("git.bundle", bundle.as_str())];
        attrs.extend(checksum.map(|checksum| ("git.checksum", checksum.as_str())));
        let error = unpack(&bench, fragment, &attrs).await.unwrap_err();
        assert!(error.to_string().contains(why), "{fragment} {why}: {error}");
        assert_ne!(error.kind(), ErrorKind::Internal, "{error}");
    }
}
