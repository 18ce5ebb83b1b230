//! Directory trees over a session, in fsutil's protocol.
//!
//! The sender lists the tree (`STAT`, sorted, each entry after its directory), the receiver asks for the files it wants (`REQ`), the sender
//! answers with their contents (`DATA`, an empty one ends a file), and the receiver says `FIN` when it has all. Either may say `ERR`.

mod path;
mod stat;
mod wire;

pub use stat::{FileKind, FileStat, TreeEntry};
