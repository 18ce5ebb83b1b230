//! Directories from clients that lie, overflow, or end early: all they can get is an error.

use lapstrake_api_proto::fsutil::{Packet, Stat, packet::PacketType};
use lapstrake_session::{
    Destination, TransferError,
    fsutil::{Devices, Index, Limits},
};

use crate::common::{
    Sync, data_packet, end_of_list,
    fixture::{Fixture, failure, named, transfer, with},
    stat_packet,
    tree::{self, dir, file, hard_link, symlink, tree},
};

#[tokio::test]
async fn paths_that_lead_outside_are_refused() {
    for path in ["../x", "/etc/x", "a/../../x", "..", ".", "", "a//b", "a/", "./a", "a\0b"] {
        let script = vec![named("a", dir(0o755)), named(path, file(0o644, b"x")), end_of_list()];
        let error = transfer(failure(Sync::Script(script), |_| {}).await);
        assert!(matches!(error, TransferError::BadPath { .. }), "{path:?}: {error}");
    }
}

#[tokio::test]
async fn entries_out_of_order_or_below_no_directory_are_refused() {
    for list in [
        vec![named("b", file(0o644, b"")), named("a", file(0o644, b""))],
        vec![named("a", file(0o644, b"")), named("a", file(0o644, b""))],
        vec![named("a", file(0o644, b"")), named("a/b", file(0o644, b""))],
        vec![named("link", symlink("/tmp")), named("link/b", file(0o644, b""))],
        vec![named("a/b", file(0o644, b""))],
    ] {
        let error = transfer(failure(Sync::Script(list.clone()), |_| {}).await);
        assert!(matches!(error, TransferError::OutOfOrder { .. }), "{list:?}: {error}");
    }
}

#[tokio::test]
async fn a_symlink_left_in_the_destination_is_not_followed() {
    let outer = tempfile::tempdir().unwrap();
    std::fs::create_dir(outer.path().join("victim")).unwrap();
    std::fs::write(outer.path().join("victim/f"), "safe").unwrap();
    let fixture = Fixture::new(tree([("d", dir(0o755)), ("d/f", file(0o644, b"new"))])).await;
    std::os::unix::fs::symlink(outer.path().join("victim"), fixture.dest.path().join("d")).unwrap();
    fixture.sync(Index::default()).await;
    assert_eq!(std::fs::read(outer.path().join("victim/f")).unwrap(), b"safe");
}

#[tokio::test]
async fn hard_links_to_anything_but_an_announced_file_are_refused() {
    for target in ["missing", "../outside", "d", "s", "l", "zz"] {
        let script = vec![
            named("d", dir(0o755)),
            named("f", file(0o644, b"")),
            named("l", hard_link("f")),
            named("s", symlink("f")),
            named("z", hard_link(target)),
            named("zz", file(0o644, b"")),
        ];
        let error = transfer(failure(Sync::Script(script), |_| {}).await);
        assert!(
            matches!(error, TransferError::BadLink { .. } | TransferError::BadPath { .. }),
            "{target}: {error}"
        );
    }
}

