//! The `:authority` of old gRPC clients.
//!
//! Over unix sockets, BuildKit's clients up to 0.8 (buildx 0.6, buildctl) send the socket's URL as `:authority`, which RFC 9113 (8.3.1) does not
//! allow; Go's server does not mind, and h2 resets every such stream. Nobody here reads an authority, so it is replaced on its way in, where it is
//! written out: a literal of HPACK (RFC 7541, 6.2). References to it in later requests stay right, as a table that is fuller than the client
//! believes still has what the client refers to.
//!
//! A connection whose first request has the authority of all newer clients is not looked at any further.

/// What a connection of HTTP/2 begins with (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Frames with headers are no longer, as nobody was told that they may be.
const MAX_FRAME: usize = 16 << 10;

/// `localhost`, plain and in HPACK's Huffman code.
const FINE: [&[u8]; 2] = [b"\x09localhost", b"\x86\xa0\xe4\x1d\x13\x9d\x09"];
/// What others become: no longer than any, so that the table here holds at least what the client's does.
const REPLACEMENT: &[u8] = b"\x01x";

/// Reads along, and replaces. To be dropped when it [is done](Self::is_done).
pub(crate) struct AuthorityFilter(State);

enum State {
    /// So much of the preface came.
    Preface(usize),
    Head(Vec<u8>),
    /// So many bytes of a frame are left that do not matter.
    Other(usize),
    /// A frame with headers, until it is whole.
    Headers(Vec<u8>, usize),
    Done,
}

impl AuthorityFilter {
    pub(crate) fn new() -> Self {
        Self(State::Preface(0))
    }

    /// Whether all that follows is to be taken as it is.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.0, State::Done)
    }

    /// Takes what came, and puts out what is to be read.
    pub(crate) fn feed(&mut self, mut came: &[u8], out: &mut Vec<u8>) {
        while !came.is_empty() {
            match &mut self.0 {
                State::Done => {
                    out.extend_from_slice(came);
                    return;
                }
                State::Preface(matched) => {
                    let rest = &PREFACE[*matched..];
                    let same = came.iter().zip(rest).take_while(|(one, other)| one == other).count();
                    out.extend_from_slice(&came[..same]);
                    *matched += same;
                    if *matched == PREFACE.len() {
                        self.0 = State::Head(Vec::with_capacity(FRAME_HEAD));
                    } else if same < came.len() {
                        // HTTP/1.
                        self.0 = State::Done;
                    }
                    came = &came[same..];
                }
                State::Head(head) => {
                    let taken = came.len().min(FRAME_HEAD - head.len());
                    head.extend_from_slice(&came[..taken]);
                    came = &came[taken..];
                    if head.len() < FRAME_HEAD {
                        return;
                    }
                    let length =
                        usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                    if head[3] == HEADERS && length <= MAX_FRAME {
                        let frame = std::mem::take(head);
                        self.0 = State::Headers(frame, FRAME_HEAD + length);
                        self.end_frame(out);
                    } else {
                        out.append(head);
                        self.0 = State::Other(length);
                        self.end_frame(out);
                    }
                }
                State::Other(left) => {
                    let taken = came.len().min(*left);
                    out.extend_from_slice(&came[..taken]);
                    *left -= taken;
                    came = &came[taken..];
                    self.end_frame(out);
                }
                State::Headers(frame, length) => {
                    let taken = came.len().min(*length - frame.len());
                    frame.extend_from_slice(&came[..taken]);
                    came = &came[taken..];
                    self.end_frame(out);
                }
            }
        }
    }

    /// Goes on to the next frame where one is whole.
    fn end_frame(&mut self, out: &mut Vec<u8>) {
        match &self.0 {
            State::Other(0) => self.0 = State::Head(Vec::with_capacity(FRAME_HEAD)),
            State::Headers(frame, length) if frame.len() == *length => {
                let (frame, is_fine) = rewrite(frame);
                out.extend(frame);
                self.0 = if is_fine { State::Done } else { State::Head(Vec::with_capacity(FRAME_HEAD)) };
            }
            _ => {}
        }
    }
}

/// A frame with another authority, where it has one in full; and whether that was as it should be. What is malformed stays: it is for h2 to say so.
fn rewrite(frame: &[u8]) -> (Vec<u8>, bool) {
    let flags = frame[4];
    let mut start = FRAME_HEAD;
    let mut end = frame.len();
    if flags & PADDED != 0 {
        let padding = frame.get(start).map_or(0, |padding| usize::from(*padding));
        start += 1;
        end = end.saturating_sub(padding);
    }
    if flags & PRIORITY != 0 {
        start += 5;
    }
    let found = match flags & END_HEADERS != 0 && start <= end {
        true => authority(&frame[start..end]),
        false => None,
    };
    let Some((from, to)) = found.map(|(from, to)| (start + from, start + to)) else {
        return (frame.to_vec(), false);
    };
    if FINE.contains(&&frame[from..to]) {
        return (frame.to_vec(), true);
    }
    let mut written = [&frame[..from], REPLACEMENT, &frame[to..]].concat();
    let length = u32::try_from(written.len() - FRAME_HEAD).expect("frames are short").to_be_bytes();
    written[..3].copy_from_slice(&length[1..]);
    (written, false)
}

