//! Images and their names in the metadata database.

use std::{collections::HashMap, time::SystemTime};

use lapstrake_layerstore_oci::{
    AnyReference, ChainId, Descriptor, DiffId, Digest, ImageConfig, ImageId, Reference,
};
use rusqlite::{Connection, Row, Transaction};

use super::{LocalContent, Metadata, layers, records::exists, schema};
use crate::{
    ContentStore, DeletedImage, ImageName, ImageRecord, ImageStore, Leases, NewImage, Resource, SnapshotName,
    StoreError,
};

/// [`ImageStore`] in `metadata.db`. An image's top snapshot cannot go before the image.
///
/// Every change is flushed before it returns. [`ImageStore::delete_image`] keeps lookups out for its moment: never call it
/// inside [`Leases::guard`].
#[derive(Debug, Clone)]
pub struct LocalImages {
    metadata: Metadata,
    content: LocalContent,
    leases: Leases,
}

impl LocalImages {
    pub(super) fn new(metadata: Metadata, content: LocalContent, leases: Leases) -> Self {
        Self { metadata, content, leases }
    }

    fn select(&self, db: &Connection, filter: Filter<'_>) -> Result<Vec<ImageRecord>, StoreError> {
        select(&self.metadata, db, filter)
    }

    /// What an image must be before it is stored.
    fn check(&self, id: &ImageId, image: &NewImage) -> Result<(), StoreError> {
        let invalid = |why| Err(StoreError::invalid("image", id, why));
        let config = ImageConfig::from_json(&image.config).map_err(|source| StoreError::Malformed {
            kind: "image",
            id: id.to_string(),
            source,
        })?;
        if config.rootfs.diff_ids != image.diff_ids {
            return invalid("its diff ids are not those in its config");
        }
        if image.top.is_some() == image.diff_ids.is_empty() {
            return invalid("it must have a top snapshot if it has layers, and only then");
        }
        if let Some(manifest) = &image.manifest
            && self.content.info(manifest)?.is_none()
        {
            return Err(StoreError::not_found("blob", manifest));
        }
        Ok(())
    }

    fn insert(&self, txn: &Transaction, id: &ImageId, image: &NewImage, now: i64) -> Result<(), StoreError> {
        if let Some(top) = &image.top {
            if !exists(txn, "SELECT 1 FROM snapshot WHERE name = ?1", top.as_str())? {
                return Err(StoreError::not_found("snapshot", top));
            }
            let layer = layers::by_snapshot(&self.metadata, txn, top)?;
            if layer.is_some_and(|layer| Some(layer.chain_id) != ChainId::of(&image.diff_ids)) {
                return Err(StoreError::invalid("image", id, "its top snapshot is of other layers"));
            }
        }
        if let Some(parent) = &image.parent
            && !exists(txn, "SELECT 1 FROM image WHERE id = ?1", parent.as_str())?
        {
            return Err(StoreError::not_found("image", parent));
        }
        let diff_ids: Vec<&str> = image.diff_ids.iter().map(DiffId::as_str).collect();
        let diff_ids = serde_json::Value::from(diff_ids).to_string();
        txn.prepare_cached(
            "INSERT INTO image (id, config, top, diff_ids, parent, manifest, stored) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .and_then(|mut insert| {
            insert.execute((
                id.as_str(),
                &image.config,
                image.top.as_ref().map(SnapshotName::as_str),
                diff_ids,
                image.parent.as_ref().map(ImageId::as_str),
                image.manifest.as_ref().map(Digest::as_str),
                now,
            ))
        })
        .map_err(StoreError::metadata("store image"))?;
        Ok(())
    }
}

impl ImageStore for LocalImages {
    fn put(&self, image: NewImage) -> Result<ImageId, StoreError> {
        let id = ImageId(Digest::sha256_of(&image.config));
        self.check(&id, &image)?;
        let now = schema::nanos(SystemTime::now());
        self.metadata.write(|txn| {
            if exists(txn, "SELECT 1 FROM image WHERE id = ?1", id.as_str())? {
                txn.prepare_cached("UPDATE image SET manifest = coalesce(manifest, ?2) WHERE id = ?1")
                    .and_then(|mut update| {
                        update.execute((id.as_str(), image.manifest.as_ref().map(Digest::as_str)))
                    })
                    .map_err(StoreError::metadata("store image"))?;
            } else {
                self.insert(txn, &id, &image, now)?;
            }
            image.names.iter().try_for_each(|name| put_name(txn, &id, name, now))
        })?;
        Ok(id)
    }

    fn get(&self, id: &ImageId) -> Result<Option<ImageRecord>, StoreError> {
        self.metadata.read(|db| Ok(self.select(db, Filter::Id(id.as_str()))?.pop()))
    }