#[tokio::test]
async fn devices_and_sockets_are_refused() {
    let node = |mode| {
        let stat = Stat { path: "dev".into(), mode, devmajor: 1, devminor: 3, ..Stat::default() };
        Sync::Script(vec![stat_packet(stat), end_of_list()])
    };
    for mode in [tree::DEVICE, tree::DEVICE | tree::CHAR, tree::SOCKET] {
        let error = transfer(failure(node(mode | 0o666), |_| {}).await);
        assert!(matches!(error, TransferError::Refused { .. }), "{error}");
    }
    let error = transfer(failure(node(tree::SOCKET), |d| d.devices = Devices::Create).await);
    assert!(matches!(error, TransferError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn more_or_less_data_than_announced_is_refused() {
    for data in [&[&b"123456"[..]][..], &[b"123", b"456"], &[b"123", b""], &[b""]] {
        let mut script = vec![named("f", file(0o644, b"12345")), end_of_list()];
        script.extend(data.iter().map(|d| data_packet(0, d)));
        let error = transfer(failure(Sync::Script(script), |_| {}).await);
        assert!(matches!(error, TransferError::SizeChanged { announced: 5, .. }), "{error}");
    }
}

#[tokio::test]
async fn packets_that_the_protocol_does_not_allow_are_refused() {
    let packet = |kind: i32| Packet { r#type: kind, ..Packet::default() };
    let f = || named("f", file(0o644, b"1"));
    for script in [
        vec![data_packet(0, b"x")],
        vec![f(), end_of_list(), data_packet(7, b"x")],
        vec![f(), end_of_list(), named("g", file(0o644, b""))],
        vec![f(), packet(PacketType::PacketFin.into())],
        vec![packet(PacketType::PacketReq.into())],
        vec![packet(99)],
        vec![named("d", dir(0o755)), data_packet(0, b"x")],
    ] {
        let error = transfer(failure(Sync::Script(script.clone()), |_| {}).await);
        assert!(matches!(error, TransferError::Protocol { .. }), "{script:?}: {error}");
    }
    let error =
        Packet { r#type: PacketType::PacketErr.into(), data: b"disk on fire".to_vec(), ..Packet::default() };
    let error = transfer(failure(Sync::Script(vec![error]), |_| {}).await);
    assert_eq!(error.to_string(), "error from client: disk on fire");
}

#[tokio::test]
async fn impossible_numbers_are_refused() {
    let odd: [fn(&mut Stat); 3] = [|s| s.size = -1, |s| s.uid = u32::MAX, |s| s.gid = u32::MAX];
    for change in odd {
        let script = vec![named("f", with(file(0o644, b""), change)), end_of_list()];
        let error = transfer(failure(Sync::Script(script), |_| {}).await);
        assert!(matches!(error, TransferError::Refused { .. }), "{error}");
    }
}

#[tokio::test]
async fn endless_lists_and_huge_trees_hit_the_limits() {
    let limit = |change: fn(&mut Limits)| move |d: &mut Destination| change(&mut d.limits);
    let error = transfer(failure(Sync::EndlessDirectories, limit(|l| l.entries = 500)).await);
    assert!(matches!(error, TransferError::TooLarge { limit: 500, unit: "entries" }), "{error}");
    let error = transfer(failure(Sync::EndlessDirectories, limit(|l| l.metadata_bytes = 100_000)).await);
    assert!(matches!(error, TransferError::TooLarge { limit: 100_000, .. }), "{error}");
    let script = vec![named("f", with(file(0o644, b""), |s| s.size = i64::MAX)), end_of_list()];
    let error = transfer(failure(Sync::Script(script), limit(|l| l.content_bytes = 1 << 30)).await);
    assert!(matches!(error, TransferError::TooLarge { unit: "bytes of content", .. }), "{error}");
    let mut path = String::new();
    let mut script = Vec::new();
    for _ in 0..1000 {
        path.push_str(if path.is_empty() { "d" } else { "/d" });
        script.push(named(&path, dir(0o755)));
    }
    let error = transfer(failure(Sync::Script(script), |_| {}).await);
    assert!(matches!(error, TransferError::TooLarge { limit: 200, .. }), "{error}");
}

#[tokio::test]
async fn an_unknown_directory_is_the_clients_error() {
    let error = failure(Sync::Refuse, |_| {}).await;
    assert!(error.to_string().contains("no access allowed to dir"), "{error}");
}

#[tokio::test]
async fn a_stream_that_ends_early_is_truncated() {
    for script in
        [vec![], vec![named("f", file(0o644, b"1"))], vec![named("f", file(0o644, b"1")), end_of_list()]]
    {
        let error = transfer(failure(Sync::ScriptThenEnd(script), |_| {}).await);
        assert!(matches!(error, TransferError::Truncated), "{error}");
    }
}
