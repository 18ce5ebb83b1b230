//! From two recipes to reasons.

use std::collections::{BTreeMap, BTreeSet};

use crate::{FileChange, Ingredient, IngredientKind, MissReason, Recipe};

/// Files that are named; the others are counted.
const NAMED_FILES: usize = 3;
/// Variables, mounts and steps that are named, each.
const NAMED: usize = 8;

/// What is different now from the last run in the same place, the most specific first. Empty when nothing is.
///
/// `is_same_instruction` tells whether the two have the same instruction as it is written.
pub fn compare(old: &Recipe, new: &Recipe, is_same_instruction: bool) -> Vec<MissReason> {
    let mut reasons = Vec::new();
    let pairs: Vec<(&Ingredient, &Ingredient)> = if old.inputs.len() == new.inputs.len() {
        old.inputs.iter().zip(&new.inputs).collect()
    } else {
        Vec::new()
    };
    let changed: Vec<_> = pairs.into_iter().filter(|(old, new)| !same_input(old, new)).collect();

    files(&changed, &mut reasons);
    variables(old, new, is_same_instruction, &mut reasons);
    for (old, new) in &changed {
        if let Some(reason) = image(old, new) {
            push(&mut reasons, reason);
        }
    }
    let mounts = different(&old.mounts, &new.mounts).take(NAMED);
    reasons.extend(mounts.map(|target| MissReason::Mount { target: target.clone() }));
    let settings = different(&old.aspects, &new.aspects);
    reasons.extend(settings.map(|aspect| MissReason::Setting { name: aspect.as_str().to_owned() }));
    // What was put into the instruction has been named: that it is another is no further news.
    let is_explained = reasons.iter().any(|reason| matches!(reason, MissReason::BuildArg { .. }));
    if (!is_same_instruction && !is_explained) || (old.action != new.action && reasons.is_empty()) {
        reasons.push(MissReason::Instruction);
    }
    for (_, new) in &changed {
        if let IngredientKind::Step { name } = &new.kind {
            push(&mut reasons, MissReason::Step { name: name.clone() });
        }
    }
    if reasons.is_empty() && (old.op != new.op || old.inputs.len() != new.inputs.len()) {
        reasons.push(MissReason::Instruction);
    }
    reasons
}

fn push(reasons: &mut Vec<MissReason>, reason: MissReason) {
    let alike =
        reasons.iter().filter(|old| std::mem::discriminant(*old) == std::mem::discriminant(&reason)).count();
    if alike < NAMED && !reasons.contains(&reason) {
        reasons.push(reason);
    }
}

/// An input is the same if the cache knows it by a key that it knew it by.
fn same_input(old: &Ingredient, new: &Ingredient) -> bool {
    new.keys.iter().any(|key| old.keys.contains(key))
}

fn files(changed: &[(&Ingredient, &Ingredient)], reasons: &mut Vec<MissReason>) {
    let mut all: Vec<FileChange> = Vec::new();
    let mut unknown = Vec::new();
    for (old, new) in changed {
        let IngredientKind::Files { origin, listing } = &new.kind else { continue };
        let changes = match (&old.kind, listing) {
            (IngredientKind::Files { listing: Some(old), .. }, Some(new)) => old.changes(new),
            _ => Vec::new(),
        };
        if changes.is_empty() {
            unknown.push(MissReason::Source { origin: origin.clone() });
        }
        all.extend(changes);
    }
    if !all.is_empty() {
        // A directory whose header changed because of what is in it is not what anybody looks for first.
        all.sort_by_key(|change| change.path.ends_with('/'));
        let more = all.len().saturating_sub(NAMED_FILES) as u64;
        all.truncate(NAMED_FILES);
        reasons.push(MissReason::Files { files: all, more });
    }
    for reason in unknown {
        push(reasons, reason);
    }
}

