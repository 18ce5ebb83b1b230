//! gzip on several threads, the same bytes however many there are.
//!
//! The stream is cut into blocks of fixed length; each is deflated alone and ends on a byte boundary (a sync flush), so that the pieces laid
//! end to end are one deflate stream (RFC 1951), and with a header and a trailer one gzip member (RFC 1952).

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use flate2::{Compress, Compression, Crc, FlushCompress};

/// Bytes of input in a block. Larger ones compress little better; each waits in memory.
const BLOCK: usize = 1 << 20;
/// No name, no time, unknown system: nothing that differs between two runs.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// A last, empty block with fixed codes.
const LAST_BLOCK: [u8; 2] = [0x03, 0x00];

struct Job {
    data: Vec<u8>,
    level: Compression,
    answer: SyncSender<io::Result<Vec<u8>>>,
}

/// Compresses what `produce` writes into `out`. `produce`'s own error goes before those of compressing and writing.
pub(crate) fn gzip<T, E: From<io::Error>>(
    out: &mut dyn Write,
    level: Compression,
    produce: impl FnOnce(&mut dyn Write) -> Result<T, E>,
) -> Result<T, E> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
    gzip_on(threads, out, level, produce)
}

fn gzip_on<T, E: From<io::Error>>(
    threads: usize,
    out: &mut dyn Write,
    level: Compression,
    produce: impl FnOnce(&mut dyn Write) -> Result<T, E>,
) -> Result<T, E> {
    let (jobs, waiting) = sync_channel::<Job>(threads);
    let waiting = Arc::new(Mutex::new(waiting));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let waiting = Arc::clone(&waiting);
            scope.spawn(move || work(&waiting));
        }
        let mut writer = Writer {
            out,
            jobs,
            level,
            running: VecDeque::new(),
            most: threads * 2,
            block: Vec::with_capacity(BLOCK),
            crc: Crc::new(),
        };
        writer.out.write_all(&HEADER)?;
        let produced = produce(&mut writer)?;
        writer.finish()?;
        Ok(produced)
    })
}

fn work(waiting: &Mutex<Receiver<Job>>) {
    loop {
        // A thread that panicked left nothing half-done behind the lock.
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // Nobody waits any more: the stream has failed.
        let _ = job.answer.send(deflate(&job.data, job.level));
    }
}

fn deflate(data: &[u8], level: Compression) -> io::Result<Vec<u8>> {
    let mut compress = Compress::new(level, false);
    let mut out = Vec::with_capacity(data.len() / 2 + 1024);
    loop {
        let done = usize::try_from(compress.total_in()).map_err(io::Error::other)?;
        compress.compress_vec(&data[done..], &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
        // Room left means that the flush is complete.
        if compress.total_in() == data.len() as u64 && out.len() < out.capacity() {
            return Ok(out);
        }
        out.reserve(data.len() / 2 + 1024);
    }
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    jobs: SyncSender<Job>,
    level: Compression,
    running: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    most: usize,
    block: Vec<u8>,
    crc: Crc,
}

impl Writer<'_> {
    fn submit(&mut self) -> io::Result<()> {
        let data = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        let (answer, result) = sync_channel(1);
        self.jobs
            .send(Job { data, level: self.level, answer })
            .map_err(|_| io::Error::other("compressing threads ended"))?;
        self.running.push_back(result);
        if self.running.len() >= self.most { self.collect() } else { Ok(()) }
    }

    fn collect(&mut self) -> io::Result<()> {
        let Some(oldest) = self.running.pop_front() else { return Ok(()) };
        let deflated = oldest.recv().map_err(|_| io::Error::other("a compressing thread ended"))??;
        self.out.write_all(&deflated)
    }

    fn finish(mut self) -> io::Result<()> {
        if !self.block.is_empty() {
            self.submit()?;
        }
        while !self.running.is_empty() {
            self.collect()?;
        }
        self.out.write_all(&LAST_BLOCK)?;
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        // The length modulo 2^32, as the format has it.
        self.out.write_all(&self.crc.amount().to_le_bytes())
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = data.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&data[..count]);
        self.crc.update(&data[..count]);
        if self.block.len() == BLOCK {
            self.submit()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn compressed(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        gzip::<(), io::Error>(&mut out, Compression::default(), |out| out.write_all(data)).unwrap();
        out
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(next).collect()
    }

    #[test]
    fn any_length_comes_back_as_one_member() {
        for len in [0, 1, 511, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7] {
            for data in [vec![b'a'; len], noise(len)] {
                let mut plain = Vec::new();
                flate2::read::GzDecoder::new(compressed(&data).as_slice()).read_to_end(&mut plain).unwrap();
                assert_eq!(plain.len(), len);
                assert!(plain == data);
            }
        }
    }

    #[test]
    fn the_bytes_do_not_depend_on_how_many_threads_there_are() {
        let data = noise(9 * BLOCK / 2);
        let on = |threads| {
            let mut out = Vec::new();
            let level = Compression::default();
            gzip_on::<(), io::Error>(threads, &mut out, level, |out| out.write_all(&data)).unwrap();
            out
        };
        assert!(on(1) == on(2));
        assert!(on(1) == on(7));
    }

    #[test]
    fn a_producer_that_fails_fails_the_stream() {
        let mut out = Vec::new();
        let result = gzip::<(), io::Error>(&mut out, Compression::default(), |out| {
            out.write_all(&[0; 3 * BLOCK])?;
            Err(io::Error::other("producer"))
        });
        assert_eq!(result.unwrap_err().to_string(), "producer");
    }
}
