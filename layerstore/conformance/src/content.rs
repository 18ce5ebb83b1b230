//! The suite of [`ContentStore`](lapstrake_layerstore_store::ContentStore).

use std::{
    collections::BTreeSet,
    io::{Read, Seek, SeekFrom, Write},
    thread,
    time::{Duration, SystemTime},
};

use lapstrake_layerstore_oci::{Algorithm, Digest, Digester};
use lapstrake_layerstore_store::{Resource, StoreError};

use crate::{Check, Fixture};

/// Each check is given a store of its own.
pub const SUITE: &[(&str, Check)] = &[
    ("a committed blob is read back whole and in part", reads_back),
    ("an empty blob is a blob", empty),
    ("a writer knows the digest before it commits", knows_digest),
    ("what is not committed is not there", dropped_writer),
    ("wrong bytes are not published", wrong_digest),
    ("a wrong length is not published", wrong_size),
    ("a blob is verified by the algorithm that it is expected by", sha512),
    ("all writers of one blob succeed", many_writers),
    ("a blob that is there stays as it is", existing),
    ("a removed blob is gone, but open readers go on", remove),
    ("removing what is not there is success", remove_absent),
    ("forgetting removes all but what a lease holds", forget),
    ("walk shows every blob once and stops when told", walk),
    ("absent blobs are not found by name", absent),
    ("a document over the limit is refused", read_small),
];

fn all(f: &Fixture) -> BTreeSet<Digest> {
    let mut all = BTreeSet::new();
    f.content
        .walk(&mut |blob| {
            assert!(all.insert(blob.digest), "no blob is shown twice");
            true
        })
        .expect("walk");
    all
}

fn read(f: &Fixture, digest: &Digest) -> Vec<u8> {
    let mut bytes = Vec::new();
    f.content.reader(digest).expect("reader").read_to_end(&mut bytes).expect("read");
    bytes
}

fn reads_back(f: &Fixture) {
    let bytes: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let before = SystemTime::now() - Duration::from_secs(2);
    let mut writer = f.content.writer().expect("writer");
    // Uneven pieces, smaller and larger than any buffer.
    let (small, large) = bytes.split_at(1000);
    small.chunks(7).for_each(|piece| writer.write_all(piece).expect("write"));
    writer.write_all(large).expect("write");
    assert_eq!(writer.offset(), bytes.len() as u64);
    let digest = writer.commit(None, Some(bytes.len() as u64)).expect("commit");
    assert_eq!(digest, Digest::sha256_of(&bytes));

    let info = f.content.info(&digest).expect("info").expect("is there");
    assert_eq!((info.digest, info.size), (digest.clone(), bytes.len() as u64));
    assert!(info.allocated >= bytes.len() as u64, "random bytes take their length on disk");
    assert!(info.created >= before && info.created <= SystemTime::now() + Duration::from_secs(2));
    let mut reader = f.content.reader(&digest).expect("reader");
    assert_eq!(reader.size(), bytes.len() as u64);
    reader.seek(SeekFrom::Start(777_777)).expect("seek");
    let mut part = [0; 100];
    reader.read_exact(&mut part).expect("read");
    assert_eq!(part, bytes[777_777..777_877]);
    assert_eq!(read(f, &digest), bytes);
}

fn empty(f: &Fixture) {
    let digest = f.content.write_small(b"").expect("write");
    assert_eq!(digest, Digest::sha256_of(b""));
    assert_eq!(read(f, &digest), b"");
}

fn knows_digest(f: &Fixture) {
    let mut writer = f.content.writer().expect("writer");
    assert_eq!(writer.digest(), Digest::sha256_of(b""));
    writer.write_all(b"abc").expect("write");
    let digest = writer.digest();
    assert_eq!(writer.commit(None, None).expect("commit"), digest);
}

fn dropped_writer(f: &Fixture) {
    let mut writer = f.content.writer().expect("writer");
    writer.write_all(b"half").expect("write");
    let digest = writer.digest();
    drop(writer);
    assert_eq!(f.content.info(&digest).expect("info"), None);
    assert!(all(f).is_empty());
}

fn wrong_digest(f: &Fixture) {
    let announced = Digest::sha256_of(b"announced");
    let mut writer = f.content.writer().expect("writer");
    writer.write_all(b"came").expect("write");
    let error = writer.commit(Some(&announced), None).expect_err("refused");
    assert!(
        matches!(&error, StoreError::DigestMismatch { expected, actual }
            if *expected == announced && *actual == Digest::sha256_of(b"came")),
        "{error}"
    );
    assert!(all(f).is_empty());
}

