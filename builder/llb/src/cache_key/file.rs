//! The key of changes to files.

use lapstrake_layerstore_oci::{Digest, gojson};
use serde_json::{Value, json};

use super::{
    DepKey, Dialect, OpKey, Selector, digest_of,
    json::{Object, base64, copy_action, mkdir_action, mkfile_action, rm_action, symlink_action},
    selected, without_nested,
};
use crate::{has_wildcards, pb};

/// The key of a file op.
pub fn file(op: &pb::FileOp, inputs: usize) -> OpKey {
    file_in(op, inputs, Dialect::TODAY)
}

pub(super) fn file_in(op: &pb::FileOp, inputs: usize, dialect: Dialect) -> OpKey {
    OpKey { digest: digest(op, inputs, dialect), deps: deps(op, inputs) }
}

fn digest(op: &pb::FileOp, inputs: usize, dialect: Dialect) -> Digest {
    let mut actions = Vec::with_capacity(op.actions.len());
    let mut indexes = Vec::with_capacity(op.actions.len());
    for action in &op.actions {
        indexes.push([action.input, action.secondary_input, action.output]);
        let value = match action.action.as_ref() {
            Some(pb::file_action::Action::Mkdir(mkdir)) => mkdir_action(mkdir, dialect),
            Some(pb::file_action::Action::Mkfile(mkfile)) => mkfile_action(mkfile, dialect),
            Some(pb::file_action::Action::Symlink(symlink)) => symlink_action(symlink, dialect),
            Some(pb::file_action::Action::Rm(rm)) => rm_action(rm),
            Some(pb::file_action::Action::Copy(copy)) => {
                let mut copy = copy.clone();
                if usize::try_from(action.secondary_input).is_ok_and(|input| input < inputs) {
                    copy.src = base(&copy.src);
                }
                copy.always_replace_existing_dest_paths &= dialect.replaces_at_destination();
                copy_action(&copy, dialect)
            }
            None => Value::Null,
        };
        actions.push(gojson::to_vec(&value).expect("a value serialises"));
    }
    let mut key = Object::new();
    key.always("Type", "buildkit.file.v0");
    // A Go slice of byte slices: strings of base64.
    key.always("Actions", actions.iter().map(|action| json!(base64(action))).collect::<Vec<_>>());
    if !is_default_indexes(&indexes) && !indexes.is_empty() {
        key.always("indexes", json!(indexes));
    }
    digest_of(&key.into())
}

fn deps(op: &pb::FileOp, inputs: usize) -> Vec<DepKey> {
    let mut selectors: Vec<Vec<Selector>> = vec![Vec::new(); inputs];
    // Inputs that are written over count by definition only.
    let mut written = vec![false; inputs];
    for action in &op.actions {
        if let Some(input) = usize::try_from(action.input).ok().and_then(|input| written.get_mut(input)) {
            *input = true;
        }
        match action.action.as_ref() {
            Some(pb::file_action::Action::Mkdir(mkdir)) => select_owner(mkdir.owner.as_ref(), &mut selectors),
            Some(pb::file_action::Action::Mkfile(mkfile)) => {
                select_owner(mkfile.owner.as_ref(), &mut selectors)
            }
            Some(pb::file_action::Action::Copy(copy)) => {
                select_owner(copy.owner.as_ref(), &mut selectors);
                let source = usize::try_from(action.secondary_input).ok().filter(|input| *input < inputs);
                if let Some(source) = source {
                    selectors[source].push(Selector {
                        path: copy.src.clone(),
                        wildcard: copy.allow_wildcard && has_wildcards(&copy.src),
                        follow_links: copy.follow_symlink,
                        include_patterns: copy.include_patterns.clone(),
                        exclude_patterns: copy.exclude_patterns.clone(),
                        required_paths: copy.required_paths.clone(),
                    });
                }
            }
            Some(pb::file_action::Action::Symlink(_) | pb::file_action::Action::Rm(_)) | None => {}
        }
    }
    let deps = selectors.into_iter().zip(written).map(|(selectors, written)| {
        if selectors.is_empty() || written {
            return DepKey::default();
        }
        let mut paths: Vec<&str> = selectors.iter().map(|selector| selector.path.as_str()).collect();
        paths.sort_unstable();
        paths.reverse();
        DepKey { selector: selected(&paths), content: Some(dedupe(selectors)) }
    });
    deps.collect()
}

/// Names are looked up in these files of an input, so they count.
fn select_owner(owner: Option<&pb::ChownOpt>, selectors: &mut [Vec<Selector>]) {
    let Some(owner) = owner else { return };
    for (who, path) in [(&owner.user, "/etc/passwd"), (&owner.group, "/etc/group")] {
        if let Some(pb::user_opt::User::ByName(name)) = who.as_ref().and_then(|who| who.user.as_ref())
            && let Some(input) = usize::try_from(name.input).ok().and_then(|input| selectors.get_mut(input))
        {
            input.push(Selector { path: path.to_owned(), follow_links: true, ..Selector::default() });
        }
    }
}

/// Whether actions are chained in the usual way: then BuildKit leaves their indexes out, for compatibility.
fn is_default_indexes(indexes: &[[i64; 3]]) -> bool {
    let count = i64::try_from(indexes.len()).unwrap_or(i64::MAX);
    !indexes.is_empty()
        && indexes.iter().zip(0..).all(|([input, secondary, output], i)| {
            let chained = if i == 0 { 0 } else { count + i - 1 };
            *input == chained && matches!(secondary, -1 | 1) && *output == if i == count - 1 { 0 } else { -1 }
        })
}

impl Selector {
    fn has_wildcard_or_filters(&self) -> bool {
        self.wildcard || !self.include_patterns.is_empty() || !self.exclude_patterns.is_empty()
    }
}

fn dedupe(selectors: Vec<Selector>) -> Vec<Selector> {
    let (filtered, plain): (Vec<_>, Vec<_>) =
        selectors.into_iter().partition(Selector::has_wildcard_or_filters);
    let mut kept = Vec::new();
    for follow_links in [false, true] {
        let paths: Vec<String> = plain
            .iter()
            .filter(|selector| selector.follow_links == follow_links)
            .map(|selector| selector.path.clone())
            .collect();
        let paths = without_nested(&paths).into_iter();
        kept.extend(paths.map(|path| Selector { path, follow_links, ..Selector::default() }));
    }
    kept.extend(filtered);
    kept.sort_by(|a, b| a.path.cmp(&b.path));
    kept
}

/// Go's `path.Base`.
fn base(path: &str) -> String {
    if path.is_empty() {
        return ".".to_owned();
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return "/".to_owned();
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed).to_owned()
}