/// Where in a block of headers the value of `:authority` is, its length included.
fn authority(block: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    while let Some(first) = block.get(at) {
        // RFC 7541, 6: indexed; literal with indexing; change of the table's size; literal without indexing.
        let (name, is_literal) = match first {
            0x80.. => (integer(block, &mut at, 7)?, false),
            0x40.. => (integer(block, &mut at, 6)?, true),
            0x20.. => (integer(block, &mut at, 5)?, false),
            _ => (integer(block, &mut at, 4)?, true),
        };
        if !is_literal {
            continue;
        }
        if name == 0 {
            skip_string(block, &mut at)?;
        }
        let from = at;
        skip_string(block, &mut at)?;
        // The first entry of the static table (RFC 7541, appendix A).
        if name == 1 {
            return Some((from, at));
        }
    }
    None
}

fn skip_string(block: &[u8], at: &mut usize) -> Option<()> {
    let length = integer(block, at, 7)?;
    *at = at.checked_add(length).filter(|end| *end <= block.len())?;
    Some(())
}

/// RFC 7541, 5.1.
fn integer(block: &[u8], at: &mut usize, prefix: u32) -> Option<usize> {
    let most = (1_usize << prefix) - 1;
    let mut value = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// Everything that comes out, however it is cut; and whether no more is looked at.
    fn through(sent: &[u8]) -> (Vec<u8>, bool) {
        let mut told = None;
        for size in [1, 3, 10, 100_000] {
            let mut filter = AuthorityFilter::new();
            let mut out = Vec::new();
            sent.chunks(size).for_each(|piece| filter.feed(piece, &mut out));
            let got = (out, filter.is_done());
            assert_eq!(*told.get_or_insert(got.clone()), got, "{size}");
        }
        told.unwrap()
    }

    /// `:method POST`, and an authority that is put into the table.
    fn block(authority: &[u8]) -> Vec<u8> {
        let length = u8::try_from(authority.len()).unwrap();
        [&[0x83, 0x41, length][..], authority, b"\x04\x02/x"].concat()
    }

    #[test]
    fn a_sockets_url_becomes_something_that_may_be_there() {
        let data = frame(0, 0, b"\x41\x05hello");
        let old = block(b"unix:///run/x.sock");
        for (flags, before, after) in [
            (END_HEADERS, vec![], vec![]),
            (END_HEADERS | PRIORITY, vec![0; 5], vec![]),
            (END_HEADERS | PADDED, vec![3], vec![0; 3]),
        ] {
            let of = |block: Vec<u8>| frame(HEADERS, flags, &[before.clone(), block, after.clone()].concat());
            let sent = [PREFACE, &frame(4, 0, &[]), &of(old.clone()), &data, &of(old.clone())].concat();
            let new = of(block(b"x"));
            let told = [PREFACE, &frame(4, 0, &[]), &new, &data, &new].concat();
            assert_eq!(through(&sent), (told, false));
        }
    }

    #[test]
    fn what_is_right_is_not_looked_at_any_further() {
        for localhost in FINE {
            let block = [&[0x83, 0x41][..], localhost].concat();
            let later = frame(HEADERS, END_HEADERS, &self::block(b"unix:///x"));
            let sent = [PREFACE, &frame(HEADERS, END_HEADERS, &block), &later].concat();
            assert_eq!(through(&sent), (sent, true));
        }
        let http1 = b"POST /grpc HTTP/1.1\r\n\r\n".to_vec();
        assert_eq!(through(&http1), (http1, true));
    }

    #[test]
    fn what_is_malformed_stays_as_it_is() {
        for payload in [
            &b"\x41\xff\xff\xff\xff\xff"[..],
            b"\x41\x7f",
            b"\x41\x05abc",
            b"\x40",
            b"",
            b"\x41",
            b"\x40\x09:authorit",
        ] {
            for flags in [0, END_HEADERS, END_HEADERS | PADDED, END_HEADERS | PRIORITY | PADDED] {
                let sent = [PREFACE, &frame(HEADERS, flags, payload)].concat();
                let (out, _) = through(&sent);
                assert_eq!(out, sent, "{payload:?} {flags}");
            }
        }
    }
}
