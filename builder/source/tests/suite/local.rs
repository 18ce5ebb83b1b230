//! Directories: of a client, of this machine, of the store.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    sync::Arc,
};

use lapstrake_builder_files::ContentHasher;
use lapstrake_builder_source::{ErrorKind, LocalProvider, SourceContext, SourceError, SourceLimits};
use lapstrake_layerstore_oci::Digest;
use lapstrake_layerstore_store::{SnapshotRecords as _, Tree};
use lapstrake_session::{SessionId, SessionInfo};
use parking_lot::Mutex;

use crate::common::{Bench, strings};
use crate::session::{
    self, Client, Connected, METHODS, Sync,
    tree::{self as wire, dir, file, tree},
};

fn json(texts: &[&str]) -> String {
    serde_json::to_string(&strings(texts)).unwrap()
}

/// Writes files, long enough ago not to be taken for ones that still change.
fn write(root: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        age(&path);
    }
}

fn age(path: &Path) {
    let old = std::time::UNIX_EPOCH + std::time::Duration::new(1_600_000_000, 7);
    std::fs::File::open(path).unwrap().set_modified(old).unwrap();
}

async fn from_directory(bench: &Bench, path: &Path, attrs: &[(&str, &str)]) -> Result<Tree, SourceError> {
    let cx = bench.context_with("id", LocalProvider::Directory(path.to_owned()));
    let mut all = vec![("local.unique", "id")];
    all.extend(attrs);
    bench.get(&cx, "local://context", &all).await.map(|(_, tree)| tree)
}

fn inode(bench: &Bench, tree: &Tree, path: &str) -> u64 {
    bench.metadata(tree, path).ino()
}

