//! Content digests, and adapters that compute them while bytes pass.

use std::{
    fmt,
    io::{self, Read, Write},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

use crate::OciError;

/// The hash algorithms of the OCI image specification that registries and stores use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256: what nearly everything uses.
    Sha256,
    /// SHA-512: accepted for content made elsewhere.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// How many hex characters a digest of this algorithm has.
    pub fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A validated content digest, `sha256:<64 lower-case hex>` or `sha512:<128>`. Cloning is cheap.
///
/// The bytes it is a digest *of* differ by use: blobs are named by the digest of what is stored (compressed), a
/// [`crate::DiffId`] by the uncompressed tar.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Arc<str>);

impl Digest {
    /// Hashes `bytes` with SHA-256.
    pub fn sha256_of(bytes: impl AsRef<[u8]>) -> Digest {
        let mut d = Digester::sha256();
        d.update(bytes.as_ref());
        d.finish()
    }

    /// A digest from a finished SHA-256 hash.
    pub fn from_sha256(hash: [u8; 32]) -> Digest {
        let mut text = *b"sha256:................................................................";
        hex::encode_to_slice(hash, &mut text[7..]).expect("two characters for each of 32 bytes");
        Digest(std::str::from_utf8(&text).expect("hex is ASCII").into())
    }

    /// Parses `algorithm:hex`, in go-digest's words on failure.
    pub fn parse(s: &str) -> Result<Digest, OciError> {
        let Some((alg, hex)) = s.split_once(':').filter(|(a, h)| !a.is_empty() && !h.is_empty()) else {
            return Err(OciError::DigestFormat(s.to_owned()));
        };
        let alg = match alg {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ if is_digest_shaped(alg, hex) => return Err(OciError::DigestUnsupported(s.to_owned())),
            _ => return Err(OciError::DigestFormat(s.to_owned())),
        };
        if hex.len() != alg.hex_len() {
            return Err(OciError::DigestLength(s.to_owned()));
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(OciError::DigestFormat(s.to_owned()));
        }
        Ok(Digest(s.into()))
    }

    /// Which hash this is.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha512:") { Algorithm::Sha512 } else { Algorithm::Sha256 }
    }

    /// The part after the colon.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The first 12 hex characters, as Docker abbreviates ids.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    /// The whole text, `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// go-digest's general pattern: the algorithm may have `+._-` separators, the value is base64url-like.
fn is_digest_shaped(alg: &str, value: &str) -> bool {
    alg.split(['+', '.', '_', '-'])
        .all(|c| !c.is_empty() && c.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'))
}

/// Maps by digest answer questions by text.
impl std::borrow::Borrow<str> for Digest {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = OciError;
    fn from_str(s: &str) -> Result<Digest, OciError> {
        Digest::parse(s)
    }
}

impl TryFrom<&str> for Digest {
    type Error = OciError;
    fn try_from(s: &str) -> Result<Digest, OciError> {
        Digest::parse(s)
    }
}

impl TryFrom<String> for Digest {
    type Error = OciError;
    fn try_from(s: String) -> Result<Digest, OciError> {
        Digest::parse(&s)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Digest, D::Error> {
        let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Digest::parse(&s).map_err(serde::de::Error::custom)
    }
}

/// A running hash. It is an [`io::Write`] that never fails.
#[derive(Debug, Clone)]
pub struct Digester(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Digester {
    /// Starts a SHA-256.
    pub fn sha256() -> Digester {
        Digester::new(Algorithm::Sha256)
    }

    /// Starts a hash of the given algorithm, to verify content named by it.
    pub fn new(algorithm: Algorithm) -> Digester {
        Digester(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(h) => h.update(bytes),
            State::Sha512(h) => h.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(h) => Digest::from_sha256(h.finalize().into()),
            State::Sha512(h) => Digest(format!("sha512:{}", hex::encode(h.finalize())).into()),
        }
    }
}

impl Default for Digester {
    fn default() -> Self {
        Digester::sha256()
    }
}

impl Write for Digester {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.update(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes and counts what is read through it.
#[derive(Debug)]
pub struct DigestReader<R> {
    inner: R,
    digester: Digester,
    bytes: u64,
}

impl<R> DigestReader<R> {
    /// Wraps `inner`, hashing with SHA-256.
    pub fn new(inner: R) -> Self {
        Self::with_algorithm(inner, Algorithm::Sha256)
    }

    /// Wraps `inner`, hashing with `algorithm`.
    pub fn with_algorithm(inner: R, algorithm: Algorithm) -> Self {
        DigestReader { inner, digester: Digester::new(algorithm), bytes: 0 }
    }

    /// How many bytes have passed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The reader, the digest of what has passed and its length in bytes.
    pub fn finish(self) -> (R, Digest, u64) {
        (self.inner, self.digester.finish(), self.bytes)
    }
}

impl<R: Read> Read for DigestReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.digester.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
}

/// Hashes and counts what is written through it; only bytes that the inner writer accepted are counted.
#[derive(Debug)]
pub struct DigestWriter<W> {
    inner: W,
    digester: Digester,
    bytes: u64,
}

impl<W> DigestWriter<W> {
    /// Wraps `inner`, hashing with SHA-256.
    pub fn new(inner: W) -> Self {
        Self::with_algorithm(inner, Algorithm::Sha256)
    }

    /// Wraps `inner`, hashing with `algorithm`.
    pub fn with_algorithm(inner: W, algorithm: Algorithm) -> Self {
        DigestWriter { inner, digester: Digester::new(algorithm), bytes: 0 }
    }

    /// How many bytes have passed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The wrapped writer.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// The wrapped writer; what is written to it directly is not hashed.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// The writer, the digest of what has passed and its length in bytes.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, self.digester.finish(), self.bytes)
    }
}

impl<W: Write> Write for DigestWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.digester.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
