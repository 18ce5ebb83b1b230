//! Large layers pass through in little memory. One test in its own file: the peak is the whole process's.

use std::io::{self, Read};

use lapstrake_layerstore_diff::{Limits, WriteOptions, apply, decompress, write_layer};

use crate::common::{Item, Layers, Tar};

const SIZE: u64 = 400 << 20;

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_layer_of_hundreds_of_megabytes_takes_a_few() {
    let header = Tar::new().item(Item { name: b"large", size: Some(SIZE), ..Item::default() }).0;
    let stream = io::Cursor::new(header).chain(io::repeat(7).take(SIZE)).chain(io::repeat(0).take(1024));
    let mut layers = Layers::new();
    let before = peak_kib();
    let applied = apply(decompress(stream).unwrap(), &layers.push(), &Limits::default()).unwrap();
    assert_eq!(applied.size, SIZE);
    let written = write_layer(&layers.top(), &WriteOptions::default(), io::sink()).unwrap();
    assert_eq!((written.diff_id, written.content_size), (applied.diff_id, SIZE));
    let peak = peak_kib();
    assert!(peak - before < 8 << 10, "{before} KiB before, {peak} KiB at the peak");
}
