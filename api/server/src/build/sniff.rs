//! Whether a body is an archive, or a Dockerfile alone.
//!
//! BuildKit takes either (`frontend/dockerui`, "isArchive"); the classic builder takes archives only.

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};

use crate::{ApiError, ApiErrorKind, BodyStream, body};

/// A Dockerfile that comes as a body may not be larger.
const MAX_DOCKERFILE: usize = 16 << 20;
/// A tar header.
const BLOCK: usize = 512;

/// What a body is.
pub(super) enum Sniffed {
    Archive(BodyStream),
    Dockerfile(Bytes),
}

/// Reads as much of a body as it takes to tell.
pub(super) async fn sniff(mut body: BodyStream) -> Result<Sniffed, ApiError> {
    let mut head = BytesMut::new();
    while head.len() < BLOCK {
        match body.next().await {
            Some(chunk) => head.extend_from_slice(&chunk.map_err(|error| unreadable(&error))?),
            None => break,
        }
    }
    if is_archive(&head) {
        let head = stream::iter([Ok(head.freeze())]);
        return Ok(Sniffed::Archive(body::boxed(head.chain(body))));
    }
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| unreadable(&error))?;
        if head.len() + chunk.len() > MAX_DOCKERFILE {
            let message = format!(
                "the request body is no archive, and larger than a Dockerfile may be ({MAX_DOCKERFILE} bytes)"
            );
            return Err(ApiError::new(ApiErrorKind::TooLarge, message));
        }
        head.extend_from_slice(&chunk);
    }
    Ok(Sniffed::Dockerfile(head.freeze()))
}

fn unreadable(error: &std::io::Error) -> ApiError {
    ApiError::invalid(format!("cannot read request body: {error}"))
}

/// Compressed, or a tar header with a checksum that is right, or nothing but zeros (an empty archive).
fn is_archive(head: &[u8]) -> bool {
    const COMPRESSED: [&[u8]; 4] =
        [b"BZh", &[0x1f, 0x8b, 0x08], &[0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00], &[0x28, 0xb5, 0x2f, 0xfd]];
    // An empty body is an empty archive: then the Dockerfile is missing, which is what the client should be told.
    head.is_empty() || COMPRESSED.iter().any(|magic| head.starts_with(magic)) || is_tar(head)
}

fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.get(..BLOCK) else { return false };
    if block.iter().all(|byte| *byte == 0) {
        return true;
    }
    let field = std::str::from_utf8(&block[148..156]).unwrap_or_default();
    let Ok(recorded) = u64::from_str_radix(field.trim_matches([' ', '\0']), 8) else { return false };
    // POSIX: the sum of all bytes, with the field itself taken as spaces.
    let sum: u64 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { u64::from(b' ') } else { u64::from(*byte) })
        .sum();
    sum == recorded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..10].copy_from_slice(b"Dockerfile");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum::<u64>() + 8 * u64::from(b' ');
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    async fn kind(chunks: Vec<Vec<u8>>) -> (bool, usize) {
        let chunks = chunks.into_iter().map(|chunk| Ok(Bytes::from(chunk)));
        match sniff(body::boxed(stream::iter(chunks))).await.unwrap() {
            Sniffed::Archive(mut body) => {
                let mut length = 0;
                while let Some(chunk) = body.next().await {
                    length += chunk.unwrap().len();
                }
                (true, length)
            }
            Sniffed::Dockerfile(text) => (false, text.len()),
        }
    }

    #[tokio::test]
    async fn archives_are_told_from_dockerfiles() {
        assert_eq!(kind(vec![header(), vec![1; 100]]).await, (true, 612));
        assert_eq!(kind(header().chunks(7).map(<[u8]>::to_vec).collect()).await, (true, 512));
        assert_eq!(kind(vec![vec![0x1f, 0x8b, 8, 0]]).await, (true, 4));
        assert_eq!(kind(vec![]).await, (true, 0));
        assert_eq!(kind(vec![b"FROM scratch\n".to_vec()]).await, (false, 13));
        assert_eq!(kind(vec![b"# long\n".repeat(1000)]).await, (false, 7000));
    }

    #[tokio::test]
    async fn a_huge_dockerfile_is_refused() {
        let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[b'#'; 4096])));
        let Err(error) = sniff(body::boxed(endless)).await else { panic!("accepted") };
        assert_eq!(error.kind, ApiErrorKind::TooLarge);
    }
}
