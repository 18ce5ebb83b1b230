//! Layer records in the metadata database.

use lapstrake_layerstore_oci::{ChainId, Descriptor, DiffId, Digest};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, types::ValueRef};

use super::{
    LocalContent, Metadata,
    records::{BELOW, exists},
    schema,
};
use crate::{ContentStore, Layer, LayerStore, SnapshotName, StoreError};

/// [`LayerStore`] in `metadata.db`.
///
/// Written lazily: losing a record to a power cut costs computing a digest again, and an image, which is flushed, makes the records
/// before it durable.
#[derive(Debug, Clone)]
pub struct LocalLayers {
    metadata: Metadata,
    content: LocalContent,
}

impl LocalLayers {
    pub(super) fn new(metadata: Metadata, content: LocalContent) -> Self {
        Self { metadata, content }
    }

    fn one(&self, sql: &str, id: &str) -> Result<Option<Layer>, StoreError> {
        self.metadata.read(|db| layer(&self.metadata, db, sql, id))
    }

    fn insert(&self, txn: &Transaction, layer: &Layer) -> Result<(), StoreError> {
        let size = schema::size("layer", &layer.snapshot, layer.size)?;
        match by_snapshot(&self.metadata, txn, &layer.snapshot)? {
            Some(known) if known == *layer => return Ok(()),
            Some(_) => return Err(StoreError::already_exists("layer of snapshot", &layer.snapshot)),
            None => {}
        }
        if !exists(txn, "SELECT 1 FROM snapshot WHERE name = ?1", layer.snapshot.as_str())? {
            return Err(StoreError::not_found("snapshot", &layer.snapshot));
        }
        let columns = (layer.snapshot.as_str(), layer.diff_id.as_str(), layer.chain_id.as_str(), size);
        txn.prepare_cached("INSERT INTO layer (snapshot, diff_id, chain_id, size) VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut insert| insert.execute(columns))
            .map_err(StoreError::metadata("record layer"))?;
        Ok(())
    }
}

impl LayerStore for LocalLayers {
    fn by_snapshot(&self, snapshot: &SnapshotName) -> Result<Option<Layer>, StoreError> {
        self.one(BY_SNAPSHOT, snapshot.as_str())
    }

    fn below(&self, top: &SnapshotName) -> Result<Vec<(SnapshotName, Option<Layer>)>, StoreError> {
        let sql = format!(
            "{BELOW} SELECT name, diff_id, chain_id, size FROM below LEFT JOIN layer ON layer.snapshot = name ORDER BY seq DESC"
        );
        let below: Vec<_> = self.metadata.read(|db| {
            let failed = || StoreError::metadata("read layers");
            let mut select = db.prepare_cached(&sql).map_err(failed())?;
            let mut rows = select.query([top.as_str()]).map_err(failed())?;
            let mut below = Vec::new();
            while let Some(row) = rows.next().map_err(failed())? {
                let name = SnapshotName::new(row.get::<_, String>(0).map_err(failed())?);
                let is_layer = row.get_ref(1).map_err(failed())? != ValueRef::Null;
                let columns = is_layer.then(|| columns(row)).transpose().map_err(failed())?;
                let layer =
                    columns.map(|columns| parse(&self.metadata, name.clone(), columns)).transpose()?;
                below.push((name, layer));
            }
            Ok(below)
        })?;
        if below.is_empty() { Err(StoreError::not_found("snapshot", top)) } else { Ok(below) }
    }

    fn by_chain(&self, chain: &ChainId) -> Result<Option<Layer>, StoreError> {
        let sql =
            "SELECT snapshot, diff_id, chain_id, size FROM layer WHERE chain_id = ?1 ORDER BY rowid LIMIT 1";
        self.one(sql, chain.as_str())
    }

    fn record(&self, layers: &[Layer]) -> Result<(), StoreError> {
        self.metadata.write_lazily(|txn| layers.iter().try_for_each(|layer| self.insert(txn, layer)))
    }

