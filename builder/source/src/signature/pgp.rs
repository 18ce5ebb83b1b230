//! Detached OpenPGP signatures, with BuildKit's rules (`util/pgpsign`): strong hashes and keys only; a key counts that its owner made for signing and
//! has not revoked, and that was valid when it signed.

use std::{
    io::{Cursor, Read},
    time::{Duration, SystemTime},
};

use pgp::{
    composed::{Deserializable, DetachedSignature, SignedPublicKey, SignedPublicSubKey},
    crypto::{hash::HashAlgorithm, public_key::PublicKeyAlgorithm},
    packet::{Signature, SignatureType, SubpacketData},
    ser::Serialize,
    types::{KeyDetails, PublicParams, Tag, VerifyingKey},
};

use super::Demands;

const BLOCK: &str = "-----BEGIN PGP ";
/// A signature may be so much from the future: clocks differ.
const CLOCKS: Duration = Duration::from_secs(5 * 60);
/// Shorter RSA keys are not believed, in bits.
const MIN_RSA: u16 = 2048;
/// Keys that have one id and are tried; the content is read for each.
const MAX_TRIES: usize = 4;

/// Verifies a signature by a key of one of the armored certificates in `keys`. `content` is opened once for each key that may have made it.
pub(crate) fn verify_pgp<R: Read>(
    content: impl Fn() -> std::io::Result<R>,
    signature: &[u8],
    keys: &str,
    demands: Demands,
) -> Result<(), String> {
    let failed = |why: String| format!("failed to verify pgp signature: {why}");
    let (signature, _) = DetachedSignature::from_armor_single(Cursor::new(signature))
        .map_err(|error| failed(format!("failed to decode armored signature: {error}")))?;
    let signature = signature.signature;
    let certificates = certificates(keys).map_err(failed)?;
    verify(content, &signature, &certificates, demands, SystemTime::now()).map_err(failed)
}

fn verify<R: Read>(
    content: impl Fn() -> std::io::Result<R>,
    signature: &Signature,
    certificates: &[SignedPublicKey],
    demands: Demands,
    now: SystemTime,
) -> Result<(), String> {
    let made = acceptable(signature, now)?;
    // A key need not be valid any more to have signed something.
    let when = if demands.unexpired_key { now } else { made };
    if lifetime(signature.signature_expiration_time()).is_some_and(|life| made + life < when) {
        return Err("signature expired".to_owned());
    }
    let mut why = "signature made by unknown entity".to_owned();
    let mut tries = 0;
    for certificate in certificates {
        let subkeys = certificate.public_subkeys.iter();
        let keys = std::iter::once(Signer::Primary(certificate))
            .chain(subkeys.map(|subkey| Signer::Subkey(certificate, subkey)));
        for key in keys.filter(|key| key.is_named_by(signature)) {
            tries += 1;
            if tries > MAX_TRIES {
                return Err("too many keys have the signer's id".to_owned());
            }
            let checked = key.usable(when).and_then(|()| {
                let content = content().map_err(|error| error.to_string())?;
                key.verify(signature, content)
            });
            match checked {
                Ok(()) => return Ok(()),
                Err(reason) => why = reason,
            }
        }
    }
    Err(why)
}

/// Whether the signature itself is one that may be believed; when it was made.
fn acceptable(signature: &Signature, now: SystemTime) -> Result<SystemTime, String> {
    if !matches!(signature.typ(), Some(SignatureType::Binary | SignatureType::Text)) {
        return Err("it is no signature of a document".to_owned());
    }
    match signature.hash_alg() {
        Some(HashAlgorithm::Sha256 | HashAlgorithm::Sha384 | HashAlgorithm::Sha512) => {}
        other => return Err(format!("rejecting weak/unknown hash: {}", shown(other))),
    }
    match signature.config().map(|config| config.pub_alg) {
        Some(
            PublicKeyAlgorithm::EdDSALegacy
            | PublicKeyAlgorithm::ECDSA
            | PublicKeyAlgorithm::RSA
            | PublicKeyAlgorithm::RSASign,
        ) => {}
        other => return Err(format!("rejecting unsupported pubkey algorithm: {}", shown(other))),
    }
    if signature.issuer_key_id().is_empty() && signature.issuer_fingerprint().is_empty() {
        return Err("signature doesn't say who made it".to_owned());
    }
    let made: SystemTime = signature.created().ok_or("signature doesn't say when it was made")?.into();
    if made > now + CLOCKS {
        return Err("signature creation time is in the future".to_owned());
    }
    Ok(made)
}

fn shown(what: Option<impl std::fmt::Debug>) -> String {
    what.map_or_else(|| "none".to_owned(), |what| format!("{what:?}"))
}

