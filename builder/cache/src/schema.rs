//! The cache's tables in `metadata.db`.
//!
//! ```text
//!  cache_entry                                 what df lists and prune removes
//!   ├ snapshot ► snapshot.name  ┐ exactly one of the two: a built tree, or a directory that builds write to
//!   ├ key      ► snapshot.key   ┘
//!   ├ kind, description
//!   ├ created, used             nanoseconds since 1970
//!   ├ uses                      how often it was used after it was made
//!   └ mount                     id of the cache mount, for those; one that begins with a NUL is the daemon's own
//!
//!  cache_result                                results of keys
//!   ├ seq                       newest last
//!   ├ key
//!   └ snapshot ► cache_entry    goes with the entry; NULL is the empty tree
//!
//!  cache_link                                  how a key of an input leads to a key of an op
//!   └ source, input, output, digest, selector ('' for none), target
//! ```
//!
//!  cache_context                               what a client's directory was when it was last sent
//!   ├ shared_key                which directory
//!   ├ snapshot ► cache_entry    its files
//!   └ listing                   an encoded listing, by which the next transfer knows what changed
//!
//! Links are kept as long as a result can be reached through them; see `prune`.

/// Only ever appended to.
pub(crate) const STEPS: &[&str] = &["
    CREATE TABLE cache_entry (
        seq         INTEGER PRIMARY KEY,
        snapshot    TEXT UNIQUE REFERENCES snapshot (name) ON DELETE CASCADE,
        key         TEXT UNIQUE REFERENCES snapshot (key) ON DELETE CASCADE,
        kind        TEXT NOT NULL,
        description TEXT NOT NULL,
        created     INTEGER NOT NULL,
        used        INTEGER NOT NULL,
        uses        INTEGER NOT NULL,
        mount       TEXT,
        CHECK ((snapshot IS NULL) <> (key IS NULL))
    ) STRICT;
    CREATE INDEX cache_entry_mount ON cache_entry (mount) WHERE mount IS NOT NULL;

    CREATE TABLE cache_result (
        seq      INTEGER PRIMARY KEY,
        key      TEXT NOT NULL,
        snapshot TEXT REFERENCES cache_entry (snapshot) ON DELETE CASCADE,
        UNIQUE (key, snapshot)
    ) STRICT;
    CREATE INDEX cache_result_snapshot ON cache_result (snapshot);

    CREATE TABLE cache_link (
        source   TEXT NOT NULL,
        input    INTEGER NOT NULL,
        output   INTEGER NOT NULL,
        digest   TEXT NOT NULL,
        selector TEXT NOT NULL,
        target   TEXT NOT NULL,
        PRIMARY KEY (source, digest, input, output, selector, target)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX cache_link_target ON cache_link (target);

    CREATE TABLE cache_context (
        shared_key TEXT PRIMARY KEY,
        snapshot   TEXT NOT NULL REFERENCES cache_entry (snapshot) ON DELETE CASCADE,
        listing    BLOB NOT NULL
    ) STRICT;
    CREATE INDEX cache_context_snapshot ON cache_context (snapshot);
"];
