//! Content digests of trees, which are the cache keys of what is copied.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark fails by panicking, and criterion's macros document nothing"
)]

use std::{fs, sync::Arc};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lapstrake_builder_files::ContentHasher;
use lapstrake_builder_llb::cache_key::Selector;
use lapstrake_graphdriver_adapter::{Adapter, DriverKind};
use lapstrake_layerstore_store::{LocalStore, Tree};

const FILES: u64 = 2_000;
const SIZE: u64 = 2_100;

fn content(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path().join("root")).unwrap();
    let driver = DriverKind::Overlay2.open(store.root()).unwrap();
    let stores = store.stores(Arc::new(Adapter::new(driver, store.records.clone())));
    let draft = stores.begin(&Tree::empty()).unwrap();
    let open = draft.open().unwrap();
    for number in 0..FILES {
        let folder = open.path().join(format!("d{}", number / 100));
        fs::create_dir_all(&folder).unwrap();
        let text = format!("{number} ").repeat(usize::try_from(SIZE).unwrap());
        fs::write(folder.join(format!("f{number}")), &text[..usize::try_from(SIZE).unwrap()]).unwrap();
    }
    drop(open);
    let tree = draft.commit().unwrap();

    let everything = [Selector { path: "/".to_owned(), ..Selector::default() }];
    let mut group = criterion.benchmark_group("content of 2,000 files");
    group.throughput(Throughput::Bytes(FILES * SIZE));
    group.bench_function("first", |bencher| {
        // A hasher that remembers nothing yet.
        bencher.iter_batched(
            || ContentHasher::new(stores.clone()),
            |hasher| hasher.digest(&tree, &everything).unwrap(),
            BatchSize::PerIteration,
        );
    });
    let hasher = ContentHasher::new(stores.clone());
    group.bench_function("again", |bencher| bencher.iter(|| hasher.digest(&tree, &everything).unwrap()));
    group.finish();
}

criterion_group!(benches, content);
criterion_main!(benches);
