//! Reading and writing the tables.

use std::{sync::Arc, time::SystemTime};

use lapstrake_layerstore_store::{Metadata, StoreError};
use rusqlite::{OptionalExtension as _, Row, Transaction};

use crate::{
    BuildSummary, Listing, Mark, PackedRecipe, Place, Project,
    notes::{Former, FormerRecipe},
    record::nanos,
};

/// Recipes that are kept in all, the newest.
const RECIPES: i64 = 10_000;
/// Bytes of listings that are kept in all, the newest.
const LISTING_BYTES: i64 = 64 << 20;

fn signed(mark: Mark) -> i64 {
    mark.0.cast_signed()
}

fn mark(value: i64) -> Mark {
    Mark(value.cast_unsigned())
}

/// The recipes of a project, newest first.
pub(crate) fn former(metadata: &Metadata, project: &Project) -> Result<Former, StoreError> {
    metadata.read(|db| {
        let failed = || StoreError::metadata("look up recipes");
        let mut statement = db
            .prepare_cached(
                "SELECT seq, image, context, dockerfile, stage, position, instruction, document FROM recipe
                  WHERE image = ?1 OR context = ?2 OR dockerfile = ?3 ORDER BY seq DESC",
            )
            .map_err(failed())?;
        let values = (project.image.map(signed), project.context.map(signed), project.dockerfile.map(signed));
        let rows = statement
            .query_map(values, |row| {
                let optional = |column| row.get::<_, Option<i64>>(column).map(|value| value.map(mark));
                Ok(FormerRecipe {
                    seq: row.get(0)?,
                    project: Project { image: optional(1)?, context: optional(2)?, dockerfile: optional(3)? },
                    place: Place {
                        stage: row.get(4)?,
                        position: row.get(5)?,
                        instruction: mark(row.get(6)?),
                    },
                    document: row.get(7)?,
                })
            })
            .map_err(failed())?;
        rows.collect::<Result<_, _>>().map_err(failed())
    })
}

/// The listings of a recipe, by number of the input.
pub(crate) fn listings(metadata: &Metadata, recipe: i64) -> Result<Vec<(usize, Listing)>, StoreError> {
    let stored: Vec<(i64, Vec<u8>)> = metadata.read(|db| {
        let failed = || StoreError::metadata("look up a recipe's files");
        let mut statement = db
            .prepare_cached("SELECT input, listing FROM recipe_listing WHERE recipe = ?1")
            .map_err(failed())?;
        let rows = statement.query_map([recipe], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed())?;
        rows.collect::<Result<_, _>>().map_err(failed())
    })?;
    let read =
        |(number, bytes): (i64, Vec<u8>)| Some((usize::try_from(number).ok()?, Listing::from_bytes(&bytes)?));
    Ok(stored.into_iter().filter_map(read).collect())
}

/// Puts recipes in the place of those that their steps had before, and forgets the oldest.
pub(crate) fn put_recipes(
    txn: &Transaction,
    project: &Project,
    recipes: &[Arc<PackedRecipe>],
) -> rusqlite::Result<()> {
    let (image, context) = (project.image.map(signed), project.context.map(signed));
    // A project that has a name or a place keeps it when its Dockerfile changes.
    let dockerfile = if image.is_none() && context.is_none() { project.dockerfile.map(signed) } else { None };
    let mut forget = txn.prepare_cached(
        "DELETE FROM recipe WHERE image IS ?1 AND context IS ?2 AND (?3 IS NULL OR dockerfile = ?3)
            AND stage = ?4 AND position = ?5 AND instruction = ?6",
    )?;
    let mut insert = txn.prepare_cached(
        "INSERT INTO recipe (image, context, dockerfile, stage, position, instruction, document)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    let mut list =
        txn.prepare_cached("INSERT INTO recipe_listing (recipe, input, listing) VALUES (?1, ?2, ?3)")?;
    for packed in recipes {
        let PackedRecipe { place, recipe, listings } = &**packed;
        let Ok(document) = serde_json::to_string(recipe) else { continue };
        let instruction = signed(place.instruction);
        forget.execute((image, context, dockerfile, &place.stage, place.position, instruction))?;
        let marked = project.dockerfile.map(signed);
        insert.execute((image, context, marked, &place.stage, place.position, instruction, document))?;
        let seq = txn.last_insert_rowid();
        for (number, listing) in listings {
            list.execute((seq, i64::try_from(*number).unwrap_or(i64::MAX), listing))?;
        }
    }
    txn.execute(
        "DELETE FROM recipe WHERE seq <= (SELECT seq FROM recipe ORDER BY seq DESC LIMIT 1 OFFSET ?1)",
        [RECIPES],
    )?;
    txn.execute(
        "DELETE FROM recipe_listing WHERE recipe IN (
            SELECT recipe FROM (SELECT recipe, sum(length(listing)) OVER (ORDER BY recipe DESC) AS bytes FROM recipe_listing)
             WHERE bytes > ?1)",
        [LISTING_BYTES],
    )?;
    Ok(())
}

