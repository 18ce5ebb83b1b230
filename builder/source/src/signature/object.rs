//! Signatures within git's commits and tags.

use super::{Demands, ssh::verify_ssh, verify_pgp};

const PGP: &[u8] = b"-----BEGIN PGP SIGNATURE-----";
const SSH: &[u8] = b"-----BEGIN SSH SIGNATURE-----";

/// Verifies the signature within a commit or a tag, as git keeps it.
pub(crate) fn verify_object(object: &[u8], keys: &str, demands: Demands) -> Result<(), String> {
    let Signed { content, signature } = split(object);
    if signature.is_empty() {
        return Err("git object is not signed".to_owned());
    }
    if signature.starts_with(PGP) {
        return verify_pgp(|| Ok(content.as_slice()), &signature, keys, demands);
    }
    if signature.starts_with(SSH) {
        return verify_ssh(&content, &signature, keys);
    }
    Err("invalid signature format".to_owned())
}

#[derive(Debug, Default)]
struct Signed {
    /// What the signature is over.
    content: Vec<u8>,
    /// Armored; empty where there is none.
    signature: Vec<u8>,
}

/// Takes an object apart: a commit's signature is a header (`gpgsig`, in SHA-256 repositories `gpgsig-sha256`), continued by lines that begin with a
/// space; a tag's is what its message ends with.
fn split(object: &[u8]) -> Signed {
    let mut signed = Signed::default();
    if object.starts_with(b"object ") {
        let mut at = 0;
        for line in object.split_inclusive(|byte| *byte == b'\n') {
            if matches!(line.strip_suffix(b"\n").unwrap_or(line), PGP | SSH) {
                break;
            }
            at += line.len();
        }
        let (content, signature) = object.split_at(at);
        return Signed { content: content.to_vec(), signature: signature.to_vec() };
    }
    let (mut in_headers, mut in_signature) = (true, false);
    for line in object.split_inclusive(|byte| *byte == b'\n') {
        in_headers &= line != b"\n";
        let begun = [&b"gpgsig "[..], b"gpgsig-sha256 "].iter().find_map(|name| line.strip_prefix(*name));
        match (in_headers, begun, line.strip_prefix(b" ")) {
            (true, Some(text), _) => {
                in_signature = true;
                signed.signature.extend(text);
            }
            (true, None, Some(text)) if in_signature => signed.signature.extend(text),
            _ => {
                in_signature = false;
                signed.content.extend(line);
            }
        }
    }
    signed
}
