//! Where a stream goes: to the client, to a file, to standard output.

use std::{
    collections::BTreeMap,
    fs::{File, Permissions},
    io::{self, BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use lapstrake_session::FileSink;
use tokio_util::sync::CancellationToken;

use crate::{Destination, ExportError, exporter::Client};

/// Bytes that are sent at once.
const CHUNK: usize = 256 << 10;

/// Opens `to`, has `write` write into it on a blocking thread, and completes it. After an error nothing is left there: a file appears only when it is
/// whole, and the client is told to forget its own.
pub(crate) async fn write_to(
    to: Destination,
    client: &Client<'_>,
    metadata: &BTreeMap<String, String>,
    cancel: &CancellationToken,
    write: impl FnOnce(&mut dyn Write) -> Result<(), ExportError> + Send + 'static,
) -> Result<(), ExportError> {
    let cancel = cancel.clone();
    match to {
        Destination::Session => {
            let caller = client.caller().await?;
            let sink = caller.send_file(client.number(), metadata).await?;
            let sink = ExportError::blocking(move || {
                let mut out = ToClient { sink, buffer: BytesMut::new(), failure: None, cancel };
                let written = write(&mut out)
                    .and_then(|()| out.flush().map_err(ExportError::io("write to", "the client")));
                match (written, out.failure) {
                    (Ok(()), None) => Ok(out.sink),
                    // Why the client stopped reading explains more than that it did.
                    (_, Some(failure)) => Err(failure),
                    (Err(error), None) => Err(error),
                }
            })
            .await?;
            Ok(sink.finish().await?)
        }
        Destination::Path(path) => ExportError::blocking(move || write_file(&path, &cancel, write)).await,
        Destination::Stdout => {
            ExportError::blocking(move || {
                let mut out = Cancellable {
                    out: BufWriter::with_capacity(CHUNK, io::stdout().lock()),
                    cancel: &cancel,
                };
                canceled_or(write(&mut out), &cancel)?;
                out.flush().map_err(ExportError::io("write to", "standard output"))
            })
            .await
        }
    }
}

/// Writes beside the target, then renames: whoever looks sees the old file or the new one. Links are followed, and what is no regular
/// file (`/dev/null`, a pipe) is written to as it is.
pub(crate) fn write_file(
    path: &Path,
    cancel: &CancellationToken,
    write: impl FnOnce(&mut dyn Write) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let mut mode = 0o644;
    let target = match path.metadata() {
        Ok(there) if there.is_dir() => {
            return Err(ExportError::io("write to", path)(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        Ok(there) if !there.is_file() => {
            let there = File::options().write(true).open(path).map_err(ExportError::io("open", path))?;
            return write_through(there, path, cancel, write).map(drop);
        }
        Ok(there) => {
            mode = there.permissions().mode();
            path.canonicalize().map_err(ExportError::io("follow", path))?
        }
        Err(_) => path.to_owned(),
    };
    let path = target.as_path();
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let failed = |doing| ExportError::io::<io::Error>(doing, path);
    let temporary = tempfile::Builder::new()
        .prefix(".lapstrake-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(&directory)
        .map_err(failed("create"))?;
    let temporary = write_through(temporary, path, cancel, write)?;
    temporary.as_file().sync_all().map_err(failed("flush"))?;
    temporary.persist(path).map_err(|error| failed("rename to")(error.error))?;
    File::open(&directory).and_then(|directory| directory.sync_all()).map_err(failed("flush directory of"))
}

/// Has `write` write to `out`, which is the file at `path`.
fn write_through<W: Write>(
    out: W,
    path: &Path,
    cancel: &CancellationToken,
    write: impl FnOnce(&mut dyn Write) -> Result<(), ExportError>,
) -> Result<W, ExportError> {
    let mut out = Cancellable { out: BufWriter::with_capacity(CHUNK, out), cancel };
    canceled_or(write(&mut out), cancel)?;
    out.out.into_inner().map_err(|error| ExportError::io("write", path)(error.into_error()))
}

/// An error that came of cancellation is cancellation.
pub(crate) fn canceled_or<T>(
    result: Result<T, ExportError>,
    cancel: &CancellationToken,
) -> Result<T, ExportError> {
    result.map_err(|error| if cancel.is_cancelled() { ExportError::Canceled } else { error })
}

/// A writer that fails once nobody waits any more.
pub(crate) struct Cancellable<'a, W> {
    pub(crate) out: W,
    pub(crate) cancel: &'a CancellationToken,
}

impl<W: Write> Write for Cancellable<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("canceled"));
        }
        self.out.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The client's file, from a blocking thread. What failed is kept beside the [`io::Error`] that a writer must answer with.
struct ToClient {
    sink: FileSink,
    buffer: BytesMut,
    failure: Option<ExportError>,
    cancel: CancellationToken,
}

impl ToClient {
    fn send(&mut self) -> io::Result<()> {
        let data: Bytes = self.buffer.split().freeze();
        let runtime = tokio::runtime::Handle::current();
        let (sink, cancel) = (&mut self.sink, &self.cancel);
        let sent = runtime.block_on(async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(ExportError::Canceled),
                sent = sink.write(data) => Ok(sent?),
            }
        });
        sent.map_err(|error| {
            let told = io::Error::other(error.to_string());
            self.failure.get_or_insert(error);
            told
        })
    }
}

impl Write for ToClient {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            return Err(io::Error::other("the client's file has failed"));
        }
        let count = data.len().min(CHUNK);
        self.buffer.extend_from_slice(&data[..count]);
        if self.buffer.len() >= CHUNK {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_fails_half_way_leaves_the_old_one_and_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.tar");
        std::fs::write(&path, "before").unwrap();
        let cancel = CancellationToken::new();
        let failing = |out: &mut dyn Write| {
            out.write_all(&[1; 3 * CHUNK]).map_err(ExportError::io("write", "test"))?;
            Err(ExportError::NoResults)
        };
        write_file(&path, &cancel, failing).unwrap_err();
        let canceling = |out: &mut dyn Write| {
            cancel.cancel();
            out.write_all(&[1; 3 * CHUNK]).map_err(ExportError::io("write", "test"))
        };
        assert!(matches!(write_file(&path, &cancel, canceling), Err(ExportError::Canceled)));
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    fn said(path: &Path) -> Result<(), ExportError> {
        let write = |out: &mut dyn Write| out.write_all(b"new").map_err(ExportError::io("write", "test"));
        write_file(path, &CancellationToken::new(), write)
    }

    #[test]
    fn a_link_stays_and_the_file_behind_it_is_replaced_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let (link, file) = (directory.path().join("link"), directory.path().join("file"));
        std::fs::write(&file, "before").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        said(&link).unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_regular_file_is_written_to_and_stays() {
        use std::io::Read;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        // Both ends, so that nobody waits for another.
        let mut pipe = File::options().read(true).write(true).open(&path).unwrap();
        said(&path).unwrap();
        let mut read = [0; 3];
        pipe.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"new");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
