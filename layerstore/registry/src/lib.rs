//! Registry client: resolve, pull, push, auth, mirrors.
