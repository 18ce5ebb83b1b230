//! Build contexts, written down in a test.

/// A tar stream under construction.
pub struct Context(tar::Builder<Vec<u8>>);

impl Context {
    /// A context with a Dockerfile.
    pub fn new(dockerfile: &str) -> Self {
        Self(tar::Builder::new(Vec::new())).file("Dockerfile", dockerfile)
    }

    /// Adds a file of mode 0644.
    #[must_use]
    pub fn file(self, path: &str, data: &str) -> Self {
        self.mode(path, 0o644, data)
    }

    /// Adds a file.
    #[must_use]
    pub fn mode(self, path: &str, mode: u32, data: &str) -> Self {
        self.binary(path, mode, data.as_bytes())
    }

    /// Adds a file of any bytes.
    #[must_use]
    pub fn binary(mut self, path: &str, mode: u32, data: &[u8]) -> Self {
        let mut header = header(tar::EntryType::Regular, mode, data.len());
        self.0.append_data(&mut header, path, data).expect("memory takes it");
        self
    }

    /// Adds a directory.
    #[must_use]
    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        self.0.append_data(&mut header, path, std::io::empty()).expect("memory takes it");
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target).expect("memory takes it");
        self
    }

    /// The stream.
    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().expect("memory takes it")
    }
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(1_600_000_000);
    header.set_size(size as u64);
    header
}
