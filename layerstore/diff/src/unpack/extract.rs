//! One archive's entries into one directory.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek as _, SeekFrom, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    rc::Rc,
};

use lapstrake_layerstore_store::in_user_namespace;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use super::path::{self, Place};
use crate::{
    DiffError, EntryName,
    deletions::Deletions,
    fsat,
    lower::{self, Lower},
    tar::{Entry, Kind, Time, reader::TarReader},
};

/// What differs between the kinds of archives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// `.wh.` names delete, and the target is in overlayfs's form.
    pub(crate) whiteouts: bool,
    /// Opaque directories are marked with an extended attribute, not only remembered.
    pub(crate) mark_opaque: bool,
    /// User and group for everything, instead of the archive's.
    pub(crate) owner: Option<(u32, u32)>,
    /// An extended attribute that this process may not set is left out.
    pub(crate) lenient_xattrs: bool,
    /// Device nodes are refused.
    pub(crate) no_devices: bool,
}

/// Hard links that wait for their target; more than any real archive has.
const DEFERRED_LIMIT: usize = 200_000;
const BUFFER: usize = 128 << 10;

/// A directory that the archive made, or speaks of.
struct Directory {
    access: Time,
    modification: Time,
    /// Made because something was to go into it; the archive's own entry may still come.
    implied: bool,
}

/// A hard link whose target was not there when its entry came.
struct Deferred {
    entry: Entry,
    name: EntryName,
}

pub(crate) struct Extractor {
    pub(super) root: Rc<Place>,
    pub(super) lower: Lower,
    /// What the archive deletes that is not in the lower layers.
    deletions: Deletions,
    rules: Rules,
    directories: BTreeMap<Vec<u8>, Directory>,
    deferred: Vec<Deferred>,
    /// Where the last entry went: the next one mostly goes there too.
    pub(super) last: Option<(Vec<u8>, Rc<Place>)>,
    buffer: Vec<u8>,
    /// The entry that errors name.
    current: EntryName,
}

impl Extractor {
    pub(crate) fn new(root: OwnedFd, lower: Lower, rules: Rules) -> Self {
        Self {
            root: Rc::new(Place { handle: root, path: Vec::new() }),
            lower,
            deletions: Deletions::default(),
            rules,
            directories: BTreeMap::new(),
            deferred: Vec::new(),
            last: None,
            buffer: vec![0; BUFFER],
            current: EntryName::new(b""),
        }
    }

    /// Unpacks all entries, then sets what only holds when nothing more is written.
    pub(crate) fn run<R: Read>(&mut self, tar: &mut TarReader<R>) -> Result<(), DiffError> {
        while let Some(entry) = tar.next_entry()? {
            self.current = EntryName::new(&entry.name);
            self.entry(entry, tar)?;
        }
        self.link_deferred()?;
        self.set_directory_times()
    }

    /// The lower layers and which directories hide them now, and what is deleted that is not in them.
    pub(crate) fn finish(self) -> (Lower, Deletions) {
        (self.lower, self.deletions)
    }

