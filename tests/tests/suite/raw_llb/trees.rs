//! Ops on trees: file actions, merges, differences, passthroughs, and graphs found in files.

use lapstrake_builder_llb::pb::{self, file_action::Action};
use lapstrake_tests::Workbench;
use prost::Message as _;

use crate::raw_llb::support::{Llb, Out, action, failure, input, look, mkfile, solve};

fn copy(src: &str, dest: &str) -> pb::FileActionCopy {
    pb::FileActionCopy {
        src: src.to_owned(),
        dest: dest.to_owned(),
        mode: -1,
        timestamp: -1,
        create_dest_path: true,
        ..Default::default()
    }
}

fn mkdir(path: &str) -> Action {
    Action::Mkdir(pb::FileActionMkDir {
        path: path.to_owned(),
        mode: 0o755,
        make_parents: true,
        timestamp: -1,
        ..Default::default()
    })
}

fn rm(path: &str, wildcard: bool, missing: bool) -> Action {
    Action::Rm(pb::FileActionRm { path: path.to_owned(), allow_wildcard: wildcard, allow_not_found: missing })
}

fn by_id(id: u32) -> Option<pb::UserOpt> {
    Some(pb::UserOpt { user: Some(pb::user_opt::User::ById(id)) })
}

/// A tree with `foo`, `bar/a.c`, `bar/b.h` and `bar/deep/c.c`.
fn files(llb: &mut Llb) -> Out {
    let actions = vec![
        action(-1, -1, -1, mkdir("/bar/deep")),
        action(0, -1, -1, mkfile("/foo", "foo")),
        action(1, -1, -1, mkfile("/bar/a.c", "a")),
        action(2, -1, -1, mkfile("/bar/b.h", "b")),
        action(3, -1, 0, mkfile("/bar/deep/c.c", "c")),
    ];
    llb.file(&[], actions)
}

const LIST: &str = "find . -type f -o -type l | sort | tr '\\n' ' '";