/// Armored certificates, one after the other.
fn certificates(keys: &str) -> Result<Vec<SignedPublicKey>, String> {
    let mut found = Vec::new();
    let mut rest = keys;
    while let Some(begin) = rest.find(BLOCK) {
        let block = &rest[begin..];
        let end = block[BLOCK.len()..].find(BLOCK).map_or(block.len(), |next| BLOCK.len() + next);
        let unreadable = |error| format!("failed to read armored public key: {error}");
        let (parsed, _) = SignedPublicKey::from_armor_many(Cursor::new(&block[..end])).map_err(unreadable)?;
        for certificate in parsed {
            found.push(certificate.map_err(unreadable)?);
        }
        rest = &block[end..];
    }
    if found.is_empty() {
        return Err("failed to read armored public key: no armored data found".to_owned());
    }
    Ok(found)
}

/// A key of a certificate.
enum Signer<'a> {
    Primary(&'a SignedPublicKey),
    Subkey(&'a SignedPublicKey, &'a SignedPublicSubKey),
}

impl Signer<'_> {
    fn is_named_by(&self, signature: &Signature) -> bool {
        let (id, fingerprint) = match self {
            Self::Primary(key) => (key.legacy_key_id(), key.fingerprint()),
            Self::Subkey(_, key) => (key.legacy_key_id(), key.fingerprint()),
        };
        signature.issuer_key_id().contains(&&id) || signature.issuer_fingerprint().contains(&&fingerprint)
    }

    fn verify(&self, signature: &Signature, content: impl Read) -> Result<(), String> {
        let verified = match self {
            Self::Primary(key) => signature.verify(&key.primary_key, content),
            Self::Subkey(_, key) => signature.verify(&key.key, content),
        };
        verified.map_err(|error| error.to_string())
    }

    /// Whether what the owner said of the key lets it sign at that time.
    fn usable(&self, when: SystemTime) -> Result<(), String> {
        match self {
            Self::Primary(certificate) => {
                let said = usable_certificate(certificate, when)?;
                if may_sign(said) { Ok(()) } else { Err("the key is not for signing".to_owned()) }
            }
            Self::Subkey(certificate, subkey) => {
                usable_certificate(certificate, when)?;
                let primary = &certificate.primary_key;
                let own = |kind| {
                    let signatures = subkey.signatures.iter();
                    signatures.filter(move |signature| signature.typ() == Some(kind))
                };
                let binds =
                    |binding: &&Signature| binding.verify_subkey_binding(primary, &subkey.key).is_ok();
                if own(SignatureType::SubkeyRevocation).any(|revocation| binds(&revocation)) {
                    return Err("key revoked".to_owned());
                }
                let said = newest(own(SignatureType::SubkeyBinding).filter(binds));
                let said = said.ok_or("the subkey does not belong to its key")?;
                // The subkey must have said so as well: otherwise anybody could call it theirs.
                let agreed = said
                    .embedded_signature()
                    .is_some_and(|back| back.verify_primary_key_binding(&subkey.key, primary).is_ok());
                if !may_sign(said) || !agreed {
                    return Err("the key is not for signing".to_owned());
                }
                strong(subkey.key.public_params())?;
                unexpired(&subkey.key, said, when)
            }
        }
    }
}

/// What the owner of a certificate last said of it, if it may be believed at that time.
fn usable_certificate(certificate: &SignedPublicKey, when: SystemTime) -> Result<&Signature, String> {
    let SignedPublicKey { primary_key: key, details, .. } = certificate;
    let revoked = details.revocation_signatures.iter().find(|revocation| revocation.verify_key(key).is_ok());
    if let Some(revocation) = revoked {
        let reason = revocation.revocation_reason_string().filter(|reason| !reason.is_empty());
        let reason = reason.map(|reason| format!(": {}", String::from_utf8_lossy(reason)));
        return Err(format!("key revoked{}", reason.unwrap_or_default()));
    }
    let by_users = details.users.iter().flat_map(|user| {
        let certified = |signature: &&Signature| {
            signature.typ() != Some(SignatureType::CertRevocation)
                && signature.verify_certification(key, Tag::UserId, &user.id).is_ok()
        };
        user.signatures.iter().filter(certified)
    });
    let direct = details.direct_signatures.iter().filter(|signature| signature.verify_key(key).is_ok());
    let said = newest(by_users.chain(direct)).ok_or("the key says nothing of itself")?;
    strong(key.public_params())?;
    unexpired(key, said, when)?;
    Ok(said)
}

fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>) -> Option<&'a Signature> {
    signatures.max_by_key(|signature| signature.created())
}

