//! Copies, and the other actions, against BuildKit's own (`tests/golden/README.md`).

use std::{collections::BTreeMap, path::Path};

use lapstrake_builder_llb::pb::{self, file_action::Action, user_opt::User};
use serde::Deserialize;

use crate::common::{
    Yard,
    golden::{self, Entry},
};

#[derive(Deserialize)]
struct Pair {
    name: String,
    source: Vec<Entry>,
    target: Vec<Entry>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    action: Words,
    #[serde(default)]
    error: String,
    #[serde(default)]
    changed: Vec<Entry>,
    #[serde(default)]
    removed: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Words {
    kind: String,
    src: String,
    dest: String,
    owner: Vec<u32>,
    mode: i32,
    mode_str: String,
    follow: bool,
    contents: bool,
    create: bool,
    wildcard: bool,
    empty: bool,
    timestamp: i64,
    include: Vec<String>,
    exclude: Vec<String>,
    replace: bool,
    parents: bool,
    allow_not_found: bool,
    data: String,
}

impl Words {
    fn action(&self) -> Action {
        let id = |index: usize| {
            let id = self.owner.get(index)?;
            Some(pb::UserOpt { user: Some(User::ById(*id)) })
        };
        let owner = (!self.owner.is_empty()).then(|| pb::ChownOpt { user: id(0), group: id(1) });
        let (mode, timestamp) = (self.mode, self.timestamp);
        match self.kind.as_str() {
            "copy" => Action::Copy(pb::FileActionCopy {
                src: self.src.clone(),
                dest: self.dest.clone(),
                owner,
                mode,
                mode_str: self.mode_str.clone(),
                follow_symlink: self.follow,
                dir_copy_contents: self.contents,
                create_dest_path: self.create,
                allow_wildcard: self.wildcard,
                allow_empty_wildcard: self.empty,
                timestamp,
                include_patterns: self.include.clone(),
                exclude_patterns: self.exclude.clone(),
                always_replace_existing_dest_paths: self.replace,
                ..Default::default()
            }),
            "mkdir" => Action::Mkdir(pb::FileActionMkDir {
                path: self.dest.clone(),
                mode,
                make_parents: self.parents,
                owner,
                timestamp,
            }),
            "mkfile" => Action::Mkfile(pb::FileActionMkFile {
                path: self.dest.clone(),
                mode,
                data: self.data.clone().into(),
                owner,
                timestamp,
            }),
            "symlink" => Action::Symlink(pb::FileActionSymlink {
                oldpath: self.src.clone(),
                newpath: self.dest.clone(),
                owner,
                timestamp,
            }),
            "rm" => Action::Rm(pb::FileActionRm {
                path: self.dest.clone(),
                allow_not_found: self.allow_not_found,
                allow_wildcard: self.wildcard,
            }),
            kind => panic!("{kind}"),
        }
    }
}

/// Whether BuildKit fails for reasons of its own.
fn is_better_here(case: &Case) -> bool {
    match case.action.kind.as_str() {
        // It looks whether a link is there by following it, in the daemon's own root; a link that leads nowhere is not.
        "rm" => case.error.starts_with("stat /"),
        // It looks for the copy of an entry that patterns leave out, also below what is no directory.
        "copy" => case.error.starts_with("failed to stat /") && case.error.ends_with("not a directory"),
        _ => false,
    }
}

/// What differs between a tree and what is expected of it.
fn differences(expected: &BTreeMap<String, Entry>, found: &BTreeMap<String, Entry>) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, entry) in expected {
        match found.get(path) {
            None => lines.push(format!("  /{path} is missing")),
            Some(found) => {
                let found =
                    Entry { mtime: if entry.mtime == -1 { -1 } else { found.mtime }, ..found.clone() };
                if *entry != found {
                    lines.push(format!("  expected {entry:?}\n  found    {found:?}"));
                }
            }
        }
    }
    lines.extend(
        found
            .keys()
            .filter(|path| !expected.contains_key(*path))
            .map(|path| format!("  /{path} is too much")),
    );
    lines
}

#[test]
fn actions_do_what_buildkits_do() {
    // All that was generated is too much to keep: the file is a sample, and another one can be named.
    let file = std::env::var_os("LAPSTRAKE_GOLDEN_ACTIONS");
    let file =
        file.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/actions.json").into());
    let pairs: Vec<Pair> =
        serde_json::from_str(&std::fs::read_to_string(Path::new(&file)).expect("read")).expect("parse");
    let (mut wrong, mut cases) = (Vec::new(), 0);
    for yard in Yard::both() {
        for pair in &pairs {
            let source = yard.tree(|root| golden::make(root, &pair.source));
            let target = yard.tree(|root| golden::make(root, &pair.target));
            let before = yard.look(&target, golden::read);
            for case in &pair.cases {
                cases += 1;
                let describe = || format!("{} {} {:?}", yard.kind, pair.name, case.action);
                match yard.act(case.action.action(), &[target.clone(), source.clone()]) {
                    Err(_) if !case.error.is_empty() => {}
                    Err(error) => wrong.push(format!("{}\n  fails: {error}", describe())),
                    Ok(_) if is_better_here(case) => {}
                    Ok(_) if !case.error.is_empty() => {
                        wrong.push(format!("{}\n  should fail: {}", describe(), case.error));
                    }
                    Ok(tree) => {
                        let mut expected = before.clone();
                        expected.retain(|path, _| !case.removed.contains(path));
                        expected.extend(case.changed.iter().map(|entry| (entry.path.clone(), entry.clone())));
                        let differences = differences(&expected, &yard.look(&tree, golden::read));
                        if !differences.is_empty() {
                            wrong.push(format!("{}\n{}", describe(), differences.join("\n")));
                        }
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {cases}:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}
