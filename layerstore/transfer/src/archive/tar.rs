//! A tar stream of a few kinds of entries, always the same bytes for the same input.

use std::io::{self, Write};

use tar::{EntryType, Header};
use tokio_util::sync::CancellationToken;

use crate::TransferError;

const BLOCK: u64 = 512;
const NAME: usize = 100;

/// Writes entries; [`ArchiveWriter::finish`] ends the archive.
pub(super) struct ArchiveWriter<'a, W> {
    out: W,
    cancel: &'a CancellationToken,
}

impl<'a, W: Write> ArchiveWriter<'a, W> {
    pub(super) fn new(out: W, cancel: &'a CancellationToken) -> Self {
        Self { out, cancel }
    }

    /// Writes a directory's entry.
    pub(super) fn directory(&mut self, name: &str, mtime: u64) -> Result<(), TransferError> {
        self.header(&format!("{name}/"), EntryType::Directory, 0o755, 0, mtime)
    }

    /// Writes a small file.
    pub(super) fn file(&mut self, name: &str, bytes: &[u8], mtime: u64) -> Result<(), TransferError> {
        self.stream(name, bytes.len() as u64, mtime, |out| {
            out.write_all(bytes).map_err(TransferError::io("write archive"))
        })?;
        Ok(())
    }

    /// Writes a file of `size` bytes, which `content` writes; returns how many it wrote, `size` or fewer. When they are fewer, the archive is
    /// damaged; when there would be more, writing fails.
    pub(super) fn stream(
        &mut self,
        name: &str,
        size: u64,
        mtime: u64,
        content: impl FnOnce(&mut dyn Write) -> Result<(), TransferError>,
    ) -> Result<u64, TransferError> {
        self.header(name, EntryType::Regular, 0o644, size, mtime)?;
        let mut body = Body { out: &mut self.out, left: size, cancel: self.cancel };
        let result = content(&mut body);
        let left = body.left;
        if self.cancel.is_cancelled() {
            return Err(TransferError::Canceled);
        }
        result?;
        self.pad(size)?;
        Ok(size - left)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> Result<(), TransferError> {
        self.write(&[0; 2 * BLOCK as usize])?;
        self.out.flush().map_err(TransferError::io("write archive"))
    }

    fn header(
        &mut self,
        name: &str,
        kind: EntryType,
        mode: u32,
        size: u64,
        mtime: u64,
    ) -> Result<(), TransferError> {
        if self.cancel.is_cancelled() {
            return Err(TransferError::Canceled);
        }
        // GNU's form, whose numbers may be larger than octal digits hold: layers over 8 GiB.
        if name.len() > NAME {
            self.write(
                Self::block("././@LongLink", EntryType::GNULongName, 0o644, name.len() as u64 + 1, 0)
                    .as_bytes(),
            )?;
            self.write(name.as_bytes())?;
            self.write(&[0])?;
            self.pad(name.len() as u64 + 1)?;
        }
        self.write(Self::block(name, kind, mode, size, mtime).as_bytes())
    }

    fn block(name: &str, kind: EntryType, mode: u32, size: u64, mtime: u64) -> Header {
        let mut header = Header::new_gnu();
        let name = &name.as_bytes()[..name.len().min(NAME)];
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header.set_mtime(mtime);
        header.set_cksum();
        header
    }

    fn pad(&mut self, size: u64) -> Result<(), TransferError> {
        let padding = (size.wrapping_neg() % BLOCK) as usize; // below 512
        self.write(&[0; BLOCK as usize][..padding])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        self.out.write_all(bytes).map_err(TransferError::io("write archive"))
    }
}

/// The content of one file, no longer than announced.
struct Body<'a, W> {
    out: &'a mut W,
    left: u64,
    cancel: &'a CancellationToken,
}

impl<W: Write> Write for Body<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("canceled"));
        }
        if data.len() as u64 > self.left {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than announced"));
        }
        let written = self.out.write(data)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