/// Whether a key is for signing; one of which nothing is said is for everything.
fn may_sign(said: &Signature) -> bool {
    let mut subpackets = said.config().into_iter().flat_map(|config| config.hashed_subpackets());
    let flags = subpackets.find_map(|subpacket| match &subpacket.data {
        SubpacketData::KeyFlags(flags) => Some(flags),
        _ => None,
    });
    flags.is_none_or(|flags| flags.sign())
}

fn unexpired(key: &impl VerifyingKey, said: &Signature, when: SystemTime) -> Result<(), String> {
    let made: SystemTime = key.created_at().into();
    if made > when {
        return Err("the key is younger than the signature".to_owned());
    }
    match lifetime(said.key_expiration_time()) {
        Some(life) if made + life < when => Err("key expired".to_owned()),
        _ => Ok(()),
    }
}

/// How long something is valid; zero is for ever.
fn lifetime(said: Option<pgp::types::Duration>) -> Option<Duration> {
    said.map(Duration::from).filter(|life| !life.is_zero())
}

fn strong(key: &PublicParams) -> Result<(), String> {
    let PublicParams::RSA(rsa) = key else { return Ok(()) };
    // The modulus comes first, behind its length in bits.
    let bytes = rsa.to_bytes().map_err(|error| error.to_string())?;
    let bits = bytes.first_chunk().map_or(0, |bits| u16::from_be_bytes(*bits));
    if bits < MIN_RSA {
        return Err(format!("RSA key too short: {bits} bits"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{CONTENT, fixture};
    use super::*;

    fn check(content: &str, signature: &str, keys: &str, unexpired_key: bool) -> Result<(), String> {
        verify_pgp(|| Ok(content.as_bytes()), signature.as_bytes(), keys, Demands { unexpired_key })
    }

    #[test]
    fn what_gpg_signs_is_right_for_its_key_and_content() {
        let (alice, bob, old) = (fixture!("alice.pub"), fixture!("bob.pub"), fixture!("old.pub"));
        let all = [bob, old, alice].concat();
        for (signature, keys) in [
            (fixture!("alice.asc"), alice),
            (fixture!("alice.asc"), all.as_str()),
            (fixture!("bob.asc"), bob),
            (fixture!("bob-text.asc"), bob),
            (fixture!("old.asc"), old),
        ] {
            check(CONTENT, signature, keys, false).unwrap();
            check("something else\n", signature, keys, false).unwrap_err();
        }
        check(CONTENT, fixture!("alice.asc"), alice, true).unwrap();
        // A text's lines may end in either way.
        check("what was signed\r\n", fixture!("bob-text.asc"), bob, false).unwrap();
        check("what was signed\r\n", fixture!("bob.asc"), bob, false).unwrap_err();
    }

    #[test]
    fn a_signature_that_is_not_to_be_believed_is_refused_with_the_reason() {
        let (alice, bob) = (fixture!("alice.pub"), fixture!("bob.pub"));
        for (signature, keys, unexpired_key, expected) in [
            (fixture!("bob.asc"), alice, false, "signature made by unknown entity"),
            (fixture!("bob.asc"), fixture!("bob-revoked.pub"), false, "key revoked"),
            (fixture!("bob-sha1.asc"), bob, false, "rejecting weak/unknown hash"),
            (fixture!("bob-future.asc"), bob, false, "signature creation time is in the future"),
            (fixture!("old.asc"), fixture!("old.pub"), true, "key expired"),
            (fixture!("short.asc"), fixture!("short.pub"), false, "RSA key too short: 1024 bits"),
            (fixture!("bob.asc"), "no keys", false, "no armored data found"),
            (fixture!("bob.asc"), fixture!("bob.asc"), false, "failed to read armored public key"),
            ("nothing", bob, false, "failed to decode armored signature"),
            (bob, bob, false, "failed to decode armored signature"),
        ] {
            let why = check(CONTENT, signature, keys, unexpired_key).unwrap_err();
            assert!(why.starts_with("failed to verify pgp signature: "), "{why}");
            assert!(why.contains(expected), "{why} / {expected}");
        }
    }

    #[test]
    fn a_subkey_that_a_stranger_calls_theirs_does_not_sign_for_them() {
        let mut mallory = certificates(fixture!("bob.pub")).unwrap();
        let alice = certificates(fixture!("alice.pub")).unwrap();
        // Her signing subkey, below another's key.
        mallory[0].public_subkeys.clone_from(&alice[0].public_subkeys);
        let armored = Cursor::new(fixture!("alice.asc"));
        let signature = DetachedSignature::from_armor_single(armored).unwrap().0.signature;
        let checked = |certificates: &[SignedPublicKey]| {
            let content = || Ok(CONTENT.as_bytes());
            verify(content, &signature, certificates, Demands::default(), SystemTime::now())
        };
        checked(&alice).unwrap();
        assert_eq!(checked(&mallory).unwrap_err(), "the subkey does not belong to its key");
    }
}