#[tokio::test(flavor = "multi_thread")]
async fn files_are_made_changed_and_removed() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let base = files(&mut llb);
    assert_eq!(look(&bench, &mut llb, &base, LIST).await, "./bar/a.c ./bar/b.h ./bar/deep/c.c ./foo ");
    let link = Action::Symlink(pb::FileActionSymlink {
        oldpath: "foo".to_owned(),
        newpath: "/link".to_owned(),
        timestamp: -1,
        ..Default::default()
    });
    let changed = llb.file(
        &[&base],
        vec![
            action(0, -1, -1, rm("/bar/*.c", true, false)),
            action(1, -1, -1, rm("/none", false, true)),
            action(2, -1, 0, link),
        ],
    );
    assert_eq!(look(&bench, &mut llb, &changed, LIST).await, "./bar/b.h ./bar/deep/c.c ./foo ./link ");
    let missing = llb.file(&[&base], vec![action(0, -1, 0, rm("/none", false, false))]);
    let error = failure(&bench, &llb, &missing).await;
    assert!(error.contains("/none") || error.contains("none"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_removed_and_not_what_it_leads_to() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let busybox = llb.busybox();
    let base = llb.run(
        &busybox,
        "mkdir /mnt2 /mnt2/sub; touch /mnt2/foo /mnt2/sub/foo; ln -s mnt2 /mnt; ln -s /mnt2/foo /file",
    );
    let removed = llb.file(
        &[&base],
        vec![action(0, -1, -1, rm("/mnt/foo", false, false)), action(1, -1, 0, rm("/file", false, false))],
    );
    let script = "ls -d mnt2/foo mnt2/sub/foo file mnt 2>/dev/null | tr '\\n' ' '";
    assert_eq!(look(&bench, &mut llb, &removed, script).await, "mnt mnt2/sub/foo ");
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_take_what_patterns_say_as_whom_and_with_which_mode() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let from = files(&mut llb);
    let mut copied = async |change: &dyn Fn(&mut pb::FileActionCopy), script: &str| {
        let mut copy = copy("/bar", "/to");
        change(&mut copy);
        let tree = llb.file(&[&from], vec![action(-1, 0, 0, Action::Copy(copy))]);
        look(&bench, &mut llb, &tree, script).await
    };
    assert_eq!(copied(&|_| {}, LIST).await, "./to/a.c ./to/b.h ./to/deep/c.c ");
    let include = |copy: &mut pb::FileActionCopy| copy.include_patterns = vec!["**/*.c".to_owned()];
    assert_eq!(copied(&include, LIST).await, "./to/a.c ./to/deep/c.c ");
    let exclude =
        |copy: &mut pb::FileActionCopy| copy.exclude_patterns = vec!["*.h".to_owned(), "deep".to_owned()];
    assert_eq!(copied(&exclude, LIST).await, "./to/a.c ");
    let wildcard = |copy: &mut pb::FileActionCopy| {
        (copy.src, copy.dest, copy.allow_wildcard) = ("/bar/*.?".to_owned(), "/w/".to_owned(), true);
    };
    assert_eq!(copied(&wildcard, LIST).await, "./w/a.c ./w/b.h ");
    let contents = |copy: &mut pb::FileActionCopy| copy.dir_copy_contents = true;
    assert_eq!(copied(&contents, LIST).await, "./to/a.c ./to/b.h ./to/deep/c.c ");
    let owned = |copy: &mut pb::FileActionCopy| {
        copy.owner = Some(pb::ChownOpt { user: by_id(7), group: by_id(8) });
        copy.mode = 0o640;
        copy.timestamp = 1_000_000_000_000_000_000;
    };
    assert_eq!(copied(&owned, "stat -c '%u %g %a %Y' to/a.c").await, "7 8 640 1000000000\n");
    let symbolic = |copy: &mut pb::FileActionCopy| copy.mode_str = "u+rwX,go=rX".to_owned();
    assert_eq!(copied(&symbolic, "stat -c %a to to/a.c | tr '\\n' ' '").await, "755 644 ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_replaces_another_kind_of_thing_only_where_it_is_told_to() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let from = files(&mut llb);
    let under =
        llb.file(&[], vec![action(-1, -1, -1, mkdir("/to/a.c")), action(0, -1, 0, mkfile("/to/deep", "f"))]);
    let mut over = |replace: bool| {
        let copy = pb::FileActionCopy {
            dir_copy_contents: true,
            always_replace_existing_dest_paths: replace,
            ..copy("/bar", "/to")
        };
        llb.file(&[&under, &from], vec![action(0, 1, 0, Action::Copy(copy))])
    };
    let (refused, replaced) = (over(false), over(true));
    assert!(solve(&bench, &llb, &refused).await.is_err());
    assert_eq!(look(&bench, &mut llb, &replaced, LIST).await, "./to/a.c ./to/b.h ./to/deep/c.c ");
}

#[tokio::test(flavor = "multi_thread")]
async fn merged_trees_hide_and_show_each_others_files() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let base = files(&mut llb);
    let busybox = llb.busybox();
    let (one, two) = (llb.text("/one", "1"), llb.text("/foo", "over"));
    let less = llb.file(&[&base], vec![action(0, -1, 0, rm("/bar", false, false))]);
    let lower = pb::LowerDiffInput { input: 0 };
    let upper = pb::UpperDiffInput { input: 1 };
    let removal =
        llb.add(&[&base, &less], pb::op::Op::Diff(pb::DiffOp { lower: Some(lower), upper: Some(upper) }));
    let merge = |inputs: i64| {
        pb::op::Op::Merge(pb::MergeOp { inputs: (0..inputs).map(|input| pb::MergeInput { input }).collect() })
    };
    let all = llb.add(&[&base, &one, &two], merge(3));
    assert_eq!(
        look(&bench, &mut llb, &all, &format!("{LIST}; cat foo")).await,
        "./bar/a.c ./bar/b.h ./bar/deep/c.c ./foo ./one over"
    );
    // What a difference removes is removed from whatever it is merged with.
    let fewer = llb.add(&[&all, &removal], merge(2));
    assert_eq!(look(&bench, &mut llb, &fewer, LIST).await, "./foo ./one ");
    // Images can be merged with files, and run.
    let image = llb.add(&[&busybox, &one], merge(2));
    let ran = llb.run(&image, "cat /one > /seen");
    solve(&bench, &llb, &ran).await.unwrap();
    assert_eq!(bench.read("app", "seen"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn differences_may_be_of_or_to_nothing() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let base = files(&mut llb);
    let more = llb.file(&[&base], vec![action(0, -1, 0, mkfile("/new", "n"))]);
    let diff = |lower: i64, upper: i64| {
        let (lower, upper) = (pb::LowerDiffInput { input: lower }, pb::UpperDiffInput { input: upper });
        pb::op::Op::Diff(pb::DiffOp { lower: Some(lower), upper: Some(upper) })
    };
    let all = llb.add(&[&base], diff(-1, 0));
    assert_eq!(look(&bench, &mut llb, &all, LIST).await, "./bar/a.c ./bar/b.h ./bar/deep/c.c ./foo ");
    let only = llb.add(&[&base, &more], diff(0, 1));
    assert_eq!(look(&bench, &mut llb, &only, LIST).await, "./new ");
    let none = llb.add(&[&base], diff(0, -1));
    assert_eq!(look(&bench, &mut llb, &none, LIST).await, "");
    // Of unrelated trees.
    let (one, two) = (llb.text("/one", "1"), llb.text("/two", "2"));
    let other = llb.add(&[&one, &two], diff(0, 1));
    let merged = llb.add(
        &[&one, &other],
        pb::op::Op::Merge(pb::MergeOp {
            inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }],
        }),
    );
    assert_eq!(look(&bench, &mut llb, &merged, LIST).await, "./two ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passthrough_gives_its_inputs_on() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let (one, two) = (llb.text("/one", "1"), llb.text("/two", "2"));
    let newer = lapstrake_api_proto::newer::NewerOp {
        passthrough: Some(lapstrake_builder_llb::Passthrough { id: "here".to_owned(), outputs: vec![1, 0] }),
    };
    let mut raw = pb::Op { inputs: vec![input(&one), input(&two)], ..Default::default() }.encode_to_vec();
    raw.extend(newer.encode_to_vec());
    let passed = llb.raw(raw);
    assert_eq!(look(&bench, &mut llb, &passed, LIST).await, "./two ");
    assert_eq!(look(&bench, &mut llb, &passed.output(1), LIST).await, "./one ");
    let error = failure(&bench, &llb, &passed.output(2)).await;
    assert!(error.contains("output 2") || error.contains("index 2"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graph_in_a_file_is_built_as_part_of_another() {
    let (bench, mut llb) = (Workbench::new(), Llb::default());
    let mut inner = Llb::default();
    let base = inner.busybox();
    let result = inner.run(&base, "echo inner > /seen");
    let definition = inner.definition(&result).encode();
    let file = |path: &str| {
        Action::Mkfile(pb::FileActionMkFile {
            path: path.to_owned(),
            mode: 0o644,
            data: definition.clone(),
            timestamp: -1,
            ..Default::default()
        })
    };
    let build = |attrs: &[(&str, &str)]| {
        pb::op::Op::Build(pb::BuildOp {
            builder: -1,
            inputs: [("buildkit.llb.definition".to_owned(), pb::BuildInput { input: 0 })].into(),
            def: None,
            attrs: attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        })
    };
    let source = llb.file(
        &[],
        vec![action(-1, -1, -1, file("/buildkit.llb.definition")), action(0, -1, 0, file("/other.pb"))],
    );
    let built = llb.add(&[&source], build(&[]));
    let ran = llb.run(&built, "cat /seen > /again");
    let told = solve(&bench, &llb, &ran).await.unwrap();
    assert_eq!(bench.read("app", "again"), "inner\n");
    assert!(told.executed().iter().any(|name| name.contains("echo inner")), "{:?}", told.executed());
    let named = llb.add(&[&source], build(&[("llbbuild.filename", "other.pb")]));
    solve(&bench, &llb, &named).await.unwrap();
    let missing = llb.add(&[&source], build(&[("llbbuild.filename", "../../none")]));
    let error = failure(&bench, &llb, &missing).await;
    assert!(error.contains("none"), "{error}");
    // What the outer graph may not do, the inner one may not either.
    let mut op = crate::raw_llb::support::exec("true", vec![crate::raw_llb::support::bind("/", 0, 0)]);
    op.security = pb::SecurityMode::Insecure.into();
    let mut inner = Llb::default();
    let base = inner.busybox();
    let insecure = inner.add(&[&base], pb::op::Op::Exec(op));
    let text = inner.definition(&insecure).encode();
    let source = llb.file(
        &[],
        vec![action(
            -1,
            -1,
            0,
            Action::Mkfile(pb::FileActionMkFile {
                path: "/buildkit.llb.definition".to_owned(),
                mode: 0o644,
                data: text,
                timestamp: -1,
                ..Default::default()
            }),
        )],
    );
    let refused = llb.add(&[&source], build(&[]));
    let error = failure(&bench, &llb, &refused).await;
    assert!(error.ends_with("security.insecure is not allowed"), "{error}");
}