/// Writes a build's row, new or again.
pub(crate) fn put_build(
    txn: &Transaction,
    summary: &BuildSummary,
    vertices: Option<&[u8]>,
) -> rusqlite::Result<()> {
    let json = to_json(summary)?;
    txn.prepare_cached(
        "INSERT INTO history_build (id, created, completed, log_bytes, summary, vertices, log_digest)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (id) DO UPDATE SET completed = excluded.completed, log_bytes = excluded.log_bytes,
            summary = excluded.summary, vertices = excluded.vertices, log_digest = excluded.log_digest",
    )?
    .execute((
        &summary.id,
        nanos::of(summary.created),
        summary.completed.map(nanos::of),
        summary.log_bytes.map(u64::cast_signed),
        json,
        vertices,
        summary.log.as_ref().map(|log| &log.digest),
    ))?;
    Ok(())
}

/// Writes a document of a build that has a row; one that is there already stays.
pub(crate) fn put_attachment(txn: &Transaction, id: &str, digest: &str, data: &[u8]) -> rusqlite::Result<()> {
    txn.prepare_cached("INSERT OR IGNORE INTO history_attachment (build, digest, data) VALUES (?1, ?2, ?3)")?
        .execute((id, digest, data))?;
    Ok(())
}

/// A document, whosever it is.
pub(crate) fn attachment(metadata: &Metadata, digest: &str) -> Result<Option<Vec<u8>>, StoreError> {
    metadata.read(|db| {
        let select = "SELECT data FROM history_attachment WHERE digest = ?1 LIMIT 1";
        let found = db.query_row(select, [digest], |row| row.get(0)).optional();
        found.map_err(StoreError::metadata("look up a build's document"))
    })
}

/// The build whose log has this digest.
pub(crate) fn build_of_log(metadata: &Metadata, digest: &str) -> Result<Option<String>, StoreError> {
    metadata.read(|db| {
        let select = "SELECT id FROM history_build WHERE log_digest = ?1 LIMIT 1";
        let found = db.query_row(select, [digest], |row| row.get(0)).optional();
        found.map_err(StoreError::metadata("look up a build's log"))
    })
}

/// Changes a build's row, and counts the change. Whether there is one.
pub(crate) fn change_build(
    txn: &Transaction,
    id: &str,
    pinned: Option<bool>,
    summary: Option<&BuildSummary>,
) -> rusqlite::Result<bool> {
    let json = summary.map(to_json).transpose()?;
    let changed = txn.execute(
        "UPDATE history_build SET generation = generation + 1, pinned = coalesce(?2, pinned), summary = coalesce(?3, summary)
          WHERE id = ?1",
        (id, pinned, json),
    )?;
    Ok(changed > 0)
}

/// Writes the row of a build that begins, unless it has one.
pub(crate) fn begin_build(txn: &Transaction, summary: &BuildSummary) -> rusqlite::Result<()> {
    let values = (&summary.id, nanos::of(summary.created), to_json(summary)?);
    txn.prepare_cached("INSERT OR IGNORE INTO history_build (id, created, summary) VALUES (?1, ?2, ?3)")?
        .execute(values)?;
    Ok(())
}

