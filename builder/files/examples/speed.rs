//! Times what this crate does with a large directory, and `cp -a` with the same one.
//!
//! ```text
//! cargo run -p lapstrake-builder-files --example speed -- /usr/share [overlay2|vfs]
//! ```

#![allow(clippy::unwrap_used, reason = "an example")]

use std::{process::Command, sync::Arc, time::Instant};

use lapstrake_builder_files::{ContentHasher, apply, merge};
use lapstrake_builder_llb::pb::{self, file_action::Action};
use lapstrake_graphdriver_adapter::{Adapter, DriverKind};
use lapstrake_layerstore_store::{LocalStore, Tree};
use tokio_util::sync::CancellationToken;

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what:<40} {:>8.0} ms", start.elapsed().as_secs_f64() * 1000.0);
    result
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().expect("a directory");
    let kind: DriverKind = arguments.next().map_or(DriverKind::Overlay2, |kind| kind.parse().unwrap());
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    let store = LocalStore::open(place.path().join("root")).unwrap();
    let driver = kind.open(store.root()).unwrap();
    let stores = store.stores(Arc::new(Adapter::new(driver, store.records.clone())));
    let draft = stores.begin(&Tree::empty()).unwrap();
    let copied = |to: &std::path::Path| {
        assert!(Command::new("cp").arg("-a").arg(&directory).arg(to).status().unwrap().success());
    };
    copied(&draft.directory().unwrap().join("src"));
    let source = draft.commit().unwrap();
    timed("cp -a", || copied(&place.path().join("plain")));
    let base = stores.begin(&Tree::empty()).unwrap().commit().unwrap();
    let copy = |input: &Tree| {
        let action = Action::Copy(pb::FileActionCopy {
            src: "/src".into(),
            dest: "/dst".into(),
            mode: -1,
            timestamp: -1,
            dir_copy_contents: true,
            create_dest_path: true,
            ..Default::default()
        });
        let action = pb::FileAction { input: 0, secondary_input: 1, output: 0, action: Some(action) };
        let op = pb::FileOp { actions: vec![action] };
        apply(&stores, &op, &[input.clone(), source.clone()], &CancellationToken::new()).unwrap().remove(0)
    };
    let alone = timed("COPY to nothing", || copy(&Tree::empty()));
    let over = timed("COPY over a layer", || copy(&base));
    timed("merge (COPY --link)", || merge(&stores, &[base.clone(), alone.clone()]).unwrap());
    let hasher = ContentHasher::new(stores.clone());
    timed("digest", || hasher.digest(&source, &[]).unwrap());
    timed("digest of the same files elsewhere", || hasher.digest(&alone, &[]).unwrap());
    timed("digest through an overlay", || hasher.digest(&over, &[]).unwrap());
    timed("digest again", || hasher.digest(&over, &[]).unwrap());
}
