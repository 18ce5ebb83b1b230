//! The packets, declared so that nothing is lost: names are bytes (the generated types want UTF-8), file data is not copied.

use std::collections::BTreeMap;

use bytes::Bytes;

/// `fsutil.types.Packet.type`.
pub(crate) mod kind {
    pub(crate) const STAT: i32 = 0;
    pub(crate) const REQ: i32 = 1;
    pub(crate) const DATA: i32 = 2;
    pub(crate) const FIN: i32 = 3;
    pub(crate) const ERR: i32 = 4;
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Packet {
    #[prost(int32, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) stat: Option<Stat>,
    #[prost(uint32, tag = "3")]
    pub(crate) id: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) data: Bytes,
}

impl Packet {
    pub(crate) fn request(id: u32) -> Self {
        Self { kind: kind::REQ, id, ..Self::default() }
    }

    pub(crate) fn fin() -> Self {
        Self { kind: kind::FIN, ..Self::default() }
    }

    pub(crate) fn error(message: String) -> Self {
        Self { kind: kind::ERR, data: message.into(), ..Self::default() }
    }

    pub(crate) fn stat(stat: Option<Stat>) -> Self {
        Self { kind: kind::STAT, stat, ..Self::default() }
    }

    pub(crate) fn data(id: u32, data: Bytes) -> Self {
        Self { kind: kind::DATA, id, data, ..Self::default() }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Stat {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) path: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(crate) mode: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) uid: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) gid: u32,
    #[prost(int64, tag = "5")]
    pub(crate) size: i64,
    #[prost(int64, tag = "6")]
    pub(crate) mod_time: i64,
    #[prost(bytes = "vec", tag = "7")]
    pub(crate) linkname: Vec<u8>,
    #[prost(int64, tag = "8")]
    pub(crate) devmajor: i64,
    #[prost(int64, tag = "9")]
    pub(crate) devminor: i64,
    /// On the wire a map is a repeated message of key and value.
    #[prost(message, repeated, tag = "10")]
    pub(crate) xattrs: Vec<Xattr>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Xattr {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

impl Stat {
    pub(crate) fn xattr_map(xattrs: Vec<Xattr>) -> BTreeMap<Vec<u8>, Vec<u8>> {
        xattrs.into_iter().map(|x| (x.key, x.value)).collect()
    }
}

/// Go's `os.FileMode` bits, which is what `Stat.mode` holds.
pub(crate) mod go_mode {
    pub(crate) const DIR: u32 = 1 << 31;
    pub(crate) const SYMLINK: u32 = 1 << 27;
    pub(crate) const DEVICE: u32 = 1 << 26;
    pub(crate) const NAMED_PIPE: u32 = 1 << 25;
    pub(crate) const SOCKET: u32 = 1 << 24;
    pub(crate) const SETUID: u32 = 1 << 23;
    pub(crate) const SETGID: u32 = 1 << 22;
    pub(crate) const CHAR_DEVICE: u32 = 1 << 21;
    pub(crate) const STICKY: u32 = 1 << 20;
    pub(crate) const IRREGULAR: u32 = 1 << 19;
    /// The bits that say what a thing is; a regular file has none.
    pub(crate) const TYPE: u32 = DIR | SYMLINK | DEVICE | NAMED_PIPE | SOCKET | CHAR_DEVICE | IRREGULAR;
}
