//! The history's tables in `metadata.db`.
//!
//! ```text
//!  history_build               one row per build, from its beginning on
//!   ├ id                       also the name of its log: history/<id>.zst
//!   ├ created                  nanoseconds since 1970
//!   ├ completed                NULL while it runs
//!   ├ log_bytes                of the log on disk; NULL without one
//!   ├ log_digest               of the log as it is told to others, unpacked
//!   ├ pinned                   1: it is kept until somebody removes it
//!   ├ generation               how often it was changed after its end
//!   ├ summary                  JSON of a BuildSummary
//!   └ vertices                 zstd of the JSON of its VertexRecords; NULL while it runs
//!                              (what all builds take is read from an index, without these)
//!
//!  history_attachment          documents of builds
//!   ├ build ► history_build
//!   ├ digest                   by which it is found
//!   └ data                     zstd of it
//!
//!  recipe                      what decided what a step made when it last ran in its place
//!   ├ seq                      newest last
//!   ├ image, context, dockerfile   marks of the project, NULL where not known
//!   ├ stage, position, instruction
//!   └ document                 JSON of a Recipe
//!
//!  recipe_listing              files of a recipe's inputs
//!   └ recipe ► recipe, input (its number), listing (packed)
//! ```
//!
//! All of it may be lost without harm to anything else: writes are lazy.

/// Only ever appended to.
pub(crate) const STEPS: &[&str] = &[
    "
    CREATE TABLE history_build (
        id        TEXT PRIMARY KEY,
        created   INTEGER NOT NULL,
        completed INTEGER,
        log_bytes INTEGER,
        summary   TEXT NOT NULL,
        vertices  BLOB
    ) STRICT;
    CREATE INDEX history_build_created ON history_build (created);

    CREATE TABLE recipe (
        seq         INTEGER PRIMARY KEY,
        image       INTEGER,
        context     INTEGER,
        dockerfile  INTEGER,
        stage       TEXT NOT NULL,
        position    INTEGER NOT NULL,
        instruction INTEGER NOT NULL,
        document    TEXT NOT NULL
    ) STRICT;
    CREATE INDEX recipe_image ON recipe (image);
    CREATE INDEX recipe_context ON recipe (context);
    CREATE INDEX recipe_dockerfile ON recipe (dockerfile);

    CREATE TABLE recipe_listing (
        recipe  INTEGER NOT NULL REFERENCES recipe (seq) ON DELETE CASCADE,
        input   INTEGER NOT NULL,
        listing BLOB NOT NULL,
        PRIMARY KEY (recipe, input)
    ) STRICT;
",
    "
    ALTER TABLE history_build ADD COLUMN log_digest TEXT;
    ALTER TABLE history_build ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE history_build ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX history_build_log ON history_build (log_digest);

    CREATE TABLE history_attachment (
        build  TEXT NOT NULL REFERENCES history_build (id) ON DELETE CASCADE,
        digest TEXT NOT NULL,
        data   BLOB NOT NULL,
        PRIMARY KEY (build, digest)
    ) STRICT;
    CREATE INDEX history_attachment_digest ON history_attachment (digest);
",
    "
    DROP INDEX history_build_created;
    CREATE INDEX history_build_size ON history_build (created DESC, id, log_bytes, pinned);
",
];
