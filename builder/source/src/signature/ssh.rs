//! Signatures by SSH keys (`PROTOCOL.sshsig`), as git makes them.

use ssh_key::{AuthorizedKeys, SshSig};

/// What git says that its signatures are for.
const NAMESPACE: &str = "git";

/// Verifies a signature by one of `keys`, which are lines as of `authorized_keys`.
pub(super) fn verify_ssh(content: &[u8], signature: &[u8], keys: &str) -> Result<(), String> {
    let signature =
        SshSig::from_pem(signature).map_err(|error| format!("failed to parse ssh signature: {error}"))?;
    if signature.namespace() != NAMESPACE {
        return Err(format!("unexpected SSH signature namespace: {:?}", signature.namespace()));
    }
    // Lines that are no keys are not what somebody is believed by.
    let mut known = AuthorizedKeys::new(keys).flatten().peekable();
    if known.peek().is_none() {
        return Err("failed to parse ssh public key".to_owned());
    }
    let made = known.find(|entry| entry.public_key().key_data() == signature.public_key());
    let Some(key) = made else {
        return Err("failed to verify ssh signature: it was made by another key".to_owned());
    };
    let verified = key.public_key().verify(NAMESPACE, content, &signature);
    verified.map_err(|error| format!("failed to verify ssh signature: {error}"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{CONTENT, fixture};
    use super::*;

    #[test]
    fn what_ssh_keygen_signs_is_right_for_its_key_and_content_and_purpose() {
        let keys = [fixture!("ssh-rsa.pub"), fixture!("ssh-ecdsa.pub"), fixture!("ssh-ed25519.pub")];
        let signatures = [fixture!("ssh-rsa.sig"), fixture!("ssh-ecdsa.sig"), fixture!("ssh-ed25519.sig")];
        let all = format!("# keys\n\n{}", keys.concat());
        for (key, signature) in keys.iter().zip(signatures) {
            for keys in [key, all.as_str()] {
                verify_ssh(CONTENT.as_bytes(), signature.as_bytes(), keys).unwrap();
            }
            let why = verify_ssh(b"another", signature.as_bytes(), key).unwrap_err();
            assert!(why.starts_with("failed to verify ssh signature"), "{why}");
        }
        let why = verify_ssh(CONTENT.as_bytes(), signatures[0].as_bytes(), keys[1]).unwrap_err();
        assert!(why.contains("another key"), "{why}");
        let why = verify_ssh(CONTENT.as_bytes(), signatures[0].as_bytes(), "no key").unwrap_err();
        assert_eq!(why, "failed to parse ssh public key");
        let file = fixture!("ssh-ed25519-file.sig");
        let why = verify_ssh(CONTENT.as_bytes(), file.as_bytes(), keys[2]).unwrap_err();
        assert_eq!(why, "unexpected SSH signature namespace: \"file\"");
        let why = verify_ssh(CONTENT.as_bytes(), b"-----BEGIN SSH SIGNATURE-----", keys[2]).unwrap_err();
        assert!(why.starts_with("failed to parse ssh signature"), "{why}");
    }
}