    fn blobs(&self, diff_id: &DiffId) -> Result<Vec<Descriptor>, StoreError> {
        let documents: Vec<String> = self.metadata.read(|db| {
            db.prepare_cached("SELECT descriptor FROM layer_blob WHERE diff_id = ?1 ORDER BY seq")
                .and_then(|mut select| select.query_map([diff_id.as_str()], |row| row.get(0))?.collect())
                .map_err(StoreError::metadata("read blobs of layer"))
        })?;
        let mut blobs = Vec::with_capacity(documents.len());
        for document in documents {
            let blob: Descriptor =
                schema::column(&self.metadata, "layer_blob.descriptor", serde_json::from_str(&document))?;
            // Files may have been deleted by hand: then there is no such blob.
            if self.content.info(&blob.digest)?.is_some() {
                blobs.push(blob);
            }
        }
        Ok(blobs)
    }

    fn blob_layers(&self, digest: &Digest) -> Result<Vec<DiffId>, StoreError> {
        let diff_ids: Vec<String> = self.metadata.read(|db| {
            db.prepare_cached("SELECT diff_id FROM layer_blob WHERE digest = ?1 ORDER BY seq")
                .and_then(|mut select| select.query_map([digest.as_str()], |row| row.get(0))?.collect())
                .map_err(StoreError::metadata("read layers of blob"))
        })?;
        let parse = |id: &String| schema::column(&self.metadata, "layer_blob.diff_id", Digest::parse(id));
        diff_ids.iter().map(|id| parse(id).map(DiffId)).collect()
    }

    fn record_blob(&self, diff_id: &DiffId, blob: &Descriptor) -> Result<(), StoreError> {
        let known = self.content.info(&blob.digest)?;
        let known = known.ok_or_else(|| StoreError::not_found("blob", &blob.digest))?;
        if known.size != blob.size {
            return Err(StoreError::SizeMismatch {
                digest: blob.digest.clone(),
                expected: blob.size,
                actual: known.size,
            });
        }
        let document = json(blob)?;
        self.metadata.write_lazily(|txn| {
            txn.prepare_cached(
                "INSERT INTO layer_blob (diff_id, digest, descriptor) VALUES (?1, ?2, ?3)
                 ON CONFLICT (diff_id, digest) DO NOTHING",
            )
            .and_then(|mut insert| insert.execute((diff_id.as_str(), blob.digest.as_str(), document)))
            .map_err(StoreError::metadata("record blob"))?;
            Ok(())
        })
    }
}

const BY_SNAPSHOT: &str = "SELECT snapshot, diff_id, chain_id, size FROM layer WHERE snapshot = ?1";

pub(super) fn by_snapshot(
    metadata: &Metadata,
    db: &Connection,
    snapshot: &SnapshotName,
) -> Result<Option<Layer>, StoreError> {
    layer(metadata, db, BY_SNAPSHOT, snapshot.as_str())
}

fn layer(metadata: &Metadata, db: &Connection, sql: &str, id: &str) -> Result<Option<Layer>, StoreError> {
    let row: Option<(String, Columns)> = db
        .prepare_cached(sql)
        .and_then(|mut select| select.query_row([id], |row| Ok((row.get(0)?, columns(row)?))).optional())
        .map_err(StoreError::metadata("read layer"))?;
    row.map(|(snapshot, columns)| parse(metadata, SnapshotName::new(snapshot), columns)).transpose()
}

/// A layer's diff id, chain id and size, as they are stored.
type Columns = (String, String, i64);

/// Of a row that has the snapshot first.
fn columns(row: &Row<'_>) -> rusqlite::Result<Columns> {
    Ok((row.get(1)?, row.get(2)?, row.get(3)?))
}

fn parse(
    metadata: &Metadata,
    snapshot: SnapshotName,
    (diff_id, chain_id, size): Columns,
) -> Result<Layer, StoreError> {
    Ok(Layer {
        snapshot,
        diff_id: DiffId(schema::column(metadata, "layer.diff_id", Digest::parse(&diff_id))?),
        chain_id: ChainId(schema::column(metadata, "layer.chain_id", Digest::parse(&chain_id))?),
        size: schema::column(metadata, "layer.size", u64::try_from(size))?,
    })
}

/// A descriptor for a column.
pub(super) fn json(descriptor: &Descriptor) -> Result<String, StoreError> {
    serde_json::to_string(descriptor).map_err(|error| StoreError::Malformed {
        kind: "descriptor",
        id: descriptor.digest.to_string(),
        source: lapstrake_layerstore_oci::OciError::Json { what: "descriptor", reason: error.to_string() },
    })
}
