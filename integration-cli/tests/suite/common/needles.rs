//! Looking for secrets in all that is left.

use std::{fs, io::Read, path::Path};

use base64::Engine as _;
use lapstrake_integration_cli::Daemon;

use super::send;

/// A secret in every form in which it is looked for.
pub(crate) struct Needles(Vec<(String, Vec<u8>)>);

impl Needles {
    pub(crate) fn new(secrets: &[&str]) -> Self {
        let mut forms = Vec::new();
        for secret in secrets {
            forms.push(((*secret).to_owned(), secret.as_bytes().to_vec()));
            // As base64 has it, wherever it begins: without what depends on its neighbours.
            for before in 0..3 {
                let text = [vec![b' '; before], secret.as_bytes().to_vec()].concat();
                let coded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(text);
                forms.push((format!("{secret} as base64"), coded.as_bytes()[4..coded.len() - 4].to_vec()));
            }
            let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
            forms.push((format!("{secret} as hex"), hex.into_bytes()));
        }
        Self(forms)
    }

    /// Looks into bytes, and into what they are compressed or packed from. How many bytes were seen.
    pub(crate) fn assert_not_in(&self, place: &str, bytes: &[u8]) -> usize {
        for (name, form) in &self.0 {
            assert!(!contains(bytes, form), "{name} is in {place}");
        }
        let mut seen = bytes.len();
        let mut unpacked = Vec::new();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut unpacked).unwrap();
            seen += self.assert_not_in(&format!("{place}, unpacked"), &unpacked);
        } else if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            zstd::Decoder::new(bytes).unwrap().read_to_end(&mut unpacked).unwrap();
            seen += self.assert_not_in(&format!("{place}, unpacked"), &unpacked);
        } else if bytes.get(257..262) == Some(b"ustar") {
            for entry in tar::Archive::new(bytes).entries().unwrap() {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                let mut data = Vec::new();
                entry.read_to_end(&mut data).unwrap();
                // Not packed itself, it has been looked at.
                if data.starts_with(&[0x1f, 0x8b]) || data.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
                    seen += self.assert_not_in(&format!("{path} in {place}"), &data);
                }
            }
        }
        seen
    }

    /// Looks into every file below a directory, and at its name. How many bytes were seen.
    pub(crate) fn assert_not_below(&self, directory: &Path) -> usize {
        let mut seen = 0;
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            self.assert_not_in("a name", path.display().to_string().as_bytes());
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => seen += self.assert_not_below(&path),
                kind if kind.is_file() => {
                    seen += self.assert_not_in(&path.display().to_string(), &fs::read(&path).unwrap());
                }
                _ => {}
            }
        }
        seen
    }
}

/// What a daemon tells of its builds, and its log; each with where it is told.
pub(crate) async fn told_by(daemon: &Daemon) -> Vec<(String, Vec<u8>)> {
    let mut told = Vec::new();
    let builds = send(daemon, "GET", "/lapstrake/v1/builds", &[], Vec::new()).await.body;
    let listed: serde_json::Value = serde_json::from_str(&builds).unwrap();
    for build in listed["builds"].as_array().unwrap() {
        let id = build["id"].as_str().unwrap();
        for path in [format!("/lapstrake/v1/builds/{id}"), format!("/lapstrake/v1/builds/{id}/log")] {
            told.push((path.clone(), send(daemon, "GET", &path, &[], Vec::new()).await.body.into_bytes()));
        }
    }
    told.push(("builds".to_owned(), builds.into_bytes()));
    told.push(("the daemon's log".to_owned(), daemon.log().into_bytes()));
    told
}

/// Looks by the first byte: the haystacks are large.
fn contains(bytes: &[u8], form: &[u8]) -> bool {
    let (mut rest, first) = (bytes, form[0]);
    while let Some(at) = rest.iter().position(|byte| *byte == first) {
        rest = &rest[at..];
        if rest.starts_with(form) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}
