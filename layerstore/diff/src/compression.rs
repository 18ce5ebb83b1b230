//! Compressed streams: what they are by their first bytes, and their plain bytes.

use std::io::{self, BufRead, BufReader, Read};

use crate::DiffError;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952), one or several members.
    Gzip,
    /// bzip2, one or several streams.
    Bzip2,
    /// xz, one or several streams.
    Xz,
    /// Zstandard (RFC 8878), several frames, skippable ones among them.
    Zstd,
}

/// How many first bytes [`Compression::detect`] looks at.
const MAGIC_LEN: usize = 6;

/// The memory that an xz stream's dictionary may take; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 160 << 20;
/// log2 of the largest zstd window, so of its memory; what the zstd program allows without `--long`.
const ZSTD_WINDOW_LOG: u32 = 27;
const BUFFER: usize = 64 << 10;

impl Compression {
    /// What a stream that begins with `prefix` is; [`Compression::None`] when nothing fits.
    pub fn detect(prefix: &[u8]) -> Self {
        match prefix {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // A data frame, or a skippable frame (RFC 8878, 3.1.2) before one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// Its name as it stands in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "plain",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }
}

/// The plain bytes of a stream that may be compressed. See [`decompress`].
pub struct Decompressed<'a> {
    compression: Compression,
    inner: Box<dyn Read + Send + 'a>,
}

/// Finds out how `stream` is compressed and reads its plain bytes.
///
/// Memory is bounded whatever the stream says; how many bytes come out is not: put a limit on what reads it (see
/// [`crate::Limits`]). Zero bytes after the compressed data are ignored, anything else there is an error. A decoder's
/// errors come as [`io::ErrorKind::InvalidData`], or [`io::ErrorKind::UnexpectedEof`] when the stream is cut short.
pub fn decompress<'a>(stream: impl Read + Send + 'a) -> Result<Decompressed<'a>, DiffError> {
    let mut stream = stream;
    let mut prefix = Vec::with_capacity(MAGIC_LEN);
    stream.by_ref().take(MAGIC_LEN as u64).read_to_end(&mut prefix).map_err(DiffError::Read)?;
    let compression = Compression::detect(&prefix);
    let whole = BufReader::with_capacity(BUFFER, Source(io::Cursor::new(prefix).chain(stream)));
    decoder(compression, whole)
        .map(|inner| Decompressed { compression, inner })
        .map_err(|source| DiffError::Decompress { format: compression.name(), source })
}

fn decoder<'a>(
    compression: Compression,
    whole: impl BufRead + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(whole),
        Compression::Gzip => {
            Box::new(Members::new(whole, flate2::bufread::GzDecoder::new, |decoder| decoder.into_inner()))
        }
        Compression::Bzip2 => {
            Box::new(Members::new(whole, bzip2::bufread::BzDecoder::new, |decoder| decoder.into_inner()))
        }
        Compression::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(whole, stream))
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

impl Decompressed<'_> {
    /// How the stream is compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }
}

impl Read for Decompressed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf).map_err(|error| DecoderError::from_decoder(self.compression, error))
    }
}

/// Marks the errors of the stream under a decoder, which decoders pass on, apart from the decoder's own.
struct Source<R>(R);

#[derive(Debug)]
struct SourceError(io::Error);

impl std::fmt::Display for SourceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SourceError {}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            kind => io::Error::new(kind, SourceError(error)),
        })
    }
}

/// A decoder's own error, wrapped so that it is still known as one above [`Read`].
#[derive(Debug)]
pub(crate) struct DecoderError {
    compression: Compression,
    source: io::Error,
}

impl std::fmt::Display for DecoderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} stream: {}", self.compression.name(), self.source)
    }
}

impl std::error::Error for DecoderError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl DecoderError {
    fn from_decoder(compression: Compression, error: io::Error) -> io::Error {
        match error.downcast::<SourceError>() {
            Ok(source) => source.0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => error,
            Err(source) => {
                let kind = match source.kind() {
                    io::ErrorKind::UnexpectedEof => io::ErrorKind::UnexpectedEof,
                    _ => io::ErrorKind::InvalidData,
                };
                io::Error::new(kind, Self { compression, source })
            }
        }
    }

    /// What an error of reading a stream means: the stream is damaged, or could not be read.
    pub(crate) fn into_diff_error(error: io::Error) -> DiffError {
        match error.downcast::<Self>() {
            Ok(decoder) => {
                DiffError::Decompress { format: decoder.compression.name(), source: decoder.source }
            }
            Err(error) => DiffError::Read(error),
        }
    }
}

impl std::fmt::Debug for Decompressed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressed").field("compression", &self.compression).finish_non_exhaustive()
    }
}

/// Reads one compressed member after the other (gzip and bzip2 files may be concatenated), then zero bytes.
struct Members<R, D> {
    state: State<R, D>,
    start: fn(R) -> D,
    end: fn(D) -> R,
}

enum State<R, D> {
    Member(D),
    Between(R),
    Done,
}

impl<R: BufRead, D: Read> Members<R, D> {
    fn new(stream: R, start: fn(R) -> D, end: fn(D) -> R) -> Self {
        Self { state: State::Between(stream), start, end }
    }
}

impl<R: BufRead, D: Read> Read for Members<R, D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::Member(mut decoder) => {
                    let count = decoder.read(buf);
                    if matches!(count, Ok(0)) {
                        self.state = State::Between((self.end)(decoder));
                        continue;
                    }
                    self.state = State::Member(decoder);
                    return count;
                }
                State::Between(mut stream) => match stream.fill_buf() {
                    Err(error) => {
                        self.state = State::Between(stream);
                        return Err(error);
                    }
                    Ok([]) => return Ok(0),
                    Ok([0, ..]) => {
                        only_zeros(&mut stream)?;
                        return Ok(0);
                    }
                    // The decoder itself refuses what is no member.
                    Ok(_) => self.state = State::Member((self.start)(stream)),
                },
                State::Done => return Ok(0),
            }
        }
    }
}

/// Reads the padding that tapes and some tools leave after the last member.
fn only_zeros(stream: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = stream.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "trailing garbage"));
        }
        let len = bytes.len();
        stream.consume(len);
    }
}
