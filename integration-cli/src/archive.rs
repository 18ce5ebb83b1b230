//! What a directory of a test cannot easily hold.

/// An archive with owners, modes, attributes, links and a pipe, all beneath `set/`; more may be added.
pub fn special_archive() -> tar::Builder<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let header = |kind, mode, size: usize| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1234);
        header.set_gid(4321);
        header.set_mtime(1_600_000_000);
        header.set_size(size as u64);
        header
    };
    archive
        .append_data(&mut header(tar::EntryType::Directory, 0o1751, 0), "set/", &b""[..])
        .expect("a vector grows");
    // VFS_CAP_REVISION_2, effective; cap_net_raw permitted.
    let capability: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    archive
        .append_pax_extensions([
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"kept"),
        ])
        .expect("a vector grows");
    archive
        .append_data(&mut header(tar::EntryType::Regular, 0o755, 4), "set/capable", &b"able"[..])
        .expect("a vector grows");
    archive
        .append_data(&mut header(tar::EntryType::Regular, 0o6711, 2), "set/uid", &b"id"[..])
        .expect("a vector grows");
    archive
        .append_link(&mut header(tar::EntryType::Link, 0o6711, 0), "set/same", "set/uid")
        .expect("a vector grows");
    archive
        .append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), "set/dangling", "../nowhere")
        .expect("a vector grows");
    archive
        .append_data(&mut header(tar::EntryType::Fifo, 0o640, 0), "set/fifo", &b""[..])
        .expect("a vector grows");
    archive
}
