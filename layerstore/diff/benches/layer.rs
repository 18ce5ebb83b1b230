//! Layers as tar streams: written from a difference, found by comparing trees, and unpacked.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark fails by panicking, and criterion's macros document nothing"
)]

use std::{fs, io, path::Path};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lapstrake_layerstore_diff::{Limits, WriteOptions, apply, write_layer};
use lapstrake_layerstore_store::DiffSource;

const FILES: u64 = 2_000;
const SIZE: usize = 2_100;

/// A directory of files, of which every tenth is another one in another `state`.
fn fill(root: &Path, state: u8) {
    for number in 0..FILES {
        let folder = root.join(format!("d{}", number / 100));
        fs::create_dir_all(&folder).unwrap();
        let byte = if number % 10 == 0 { state } else { b'x' };
        let path = folder.join(format!("f{number}"));
        fs::write(&path, vec![byte; SIZE]).unwrap();
        // The same in both trees, so that only the content differs.
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000 + u64::from(byte)),
        )
        .unwrap();
    }
}

fn layers(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| directory.path().join(name));
    fill(&old, b'a');
    fill(&new, b'b');
    let whole = DiffSource::OverlayUpper { upper: new.clone(), lower: Vec::new(), deletions: None };
    let changed = DiffSource::Trees { upper: new, lower: Some(old), deletions: None };
    let options = WriteOptions::default();
    let mut tar = Vec::new();
    let size = write_layer(&whole, &options, &mut tar).unwrap().tar_size;

    let mut group = criterion.benchmark_group("layer of 2,000 files");
    group.throughput(Throughput::Bytes(size));
    group.bench_function("write and digest", |bencher| {
        bencher.iter(|| write_layer(&whole, &options, io::sink()).unwrap());
    });
    group.bench_function("diff of two trees", |bencher| {
        bencher.iter(|| write_layer(&changed, &options, io::sink()).unwrap());
    });
    group.bench_function("apply and digest", |bencher| {
        bencher.iter_batched(
            || tempfile::tempdir_in(directory.path()).unwrap(),
            |target| {
                let upper = target.path().join("diff");
                fs::create_dir(&upper).unwrap();
                let source = DiffSource::OverlayUpper { upper, lower: Vec::new(), deletions: None };
                apply(&tar[..], &source, &Limits::default()).unwrap();
                // Dropped by criterion, so that its removal is not timed.
                target
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, layers);
criterion_main!(benches);
