//! Times what this crate does with a large directory, and `cp -a` with the same one.
//!
//! ```text
//! cargo run -p lapstrake-builder-files --example large_directory -- /usr/share [overlay2|vfs]
//! ```

use std::{error::Error, path::Path, process::Command, sync::Arc, time::Instant};

use lapstrake_builder_files::{ContentHasher, apply, merge};
use lapstrake_builder_llb::pb::{self, file_action::Action};
use lapstrake_graphdriver_adapter::{Adapter, DriverKind};
use lapstrake_layerstore_store::{LocalStore, Tree};
use tokio_util::sync::CancellationToken;

fn timed<T, E>(what: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let start = Instant::now();
    let result = work()?;
    println!("{what:<40} {:>8.0} ms", start.elapsed().as_secs_f64() * 1000.0);
    Ok(result)
}

fn copied(from: &str, to: &Path) -> Result<(), Box<dyn Error>> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    if status.success() { Ok(()) } else { Err(format!("cp -a {from}: {status}").into()) }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().ok_or("usage: speed DIRECTORY [overlay2|vfs]")?;
    let kind = arguments.next().map_or(Ok(DriverKind::Overlay2), |kind| kind.parse())?;
    let place = tempfile::tempdir_in("/var/tmp")?;
    let store = LocalStore::open(place.path().join("root"))?;
    let driver = kind.open(store.root())?;
    let stores = store.stores(Arc::new(Adapter::new(driver, store.records.clone())));
    let draft = stores.begin(&Tree::empty())?;
    copied(&directory, &draft.directory().ok_or("a tree on nothing is one directory")?.join("src"))?;
    let source = draft.commit()?;
    timed("cp -a", || copied(&directory, &place.path().join("plain")))?;
    let base = stores.begin(&Tree::empty())?.commit()?;
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
        let mut outputs = apply(&stores, &op, &[input.clone(), source.clone()], &CancellationToken::new())?;
        Ok::<_, Box<dyn Error>>(outputs.remove(0))
    };
    let alone = timed("COPY to nothing", || copy(&Tree::empty()))?;
    let over = timed("COPY over a layer", || copy(&base))?;
    timed("merge (COPY --link)", || merge(&stores, &[base.clone(), alone.clone()]))?;
    let hasher = ContentHasher::new(stores.clone());
    timed("digest", || hasher.digest(&source, &[]))?;
    timed("digest of the same files elsewhere", || hasher.digest(&alone, &[]))?;
    timed("digest through an overlay", || hasher.digest(&over, &[]))?;
    timed("digest again", || hasher.digest(&over, &[]))?;
    Ok(())
}
