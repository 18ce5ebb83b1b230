//! Compressed streams: several members, padding, garbage, damage.

use std::io::{self, Read, Write as _};

use lapstrake_layerstore_diff::{Compression, DiffError, ErrorKind, Limits, apply, decompress};
use lapstrake_layerstore_store::DiffSource;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 1).unwrap()
}

type Compress = fn(&[u8]) -> Vec<u8>;

const FORMATS: [(Compression, Compress); 4] = [
    (Compression::Gzip, gzip),
    (Compression::Bzip2, bzip2),
    (Compression::Xz, xz),
    (Compression::Zstd, zstd),
];

fn plain(stream: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    decompress(stream).unwrap().read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn each_format_is_known_and_read() {
    let text = "some text, again and again. ".repeat(10_000).into_bytes();
    for (format, compress) in FORMATS {
        let stream = compress(&text);
        assert_eq!(decompress(stream.as_slice()).unwrap().compression(), format);
        assert_eq!(plain(&stream).unwrap(), text, "{format:?}");
        assert_eq!(plain(&compress(b"")).unwrap(), b"", "{format:?}");
    }
    for text in [&b""[..], b"B", b"\x1f\x8b", b"plain text"] {
        assert_eq!(decompress(text).unwrap().compression(), Compression::None);
        assert_eq!(plain(text).unwrap(), text);
    }
}

#[test]
fn members_follow_each_other_and_zeros_may_follow() {
    for (format, compress) in FORMATS {
        let two = [compress(b"one, "), compress(b"two")].concat();
        assert_eq!(plain(&two).unwrap(), b"one, two", "{format:?}");
        if matches!(format, Compression::Gzip | Compression::Bzip2 | Compression::Xz) {
            // xz pads to a multiple of four bytes.
            let padded = [two.as_slice(), &[0; 1000]].concat();
            assert_eq!(plain(&padded).unwrap(), b"one, two", "{format:?}");
        }
    }
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz", &zstd(b"content")].concat();
    assert_eq!(plain(&skippable).unwrap(), b"content");
    let between = [zstd(b"one, "), [0x5f, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9].to_vec(), zstd(b"two")].concat();
    assert_eq!(plain(&between).unwrap(), b"one, two");
}

#[test]
fn garbage_damage_and_cuts_are_errors() {
    let mut text = vec![0u8; 300_000];
    let mut state = 1u32;
    for byte in &mut text {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    for (format, compress) in FORMATS {
        let good = compress(&text);
        plain(&[good.as_slice(), b"garbage!"].concat()).expect_err(&format!("{format:?}: garbage"));
        plain(&good[..good.len() - 10]).expect_err(&format!("{format:?}: cut"));
        let mut damaged = good.clone();
        damaged[good.len() / 2] ^= 0xff;
        // zstd writes no checksum of its own accord: damage may go unseen there, which is what digests are for.
        if format != Compression::Zstd {
            plain(&damaged).expect_err(&format!("{format:?}: damage"));
        }
    }
}

#[test]
fn a_damaged_layer_is_the_archives_fault() {
    for (format, compress) in FORMATS {
        let good = compress(&[7; 100_000]);
        let target = tempfile::tempdir().unwrap();
        let upper = target.path().to_path_buf();
        let target = DiffSource::OverlayUpper { upper, lower: Vec::new(), deletions: None };
        let cut = &good[..good.len() / 2];
        let error = apply(decompress(cut).unwrap(), &target, &Limits::default()).unwrap_err();
        assert!(
            matches!(error, DiffError::Decompress { .. } | DiffError::BadHeader { .. }),
            "{format:?}: {error:?}"
        );
        assert_eq!(error.kind(), ErrorKind::Archive);
    }
}

#[test]
fn the_streams_own_error_comes_through_unchanged() {
    struct Failing(io::Cursor<Vec<u8>>);
    impl Read for Failing {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buf)? {
                0 => Err(io::Error::new(io::ErrorKind::TimedOut, "the other side sleeps")),
                count => Ok(count),
            }
        }
    }
    for (format, compress) in FORMATS {
        let mut bytes = compress(&[7; 100_000]);
        bytes.truncate(bytes.len() / 2);
        let mut reader = decompress(Failing(io::Cursor::new(bytes))).unwrap();
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (io::ErrorKind::TimedOut, "the other side sleeps"),
            "{format:?}"
        );
    }
}

#[test]
fn windows_larger_than_the_limit_are_refused() {
    let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.long_distance_matching(true).unwrap();
    encoder.window_log(30).unwrap();
    encoder.write_all(b"wants a gigabyte").unwrap();
    let stream = encoder.finish().unwrap();
    plain(&stream).unwrap_err();
    // An xz block's header: size, flags, filter 0x21 with one byte of properties, padding, CRC-32.
    let mut stream = xz(b"wants four gigabytes");
    assert_eq!(stream[14..16], [0x21, 1]);
    stream[16] = 40;
    let end = 12 + (usize::from(stream[12]) + 1) * 4 - 4;
    let mut crc = flate2::Crc::new();
    crc.update(&stream[12..end]);
    stream[end..end + 4].copy_from_slice(&crc.sum().to_le_bytes());
    let error = plain(&stream).unwrap_err();
    assert!(error.to_string().contains("memory"), "{error}");
}