fn variables(old: &Recipe, new: &Recipe, is_same_instruction: bool, reasons: &mut Vec<MissReason>) {
    let mut args = BTreeSet::new();
    let mut others = BTreeSet::new();
    for name in different(&old.env, &new.env) {
        let is_arg = [old, new].into_iter().any(|recipe| recipe.env.get(name).is_some_and(|env| env.is_arg));
        if is_arg {
            args.insert(name)
        } else {
            others.insert(name)
        };
    }
    // The Dockerfile is the same and the instruction is not: what differs was put into it.
    let is_expanded = old.dockerfile.is_some() && old.dockerfile == new.dockerfile;
    if is_expanded && args.is_empty() && (!is_same_instruction || old.action != new.action) {
        args.extend(different(&old.build_args, &new.build_args));
    }
    reasons.extend(args.into_iter().take(NAMED).map(|name| MissReason::BuildArg { name: name.clone() }));
    reasons.extend(others.into_iter().take(NAMED).map(|name| MissReason::Variable { name: name.clone() }));
}

fn image(old: &Ingredient, new: &Ingredient) -> Option<MissReason> {
    let IngredientKind::Image { reference, digest: to } = &new.kind else { return None };
    let from = match &old.kind {
        IngredientKind::Image { digest, .. } => digest.clone(),
        _ => None,
    };
    // The same image with another base of the daemon's own: no digests to tell apart.
    let (from, to) = if from == *to { (None, None) } else { (from, to.clone()) };
    Some(MissReason::Base { reference: reference.clone(), from, to })
}

