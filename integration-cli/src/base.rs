//! The base image: Debian's static busybox, its applets, and the files that a small system has.

use crate::Docker;

/// The name that it has in a daemon of [`crate::Daemon::with_base`].
pub const BASE_IMAGE: &str = "busybox:latest";

const BUSYBOX: &str = "/bin/busybox";

/// The root file system as a tar stream: deterministic, so that every test has the same image.
pub fn busybox_rootfs() -> Vec<u8> {
    crate::require(BUSYBOX, "busybox-static");
    rootfs_of(&std::fs::read(BUSYBOX).expect("busybox can be read"))
}

/// The same with another machine's busybox.
pub(crate) fn rootfs_of(busybox: &[u8]) -> Vec<u8> {
    crate::require(BUSYBOX, "busybox-static");
    let applets = std::process::Command::new(BUSYBOX).arg("--list").output().expect("busybox runs").stdout;
    let mut archive = tar::Builder::new(Vec::new());
    for (dir, mode) in
        [("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("usr", 0o755), ("usr/bin", 0o755)]
    {
        add(&mut archive, dir, tar::EntryType::Directory, mode, b"");
    }
    add(&mut archive, "bin/busybox", tar::EntryType::Regular, 0o755, busybox);
    for applet in String::from_utf8_lossy(&applets).lines().filter(|applet| *applet != "busybox") {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        archive.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("memory takes it");
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\napp:x:1000:1000:app:/home/app:/bin/sh\n";
    add(&mut archive, "etc/passwd", tar::EntryType::Regular, 0o644, passwd);
    let group = b"root:x:0:\nnogroup:x:65534:\napp:x:1000:\nextra:x:2000:app\n";
    add(&mut archive, "etc/group", tar::EntryType::Regular, 0o644, group);
    archive.into_inner().expect("memory takes it")
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size);
    header
}

fn add(archive: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, mode: u32, data: &[u8]) {
    let mut header = header(kind, mode, data.len() as u64);
    archive.append_data(&mut header, path, data).expect("memory takes it");
}

/// Imports the base image as [`BASE_IMAGE`].
pub(crate) fn import(docker: &Docker) {
    docker
        .run_with(["import", "--change", "CMD [\"/bin/sh\"]", "-", BASE_IMAGE], &busybox_rootfs())
        .success();
}