    fn find(&self, text: &str) -> Result<ImageRecord, StoreError> {
        let meant = Reference::parse_any(text).map_err(|source| StoreError::Malformed {
            kind: "image",
            id: text.to_owned(),
            source,
        })?;
        self.metadata.read(|db| {
            let mut found = match meant {
                AnyReference::Digest(digest) => match self.select(db, Filter::Id(digest.as_str()))? {
                    none if none.is_empty() => self.select(db, Filter::Target(digest.as_str()))?,
                    found => found,
                },
                AnyReference::Name(name) => {
                    let name = key(name.with_default_tag()).to_string();
                    let named = self.select(db, Filter::Name(&name))?;
                    match id_prefix(text) {
                        Some(prefix) if named.is_empty() => self.select(db, Filter::Prefix(&prefix))?,
                        _ => named,
                    }
                }
            };
            if found.len() > 1 {
                return Err(StoreError::Ambiguous { kind: "image", id: text.to_owned() });
            }
            found.pop().ok_or_else(|| StoreError::not_found("image", text))
        })
    }

    fn list(&self) -> Result<Vec<ImageRecord>, StoreError> {
        self.metadata.read(|db| self.select(db, Filter::All))
    }

    fn tag(&self, id: &ImageId, name: &ImageName) -> Result<(), StoreError> {
        self.metadata.write(|txn| {
            if !exists(txn, "SELECT 1 FROM image WHERE id = ?1", id.as_str())? {
                return Err(StoreError::not_found("image", id));
            }
            put_name(txn, id, name, schema::nanos(SystemTime::now()))
        })
    }

    fn untag(&self, reference: &Reference) -> Result<ImageId, StoreError> {
        let name = key(reference.clone()).to_string();
        self.metadata.write(|txn| {
            let image = self
                .select(txn, Filter::Name(&name))?
                .pop()
                .ok_or_else(|| StoreError::not_found("image", reference.familiar()))?;
            txn.execute("DELETE FROM image_name WHERE reference = ?1", [&name])
                .map_err(StoreError::metadata("untag image"))?;
            Ok(image.id)
        })
    }

    fn delete_image(&self, id: &ImageId) -> Result<Vec<DeletedImage>, StoreError> {
        // Nobody can begin to hold it between the question and the deletion.
        let _collecting = self.leases.collecting();
        let held = self.leases.held(&Resource::Image(id.clone()));
        self.metadata.write(|txn| {
            let image = self
                .select(txn, Filter::Id(id.as_str()))?
                .pop()
                .ok_or_else(|| StoreError::not_found("image", id))?;
            if held {
                let by = "running work".to_owned();
                return Err(StoreError::InUse { kind: "image", id: id.to_string(), by });
            }
            txn.execute("DELETE FROM image WHERE id = ?1", [id.as_str()])
                .map_err(StoreError::metadata("delete image"))?;
            let untagged = image.names.into_iter().map(|name| DeletedImage::Untagged(name.reference));
            Ok(untagged.chain([DeletedImage::Deleted(image.id)]).collect())
        })
    }

    fn children(&self, id: &ImageId) -> Result<Vec<ImageId>, StoreError> {
        let children: Vec<String> = self.metadata.read(|db| {
            db.prepare_cached("SELECT id FROM image WHERE parent = ?1 ORDER BY seq")
                .and_then(|mut select| select.query_map([id.as_str()], |row| row.get(0))?.collect())
                .map_err(StoreError::metadata("read children of image"))
        })?;
        children.iter().map(|id| image_id(&self.metadata, id)).collect()
    }
}

/// The form in which a name is kept: of one with tag and digest, the digest alone, as Moby keeps it.
fn key(reference: Reference) -> Reference {
    match reference.digest().cloned() {
        Some(digest) => reference.trimmed().with_digest(digest),
        None => reference,
    }
}

/// The beginning of an id, if `text` could be one.
fn id_prefix(text: &str) -> Option<String> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = !hex.is_empty() && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hex.then(|| format!("sha256:{hex}"))
}

