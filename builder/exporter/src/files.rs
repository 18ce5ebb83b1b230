//! Files: the tree as a directory, or as a tar stream, with what is attested of it beside it.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use lapstrake_builder_progress::VertexHandle;
use lapstrake_layerstore_diff::{ArchivedTree, WriteOptions, write_trees};
use lapstrake_layerstore_oci::Platform;
use lapstrake_layerstore_store::{OpenSnapshot, Stores, Tree};
use lapstrake_session::Coverage;
use tokio_util::sync::CancellationToken;

use crate::{
    Destination, Export, ExportError, ExportRequest, Exporter, LocalOutput, PlatformResult, TreeOutput,
    directory::{self, subjects},
    exporter::Client,
    statement::{Statement, respaced, statements},
    stream,
};

/// The files of one platform, ready to be written.
pub(crate) struct Part {
    pub(crate) platform: Platform,
    pub(crate) tree: Tree,
    /// The time that all get.
    pub(crate) epoch: Option<i64>,
    /// Files beside the tree, by name.
    pub(crate) beside: Vec<(String, Vec<u8>)>,
}

impl Part {
    /// The name of its directory, when an output holds several: `linux_arm_v7`.
    pub(crate) fn directory(&self) -> String {
        platform_directory(&self.platform)
    }

    pub(crate) fn options(&self) -> WriteOptions {
        WriteOptions { mtime: self.epoch, ..WriteOptions::default() }
    }
}

fn platform_directory(platform: &Platform) -> String {
    platform.to_full_string().replace('/', "_")
}

/// The parts of an output, in the order of their directories' names. Blocks.
fn parts(
    stores: &Stores,
    mut results: Vec<PlatformResult>,
    output: &TreeOutput,
    several: bool,
) -> Result<Vec<Part>, ExportError> {
    results.sort_by_key(|result| platform_directory(&result.platform));
    // In one directory, they need names of their own.
    let named = several && !output.split.unwrap_or(several);
    results
        .into_iter()
        .map(|result| {
            let beside = beside(stores, &result, &output.attestation_prefix, named)?;
            let PlatformResult { platform, tree, epoch, .. } = result;
            Ok(Part { platform, tree, epoch: output.epoch.or(epoch), beside })
        })
        .collect()
}

/// What is attested of a result, as files.
fn beside(
    stores: &Stores,
    result: &PlatformResult,
    prefix: &str,
    named: bool,
) -> Result<Vec<(String, Vec<u8>)>, ExportError> {
    let attestations: Vec<_> =
        result.attestations.iter().filter(|attestation| !attestation.is_inline_only()).cloned().collect();
    if attestations.is_empty() {
        return Ok(Vec::new());
    }
    let mut files = BTreeMap::new();
    for Statement { file, json, .. } in
        statements(stores, &attestations, &subjects(stores, &result.tree)?, None)?
    {
        let mut name = format!("{prefix}{file}");
        if named {
            let (stem, suffix) = match name.rfind('.') {
                Some(at) => name.split_at(at),
                None => (name.as_str(), ""),
            };
            name = format!("{stem}.{}{suffix}", platform_directory(&result.platform));
        }
        if name.contains('/') {
            let why = "its name with the prefix is not one of a file".to_owned();
            return Err(ExportError::Attestation { path: name, why });
        }
        if files.insert(name.clone(), respaced(&json, Some("  "))).is_some() {
            let why = format!("duplicate attestation path name {name}");
            return Err(ExportError::Attestation { path: file, why });
        }
    }
    Ok(files.into_iter().collect())
}

impl Exporter {
    pub(crate) async fn tar(
        &self,
        request: ExportRequest,
        output: TreeOutput,
        client: &Client<'_>,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Export, ExportError> {
        let (several, results) = (request.multi_platform, request.results);
        if !several && results.len() > 1 {
            return Err(ExportError::SeveralPlatforms);
        }
        let (stores, asked) = (self.stores.clone(), output.clone());
        let parts = ExportError::blocking(move || parts(&stores, results, &asked, several)).await?;
        let sending = vertex.part("sending tarball", "", 0);
        let stores = self.stores.clone();
        stream::write_to(output.to, client, &BTreeMap::new(), cancel, move |out| {
            write_tar(&stores, &parts, several, out)
        })
        .await?;
        sending.done();
        Ok(Export::default())
    }

    pub(crate) async fn local(
        &self,
        request: ExportRequest,
        output: LocalOutput,
        client: &Client<'_>,
        vertex: &VertexHandle,
        cancel: &CancellationToken,
    ) -> Result<Export, ExportError> {
        let LocalOutput { tree: output, delete } = output;
        let (several, results) = (request.multi_platform, request.results);
        let split = output.split.unwrap_or(several);
        let (stores, to) = (self.stores.clone(), output.to.clone());
        let parts = ExportError::blocking(move || parts(&stores, results, &output, several)).await?;
        let label = match parts.as_slice() {
            [one] if split => format!("copying files {}", one.platform),
            _ => "copying files".to_owned(),
        };
        let copying = vertex.part(label, "", 0);
        let stores = self.stores.clone();
        match to {
            Destination::Stdout => {
                let why = "a directory cannot go to standard output";
                return Err(ExportError::Unsupported { output: client.output(), why });
            }
            Destination::Path(path) => {
                let cancel = cancel.clone();
                let write = move || directory::write(&stores, &parts, split, delete, &path, &cancel);
                ExportError::blocking(write).await?;
            }
            Destination::Session => {
                let caller = client.caller().await?;
                let reading = move || directory::readers(&stores, parts, split, delete);
                let readers = ExportError::blocking(reading).await?;
                // Part by part, the client must keep what the others brought.
                let coverage = if readers.len() == 1 { Coverage::Whole } else { Coverage::Partial };
                for reader in readers {
                    caller.send_dir(client.number(), Arc::from(reader), coverage, None, cancel).await?;
                }
            }
        }
        copying.done();
        Ok(Export::default())
    }
}

/// Writes all parts into one archive, each in a directory of its own where there may be several.
pub(crate) fn write_tar(
    stores: &Stores,
    parts: &[Part],
    several: bool,
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    let open: Vec<Option<OpenSnapshot>> =
        parts.iter().map(|part| stores.open(&part.tree)).collect::<Result<_, _>>()?;
    let directories: Vec<String> = parts.iter().map(Part::directory).collect();
    let trees: Vec<ArchivedTree<'_>> = parts
        .iter()
        .zip(&open)
        .zip(&directories)
        .map(|((part, open), directory)| ArchivedTree {
            directory: several.then_some(directory.as_str()),
            root: open.as_ref().map(OpenSnapshot::root),
            files: &part.beside,
            options: part.options(),
        })
        .collect();
    write_trees(&trees, out)?;
    Ok(())
}
