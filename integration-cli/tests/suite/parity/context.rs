//! The context that all cases have.

use std::{
    fs::{self, File, FileTimes},
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, UNIX_EPOCH},
};

use lapstrake_integration_cli::{require, special_archive};

/// Files: path, mode, content.
const FILES: &[(&str, u32, &str)] = &[
    (".hidden", 0o644, "hidden"),
    ("a.txt", 0o644, "A\n"),
    ("b.txt", 0o600, "B\n"),
    ("deep/er/and/deeper/x.txt", 0o644, "x"),
    ("dir/.hidden", 0o644, "hidden too"),
    ("dir/one.txt", 0o640, "one"),
    ("dir/sub/three.txt", 0o644, "three"),
    ("dir/two.txt", 0o644, "two"),
    ("empty", 0o644, ""),
    ("f1.log", 0o644, "1"),
    ("f2.log", 0o644, "2"),
    ("f[3].log", 0o644, "3"),
    ("hard1", 0o644, "linked"),
    ("node_modules/x/index.js", 0o644, "js"),
    ("notarchive.tar", 0o644, "no archive at all"),
    ("own/.dockerignore", 0o644, "*.md\n!README.md\n"),
    ("own/NOTES.md", 0o644, "notes"),
    ("own/README.md", 0o644, "readme"),
    ("own/file", 0o644, "file"),
    ("ro", 0o444, "read only"),
    ("run.sh", 0o755, "#!/bin/sh\necho run\n"),
    ("src/lib/l.c", 0o644, "c"),
    ("src/lib/l.o", 0o644, "o"),
    ("src/main.c", 0o644, "c"),
    ("src/main.o", 0o644, "o"),
    ("suid", 0o4755, "suid"),
    ("with space.txt", 0o644, "space"),
    ("é.txt", 0o644, "accent"),
];

/// Symbolic links: path, target.
const LINKS: &[(&str, &str)] = &[
    ("dangling", "nowhere"),
    ("dir/abs", "/etc/passwd"),
    ("dir/link", "one.txt"),
    ("dir/up", "../a.txt"),
    ("dirlink", "dir"),
];

const DIRECTORIES: &[(&str, u32)] =
    &[("deep/er", 0o711), ("dir", 0o750), ("dir/sub", 0o755), ("emptydir", 0o700), ("sticky", 0o1777)];

/// Makes the context below `parent`: the same each time, to the second.
pub(crate) fn context(parent: &Path) -> PathBuf {
    let root = parent.join("context");
    for (path, mode, content) in FILES {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
    }
    fs::hard_link(root.join("hard1"), root.join("hard2")).unwrap();
    for (path, target) in LINKS {
        symlink(target, root.join(path)).unwrap();
    }
    for (path, mode) in DIRECTORIES {
        fs::create_dir_all(root.join(path)).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode)).unwrap();
    }
    let archive = archive();
    fs::write(root.join("archive.tar"), &archive).unwrap();
    for (program, package, extension) in
        [("gzip", "gzip", "gz"), ("bzip2", "bzip2", "bz2"), ("xz", "xz-utils", "xz")]
    {
        fs::write(root.join(format!("archive.tar.{extension}")), filtered(program, package, &archive))
            .unwrap();
    }
    date(&root, &mut 1_500_000_000);
    root
}

/// What a program makes of its input.
fn filtered(program: &str, package: &str, data: &[u8]) -> Vec<u8> {
    require(program, package);
    let mut child =
        Command::new(program).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // Dropped at its end, so that the program sees it.
        scope.spawn(move || input.write_all(data).unwrap());
        child.wait_with_output().unwrap().stdout
    })
}

/// Each file has a time of its own.
fn date(directory: &Path, seconds: &mut u64) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap()).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_type().unwrap().is_dir() {
            date(&entry.path(), seconds);
        } else if entry.file_type().unwrap().is_file() {
            set_time(&entry.path(), seconds);
        }
    }
    set_time(directory, seconds);
}

fn set_time(path: &Path, seconds: &mut u64) {
    *seconds += 1000;
    let time = UNIX_EPOCH + Duration::new(*seconds, 123_456_789);
    File::open(path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
}

/// An archive of special things, and of a file without its directory.
fn archive() -> Vec<u8> {
    let mut archive = special_archive();
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_uid(1234);
    header.set_gid(4321);
    header.set_mtime(1_600_000_000);
    header.set_size(1);
    archive.append_data(&mut header, "no/parent", &b"n"[..]).unwrap();
    archive.into_inner().unwrap()
}
