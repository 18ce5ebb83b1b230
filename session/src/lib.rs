//! Live client sessions: registry, and typed callers for filesync, auth, secrets, ssh and uploads.
