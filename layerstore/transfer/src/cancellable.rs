//! Streams that end once nobody waits any more.

use std::io::{self, Read, Write};

use tokio_util::sync::CancellationToken;

/// A reader or writer that fails once it is cancelled.
pub(crate) struct Cancellable<'a, T> {
    pub(crate) inner: T,
    pub(crate) cancel: &'a CancellationToken,
}

impl<T> Cancellable<'_, T> {
    fn check(&self) -> io::Result<()> {
        if self.cancel.is_cancelled() { Err(io::Error::other("canceled")) } else { Ok(()) }
    }
}

impl<R: Read> Read for Cancellable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.read(buffer)
    }
}

impl<W: Write> Write for Cancellable<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.inner.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