fn wrong_size(f: &Fixture) {
    let digest = Digest::sha256_of(b"abcdef");
    let mut writer = f.content.writer().expect("writer");
    writer.write_all(b"abc").expect("write");
    let error = writer.commit(Some(&digest), Some(6)).expect_err("refused");
    assert!(
        matches!(&error, StoreError::SizeMismatch { digest: of, expected: 6, actual: 3 } if *of == digest),
        "{error}"
    );
    assert!(all(f).is_empty());
}

fn sha512(f: &Fixture) {
    let digest_of = |bytes: &[u8]| {
        let mut digester = Digester::new(Algorithm::Sha512);
        digester.update(bytes);
        digester.finish()
    };
    let (right, wrong) = (digest_of(b"abc"), digest_of(b"abd"));
    let mut writer = f.content.writer().expect("writer");
    writer.write_all(b"abc").expect("write");
    assert!(matches!(writer.commit(Some(&wrong), None), Err(StoreError::DigestMismatch { .. })));
    let mut writer = f.content.writer().expect("writer");
    writer.write_all(b"abc").expect("write");
    assert_eq!(writer.commit(Some(&right), None).expect("commit"), right);
    assert_eq!(read(f, &right), b"abc");
    assert_eq!(all(f), BTreeSet::from([right]));
}

fn many_writers(f: &Fixture) {
    let bytes = vec![7; 100_000];
    let digest = Digest::sha256_of(&bytes);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut writer = f.content.writer().expect("writer");
                writer.write_all(&bytes).expect("write");
                assert_eq!(writer.commit(Some(&digest), Some(100_000)).expect("commit"), digest);
            });
        }
    });
    assert_eq!(read(f, &digest), bytes);
    assert_eq!(all(f), BTreeSet::from([digest]));
}

fn existing(f: &Fixture) {
    let digest = f.content.write_small(b"same").expect("write");
    let first = f.content.info(&digest).expect("info");
    assert_eq!(f.content.write_small(b"same").expect("write again"), digest);
    assert_eq!(f.content.info(&digest).expect("info"), first);
}

fn remove(f: &Fixture) {
    let digest = f.content.write_small(b"to go").expect("write");
    let mut reader = f.content.reader(&digest).expect("reader");
    f.content.remove(&digest).expect("remove");
    assert_eq!(f.content.info(&digest).expect("info"), None);
    assert!(matches!(f.content.reader(&digest), Err(StoreError::NotFound { kind: "blob", .. })));
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).expect("read");
    assert_eq!(bytes, b"to go");
    assert_eq!(f.content.write_small(b"to go").expect("write again"), digest);
    assert_eq!(read(f, &digest), b"to go");
}

fn remove_absent(f: &Fixture) {
    f.content.remove(&Digest::sha256_of(b"never")).expect("remove");
}

fn forget(f: &Fixture) {
    let (kept, gone) = (Digest::sha256_of(b"kept"), f.content.write_small(b"gone").expect("write"));
    let lease = f.leases.create();
    f.content.write_small_held(b"kept", &lease).expect("write");
    assert!(lease.holds(&Resource::Blob(kept.clone())));
    let (removed, leftovers) = f.content.forget(&[kept.clone(), gone.clone()]).expect("forget");
    assert_eq!(removed, std::slice::from_ref(&gone));
    assert_eq!(f.content.info(&gone).expect("info"), None, "gone before its file is deleted");
    // Published again before the old file is deleted: that deletion must not hit it.
    f.content.write_small(b"gone").expect("write again");
    leftovers.delete().expect("delete");
    assert_eq!(all(f), BTreeSet::from([kept, gone]));
}

fn walk(f: &Fixture) {
    let written: BTreeSet<Digest> = (0..20u8).map(|n| f.content.write_small(&[n]).expect("write")).collect();
    assert_eq!(all(f), written);
    let mut seen = 0;
    f.content
        .walk(&mut |_| {
            seen += 1;
            seen < 5
        })
        .expect("walk");
    assert_eq!(seen, 5);
}

fn absent(f: &Fixture) {
    let digest = Digest::sha256_of(b"absent");
    assert_eq!(f.content.info(&digest).expect("info"), None);
    let error = f.content.reader(&digest).err().expect("no reader");
    assert!(matches!(&error, StoreError::NotFound { kind: "blob", id } if id == digest.as_str()), "{error}");
}

fn read_small(f: &Fixture) {
    let digest = f.content.write_small(b"12345").expect("write");
    assert_eq!(f.content.read_small(&digest, 5).expect("read"), b"12345");
    assert!(matches!(f.content.read_small(&digest, 4), Err(StoreError::Invalid { kind: "blob", .. })));
}