/// Keys whose values differ, or that only one has.
fn different<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    let keys: BTreeSet<&K> = old.keys().chain(new.keys()).collect();
    keys.into_iter().filter(move |key| old.get(*key) != new.get(*key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Aspect, Change, Listing, Mark, Variable};

    fn recipe() -> Recipe {
        let listing =
            Listing::new([(b"src/main.c".to_vec(), Mark::of("1")), (b"src/lib.c".to_vec(), Mark::of("1"))]);
        Recipe {
            op: Mark::of("op"),
            action: Mark::of("make"),
            aspects: BTreeMap::from([(Aspect::User, Mark::of("app"))]),
            env: BTreeMap::from([
                ("PATH".to_owned(), Variable { mark: Mark::of("/bin"), is_arg: false }),
                ("VERSION".to_owned(), Variable { mark: Mark::of("1"), is_arg: true }),
            ]),
            build_args: BTreeMap::from([
                ("VERSION".to_owned(), Mark::of("1")),
                ("UNUSED".to_owned(), Mark::of("1")),
            ]),
            mounts: BTreeMap::from([("/cache".to_owned(), Mark::of("id"))]),
            inputs: vec![
                Ingredient {
                    kind: IngredientKind::Image {
                        reference: "alpine:3".to_owned(),
                        digest: Some("sha256:aa".to_owned()),
                    },
                    keys: vec![Mark::of("image")],
                },
                Ingredient {
                    kind: IngredientKind::Files { origin: "context".to_owned(), listing: Some(listing) },
                    keys: vec![Mark::of("content")],
                },
                Ingredient {
                    kind: IngredientKind::Step { name: "[build 2/5] RUN make".to_owned() },
                    keys: vec![Mark::of("step"), Mark::of("step 2")],
                },
            ],
            dockerfile: Some(Mark::of("FROM alpine:3")),
        }
    }

    fn reasons(change: impl FnOnce(&mut Recipe)) -> Vec<String> {
        let mut new = recipe();
        change(&mut new);
        compare(&recipe(), &new, true).iter().map(ToString::to_string).collect()
    }

    fn set_files(recipe: &mut Recipe, entries: &[(&str, &str)]) {
        let entries = entries.iter().map(|(path, data)| (path.as_bytes().to_vec(), Mark::of(data)));
        recipe.inputs[1].kind =
            IngredientKind::Files { origin: "context".to_owned(), listing: Some(Listing::new(entries)) };
        recipe.inputs[1].keys = vec![Mark::of("other content")];
    }

    #[test]
    fn nothing_changed() {
        assert_eq!(reasons(|_| ()), [""; 0]);
        // One key in common is enough: an input may get further ones.
        assert_eq!(reasons(|new| new.inputs[2].keys = vec![Mark::of("x"), Mark::of("step 2")]), [""; 0]);
    }

    #[test]
    fn each_part_has_its_reason() {
        type Edit = fn(&mut Recipe);
        let table: &[(Edit, &str)] = &[
            (|new| set_files(new, &[("src/main.c", "2"), ("src/lib.c", "1")]), "file src/main.c changed"),
            (|new| set_files(new, &[("src/main.c", "1")]), "file src/lib.c was removed"),
            (
                |new| set_files(new, &[("src/main.c", "1"), ("src/lib.c", "1"), ("x", "1")]),
                "file x was added",
            ),
            (
                |new| {
                    new.inputs[1].kind =
                        IngredientKind::Files { origin: "context".to_owned(), listing: None };
                    new.inputs[1].keys.clear();
                },
                "context changed",
            ),
            (|new| new.env.get_mut("VERSION").unwrap().mark = Mark::of("2"), "build-arg VERSION changed"),
            (|new| new.env.get_mut("PATH").unwrap().mark = Mark::of("2"), "variable PATH changed"),
            (|new| _ = new.env.remove("PATH"), "variable PATH changed"),
            (
                |new| {
                    new.inputs[0] = Ingredient {
                        kind: IngredientKind::Image {
                            reference: "alpine:3".to_owned(),
                            digest: Some("sha256:bb".to_owned()),
                        },
                        keys: vec![Mark::of("other image")],
                    };
                },
                "the base image changed (alpine:3 sha256:aa → sha256:bb)",
            ),
            (|new| _ = new.mounts.remove("/cache"), "mount /cache changed"),
            (|new| _ = new.aspects.insert(Aspect::User, Mark::of("root")), "user changed"),
            (|new| new.inputs[2].keys = vec![Mark::of("again")], "step [build 2/5] RUN make ran again"),
            (|new| new.action = Mark::of("make all"), "the instruction changed"),
            (|new| new.op = Mark::of("other"), "the instruction changed"),
            (|new| _ = new.inputs.pop(), "the instruction changed"),
        ];
        for (edit, reason) in table {
            assert_eq!(reasons(edit), [*reason]);
        }
    }

    #[test]
    fn a_build_arg_in_an_instruction_is_named() {
        let mut new = recipe();
        new.build_args.insert("VERSION".to_owned(), Mark::of("2"));
        new.op = Mark::of("other");
        new.action = Mark::of("other");
        assert_eq!(compare(&recipe(), &new, false), [MissReason::BuildArg { name: "VERSION".to_owned() }]);
        // Unless the Dockerfile changed too: then anything may be the reason.
        new.dockerfile = Some(Mark::of("FROM alpine:4"));
        assert_eq!(compare(&recipe(), &new, false), [MissReason::Instruction]);
    }

    #[test]
    fn an_unused_build_arg_is_no_reason() {
        assert_eq!(reasons(|new| _ = new.build_args.insert("UNUSED".to_owned(), Mark::of("2"))), [""; 0]);
    }

    #[test]
    fn several_reasons_come_the_most_specific_first() {
        let all = reasons(|new| {
            set_files(new, &[("src/main.c", "2"), ("src/lib.c", "1")]);
            new.inputs[2].keys.clear();
            new.env.get_mut("VERSION").unwrap().mark = Mark::of("2");
            new.mounts.clear();
        });
        assert_eq!(
            all,
            [
                "file src/main.c changed",
                "build-arg VERSION changed",
                "mount /cache changed",
                "step [build 2/5] RUN make ran again"
            ]
        );
    }

    #[test]
    fn three_files_are_named_and_the_rest_counted_directories_last() {
        let mut old = recipe();
        set_files(&mut old, &[]);
        let mut new = recipe();
        set_files(&mut new, &[("a/", "1"), ("a/1", "1"), ("a/2", "1"), ("a/3", "1"), ("a/4", "1")]);
        new.inputs[1].keys = vec![Mark::of("x")];
        let found = compare(&old, &new, true);
        let [MissReason::Files { files, more }] = &found[..] else { panic!("{found:?}") };
        assert_eq!(*more, 2);
        assert!(
            files.iter().all(|file| file.change == Change::Added && !file.path.ends_with('/')),
            "{files:?}"
        );
    }

    #[test]
    fn recipes_survive_being_stored_but_for_what_is_kept_beside_them() {
        let json = serde_json::to_string(&recipe()).unwrap();
        let mut read: Recipe = serde_json::from_str(&json).unwrap();
        for (number, listing) in recipe().listings() {
            read.put_listing(number, listing.clone());
        }
        read.inputs[2].kind = recipe().inputs[2].kind.clone();
        assert_eq!(read, recipe());
        assert!(json.len() < 1000, "{json}");
    }
}
