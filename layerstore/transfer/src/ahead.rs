//! Reading on a thread of its own: what is expensive to read (decompressed) is read while what came before is worked on.

use std::{
    io::{self, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
};

/// Bytes that are handed over at once.
const PIECE: usize = 256 << 10;
/// Pieces that there are: being read, waiting, and being worked on.
const PIECES: usize = 4;

/// Has `work` read `reader` through another thread, which has ended when this returns: `work` lets go of what it is given.
pub(crate) fn read_ahead<T>(reader: impl Read + Send, work: impl FnOnce(Ahead) -> T) -> T {
    let (full, pieces) = sync_channel(PIECES);
    let (used, free) = sync_channel(PIECES);
    for _ in 1..PIECES {
        // There is room for all.
        let _ = used.send(Vec::new());
    }
    std::thread::scope(|scope| {
        scope.spawn(move || read(reader, &full, &free));
        work(Ahead { pieces, used, piece: Vec::new(), at: 0, is_broken: false })
    })
}

/// Reads until the end, the first error, or nobody waits any more.
fn read(mut reader: impl Read, full: &SyncSender<io::Result<Vec<u8>>>, free: &Receiver<Vec<u8>>) {
    while let Ok(mut piece) = free.recv() {
        piece.clear();
        let read = reader.by_ref().take(PIECE as u64).read_to_end(&mut piece);
        if matches!(read, Ok(0)) || full.send(Ok(piece)).is_err() {
            return;
        }
        if let Err(error) = read {
            let _ = full.send(Err(error));
            return;
        }
    }
}

/// What was read ahead.
pub(crate) struct Ahead {
    pieces: Receiver<io::Result<Vec<u8>>>,
    used: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    /// How much of the piece was given out.
    at: usize,
    is_broken: bool,
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            if self.is_broken {
                // No end of the stream, whoever asks again.
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            match self.pieces.recv() {
                Ok(Ok(piece)) => {
                    let used = std::mem::replace(&mut self.piece, piece);
                    self.at = 0;
                    // It has ended, maybe.
                    let _ = self.used.send(used);
                }
                Ok(Err(error)) => {
                    self.is_broken = true;
                    return Err(error);
                }
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_any_length_arrives_in_order() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 7 * PIECE + 5] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut read = Vec::new();
            read_ahead(bytes.as_slice(), |mut ahead| ahead.read_to_end(&mut read)).unwrap();
            assert!(read == bytes);
        }
    }

    #[test]
    fn an_error_comes_after_what_was_read_before_it_and_is_no_end() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let bytes = vec![7; PIECE + 3];
        read_ahead(bytes.as_slice().chain(Broken), |mut ahead| {
            let mut read = Vec::new();
            assert_eq!(ahead.read_to_end(&mut read).unwrap_err().to_string(), "broken");
            assert!(read == bytes);
            assert!(ahead.read(&mut [0]).is_err());
        });
    }

    #[test]
    fn who_stops_early_ends_the_other_thread() {
        let read = read_ahead(io::repeat(1), |mut ahead| ahead.read(&mut [0; 10]));
        assert_eq!(read.unwrap(), 10);
    }
}