#[tokio::test]
async fn a_directory_arrives_as_roots_with_its_modes_and_times() {
    let (bench, source) = (Bench::new(), tempfile::tempdir().unwrap());
    write(source.path(), &[("a/b", "text"), ("c", "")]);
    std::fs::set_permissions(source.path().join("c"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(source.path().join("a/b"), Some(12), Some(34)).unwrap();
    symlink("/etc/shadow", source.path().join("link")).unwrap();
    let tree = from_directory(&bench, source.path(), &[]).await.unwrap();
    let expected = [("a", "d"), ("a/b", "f:text"), ("c", "f:"), ("link", "l:/etc/shadow")];
    assert_eq!(bench.list(&tree), expected.map(|(path, what)| (path.to_owned(), what.to_owned())));
    let (b, c) = (bench.metadata(&tree, "a/b"), bench.metadata(&tree, "c"));
    assert_eq!((b.uid(), b.gid(), b.mtime(), b.mtime_nsec()), (0, 0, 1_600_000_000, 7));
    assert_eq!(c.mode() & 0o7777, 0o4751);
    assert_eq!(bench.recorder.last("transferring context:"), Some((4, 0, true)));
}

#[tokio::test]
async fn patterns_are_those_of_dockerignore() {
    let (bench, source) = (Bench::new(), tempfile::tempdir().unwrap());
    write(
        source.path(),
        &[
            ("node_modules/x/y", "1"),
            ("keep/a.log", "2"),
            ("keep/b.txt", "3"),
            ("deep/er/in", "4"),
            ("top", "5"),
        ],
    );
    let attrs = [(
        "local.excludepatterns",
        json(&["node_modules", "**/*.log", "!keep/a.log", "deep", "!deep/er/in"]),
    )];
    let attrs = attrs.each_ref().map(|(key, value)| (*key, value.as_str()));
    let tree = from_directory(&bench, source.path(), &attrs).await.unwrap();
    assert_eq!(
        bench.names(&tree),
        ["deep", "deep/er", "deep/er/in", "keep", "keep/a.log", "keep/b.txt", "top"]
    );
    let include = json(&["keep/*.txt"]);
    let tree =
        from_directory(&bench, source.path(), &[("local.includepattern", include.as_str())]).await.unwrap();
    assert_eq!(bench.names(&tree), ["keep", "keep/b.txt"]);
}

#[tokio::test]
async fn paths_are_followed_through_symlinks_and_no_further() {
    let (bench, source) = (Bench::new(), tempfile::tempdir().unwrap());
    write(
        source.path(),
        &[("real/Dockerfile", "FROM scratch"), ("real/other", ""), ("lib/x", "x"), ("far", "f")],
    );
    symlink("real/Dockerfile", source.path().join("Dockerfile")).unwrap();
    symlink("/lib", source.path().join("abs")).unwrap();
    symlink("../../../../far", source.path().join("real/up")).unwrap();
    symlink("loop", source.path().join("loop")).unwrap();
    for (paths, expected) in [
        (vec!["Dockerfile"], vec!["Dockerfile", "real", "real/Dockerfile"]),
        (vec!["abs/x"], vec!["abs", "lib", "lib/x"]),
        (vec!["real/u*"], vec!["far", "real", "real/up"]),
        (vec!["loop", "absent"], vec!["loop"]),
        (vec!["/far/"], vec!["far"]),
    ] {
        let paths = json(&paths);
        let tree =
            from_directory(&bench, source.path(), &[("local.followpaths", paths.as_str())]).await.unwrap();
        assert_eq!(bench.names(&tree), expected, "{paths}");
    }
    let all = json(&["Dockerfile", "."]);
    let tree = from_directory(&bench, source.path(), &[("local.followpaths", all.as_str())]).await.unwrap();
    assert_eq!(bench.names(&tree).len(), 10);
}

#[tokio::test]
async fn an_unchanged_file_is_linked_and_a_changed_one_copied_whatever_its_time_says() {
    let (bench, source) = (Bench::new(), tempfile::tempdir().unwrap());
    let big = "1".repeat(1 << 20);
    write(source.path(), &[("same", &big), ("changed", "old"), ("gone", "3")]);
    let first = from_directory(&bench, source.path(), &[]).await.unwrap();
    let committed = || lapstrake_layerstore_store::disk_usage(&bench.stores).unwrap().committed;
    let alone = committed();
    write(source.path(), &[("changed", "new")]);
    std::fs::remove_file(source.path().join("gone")).unwrap();
    let second = from_directory(&bench, source.path(), &[]).await.unwrap();
    assert_eq!(inode(&bench, &first, "same"), inode(&bench, &second, "same"));
    assert_eq!(bench.read(&second, "changed"), b"new");
    assert_eq!(bench.read(&first, "changed"), b"old");
    assert!(committed() - alone < 100_000, "what is linked is counted once: {alone} {}", committed());
    assert_eq!(bench.names(&second), ["changed", "same"]);
    // The former tree goes, and what it shared with this one is still known.
    drop(first);
    bench.collect();
    let third = from_directory(&bench, source.path(), &[]).await.unwrap();
    assert_eq!(inode(&bench, &second, "same"), inode(&bench, &third, "same"));
    assert_eq!(inode(&bench, &second, "changed"), inode(&bench, &third, "changed"));
}

#[tokio::test]
async fn digests_that_come_with_a_transfer_are_those_of_the_files() {
    let (bench, source) = (Bench::new(), tempfile::tempdir().unwrap());
    write(source.path(), &[("a/x", "1"), ("empty", ""), ("marked", "2"), ("set", "3"), ("linked", "4")]);
    let at = |name: &str| source.path().join(name);
    std::fs::set_permissions(at("set"), std::fs::Permissions::from_mode(0o6755)).unwrap();
    rustix::fs::setxattr(at("marked"), "user.mark", b"m", rustix::fs::XattrFlags::empty()).unwrap();
    std::fs::hard_link(at("linked"), at("also")).unwrap();
    symlink("a/x", at("link")).unwrap();
    for differ in ["none", "metadata"] {
        for change in ["nothing", "another"] {
            write(source.path(), &[("a/x", change)]);
            let tree = from_directory(&bench, source.path(), &[("local.differ", differ)]).await.unwrap();
            let read = ContentHasher::new(bench.stores.clone()).digest(&tree, &[]).unwrap();
            assert_eq!(bench.sources.content().digest(&tree, &[]).unwrap(), read, "{differ} {change}");
        }
    }
}

#[tokio::test]
async fn a_directory_of_this_machine_that_is_as_it_was_is_the_tree_of_the_last_time() {
    let (bench, source) = (Bench::new(), tempfile::tempdir().unwrap());
    for differ in ["metadata", "none"] {
        write(source.path(), &[("a/x", "1"), ("b", "2")]);
        let attrs = [("local.differ", differ)];
        let fetch = || from_directory(&bench, source.path(), &attrs);
        let mut last = fetch().await.unwrap();
        assert_eq!(last.snapshot(), fetch().await.unwrap().snapshot(), "{differ}");
        let fresh = |path: &str| std::fs::write(source.path().join(path), "3").unwrap();
        let changes: [(&str, &dyn Fn()); 3] = [
            ("changed", &|| write(source.path(), &[("a/x", "9")])),
            ("new", &|| fresh("a/y")),
            ("gone", &|| std::fs::remove_file(source.path().join("a/y")).unwrap()),
        ];
        for (what, change) in changes {
            change();
            let now = fetch().await.unwrap();
            assert_ne!(last.snapshot(), now.snapshot(), "{differ}: {what}");
            last = now;
        }
        assert_eq!(
            bench.list(&last),
            [("a", "d"), ("a/x", "f:9"), ("b", "f:2")].map(|(path, what)| (path.to_owned(), what.to_owned()))
        );
    }
}

#[tokio::test]
async fn builds_of_one_directory_at_once_all_get_it_whole() {
    let (bench, source) = (Arc::new(Bench::new()), tempfile::tempdir().unwrap());
    let files: Vec<(String, String)> = (0..50).map(|n| (format!("d/{n}"), n.to_string())).collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    write(source.path(), &files);
    let builds = (0..6).map(|_| from_directory(&bench, source.path(), &[]));
    for tree in futures::future::try_join_all(builds).await.unwrap() {
        assert_eq!(bench.names(&tree).len(), 51);
    }
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_named() {
    let bench = Bench::new();
    let error = from_directory(&bench, Path::new("/nowhere/at all"), &[]).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/at all"), "{error}");
}

#[tokio::test]
async fn a_cancelled_copy_leaves_nothing() {
    let (bench, source) = (Bench::new(), tempfile::tempdir().unwrap());
    write(source.path(), &[("a", "1")]);
    bench.cancel.cancel();
    let error = from_directory(&bench, source.path(), &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Canceled);
    assert!(bench.local.records.all().unwrap().is_empty());
}

fn draft(bench: &Bench, files: &[(&str, &str)]) -> Tree {
    let draft = bench.stores.begin(&Tree::empty()).unwrap();
    write(&draft.open().unwrap().path(), files);
    draft.commit().unwrap()
}

#[tokio::test]
async fn a_received_tree_is_used_as_it_is_unless_patterns_leave_something_out() {
    let bench = Bench::new();
    let tree = draft(&bench, &[("Dockerfile", "F"), ("secret/key", "k"), ("src/a", "a"), ("src/b.log", "b")]);
    std::os::unix::fs::chown(
        bench.stores.open(&tree).unwrap().unwrap().path().join("src/a"),
        Some(5),
        Some(6),
    )
    .unwrap();
    let cx = bench.context_with("id", LocalProvider::Tree(tree.clone()));
    let get = async |attrs: &[(&str, &str)]| {
        let mut all = vec![("local.unique", "id")];
        all.extend(attrs);
        bench.get(&cx, "local://context", &all).await.unwrap().1
    };
    assert_eq!(get(&[]).await, tree);
    assert_eq!(get(&[("local.followpaths", r#"["Dockerfile"]"#)]).await, tree);
    assert_eq!(get(&[("local.excludepatterns", r#"["absent", "*.log"]"#)]).await, tree);
    let kept = get(&[("local.excludepatterns", r#"["secret", "**/*.log"]"#)]).await;
    assert_eq!(bench.names(&kept), ["Dockerfile", "src", "src/a"]);
    assert_eq!(inode(&bench, &kept, "src/a"), inode(&bench, &tree, "src/a"));
    let usage = |tree: &Tree| bench.stores.snapshots.usage(tree.snapshot().unwrap()).unwrap().inodes;
    // The root, `src` and what overlay2 has beside them; not `src/a`.
    assert_eq!(usage(&kept), usage(&draft(&bench, &[])) + 1);
    assert_eq!(bench.metadata(&kept, "src").mtime(), bench.metadata(&tree, "src").mtime());
    assert_eq!(
        bench.names(&get(&[("local.includepattern", r#"["src"]"#)]).await),
        ["src", "src/a", "src/b.log"]
    );
}

#[tokio::test]
async fn a_tree_of_several_layers_is_copied_where_it_cannot_be_linked() {
    let bench = Bench::new();
    let below = draft(&bench, &[("a", "1"), ("b", "2")]);
    let draft = bench.stores.begin(&below).unwrap();
    write(&draft.open().unwrap().path(), &[("c", "3")]);
    std::os::unix::fs::chown(draft.open().unwrap().path().join("c"), Some(5), Some(6)).unwrap();
    let tree = draft.commit().unwrap();
    let cx = bench.context_with("id", LocalProvider::Tree(tree));
    let attrs = [("local.unique", "id"), ("local.excludepatterns", r#"["a"]"#)];
    let (_, kept) = bench.get(&cx, "local://context", &attrs).await.unwrap();
    assert_eq!(bench.names(&kept), ["b", "c"]);
    assert_eq!(bench.metadata(&kept, "c").uid(), 5);
}

/// A client with a tree, connected to a bench's sessions.
struct Connection {
    bench: Bench,
    client: Client,
    tree: Arc<Mutex<wire::Tree>>,
    _connected: Connected,
}

impl Connection {
    async fn new(sent: wire::Tree) -> Connection {
        Connection::with_key(sent, "the-directory").await
    }

    async fn with_key(sent: wire::Tree, key: &str) -> Connection {
        let tree = Arc::new(Mutex::new(sent));
        let client = Client { sync: Sync::Tree(Arc::clone(&tree)), ..Client::default() };
        let mut info = SessionInfo::new(SessionId::parse("s1").unwrap()).with_methods(METHODS);
        info.shared_key = key.to_owned();
        let connected = client.clone().connect_as(info).await;
        let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
        Connection { bench, client, tree, _connected: connected }
    }

    fn cx(&self) -> SourceContext {
        self.bench.context_of("s1")
    }

    async fn get(&self, attrs: &[(&str, &str)]) -> Result<Tree, SourceError> {
        self.bench.get(&self.cx(), "local://context", attrs).await.map(|(_, tree)| tree)
    }

    fn asked(&self) -> usize {
        std::mem::take(&mut self.client.seen.lock().requests).len()
    }
}

#[tokio::test]
async fn a_clients_directory_is_transferred_and_then_only_what_changed() {
    let sent = tree([("a", dir(0o755)), ("a/x", file(0o644, b"xx")), ("b", file(0o600, b"b"))]);
    let connection = Connection::new(sent).await;
    let bench = &connection.bench;
    let attrs = [
        ("local.session", "s1"),
        ("local.excludepatterns", r#"["*.tmp"]"#),
        ("local.followpaths", r#"["a"]"#),
        ("local.sharedkeyhint", "hint"),
        ("local.differ", "metadata"),
    ];
    let first = connection.get(&attrs).await.unwrap();
    assert_eq!(bench.names(&first), ["a", "a/x", "b"]);
    assert_eq!(connection.asked(), 2);
    let metadata = connection.client.seen.lock().sync_metadata.clone().unwrap();
    assert_eq!(metadata.get("dir-name").unwrap(), "context");
    assert_eq!(metadata.get("exclude-patterns").unwrap(), "*.tmp");
    assert_eq!(metadata.get("followpaths").unwrap(), "a");
    let (bytes, _, ended) = bench.recorder.last("transferring context:").unwrap();
    assert!(bytes > 3 && ended);

    connection.tree.lock().get_mut(Path::new("b")).unwrap().data = b"B".to_vec();
    connection.tree.lock().get_mut(Path::new("b")).unwrap().stat.mod_time += 1;
    let second = connection.get(&attrs).await.unwrap();
    assert_eq!(connection.asked(), 1);
    assert_eq!(bench.read(&second, "b"), b"B");
    assert_eq!(bench.read(&first, "b"), b"b");
    assert_eq!(inode(bench, &first, "a/x"), inode(bench, &second, "a/x"));
    // The former tree is collected; what both had is still not asked for.
    drop(first);
    bench.collect();
    connection.get(&attrs).await.unwrap();
    assert_eq!(connection.asked(), 0);
    // Another hint, another directory.
    connection.get(&[("local.session", "s1")]).await.unwrap();
    assert_eq!(connection.asked(), 2);
}

#[tokio::test]
async fn new_contents_of_the_old_size_and_time_are_noticed() {
    let connection = Connection::new(tree([("a", file(0o644, b"a")), ("b", file(0o644, b"b"))])).await;
    let bench = &connection.bench;
    let first = connection.get(&[]).await.unwrap();
    connection.tree.lock().get_mut(Path::new("b")).unwrap().data = b"B".to_vec();
    let second = connection.get(&[]).await.unwrap();
    assert_eq!((bench.read(&first, "b"), bench.read(&second, "b")), (b"b".to_vec(), b"B".to_vec()));
    assert_eq!(inode(bench, &first, "a"), inode(bench, &second, "a"), "what is the same is stored once");
}

#[tokio::test]
async fn a_directory_that_is_as_it_was_is_the_tree_of_the_last_time() {
    let sent = tree([("a", dir(0o755)), ("a/x", file(0o644, b"xx")), ("b", file(0o600, b"b"))]);
    let connection = Connection::new(sent).await;
    for differ in ["metadata", "none"] {
        let first = connection.get(&[("local.differ", differ)]).await.unwrap();
        let again = connection.get(&[("local.differ", differ)]).await.unwrap();
        assert_eq!(first.snapshot(), again.snapshot(), "{differ}");
        connection.tree.lock().get_mut(Path::new("b")).unwrap().stat.mod_time += 1;
        let changed = connection.get(&[("local.differ", differ)]).await.unwrap();
        assert_ne!(first.snapshot(), changed.snapshot(), "{differ}");
    }
}

#[tokio::test]
async fn a_directory_that_the_client_does_not_identify_is_transferred_whole() {
    let connection = Connection::with_key(tree([("f", file(0o644, b"f"))]), "").await;
    for _ in 0..2 {
        connection.get(&[("local.sharedkeyhint", "context")]).await.unwrap();
        assert_eq!(connection.asked(), 1);
    }
}

#[tokio::test]
async fn the_session_may_be_any_that_waits_and_its_prefix_names_the_directory() {
    let connection = Connection::new(tree([("f", file(0o644, b"f"))])).await;
    assert_eq!(connection.bench.names(&connection.get(&[]).await.unwrap()), ["f"]);
    connection.get(&[("local.session", "vertex:s1")]).await.unwrap();
    let metadata = connection.client.seen.lock().sync_metadata.clone().unwrap();
    assert_eq!(metadata.get("dir-name").unwrap(), "vertex-context");
    // A session that is gone: whoever else waits may have it.
    connection.get(&[("local.session", "s2")]).await.unwrap();
}

#[tokio::test]
async fn a_client_that_refuses_or_breaks_the_rules_fails_the_source_by_name() {
    let mut client = Client::default();
    let connected = client.clone().connect_as(session::info("s1")).await;
    let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
    let cx = bench.context_of("s1");
    let error = bench.get(&cx, "local://context", &[("local.session", "s1")]).await.unwrap_err();
    assert!(error.to_string().contains("local://context"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Invalid);

    let escape = tree([("../out", file(0o644, b"x"))]);
    client.sync = Sync::Tree(Arc::new(Mutex::new(escape)));
    let connected = client.connect_as(session::info("s1")).await;
    let bench = Bench::with(SourceLimits::default(), connected.sessions.clone());
    let error = bench.get(&bench.context_of("s1"), "local://context", &[]).await.unwrap_err();
    assert!(error.to_string().contains("leads outside"), "{error}");
    bench.collect();
    assert!(bench.local.records.all().unwrap().is_empty());
}

#[tokio::test]
async fn without_session_or_provider_there_is_no_directory() {
    let bench = Bench::new();
    let error = bench.get(&bench.context(), "local://context", &[]).await.unwrap_err();
    assert!(error.to_string().starts_with("could not access local files without session"), "{error}");
}

#[tokio::test]
async fn the_key_is_buildkits_for_a_session() {
    let bench = Bench::new();
    let source = bench.open("local://context", &[("local.session", "s1"), ("local.followpaths", r#"["a"]"#)]);
    let key = source.unwrap().pin(&bench.context()).await.unwrap();
    let json = r#"{"SessionID":"s1","IncludePatterns":null,"ExcludePatterns":null,"FollowPaths":["a"]}"#;
    let text = format!("buildkit.source.v0:session:context:{}", Digest::sha256_of(json));
    assert_eq!(key, Digest::sha256_of(text));
}

#[test]
fn bad_attributes_are_refused_by_name() {
    let bench = Bench::new();
    for (key, value) in [
        ("local.excludepatterns", "not json"),
        ("local.excludepatterns", r#"["!"]"#),
        ("local.includepattern", r#"["[a"]"#),
        ("local.differ", "always"),
        ("local.metadatatransfer", "true"),
    ] {
        let error = bench.open("local://context", &[(key, value)]).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported), "{error}");
        assert!(error.to_string().contains("local://context"), "{error}");
    }
}
