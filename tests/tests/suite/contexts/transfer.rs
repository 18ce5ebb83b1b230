//! The client is asked for what the build uses, and for nothing else.

use lapstrake_tests::{Client, Workbench};

use crate::contexts::support::{build, client_of, directory, failure, files, write};

/// Builds a context with this Dockerfile: what the client was asked for of it, what it sent, and what is in `/out`.
async fn transfer(dockerfile: &str, context: &[(&str, &str)]) -> (Vec<String>, Vec<String>, Vec<String>) {
    let bench = Workbench::new();
    let dir = directory(context);
    write(dir.path(), "Dockerfile", dockerfile);
    let client = client_of(&dir);
    build(&bench, &client, &[], "app").await.unwrap();
    let asked = client.asked();
    let context = asked.iter().find(|asked| asked.name == "context" && asked.follow != [".dockerignore"]);
    let context = context.cloned();
    let (follow, sent) = context.map(|asked| (asked.follow, asked.listed)).unwrap_or_default();
    (follow, sent, files(&bench, "app", "out"))
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_copied_is_asked_for() {
    let (follow, sent, out) = transfer(
        "FROM scratch AS unused\nCOPY never /\nFROM scratch\nCOPY a/b.txt a/c /out/\nADD d.txt /out/\n",
        &[("a/b.txt", "b"), ("a/x.txt", ""), ("a/c/e", ""), ("d.txt", ""), ("never", ""), ("big/file", "")],
    )
    .await;
    assert_eq!(follow, ["a/b.txt", "a/c", "d.txt"]);
    assert_eq!(sent, ["a/", "a/b.txt", "a/c/", "a/c/e", "d.txt"]);
    assert_eq!(out, ["b.txt", "d.txt", "e"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_copies_nothing_asks_for_no_context() {
    let bench = Workbench::new();
    let dir = directory(&[("Dockerfile", "FROM busybox\nRUN true\n"), ("file", ""), ("dir/file", "")]);
    let client = client_of(&dir);
    build(&bench, &client, &[], "app").await.unwrap();
    let asked = client.asked();
    assert!(asked.iter().all(|asked| asked.listed.iter().all(|path| path == "Dockerfile")), "{asked:?}");
    let dockerfile = asked.iter().find(|asked| asked.name == "dockerfile").unwrap();
    assert_eq!(dockerfile.follow, ["Dockerfile", "Dockerfile.dockerignore", "dockerfile"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wildcards_mounts_and_parents_say_what_is_used() {
    let (follow, sent, out) = transfer(
        "FROM busybox\nCOPY *.txt /out/\nCOPY --parents src/*/main.c /out/\n\
         RUN --mount=type=bind,source=scripts/run.sh,target=/run.sh sh /run.sh\n",
        &[
            ("a.txt", ""),
            ("b.txt", ""),
            ("c.md", ""),
            ("src/x/main.c", ""),
            ("src/x/other.c", ""),
            ("src/y/main.c", ""),
            ("scripts/run.sh", "touch /out/ran"),
            ("scripts/other.sh", ""),
        ],
    )
    .await;
    assert_eq!(follow, ["*.txt", "scripts/run.sh", "src/*/main.c"]);
    assert_eq!(
        sent,
        [
            "a.txt",
            "b.txt",
            "scripts/",
            "scripts/run.sh",
            "src/",
            "src/x/",
            "src/x/main.c",
            "src/y/",
            "src/y/main.c"
        ]
    );
    assert_eq!(out, ["a.txt", "b.txt", "ran", "src/x/main.c", "src/y/main.c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_context_is_asked_for_without_paths() {
    let (follow, sent, out) = transfer("FROM scratch\nCOPY . /out/\n", &[("a", ""), ("b/c", "")]).await;
    assert_eq!(follow, Vec::<String>::new());
    assert_eq!(sent, ["Dockerfile", "a", "b/", "b/c"]);
    assert_eq!(out, ["Dockerfile", "a", "b/c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn symlinks_are_followed_within_the_context() {
    let (_, sent, out) = transfer(
        "FROM scratch\nCOPY relative absolute chain through/file escaping /out/\n",
        &[
            ("relative -> data/one", ""),
            ("absolute -> /data/two", ""),
            ("chain -> link1", ""),
            ("link1 -> sub/link2", ""),
            ("sub/link2 -> ../data/three", ""),
            ("through -> data", ""),
            ("escaping -> ../../../data/four", ""),
            ("data/one", "1"),
            ("data/two", "2"),
            ("data/three", "3"),
            ("data/four", "4"),
            ("data/file", "f"),
            ("data/unused", ""),
        ],
    )
    .await;
    assert_eq!(
        sent,
        [
            "absolute",
            "chain",
            "data/",
            "data/file",
            "data/four",
            "data/one",
            "data/three",
            "data/two",
            "escaping",
            "link1",
            "relative",
            "sub/",
            "sub/link2",
            "through"
        ]
    );
    assert_eq!(out, ["absolute", "chain", "escaping", "file", "relative"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_of_symlinks_fails_by_name_and_ends() {
    let bench = Workbench::new();
    let dir =
        directory(&[("Dockerfile", "FROM scratch\nCOPY one /out\n"), ("one -> two", ""), ("two -> one", "")]);
    let error = failure(&bench, &client_of(&dir), &[]).await;
    assert!(error.contains("/one: too many links"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ignored_files_are_not_sent_and_exceptions_are() {
    let ignore = "\u{feff}# a comment\n*.log\n  spaced \nüml*t\n/only-root\ndir/*\n!dir/keep\n**/node_modules\ntrailing/\n[ab]?.bin\nesc\\*aped\n!important.log\n";
    let (_, sent, out) = transfer(
        "FROM scratch\nCOPY . /out/\n",
        &[
            (".dockerignore", ignore),
            ("x.log", ""),
            ("important.log", ""),
            ("sub/x.log", ""),
            ("spaced", ""),
            ("ümlaut", ""),
            ("only-root", ""),
            ("sub/only-root", ""),
            ("dir/lose", ""),
            ("dir/keep/deep/file", ""),
            ("node_modules/m", ""),
            ("sub/node_modules/m", ""),
            ("trailing/file", ""),
            ("a1.bin", ""),
            ("c1.bin", ""),
            ("esc*aped", ""),
            ("escXaped", ""),
        ],
    )
    .await;
    let expected = [
        ".dockerignore",
        "Dockerfile",
        "c1.bin",
        "dir/keep/deep/file",
        "escXaped",
        "important.log",
        "sub/only-root",
        "sub/x.log",
    ];
    assert_eq!(out, expected);
    let files: Vec<&String> = sent.iter().filter(|path| !path.ends_with('/')).collect();
    assert_eq!(files, expected.iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dockerfiles_own_ignore_file_takes_the_place_of_the_contexts() {
    let bench = Workbench::new();
    let context = directory(&[(".dockerignore", "a\n"), ("a", ""), ("b", "")]);
    let files_of = |ignore: Option<&str>| {
        let dir = directory(&[("build/My.Dockerfile", "FROM scratch\nCOPY . /out/\n")]);
        if let Some(ignore) = ignore {
            write(dir.path(), "build/My.Dockerfile.dockerignore", ignore);
        }
        dir
    };
    for (own, expected, reads_common) in [
        (None, &[".dockerignore", "b"][..], true),
        (Some("b\n"), &[".dockerignore", "a"], false),
        // It counts even if it is empty.
        (Some(""), &[".dockerignore", "a", "b"], false),
    ] {
        let dockerfiles = files_of(own);
        let client = lapstrake_tests::Client::default()
            .directory("context", context.path())
            .directory("dockerfile", dockerfiles.path());
        build(&bench, &client, &[("filename", "build/My.Dockerfile")], "app").await.unwrap();
        assert_eq!(files(&bench, "app", "out"), expected, "{own:?}");
        let asked = client.asked();
        let common = asked.iter().any(|asked| asked.follow == [".dockerignore"]);
        assert_eq!(common, reads_common, "{own:?}: {asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dockerfile_may_be_in_a_directory_of_any_name_and_forget_its_case() {
    let bench = Workbench::new();
    let context = directory(&[("data", "d")]);
    let elsewhere = directory(&[
        ("sub/dockerfile", "FROM scratch\nCOPY data /out/\n"),
        ("sub/Dockerfile.dockerignore", "nothing\n"),
    ]);
    let client = lapstrake_tests::Client::default()
        .directory("context", context.path())
        .directory("assets", elsewhere.path());
    let attrs = [("dockerfilekey", "assets"), ("filename", "sub/Dockerfile")];
    build(&bench, &client, &attrs, "app").await.unwrap();
    assert_eq!(files(&bench, "app", "out"), ["data"]);
    let asked = client.asked();
    assert!(asked.iter().all(|asked| asked.name != "dockerfile"), "{asked:?}");
    let error = failure(&bench, &client, &[("dockerfilekey", "assets"), ("filename", "none")]).await;
    assert!(error.contains("open none: no such file or directory"), "{error}");
    let error = failure(&bench, &client, &[("dockerfilekey", "nowhere")]).await;
    assert!(error.contains("no access allowed to dir \"nowhere\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_context_is_a_context() {
    let bench = Workbench::new();
    let (empty, dockerfiles) = (
        directory(&[]),
        directory(&[("Dockerfile", "FROM busybox\nCOPY . /out/\nRUN ls /out | wc -l > /n\n")]),
    );
    let client = lapstrake_tests::Client::default()
        .directory("context", empty.path())
        .directory("dockerfile", dockerfiles.path());
    build(&bench, &client, &[], "app").await.unwrap();
    assert_eq!(bench.read("app", "n"), "0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_that_nothing_is_copied_from_need_not_be_offered() {
    let bench = Workbench::new();
    let dir =
        directory(&[("Dockerfile", "FROM busybox AS base\nRUN echo made > /f\nFROM base\nCOPY f /g\n")]);
    let client = || Client::default().directory("dockerfile", dir.path());
    build(&bench, &client(), &[("target", "base")], "app").await.unwrap();
    assert_eq!(bench.read("app", "f"), "made\n");
    let told = failure(&bench, &client(), &[]).await;
    assert!(told.contains("local://context"), "{told}");
}
