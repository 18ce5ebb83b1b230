//! How much an archive may ask for.

/// Limits of one archive. Each is far above what real images have, and finite where memory is at stake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries. Directories and whiteouts are remembered while a layer is applied: some 200 bytes each.
    pub entries: u64,
    /// Bytes of one entry's name or link target.
    pub name: usize,
    /// Bytes of one extended header (PAX records, GNU long name), all of which is held in memory.
    pub extended_header: usize,
    /// Bytes of one extended attribute's value.
    pub xattr: usize,
    /// Bytes of one file.
    pub file: u64,
    /// Bytes of file content in the whole archive.
    pub content: u64,
    /// Bytes of the whole decompressed stream.
    pub stream: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 20_000_000,
            // PATH_MAX: no call could reach a longer one.
            name: 4096,
            // What Go's archive/tar allows.
            extended_header: 1 << 20,
            // XATTR_SIZE_MAX.
            xattr: 1 << 16,
            file: 1 << 44,
            content: 1 << 46,
            stream: 1 << 47,
        }
    }
}
