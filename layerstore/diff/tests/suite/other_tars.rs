//! What GNU tar, busybox and the `tar` crate write and read.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
    process::{Command, Stdio},
};

use lapstrake_layerstore_diff::{Limits, is_archive, unpack_context};

use crate::common::{Layers, What, in_seconds, tree};

fn fill(root: &Path) {
    fs::create_dir_all(root.join("d/e")).unwrap();
    fs::write(root.join("d/file"), vec![b'x'; 100_000]).unwrap();
    fs::hard_link(root.join("d/file"), root.join("link")).unwrap();
    chown(root.join("d/file"), Some(12), Some(34)).unwrap();
    fs::set_permissions(root.join("d/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("d/../nowhere", root.join("symlink")).unwrap();
    fs::write(root.join("ünïcode"), b"").unwrap();
    fs::create_dir(root.join("n".repeat(120))).unwrap();
    fs::write(root.join("n".repeat(120)).join("m".repeat(120)), b"long").unwrap();
    symlink("t".repeat(150), root.join("long-target")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("null"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RUSR,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let status = Command::new("mkfifo").arg(root.join("fifo")).status().unwrap();
    assert!(status.success());
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    for at in 1..40u64 {
        sparse.write_all_at(b"data", at * 200_000).unwrap();
    }
    for entry in ["d/e", "d"] {
        fs::File::open(root.join(entry)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
}

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

fn listing(program: &[&str], bytes: &[u8]) -> Vec<String> {
    let mut child = Command::new(program[0])
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn gnu_tar_in_each_format_is_understood() {
    let source = tempfile::tempdir().unwrap();
    fill(source.path());
    // A context holds no devices.
    fs::remove_file(source.path().join("null")).unwrap();
    let expected = tree(source.path());
    let formats: &[&[&str]] = &[
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--xattrs"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=oldgnu"],
    ];
    for format in formats {
        let command = &mut Command::new("tar");
        let bytes = output(command.args(*format).arg("-C").arg(source.path()).args(["-c", "."]));
        let target = tempfile::tempdir().unwrap();
        unpack_context(bytes.as_slice(), target.path(), &Limits::default()).unwrap();
        let found = tree(target.path());
        if format[0] == "--format=posix" {
            assert_eq!(found, expected, "{format:?}");
        } else {
            assert_eq!(in_seconds(found), in_seconds(expected.clone()), "{format:?}");
        }
        if format.contains(&"--sparse") {
            assert!(fs::metadata(target.path().join("sparse")).unwrap().blocks() < 4000, "{format:?}");
        }
    }
}

#[test]
fn what_we_write_others_list_and_unpack() {
    let mut layers = Layers::new();
    layers.change(fill);
    let bytes = layers.write();
    let expected: Vec<String> = {
        // Depth first, as the walk goes.
        let mut reader = tar::Archive::new(bytes.as_slice());
        let entries = reader.entries().unwrap();
        entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
    };
    assert_eq!(expected.len(), layers.merged().len());
    assert_eq!(listing(&["tar", "--quoting-style=literal", "-t"], &bytes), expected);
    if Path::new("/bin/busybox").exists() {
        assert_eq!(listing(&["/bin/busybox", "tar", "-t"], &bytes).len(), expected.len());
    }
    let target = tempfile::tempdir().unwrap();
    let path = target.path().to_str().unwrap();
    listing(&["tar", "--xattrs", "--numeric-owner", "-C", path, "-xp"], &bytes);
    assert_eq!(in_seconds(tree(target.path())), in_seconds(layers.merged()));
}

#[test]
fn the_tar_crates_archives_are_understood() {
    let source = tempfile::tempdir().unwrap();
    fill(source.path());
    fs::remove_file(source.path().join("fifo")).unwrap();
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", source.path()).unwrap();
    let bytes = builder.into_inner().unwrap();
    let mut layers = Layers::new();
    layers.apply(&bytes).unwrap();
    let (mut found, mut expected) = (in_seconds(layers.merged()), in_seconds(tree(source.path())));
    // It writes each name of an inode as a file of its own, and times as it likes.
    for node in found.values_mut().chain(expected.values_mut()) {
        node.same_as = None;
    }
    assert_eq!(found, expected);
}

#[test]
fn an_archive_is_known_whatever_it_is_compressed_with() {
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("f"), b"x").unwrap();
    let tar = |option: &[&str]| {
        output(Command::new("tar").args(option).arg("-C").arg(source.path()).args(["-c", "."]))
    };
    for option in [&[][..], &["--gzip"], &["--bzip2"], &["--format=v7"]] {
        assert!(is_archive(tar(option).as_slice()), "{option:?}");
    }
    for bytes in [&b""[..], b"text", &[0; 2048], b"\x1f\x8b\x08", b"BZh9 not really"] {
        assert!(!is_archive(bytes), "{bytes:?}");
    }
    assert!(!is_archive(vec![b'x'; 5000].as_slice()));
}

#[test]
fn a_layer_keeps_devices_and_fifos() {
    let mut layers = Layers::new();
    layers.change(fill);
    let bytes = layers.write();
    let mut again = Layers::new();
    again.apply(&bytes).unwrap();
    let nodes = again.merged();
    assert_eq!(nodes[Path::new("null")].what, What::Char(0x103));
    assert_eq!(nodes[Path::new("fifo")].what, What::Fifo);
    assert_eq!(again.write(), bytes);
}
