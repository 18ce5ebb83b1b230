//! Signatures over files and over git's objects, and the keys that a client believes.
//!
//! ```text
//!   content + signature + keys ──► pgp  an OpenPGP certificate's key that may sign made it, and is neither revoked nor was expired
//!                              └─► ssh  one of the keys made it, for git
//! ```
//!
//! What is wrong is said in words; whoever asks knows of what.

mod object;
mod pgp;
mod ssh;

pub(crate) use self::{object::verify_object, pgp::verify_pgp};

/// What a client wants of a signature, besides being right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Demands {
    /// Keys that have expired by now are not believed, whatever they signed before.
    pub(crate) unexpired_key: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const CONTENT: &str = "what was signed\n";

    macro_rules! fixture {
        ($name:literal) => {
            include_str!(concat!("../../tests/fixtures/signatures/", $name))
        };
    }
    pub(super) use fixture;

    #[test]
    fn a_commit_or_a_tag_is_signed_without_its_signature() {
        let person = "A <a@example.com> 1704067200 +0000";
        let tree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        let head = format!("tree {tree}\nauthor {person}\ncommitter {person}\n");
        let keys = fixture!("ssh-ed25519.pub");
        let signature = fixture!("ssh-ed25519.sig").trim_end();
        // Over something else: it is known, and wrong.
        let within = signature.replace('\n', "\n ");
        let commit = format!("{head}gpgsig {within}\nencoding x\n\nmessage\n");
        let why = verify_object(commit.as_bytes(), keys, Demands::default()).unwrap_err();
        assert!(why.starts_with("failed to verify ssh signature"), "{why}");
        let tag = format!("object {tree}\ntype commit\ntag v1\ntagger {person}\n\nmessage\n{signature}\n");
        let why = verify_object(tag.as_bytes(), keys, Demands::default()).unwrap_err();
        assert!(why.starts_with("failed to verify ssh signature"), "{why}");
        for unsigned in [format!("{head}\nmessage\n"), format!("{head}\nx\n\n{signature}\n"), String::new()] {
            let why = verify_object(unsigned.as_bytes(), keys, Demands::default()).unwrap_err();
            assert_eq!(why, "git object is not signed");
        }
        let strange = format!("{head}gpgsig -----BEGIN SIGNED MESSAGE-----\n x\n\nmessage\n");
        let why = verify_object(strange.as_bytes(), keys, Demands::default()).unwrap_err();
        assert_eq!(why, "invalid signature format");
    }
}
