//! Commits and tags that must be signed, by git and ssh-keygen.

use std::{path::Path, process::Command};

use lapstrake_builder_source::{ErrorKind, SourceError};

use crate::common::{
    Bench,
    git::{Upstream, git},
};

/// A fresh key's file; its public half beside it, and given.
fn new_key(dir: &Path, name: &str) -> (String, String) {
    let path = dir.join(name);
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).status();
    assert!(made.unwrap().success());
    let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
    (path.to_str().unwrap().to_owned(), public)
}

fn signing<'a>(key: &'a str, args: &[&'a str]) -> Vec<String> {
    let config = ["-c", "gpg.format=ssh", "-c", &format!("user.signingkey={key}")].map(str::to_owned);
    config.into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect()
}

fn run(upstream: &Upstream, args: &[String]) {
    git(&upstream.path("repo"), &args.iter().map(String::as_str).collect::<Vec<_>>());
}

fn told(result: Result<impl Sized, SourceError>) -> String {
    let error = result.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_commit_must_be_signed_by_whom_the_op_believes() {
    let (upstream, bench, keys) = (Upstream::new(), Bench::new(), tempfile::tempdir().unwrap());
    let ((key, public), (_, stranger)) = (new_key(keys.path(), "a"), new_key(keys.path(), "b"));
    let unsigned = upstream.get(&bench, "#main", &[("git.sig.pubkey", &public)]).await;
    assert!(told(unsigned).ends_with("git object is not signed"));
    run(&upstream, &signing(&key, &["commit", "-q", "-S", "--allow-empty", "-m", "signed"]));
    let (_, tree) = upstream.get(&bench, "#main", &[("git.sig.pubkey", &public)]).await.unwrap();
    assert_eq!(bench.read(&tree, "a"), b"1");
    let head = upstream.head("repo");
    upstream.get(&bench, &format!("#{head}"), &[("git.sig.pubkey", &public)]).await.unwrap();
    // What is here already is looked at all the same.
    let other = upstream.get(&bench, "#main", &[("git.sig.pubkey", &stranger)]).await;
    assert!(told(other).contains("failed to verify ssh signature"));
    let no_key = upstream.get(&bench, "#main", &[("git.sig.rejectexpired", "true")]).await;
    assert!(told(no_key).ends_with("failed to parse ssh public key"));
    let no_tag = [("git.sig.pubkey", public.as_str()), ("git.sig.requiresignedtag", "true")];
    let no_tag = upstream.get(&bench, "#main", &no_tag).await;
    assert!(told(no_tag).ends_with("signed tag required but no signed tag found"));
}

#[tokio::test]
async fn a_tags_signature_counts_for_its_commit_unless_it_is_not_to() {
    let (upstream, bench, keys) = (Upstream::new(), Bench::new(), tempfile::tempdir().unwrap());
    let (key, public) = new_key(keys.path(), "a");
    run(&upstream, &signing(&key, &["tag", "-s", "-m", "one", "v1"]));
    git(&upstream.path("repo"), &["tag", "-a", "-m", "plain", "v0"]);
    let with = |more: &'static str| [("git.sig.pubkey", public.as_str()), (more, "true")];
    for attrs in [&with("git.sig.requiresignedtag")[..], &[("git.sig.pubkey", public.as_str())]] {
        upstream.get(&bench, "#refs/tags/v1", attrs).await.unwrap();
        let plain = upstream.get(&bench, "#refs/tags/v0", attrs).await;
        assert!(told(plain).ends_with("git object is not signed"));
    }
    let commit_only = upstream.get(&bench, "#refs/tags/v1", &with("git.sig.ignoresignedtag")).await;
    assert!(told(commit_only).ends_with("git object is not signed"));
}
