//! The stream on its way out: written in large pieces, and hashed by a thread of its own where it is long.

use std::{
    io::{self, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use lapstrake_layerstore_oci::{Digest, Digester};

/// Bytes in a piece.
const PIECE: usize = 256 << 10;
/// Pieces of a stream: one is being filled, the others wait to be hashed or to be filled again.
const PIECES: usize = 4;
/// Most layers are shorter: then a thread costs more than it saves.
const SHORT: u64 = 1 << 20;

/// Hashes and counts what goes to `out`.
pub(super) struct Stream<W> {
    out: W,
    piece: Vec<u8>,
    filled: usize,
    /// Of the pieces before this one.
    bytes: u64,
    hash: Hash,
}

enum Hash {
    Here(Digester),
    Beside(Hasher),
}

/// A thread that hashes. It ends when nobody sends it anything more.
struct Hasher {
    full: SyncSender<(Vec<u8>, usize)>,
    hashed: Receiver<Vec<u8>>,
    thread: JoinHandle<Digester>,
}

impl<W: Write> Stream<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, piece: vec![0; PIECE], filled: 0, bytes: 0, hash: Hash::Here(Digester::sha256()) }
    }

    /// Where to read what comes next into: not empty. [`Stream::fill`] says how much of it was.
    pub(super) fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.filled == self.piece.len() {
            self.pass()?;
        }
        Ok(&mut self.piece[self.filled..])
    }

    pub(super) fn fill(&mut self, count: usize) {
        self.filled += count;
    }

    /// The digest of all of it, and its length.
    pub(super) fn finish(mut self) -> io::Result<(Digest, u64)> {
        self.flush()?;
        let digester = match self.hash {
            Hash::Here(digester) => digester,
            Hash::Beside(Hasher { full, thread, .. }) => {
                drop(full);
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
        };
        Ok((digester.finish(), self.bytes))
    }

    /// Writes and hashes what the piece has.
    fn pass(&mut self) -> io::Result<()> {
        self.out.write_all(&self.piece[..self.filled])?;
        self.bytes += self.filled as u64;
        if let Hash::Here(digester) = &self.hash
            && self.bytes > SHORT
        {
            // Without a thread it goes on here.
            if let Ok(hasher) = Hasher::start(digester.clone()) {
                self.hash = Hash::Beside(hasher);
            }
        }
        match &mut self.hash {
            Hash::Here(digester) => digester.update(&self.piece[..self.filled]),
            Hash::Beside(hasher) => hasher.hash(&mut self.piece, self.filled),
        }
        self.filled = 0;
        Ok(())
    }
}

impl Hasher {
    fn start(mut digester: Digester) -> io::Result<Self> {
        let (full, pieces) = sync_channel::<(Vec<u8>, usize)>(PIECES);
        let (free, hashed) = sync_channel(PIECES);
        for _ in 1..PIECES {
            // There is room for all.
            let _ = free.send(vec![0; PIECE]);
        }
        let thread = thread::Builder::new().name("layer-digest".to_owned()).spawn(move || {
            while let Ok((piece, filled)) = pieces.recv() {
                digester.update(&piece[..filled]);
                // Nobody fills it again: the stream has ended.
                let _ = free.send(piece);
            }
            digester
        })?;
        Ok(Self { full, hashed, thread })
    }

    /// Takes a piece and gives one that may be filled.
    fn hash(&mut self, piece: &mut Vec<u8>, filled: usize) {
        let next = self.hashed.recv().expect("the thread only ends after the sender");
        let full = std::mem::replace(piece, next);
        self.full.send((full, filled)).expect("the thread only ends after the sender");
    }
}

impl<W: Write> Write for Stream<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room()?;
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        self.fill(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass()?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_streams_are_written_and_hashed_whole() {
        let piece = PIECE as u64;
        for length in [0, 1, piece - 1, piece, piece + 1, SHORT, SHORT + 1, 9 * piece + 7] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut out = Vec::new();
            let mut stream = Stream::new(&mut out);
            // In parts of all sizes, as headers and contents come.
            for part in bytes.chunks(100_003) {
                stream.write_all(part).unwrap();
            }
            assert_eq!(stream.finish().unwrap(), (Digest::sha256_of(&bytes), length));
            assert!(out == bytes);
        }
    }

    #[test]
    fn what_cannot_be_written_ends_it() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut stream = Stream::new(Full);
        let failed = (0..3).find_map(|_| stream.write_all(&vec![0; PIECE]).err()).unwrap();
        assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    }
}
