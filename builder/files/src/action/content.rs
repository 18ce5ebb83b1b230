//! Copying what is in files.

use std::{io, os::fd::BorrowedFd, path::Path};

use rustix::{
    fs::{SeekFrom, Stat},
    io::Errno,
};
use tokio_util::sync::CancellationToken;

use crate::FilesError;

/// Cancellation is looked at after this many bytes.
const CHUNK: usize = 16 << 20;
const BUFFER: usize = 256 << 10;

/// Copies contents in the cheapest way that the file systems allow, which it finds out once.
pub(crate) struct Copying<'a> {
    cancel: &'a CancellationToken,
    clones: bool,
    ranges: bool,
    buffer: Vec<u8>,
}

impl<'a> Copying<'a> {
    pub(crate) fn new(cancel: &'a CancellationToken) -> Self {
        Self { cancel, clones: true, ranges: true, buffer: Vec::new() }
    }

    pub(crate) fn check(&self) -> Result<(), FilesError> {
        if self.cancel.is_cancelled() { Err(FilesError::Canceled) } else { Ok(()) }
    }

    /// Copies a file into an empty one. Holes stay holes.
    pub(crate) fn copy(
        &mut self,
        from: BorrowedFd<'_>,
        stat: &Stat,
        to: BorrowedFd<'_>,
        path: &Path,
    ) -> Result<(), FilesError> {
        let size = stat.st_size.cast_unsigned();
        if size == 0 {
            return Ok(());
        }
        if self.clones {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                // Two file systems, or one that cannot: it will not for the next file either.
                Err(_) => self.clones = false,
            }
        }
        let failed = |error: io::Error| FilesError::io("copy", path)(error);
        if stat.st_blocks.cast_unsigned() * 512 >= size {
            return self.segment(from, to, 0, size, path);
        }
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL) => at,
                Err(errno) => return Err(failed(errno.into())),
            };
            let end = match rustix::fs::seek(from, SeekFrom::Hole(data)) {
                Ok(end) => end.min(size),
                Err(Errno::INVAL) => size,
                Err(errno) => return Err(failed(errno.into())),
            };
            self.segment(from, to, data, end, path)?;
            at = end;
        }
        rustix::fs::ftruncate(to, size).map_err(FilesError::io("truncate", path))
    }

    fn segment(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        start: u64,
        end: u64,
        path: &Path,
    ) -> Result<(), FilesError> {
        let failed = |error: io::Error| FilesError::io("copy", path)(error);
        let (mut read, mut written) = (start, start);
        while self.ranges && read < end {
            self.check()?;
            let length = usize::try_from(end - read).unwrap_or(CHUNK).min(CHUNK);
            match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), length) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) | Err(Errno::INTR) => {}
                // What kernels say when this pair of files cannot be copied so; the slow way tells real errors.
                Err(
                    Errno::NOSYS | Errno::XDEV | Errno::PERM | Errno::IO | Errno::OPNOTSUPP | Errno::INVAL,
                ) if read == start => self.ranges = false,
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        if read == end {
            return Ok(());
        }
        self.buffer.resize(BUFFER, 0);
        while read < end {
            self.check()?;
            let length = usize::try_from(end - read).unwrap_or(BUFFER).min(BUFFER);
            let count = match rustix::io::pread(from, &mut self.buffer[..length], read) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Err(Errno::INTR) => continue,
                count => count.map_err(|errno| failed(errno.into()))?,
            };
            let mut rest = &self.buffer[..count];
            while !rest.is_empty() {
                match rustix::io::pwrite(to, rest, written) {
                    Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
                    Ok(count) => {
                        rest = &rest[count..];
                        written += count as u64;
                    }
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(failed(errno.into())),
                }
            }
            read += count as u64;
        }
        Ok(())
    }
}

/// A reader that fails once the work is cancelled.
pub(super) struct Cancellable<'a, R> {
    pub(super) inner: R,
    pub(super) cancel: &'a CancellationToken,
}

impl<R: io::Read> io::Read for Cancellable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("canceled"));
        }
        self.inner.read(buffer)
    }
}
