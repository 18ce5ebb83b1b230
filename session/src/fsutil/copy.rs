//! A tree of this machine, received as a client's would be: the same rules for what is taken, kept and refused.

use std::{collections::VecDeque, io::Read};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{
    Destination, Received, TreeReader,
    receive::{Next, Receiver},
    wire::Packet,
};
use crate::TransferError;

/// Bytes read at once.
const CHUNK: usize = 256 * 1024;

/// Brings `destination` to the state of `tree`, as [`sync_dir`](crate::SessionCaller::sync_dir) does to that of a client's directory. Blocks.
///
/// `progress` is called with the bytes copied so far. Once `cancel` is cancelled it ends soon, with [`TransferError::Truncated`]; the destination
/// is then good for nothing but another transfer.
///
/// # Errors
/// [`TransferError`], as for a client's tree; what `tree` itself fails with is [`TransferError::Io`].
pub fn copy_tree(
    tree: &dyn TreeReader,
    destination: Destination,
    cancel: &CancellationToken,
    progress: &mut dyn FnMut(u64),
) -> Result<Received, TransferError> {
    let mut copy = Copy {
        tree,
        receiver: Receiver::new(destination)?,
        asked: VecDeque::new(),
        files: Vec::new(),
        cancel,
        buffer: vec![0; CHUNK],
        bytes: 0,
        progress,
    };
    let mut failure = None;
    let walked = tree.walk(&mut |entry| {
        let path = entry.path.clone();
        copy.files.push(path);
        copy.entry(Packet::stat(Some(entry.to_wire()))).map_err(|error| {
            failure = Some(error);
            std::io::Error::other("stopped")
        })
    });
    match (failure, walked) {
        (Some(error), _) => return Err(error),
        (None, Err(source)) => {
            let path = copy.files.last().cloned().unwrap_or_default();
            return Err(TransferError::Io { operation: "list directory, after", path, source });
        }
        (None, Ok(())) => {}
    }
    copy.entry(Packet::stat(None))?;
    let Copy { receiver, bytes, .. } = copy;
    Ok(Received { bytes_transferred: bytes, ..receiver.complete()? })
}

struct Copy<'a> {
    tree: &'a dyn TreeReader,
    receiver: Receiver,
    /// Files asked for: positions in `files`. As many as the receiver has in flight.
    asked: VecDeque<u32>,
    /// Paths of the entries listed so far.
    files: Vec<std::path::PathBuf>,
    cancel: &'a CancellationToken,
    buffer: Vec<u8>,
    bytes: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Copy<'_> {
    /// Announces an entry, or the list's end, and sends what is asked for.
    fn entry(&mut self, packet: Packet) -> Result<(), TransferError> {
        self.feed(packet)?;
        while let Some(id) = self.asked.pop_front() {
            self.send(id)?;
        }
        Ok(())
    }

    fn feed(&mut self, packet: Packet) -> Result<Next, TransferError> {
        if self.cancel.is_cancelled() {
            return Err(TransferError::Truncated);
        }
        let asked = &mut self.asked;
        self.receiver.feed(packet, &mut |request| asked.push_back(request.id))
    }

    fn send(&mut self, id: u32) -> Result<(), TransferError> {
        let path = self.files[id as usize].clone();
        let failed = |source| TransferError::Io { operation: "read", path: path.clone(), source };
        let mut file = self.tree.open(&path).map_err(failed)?;
        loop {
            let length = match file.read(&mut self.buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(error)),
            };
            // Nothing read is the protocol's end of a file, too.
            let data = Bytes::copy_from_slice(&self.buffer[..length]);
            self.feed(Packet::data(id, data))?;
            if length == 0 {
                return Ok(());
            }
            self.bytes = self.bytes.saturating_add(length as u64);
            (self.progress)(self.bytes);
        }
    }
}
