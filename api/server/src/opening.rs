//! The beginning of a connection, before hyper can tell what is wrong with it.
//!
//! **It must say something before long.** hyper times a request's headers, but first its HTTP version is told from the connection's first
//! bytes, and nobody times those: a client that connects and stays silent, or stops in the middle of HTTP/2's preface, would hold its place
//! for ever.
//!
//! **Its request line is taken as Go's server takes it.** Quotation marks and angle brackets have to be escaped in a URL; Moby takes them as
//! they are, and people write `curl '…?filters={"dangling":…}'`. hyper refuses such a request before anybody could say why. So the first line
//! is escaped on its way in. Later requests of the same connection are a library's, which escapes by itself.
//!
//! **Its authority is taken as Go's server takes it**, too: see [`crate::authority`].

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

use crate::authority::{AuthorityFilter, PREFACE};

/// Bytes read at a time while what comes is looked at.
const PIECE: usize = 4096;

/// Fails to be read when its HTTP version is not known within the time, and escapes what a request line should not contain.
pub(crate) struct Opening<I> {
    io: I,
    /// Gone once the version is known.
    deadline: Option<Pin<Box<Sleep>>>,
    /// How much of HTTP/2's preface has come, until then.
    preface: usize,
    /// Whether the first line has not ended yet.
    in_line: bool,
    /// Looks at the requests of HTTP/2; gone when there is nothing to look for.
    filter: Option<AuthorityFilter>,
    /// Bytes that were looked at and did not fit into the reader's buffer, and how many of them it has.
    waiting: Vec<u8>,
    taken: usize,
}

impl<I> Opening<I> {
    /// Waits `patience` for the bytes that tell the version. Called within a tokio runtime.
    pub(crate) fn new(io: I, patience: Duration) -> Self {
        let deadline = Some(Box::pin(tokio::time::sleep(patience)));
        Self {
            io,
            deadline,
            preface: 0,
            in_line: true,
            filter: Some(AuthorityFilter::new()),
            waiting: Vec::new(),
            taken: 0,
        }
    }

    fn look_at(&mut self, piece: &[u8]) {
        let rest = if self.in_line { self.escape_line(piece) } else { piece };
        match &mut self.filter {
            Some(filter) => filter.feed(rest, &mut self.waiting),
            None => self.waiting.extend_from_slice(rest),
        }
        if self.filter.as_ref().is_some_and(AuthorityFilter::is_done) {
            self.filter = None;
        }
    }

    /// Takes the first line, or a part of it; what is behind it.
    fn escape_line<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let end = piece.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let (line, rest) = piece.split_at(end.unwrap_or(piece.len()));
        self.in_line = end.is_none();
        let mut escaped = Vec::with_capacity(line.len());
        for byte in line {
            match byte {
                b'"' | b'<' | b'>' => escaped.extend_from_slice(format!("%{byte:02X}").as_bytes()),
                _ => escaped.push(*byte),
            }
        }
        match &mut self.filter {
            Some(filter) => filter.feed(&escaped, &mut self.waiting),
            None => self.waiting.append(&mut escaped),
        }
        rest
    }
}

impl<I: AsyncRead + Unpin> Opening<I> {
    fn poll_read_in_time(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            if self.deadline.is_some() {
                self.note(&buf.filled()[before..]);
            }
            return read;
        }
        match &mut self.deadline {
            Some(deadline) => deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            None => Poll::Pending,
        }
    }

    /// Whatever differs from the preface is HTTP/1, and so is the end.
    fn note(&mut self, came: &[u8]) {
        let rest = &PREFACE[self.preface..];
        if came.len() < rest.len() && rest.starts_with(came) && !came.is_empty() {
            self.preface += came.len();
        } else {
            self.deadline = None;
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
            if !self.in_line && self.filter.is_none() {
                return self.poll_read_in_time(cx, buf);
            }
            self.waiting.clear();
            self.taken = 0;
            let mut piece = [0; PIECE];
            // Of a frame that is not whole yet, nothing is told: that would be the end.
            while self.waiting.is_empty() {
                let mut read = ReadBuf::new(&mut piece);
                ready!(self.poll_read_in_time(cx, &mut read))?;
                if read.filled().is_empty() {
                    break;
                }
                self.look_at(read.filled());
            }
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

        for (beginning, is_enough) in [("P", false), ("PRI * HTTP", false), ("G", true), ("PRI /", true)] {
            let (mut client, server) = tokio::io::duplex(64);
            let mut begun = Opening::new(server, Duration::ZERO);
            client.write_all(beginning.as_bytes()).await.unwrap();
            begun.read_exact(&mut vec![0; beginning.len()]).await.unwrap();
            // Whoever has said enough may take its time.
            assert_eq!(begun.deadline.is_none(), is_enough, "{beginning}");
            if !is_enough {
                assert_eq!(begun.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut, "{beginning}");
            }
        }
    }
}
