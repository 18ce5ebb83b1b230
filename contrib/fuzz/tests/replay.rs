//! Everything that a fuzzer once found, and the seeds with some changes: on every test run, without a fuzzer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, and its helpers do too")]

use std::path::{Path, PathBuf};

use lapstrake_contrib_fuzz::{TARGETS, target};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Seeds and what once failed hold, and so do mutations of them. A failure names the file or the bytes.
fn replay(name: &str) {
    let target = target(name);
    let mut paths = [files(&target.seeds()), files(&target.regressions())].concat();
    if name == "dockerfile" {
        // What the parser is compared with BuildKit's on is worth changing, too.
        let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../builder/dockerfile/tests/cases");
        paths.extend(
            files(&cases).into_iter().map(|case| case.join("Dockerfile")).filter(|file| file.is_file()),
        );
    }
    assert!(!paths.is_empty(), "{} has no seeds", target.name);
    let inputs: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    for (path, input) in paths.iter().zip(&inputs) {
        eprintln!("{}", path.display());
        (target.check)(input);
    }
    // What makes files or plans takes a while.
    let cases = if ["archive", "layer", "lowering"].contains(&name) { 60 } else { 400 };
    // For who has no fuzzer, but time.
    let asked = std::env::var("LAPSTRAKE_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = asked.unwrap_or(cases);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let change = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0..6_u8);
    let strategy = (0..inputs.len(), 0..inputs.len(), vec(change, 1..8));
    TestRunner::new(config)
        .run(&strategy, |(first, second, changes)| {
            (target.check)(&mutated(&inputs[first], &inputs[second], &changes));
            Ok(())
        })
        .unwrap();
}

type Change = (prop::sample::Index, prop::sample::Index, u8, u8);

/// An input with parts lost, doubled, changed, or taken from another one.
fn mutated(input: &[u8], other: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut data = input.to_vec();
    for (one, two, byte, what) in changes {
        if data.is_empty() {
            data.push(*byte);
        }
        let (from, to) = (one.index(data.len()), two.index(data.len()));
        let (from, to) = (from.min(to), from.max(to));
        // Long parts too often leave nothing over.
        let short = from..to.min(from + 40);
        match what {
            0 => data[from] = *byte,
            1 => data[from] ^= 1 << (byte % 8),
            2 => drop(data.drain(short)),
            3 => drop(data.splice(to..to, data[short].to_vec())),
            4 if !other.is_empty() => {
                let start = two.index(other.len());
                let end = other.len().min(start + 60);
                drop(data.splice(from..from, other[start..end].to_vec()));
            }
            _ => data.insert(from, *byte),
        }
    }
    data
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed() {
            let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
        }
    };
}

replays! { archive cache_document dockerfile ignore_file image_document layer llb lowering pattern reference word }
