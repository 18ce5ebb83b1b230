//! The beginning of a connection, before hyper can tell what is wrong with it.
//!
//! **It must say something before long.** hyper times a request's headers, but first its HTTP version is told from the connection's first
//! bytes, and nobody times those: a client that connects and stays silent would hold its place for ever.
//!
//! **Its request line is taken as Go's server takes it.** Quotation marks and angle brackets have to be escaped in a URL; Moby takes them as
//! they are, and people write `curl '…?filters={"dangling":…}'`. hyper refuses such a request before anybody could say why. So the first line
//! is escaped on its way in. Later requests of the same connection are a library's, which escapes by itself.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// Bytes read at a time while the first line lasts.
const PIECE: usize = 1024;

/// Fails to be read when nothing came within the time, and escapes what a request line should not contain.
pub(crate) struct Opening<I> {
    io: I,
    /// Gone once something came.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Whether the first line has not ended yet.
    in_line: bool,
    /// Escaped bytes that did not fit into the reader's buffer, and how many of them it has.
    waiting: Vec<u8>,
    taken: usize,
}

impl<I> Opening<I> {
    /// Waits `patience` for the first byte. Called within a tokio runtime.
    pub(crate) fn new(io: I, patience: Duration) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(patience)));
        Self { io, deadline, in_line: true, waiting: Vec::new(), taken: 0 }
    }

    fn escape(&mut self, piece: &[u8]) {
        for byte in piece {
            match byte {
                b'"' | b'<' | b'>' if self.in_line => {
                    self.waiting.extend_from_slice(format!("%{byte:02X}").as_bytes());
                }
                _ => self.waiting.push(*byte),
            }
            self.in_line &= *byte != b'\n';
        }
    }
}

impl<I: AsyncRead + Unpin> Opening<I> {
    fn poll_read_in_time(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.deadline = None;
            return read;
        }
        match &mut self.deadline {
            Some(deadline) => deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            None => Poll::Pending,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Opening<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.taken == self.waiting.len() {
            if !self.in_line {
                return self.poll_read_in_time(cx, buf);
            }
            let mut piece = [0; PIECE];
            let mut read = ReadBuf::new(&mut piece);
            ready!(self.poll_read_in_time(cx, &mut read))?;
            self.waiting.clear();
            self.taken = 0;
            self.escape(read.filled());
        }
        let rest = &self.waiting[self.taken..];
        let fits = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..fits]);
        self.taken += fits;
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Opening<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn only_the_first_line_is_escaped_however_it_is_cut() {
        let long = "\"".repeat(3 * PIECE);
        let sent = format!("GET /x?a={{\"b\":<{long}>}} HTTP/1.1\r\nX: \"<>\r\n\r\n\"body\"");
        let told = format!(
            "GET /x?a={{%22b%22:%3C{}%3E}} HTTP/1.1\r\nX: \"<>\r\n\r\n\"body\"",
            "%22".repeat(3 * PIECE)
        );
        for size in [1, 2, 5, 700, 100_000] {
            let mut opening = Opening::new(sent.as_bytes(), Duration::MAX);
            let mut got = Vec::new();
            let mut piece = vec![0; size];
            loop {
                match opening.read(&mut piece).await.unwrap() {
                    0 => break,
                    read => got.extend_from_slice(&piece[..read]),
                }
            }
            assert_eq!(String::from_utf8(got).unwrap(), told, "{size}");
        }
    }
    #[tokio::test]
    async fn who_says_nothing_in_time_is_not_waited_for() {
        let (_client, server) = tokio::io::duplex(64);
        let mut silent = Opening::new(server, Duration::ZERO);
        assert_eq!(silent.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);

        let (mut client, server) = tokio::io::duplex(64);
        let mut begun = Opening::new(server, Duration::ZERO);
        client.write_all(b"G").await.unwrap();
        assert_eq!(begun.read_u8().await.unwrap(), b'G');
        // Whoever has said something may take its time.
        assert!(futures::poll!(Box::pin(begun.read_u8())).is_pending());
    }
}