    fn entry<R: Read>(&mut self, entry: Entry, tar: &mut TarReader<R>) -> Result<(), DiffError> {
        let components = path::clean(&entry.name).ok_or_else(|| self.breakout(&entry.name))?;
        // Docker and containerd leave the root itself alone too.
        let Some((name, parents)) = components.split_last() else {
            return Ok(());
        };
        if self.rules.whiteouts {
            match path::layer_name(parents, name) {
                path::LayerName::Ignored => return Ok(()),
                path::LayerName::Bad(why) => return Err(self.bad(why)),
                path::LayerName::Opaque => return self.opaque(parents),
                path::LayerName::Whiteout(target) => return self.whiteout(parents, target),
                path::LayerName::Plain => {}
            }
        }
        if entry.kind == Kind::HardLink {
            return self.hard_link(&entry, parents, name);
        }
        if self.rules.whiteouts && entry.kind == Kind::CharDevice && entry.device == (0, 0) {
            return Err(self.bad("a character device 0:0 is overlayfs's mark of a deleted file"));
        }
        if self.rules.no_devices && matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            return Err(self.bad("a device node, which a build context may not hold"));
        }
        let place = self.place(parents)?;
        self.clear(&place, name, entry.kind)?;
        let path = fsat::join(&place.path, name);
        match entry.kind {
            Kind::Directory => {
                let access = entry.atime.unwrap_or(entry.mtime).max(entry.mtime);
                let directory = Directory { access, modification: entry.mtime, implied: false };
                let before = self.directories.insert(path, directory);
                if before.is_some_and(|before| before.implied) {
                    self.drop_xattrs(&place, name)?;
                }
            }
            Kind::File => self.write_file(&place, name, &entry, tar)?,
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.contains(&0) {
                    return Err(self.bad("a symbolic link without a target"));
                }
                rustix::fs::symlinkat(&entry.link, &place.handle, *name).map_err(self.failed("make link"))?;
            }
            Kind::CharDevice => self.node(&place, name, &entry, FileType::CharacterDevice)?,
            Kind::BlockDevice => self.node(&place, name, &entry, FileType::BlockDevice)?,
            Kind::Fifo => self.node(&place, name, &entry, FileType::Fifo)?,
            Kind::HardLink => {}
        }
        self.set_attributes(&place, name, &entry, entry.kind == Kind::Symlink)
    }

    /// Makes room for an entry. A directory stays for a directory; for it, one is made where there is none.
    fn clear(&mut self, place: &Place, name: &[u8], kind: Kind) -> Result<(), DiffError> {
        let there = fsat::stat(place.handle.as_fd(), name).map_err(self.failed("stat"))?;
        let path = fsat::join(&place.path, name);
        let mut hides = false;
        match there {
            None => {}
            Some(stat) if fsat::is_directory(&stat) && kind == Kind::Directory => return Ok(()),
            Some(stat) => {
                // A new directory where something was deleted or replaced shows nothing of what was below.
                hides = true;
                if fsat::is_directory(&stat) {
                    self.forget(&path);
                }
                self.last = None;
                fsat::remove(place.handle.as_fd(), name).map_err(self.failed("replace"))?;
            }
        }
        if kind == Kind::Directory {
            rustix::fs::mkdirat(&place.handle, name, Mode::RWXU).map_err(self.failed("make directory"))?;
            if hides && self.rules.whiteouts {
                self.make_opaque(place, name)?;
            }
        }
        Ok(())
    }

    fn write_file<R: Read>(
        &mut self,
        place: &Place,
        name: &[u8],
        entry: &Entry,
        tar: &mut TarReader<R>,
    ) -> Result<(), DiffError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&place.handle, name, flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(file.map_err(self.failed("create"))?);
        let Some(segments) = &entry.sparse else {
            return self.copy_content(&mut file, tar, entry.size);
        };
        for segment in segments {
            file.seek(SeekFrom::Start(segment.offset)).map_err(self.failed("write"))?;
            self.copy_content(&mut file, tar, segment.length)?;
        }
        file.set_len(entry.size).map_err(self.failed("write"))
    }

    fn copy_content<R: Read>(
        &mut self,
        file: &mut File,
        tar: &mut TarReader<R>,
        mut left: u64,
    ) -> Result<(), DiffError> {
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = tar.read_content(&mut self.buffer[..want])?;
            file.write_all(&self.buffer[..count]).map_err(self.failed("write"))?;
            left -= count as u64;
        }
        Ok(())
    }

    fn node(&self, place: &Place, name: &[u8], entry: &Entry, kind: FileType) -> Result<(), DiffError> {
        let (major, minor) = entry.device;
        let device = rustix::fs::makedev(major, minor);
        match rustix::fs::mknodat(&place.handle, name, kind, Mode::RUSR | Mode::WUSR, device) {
            // Left out, the layer would be another one.
            Err(Errno::PERM) if kind != FileType::Fifo && in_user_namespace() => {
                let why = "a device node, which an ordinary user cannot make";
                Err(DiffError::Unsupported { path: self.current.clone(), why })
            }
            made => made.map_err(self.failed("make device or fifo")),
        }
    }

    /// Owner, extended attributes, mode, times: each may undo the one before it.
    fn set_attributes(
        &self,
        place: &Place,
        name: &[u8],
        entry: &Entry,
        symlink: bool,
    ) -> Result<(), DiffError> {
        let at = place.handle.as_fd();
        let (uid, gid) = self.rules.owner.unwrap_or((entry.uid, entry.gid));
        fsat::chown(at, name, uid, gid).map_err(self.failed("set owner"))?;
        if !entry.xattrs.is_empty() {
            let path = fsat::entry_path(at, name);
            for (key, value) in &entry.xattrs {
                self.set_xattr(&path, key, value, entry.kind)?;
            }
        }
        if !symlink {
            fsat::chmod(at, name, entry.mode).map_err(self.failed("set mode"))?;
        }
        let access = entry.atime.unwrap_or(entry.mtime).max(entry.mtime);
        fsat::set_times(at, name, access, entry.mtime).map_err(self.failed("set times"))
    }

    /// Sets one attribute, by containerd's rules of what may be left out.
    fn set_xattr(&self, path: &[u8], key: &[u8], value: &[u8], kind: Kind) -> Result<(), DiffError> {
        let left_out = |why: &str| {
            tracing::debug!(entry = %self.current, key = %String::from_utf8_lossy(key), why, "extended attribute left out");
            Ok(())
        };
        if fsat::is_private_xattr(key) {
            return left_out("not an archive's to set");
        }
        if key.is_empty() || key.len() > 255 || key.contains(&0) {
            return Err(self.bad("an extended attribute without a usable name"));
        }
        match fsat::set_xattr(path, key, value) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => left_out("not supported by the file system"),
            // xattr(7): of these, only files and directories can have any.
            Err(Errno::PERM)
                if key.starts_with(b"user.") && !matches!(kind, Kind::File | Kind::Directory) =>
            {
                left_out("not supported by this type of file")
            }
            Err(Errno::PERM) if self.rules.lenient_xattrs => left_out("not permitted"),
            Err(errno) => Err(self.failed("set extended attribute")(errno)),
        }
    }

    /// Takes away what an implied directory had from the lower one: its own entry says all.
    fn drop_xattrs(&self, place: &Place, name: &[u8]) -> Result<(), DiffError> {
        let path = fsat::entry_path(place.handle.as_fd(), name);
        for (key, _) in fsat::xattrs(&path).map_err(self.failed("read extended attributes"))? {
            if fsat::is_layer_xattr(&key) {
                rustix::fs::lremovexattr(&path, &key).map_err(self.failed("remove extended attribute"))?;
            }
        }
        Ok(())
    }

    /// `.wh.name`: what the lower layers have at `name` is gone; what this layer has there stays (OCI: layer.md, "Whiteouts").
    fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Result<(), DiffError> {
        let place = self.place(parents)?;
        self.hide_lower(&place, name)
    }

    pub(super) fn hide_lower(&mut self, place: &Place, name: &[u8]) -> Result<(), DiffError> {
        match fsat::stat(place.handle.as_fd(), name).map_err(self.failed("stat"))? {
            // A whiteout of nothing would show in a directory that has no lower one.
            None if self.lower.lookup(&place.path, name)?.is_none() => {
                self.delete_nothing(fsat::join(&place.path, name));
                Ok(())
            }
            None => {
                let mode = Mode::empty();
                rustix::fs::mknodat(&place.handle, name, FileType::CharacterDevice, mode, 0)
                    .map_err(self.failed("make whiteout"))
            }
            Some(stat) if fsat::is_directory(&stat) => {
                let path = fsat::join(&place.path, name);
                if self.directories.get(&path).is_some_and(|directory| directory.implied) {
                    self.drop_xattrs(place, name)?;
                    self.set_implied_defaults(place, name)?;
                    self.directories.insert(path.clone(), implied(Time::default(), Time::default()));
                }
                if self.lower.members(&path)?.is_empty() {
                    self.delete_nothing(path);
                }
                self.make_opaque(place, name)
            }
            _ => Ok(()),
        }
    }

    /// Remembers a deletion of what is not there. In a directory that hides what is below it, it says nothing.
    fn delete_nothing(&mut self, path: Vec<u8>) {
        if !self.lower.is_hidden(&path) && !self.lower.is_in_hidden(&path) {
            self.deletions.insert(path);
        }
    }

    /// `.wh..wh..opq`: nothing of the lower directory shows; what this layer has in it, before or after, stays.
    fn opaque(&mut self, parents: &[&[u8]]) -> Result<(), DiffError> {
        let place = self.place(parents)?;
        if place.path.is_empty() {
            // Overlayfs takes no notice of a mark on the root.
            let members = self.lower.members(b"")?;
            if members.is_empty() {
                self.delete_nothing(Vec::new());
            }
            for name in self.lower.names(&members)? {
                self.hide_lower(&place, &name)?;
            }
            return Ok(());
        }
        if self.lower.members(&place.path)?.is_empty() {
            self.delete_nothing(place.path.clone());
        }
        let (parent, name) = fsat::split(&place.path);
        let handle = fsat::open_below(self.root.handle.as_fd(), parent, fsat::HANDLE | OFlags::DIRECTORY)
            .map_err(self.failed("open"))?;
        self.make_opaque(&Place { handle, path: parent.to_vec() }, name)
    }

    /// Makes an existing directory hide the lower one, if there is any.
    fn make_opaque(&mut self, place: &Place, name: &[u8]) -> Result<(), DiffError> {
        let path = fsat::join(&place.path, name);
        if self.lower.is_hidden(&path) || self.lower.members(&path)?.is_empty() {
            return Ok(());
        }
        if self.rules.mark_opaque {
            let entry = fsat::entry_path(place.handle.as_fd(), name);
            let mark = [lower::mark_prefix(), b"opaque"].concat();
            fsat::set_xattr(&entry, &mark, b"y").map_err(self.failed("mark opaque"))?;
        }
        self.lower.hide(&path);
        self.deletions.forget_below(&path);
        // Whiteouts inside have nothing to hide any more.
        let mut left = vec![path];
        while let Some(path) = left.pop() {
            let open = fsat::open_below(self.root.handle.as_fd(), &path, fsat::READ | OFlags::DIRECTORY);
            let directory = open.map_err(self.failed("open"))?;
            for name in fsat::names(directory.as_fd()).map_err(self.failed("list"))? {
                match fsat::stat(directory.as_fd(), &name).map_err(self.failed("stat"))? {
                    Some(stat) if fsat::is_directory(&stat) => left.push(fsat::join(&path, &name)),
                    Some(stat) if fsat::is_whiteout(&stat) => {
                        rustix::fs::unlinkat(&directory, &name, AtFlags::empty())
                            .map_err(self.failed("remove whiteout"))?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8]) -> Result<(), DiffError> {
        let target = path::clean(&entry.link).filter(|target| !target.is_empty());
        let target = target.ok_or_else(|| self.breakout(&entry.link))?;
        if self.rules.whiteouts && target[0].starts_with(path::RESERVED) {
            return Err(self.bad("a hard link into AUFS's own directory"));
        }
        if self.link(entry, parents, name, &target)? {
            return Ok(());
        }
        // The target may come later, or be in a lower layer only: that is known at the end.
        if self.deferred.len() == DEFERRED_LIMIT {
            return Err(self.bad("too many hard links to files that are not there"));
        }
        let place = self.place(parents)?;
        let there = fsat::stat(place.handle.as_fd(), name).map_err(self.failed("stat"))?;
        if !there.is_none_or(|stat| self.is_whiteout(&stat)) {
            self.clear(&place, name, Kind::HardLink)?;
        }
        self.deferred.push(Deferred { entry: entry.clone(), name: self.current.clone() });
        Ok(())
    }

    /// Makes a hard link, if its target is there.
    fn link(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
        name: &[u8],
        target: &[&[u8]],
    ) -> Result<bool, DiffError> {
        let Some((target_name, target_parents)) = target.split_last() else {
            return Ok(false);
        };
        let Some(from) = self.existing_place(target_parents)? else {
            return Ok(false);
        };
        let stat = match fsat::stat(from.handle.as_fd(), target_name).map_err(self.failed("stat"))? {
            Some(stat) if fsat::is_directory(&stat) => return Err(self.bad("a hard link to a directory")),
            Some(stat) if !self.is_whiteout(&stat) => stat,
            _ => return Ok(false),
        };
        let place = self.place(parents)?;
        let there = fsat::stat(place.handle.as_fd(), name).map_err(self.failed("stat"))?;
        let linked = there.is_some_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino));
        if !linked {
            self.clear(&place, name, Kind::HardLink)?;
            rustix::fs::linkat(&from.handle, *target_name, &place.handle, name, AtFlags::empty())
                .map_err(self.failed("link"))?;
        }
        self.set_attributes(&place, name, entry, fsat::kind(&stat) == FileType::Symlink)?;
        Ok(true)
    }

    fn link_deferred(&mut self) -> Result<(), DiffError> {
        let mut deferred = std::mem::take(&mut self.deferred);
        while !deferred.is_empty() {
            let before = deferred.len();
            let mut left = Vec::new();
            for link in deferred {
                self.current = link.name.clone();
                if !self.link_late(&link.entry)? {
                    left.push(link);
                }
            }
            if left.len() == before {
                self.current = left[0].name.clone();
                return Err(self.bad("a hard link to a file that is not there"));
            }
            deferred = left;
        }
        Ok(())
    }

    fn link_late(&mut self, entry: &Entry) -> Result<bool, DiffError> {
        let (Some(components), Some(target)) = (path::clean(&entry.name), path::clean(&entry.link)) else {
            return Err(self.breakout(&entry.link));
        };
        let (Some((name, parents)), Some((target_name, target_parents))) =
            (components.split_last(), target.split_last())
        else {
            return Err(self.bad("a hard link without a name"));
        };
        let place = self.place(parents)?;
        let there = fsat::stat(place.handle.as_fd(), name).map_err(self.failed("stat"))?;
        if there.is_some_and(|there| !self.is_whiteout(&there)) {
            // A later entry took its place.
            return Ok(true);
        }
        if let Some((source, stat)) = self.lower_target(&target)? {
            let parent = self.place(target_parents)?;
            fsat::copy_up(&source, &stat, parent.handle.as_fd(), target_name)
                .map_err(self.failed("copy the link's target"))?;
        }
        self.link(entry, parents, name, &target)
    }

    /// The lower layers' file at a path, if it shows there.
    fn lower_target(&self, target: &[&[u8]]) -> Result<Option<(std::path::PathBuf, Stat)>, DiffError> {
        let mut path = Vec::new();
        for (at, name) in target.iter().enumerate() {
            let parent = std::mem::take(&mut path);
            path = fsat::join(&parent, name);
            let there = match fsat::open_below(self.root.handle.as_fd(), &path, fsat::HANDLE) {
                Ok(handle) => rustix::fs::fstat(handle).map_err(self.failed("stat"))?,
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(self.failed("open")(errno)),
            };
            if !fsat::is_directory(&there) || at + 1 == target.len() {
                return Ok(None);
            }
        }
        let (name, parents) = target.split_last().ok_or_else(|| self.bad("a hard link without a target"))?;
        let found = self.lower.lookup(&parents.join(&b'/'), name)?;
        Ok(found.filter(|(_, stat)| !fsat::is_directory(stat)))
    }

    fn set_directory_times(&mut self) -> Result<(), DiffError> {
        for (path, directory) in std::mem::take(&mut self.directories) {
            self.current = EntryName::new(&path);
            let (parent, name) = fsat::split(&path);
            let parent = fsat::open_below(self.root.handle.as_fd(), parent, fsat::HANDLE | OFlags::DIRECTORY)
                .map_err(self.failed("open"))?;
            fsat::set_times(parent.as_fd(), name, directory.access, directory.modification)
                .map_err(self.failed("set times"))?;
        }
        Ok(())
    }

    /// Makes a directory that the archive has something in but has not spoken of (yet).
    pub(super) fn make_implied(
        &mut self,
        place: &Place,
        name: &[u8],
        replaces: bool,
    ) -> Result<(), DiffError> {
        if replaces {
            rustix::fs::unlinkat(&place.handle, name, AtFlags::empty()).map_err(self.failed("replace"))?;
        }
        rustix::fs::mkdirat(&place.handle, name, Mode::RWXU).map_err(self.failed("make directory"))?;
        let path = fsat::join(&place.path, name);
        let lower = if replaces { None } else { self.lower.lookup(&place.path, name)? };
        let directory = match lower.filter(|(_, stat)| fsat::is_directory(stat)) {
            Some((source, stat)) => {
                use std::os::unix::ffi::OsStrExt as _;
                let source = source.as_os_str().as_bytes();
                fsat::copy_attributes(source, &stat, place.handle.as_fd(), name)
                    .map_err(self.failed("copy attributes"))?;
                implied(fsat::atime(&stat), fsat::mtime(&stat))
            }
            None => {
                self.set_implied_defaults(place, name)?;
                implied(Time::default(), Time::default())
            }
        };
        self.directories.insert(path, directory);
        if replaces { self.make_opaque(place, name) } else { Ok(()) }
    }

    fn set_implied_defaults(&self, place: &Place, name: &[u8]) -> Result<(), DiffError> {
        let at = place.handle.as_fd();
        fsat::chown(at, name, 0, 0)
            .and_then(|()| fsat::chmod(at, name, 0o755))
            .map_err(self.failed("set attributes of directory"))
    }

    /// Forgets a directory that is about to go, and those in it.
    fn forget(&mut self, path: &[u8]) {
        self.directories.remove(path);
        let below = [path, b"/"].concat();
        let after = [path, b"0"].concat(); // the byte after '/'
        let gone: Vec<Vec<u8>> = self.directories.range(below..after).map(|(path, _)| path.clone()).collect();
        for path in gone {
            self.directories.remove(&path);
        }
    }

    pub(super) fn is_whiteout(&self, stat: &Stat) -> bool {
        self.rules.whiteouts && fsat::is_whiteout(stat)
    }

    pub(super) fn failed<E: Into<std::io::Error>>(&self, doing: &'static str) -> impl FnOnce(E) -> DiffError {
        let entry = self.current.clone();
        move |source| DiffError::Unpack { entry, doing, source: source.into() }
    }

    pub(super) fn bad(&self, why: &'static str) -> DiffError {
        DiffError::BadEntry { entry: self.current.clone(), why }
    }

    fn breakout(&self, target: &[u8]) -> DiffError {
        DiffError::Breakout { entry: self.current.clone(), target: EntryName::new(target) }
    }
}

fn implied(access: Time, modification: Time) -> Directory {
    Directory { access, modification, implied: true }
}
