//! Identities that nothing else has.

/// A fresh identity: 25 characters of base 36, as BuildKit's look.
pub fn random_id() -> String {
    const ALPHABET: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    (0..25).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
}