fn put_name(txn: &Transaction, id: &ImageId, name: &ImageName, now: i64) -> Result<(), StoreError> {
    let invalid = |why| Err(StoreError::invalid("image name", name.reference.familiar(), why));
    if name.reference.is_name_only() {
        return invalid("a name needs a tag or a digest");
    }
    if name.reference.familiar_name() == "sha256" {
        return invalid("a name that is a digest algorithm would be mistaken for an id");
    }
    let target = name.target.as_ref().map(layers::json).transpose()?;
    txn.prepare_cached(
        "INSERT INTO image_name (reference, image, target) VALUES (?1, ?2, ?3)
         ON CONFLICT (reference) DO UPDATE SET image = excluded.image, target = excluded.target",
    )
    .and_then(|mut insert| insert.execute((key(name.reference.clone()).to_string(), id.as_str(), target)))
    .map_err(StoreError::metadata("tag image"))?;
    txn.prepare_cached("UPDATE image SET last_tagged = ?2 WHERE id = ?1")
        .and_then(|mut update| update.execute((id.as_str(), now)))
        .map_err(StoreError::metadata("tag image"))?;
    Ok(())
}

/// Which images to read.
#[derive(Clone, Copy)]
enum Filter<'a> {
    All,
    Id(&'a str),
    Name(&'a str),
    /// One of whose names has this digest as its target.
    Target(&'a str),
    /// At most two: enough to tell that there are several.
    Prefix(&'a str),
}

/// Reads images, newest stored first, with all their names: two statements, however many images there are.
fn select(metadata: &Metadata, db: &Connection, filter: Filter<'_>) -> Result<Vec<ImageRecord>, StoreError> {
    // `~` comes after every character of an id.
    let (condition, argument) = match filter {
        Filter::All => ("?1 IS NULL", None),
        Filter::Id(id) => ("id = ?1", Some(id)),
        Filter::Name(name) => ("id = (SELECT image FROM image_name WHERE reference = ?1)", Some(name)),
        Filter::Target(digest) => (
            "id = (SELECT image FROM image_name WHERE json_extract(target, '$.digest') = ?1 LIMIT 1)",
            Some(digest),
        ),
        Filter::Prefix(prefix) => ("id >= ?1 AND id < ?1 || '~'", Some(prefix)),
    };
    let limit = if matches!(filter, Filter::Prefix(_)) { 2 } else { -1 };
    let failed = || StoreError::metadata("read images");
    let rows: Vec<ImageRow> = db
        .prepare_cached(&format!(
            "SELECT id, config, top, diff_ids, parent, manifest, stored, last_tagged FROM image
             WHERE {condition} ORDER BY stored DESC, seq DESC LIMIT {limit}"
        ))
        .and_then(|mut select| select.query_map([argument], ImageRow::read)?.collect())
        .map_err(failed())?;

    let mut names: HashMap<String, Vec<ImageName>> = HashMap::new();
    let found: Vec<(String, String, Option<String>)> = db
        .prepare_cached(&format!(
            "SELECT image, reference, target FROM image_name
             WHERE image IN (SELECT id FROM image WHERE {condition}) ORDER BY reference"
        ))
        .and_then(|mut select| {
            select.query_map([argument], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
        })
        .map_err(failed())?;
    for (image, reference, target) in found {
        let reference = schema::column(metadata, "image_name.reference", Reference::parse(&reference))?;
        let target: Option<Descriptor> = target
            .map(|target| schema::column(metadata, "image_name.target", serde_json::from_str(&target)))
            .transpose()?;
        names.entry(image).or_default().push(ImageName { reference, target });
    }
    rows.into_iter()
        .map(|row| {
            let names = names.remove(&row.id).unwrap_or_default();
            row.record(metadata, names)
        })
        .collect()
}

struct ImageRow {
    id: String,
    config: Vec<u8>,
    top: Option<String>,
    diff_ids: String,
    parent: Option<String>,
    manifest: Option<String>,
    stored: i64,
    last_tagged: Option<i64>,
}

impl ImageRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            config: row.get(1)?,
            top: row.get(2)?,
            diff_ids: row.get(3)?,
            parent: row.get(4)?,
            manifest: row.get(5)?,
            stored: row.get(6)?,
            last_tagged: row.get(7)?,
        })
    }

    fn record(self, metadata: &Metadata, names: Vec<ImageName>) -> Result<ImageRecord, StoreError> {
        let manifest = self
            .manifest
            .map(|digest| schema::column(metadata, "image.manifest", Digest::parse(&digest)))
            .transpose()?;
        Ok(ImageRecord {
            id: image_id(metadata, &self.id)?,
            config: self.config,
            top: self.top.map(SnapshotName::new),
            diff_ids: schema::column(metadata, "image.diff_ids", serde_json::from_str(&self.diff_ids))?,
            parent: self.parent.map(|id| image_id(metadata, &id)).transpose()?,
            manifest,
            stored: schema::time(self.stored),
            last_tagged: self.last_tagged.map(schema::time),
            names,
        })
    }
}

fn image_id(metadata: &Metadata, id: &str) -> Result<ImageId, StoreError> {
    schema::column(metadata, "image.id", Digest::parse(id)).map(ImageId)
}