fn to_json(summary: &BuildSummary) -> rusqlite::Result<String> {
    serde_json::to_string(summary).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// A build's summary as it is stored.
pub(crate) struct BuildRow {
    pub(crate) id: String,
    pub(crate) summary: String,
    pub(crate) pinned: bool,
    pub(crate) generation: u32,
}

/// All builds, newest first.
pub(crate) fn builds(metadata: &Metadata) -> Result<Vec<BuildRow>, StoreError> {
    let select = "SELECT id, summary, pinned, generation FROM history_build ORDER BY created DESC, id";
    newest_first(metadata, select, build_row)
}

fn build_row(row: &Row<'_>) -> rusqlite::Result<BuildRow> {
    Ok(BuildRow { id: row.get(0)?, summary: row.get(1)?, pinned: row.get(2)?, generation: row.get(3)? })
}

/// What a build takes.
pub(crate) struct BuildSize {
    pub(crate) id: String,
    pub(crate) created: SystemTime,
    pub(crate) log_bytes: Option<u64>,
    pub(crate) pinned: bool,
}

/// What all builds take, newest first.
pub(crate) fn sizes(metadata: &Metadata) -> Result<Vec<BuildSize>, StoreError> {
    let row = |row: &Row<'_>| {
        Ok(BuildSize {
            id: row.get(0)?,
            created: nanos::time(row.get(1)?),
            log_bytes: row.get::<_, Option<i64>>(2)?.map(i64::cast_unsigned),
            pinned: row.get(3)?,
        })
    };
    newest_first(metadata, SIZES, row)
}

/// Asked after each build: an index answers it, so that no build's record is read.
const SIZES: &str = "SELECT id, created, log_bytes, pinned FROM history_build ORDER BY created DESC, id";

fn newest_first<T>(
    metadata: &Metadata,
    select: &str,
    row: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    metadata.read(|db| {
        let failed = || StoreError::metadata("list builds");
        let mut statement = db.prepare_cached(select).map_err(failed())?;
        let rows = statement.query_map([], row).map_err(failed())?;
        rows.collect::<Result<_, _>>().map_err(failed())
    })
}

/// A build's summary and vertices, as they are stored.
pub(crate) type StoredBuild = (BuildRow, Option<Vec<u8>>);

/// One build.
pub(crate) fn build(metadata: &Metadata, id: &str) -> Result<Option<StoredBuild>, StoreError> {
    metadata.read(|db| {
        let select = "SELECT id, summary, pinned, generation, vertices FROM history_build WHERE id = ?1";
        db.query_row(select, [id], |row| Ok((build_row(row)?, row.get(4)?)))
            .optional()
            .map_err(StoreError::metadata("look up a build"))
    })
}

/// Drops builds.
pub(crate) fn drop_builds(metadata: &Metadata, ids: &[String]) -> Result<(), StoreError> {
    metadata.write_lazily(|txn| {
        for id in ids {
            txn.execute("DELETE FROM history_build WHERE id = ?1", [id])
                .map_err(StoreError::metadata("drop a build"))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use lapstrake_layerstore_store::LocalStore;

    use super::*;

    #[test]
    fn what_builds_take_is_known_without_reading_them() {
        let root = tempfile::tempdir().unwrap();
        let metadata = LocalStore::open(root.path()).unwrap().metadata;
        metadata.migrate("history", crate::schema::STEPS).unwrap();
        let plan = metadata.read(|db| {
            let explain = format!("EXPLAIN QUERY PLAN {SIZES}");
            let mut statement = db.prepare(&explain).unwrap();
            let steps = statement.query_map([], |row| row.get::<_, String>(3)).unwrap();
            Ok(steps.collect::<Result<Vec<_>, _>>().unwrap())
        });
        assert_eq!(plan.unwrap(), ["SCAN history_build USING COVERING INDEX history_build_size"]);
    }
}
