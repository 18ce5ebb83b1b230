//! `COPY` and `ADD`.

use std::sync::LazyLock;

use lapstrake_builder_llb::ProgressGroup;
use lapstrake_builder_llb::{
    CopyAction, CopyMode, FileAction, HttpSource, Mkfile, OpOptions, Owner, State, join_path,
};
use lapstrake_layerstore_oci::{Digest, Platform};
use regex::Regex;

use super::classic::{DraftCopy, DraftSource};
use super::dispatch::At;
use super::naming::expanded;
use super::{LowerError, Lowered, Lowering, git, path};
use crate::instructions::{Add, Copy, Transfer};

static SYMBOLIC_MODE: LazyLock<Regex> = LazyLock::new(|| {
    let clause = "[ugoa]*(?:[-+=][rwxXstugo]*)+";
    Regex::new(&format!("^{clause}(?:,{clause})*$")).expect("it compiles")
});

/// What `COPY` and `ADD` have in common.
struct Config<'a> {
    transfer: &'a Transfer,
    /// `None` for `COPY`.
    add: Option<&'a Add>,
    source: State,
    from_context: bool,
    /// The stage or image that it copies from, as far as it cannot be had.
    missing: Option<String>,
    chown: Option<&'a str>,
    is_classic: bool,
    chmod: Option<&'a str>,
    mode: Option<CopyMode>,
    excludes: &'a [String],
    link: bool,
    parents: bool,
    destination: String,
    /// What the stage is for: whose rules its paths obey.
    os: String,
    /// `--keep-git-dir` and `--checksum`. What a git URL says instead counts for the sources after it as well, as with BuildKit.
    keep_git_dir: Option<bool>,
    checksum: Option<String>,
    /// The name of the vertex.
    name: String,
}

impl Lowering<'_> {
    pub(super) fn add(&mut self, at: &At, add: &Add, code: &str) -> Lowered<()> {
        if add.checksum.is_some() {
            let problem = match &add.transfer.sources[..] {
                [source] if git::is_http(source) || git::is_git(source) => None,
                [_] => Some("checksum requires HTTP(S) or Git sources"),
                _ => Some("checksum can't be specified for multiple sources"),
            };
            if let Some(problem) = problem {
                return Err(LowerError::Checksum(problem).at(at.lines));
            }
        }
        let (destination, os) = self.destination(at, &add.transfer)?;
        let config = Config {
            transfer: &add.transfer,
            add: Some(add),
            source: self.context.clone(),
            from_context: true,
            missing: None,
            chown: add.chown.as_deref(),
            is_classic: self.is_classic(),
            chmod: add.chmod.as_deref(),
            mode: parse_mode(add.chmod.as_deref()).map_err(|e| e.at(at.lines))?,
            excludes: &add.excludes,
            link: add.link,
            parents: false,
            destination,
            os,
            keep_git_dir: add.keep_git_dir,
            checksum: add.checksum.clone(),
            name: String::new(),
        };
        let os = config.os.clone();
        self.transfer(at, config, code)?;
        let local = add.transfer.sources.iter();
        let local = local.filter(|s| !s.starts_with("http://") && !s.starts_with("https://"));
        self.stages[at.stage].context_paths.extend(local.map(|source| used_path(&os, source)));
        Ok(())
    }

    pub(super) fn copy(&mut self, at: &At, copy: &Copy, from: Option<usize>, code: &str) -> Lowered<()> {
        if let Some(from) = from
            && !self.stages[from].dispatched
        {
            return Err(LowerError::CopyFromLater {
                from: copy.from.clone().unwrap_or_default(),
                stage: self.stages[at.stage].display_name.clone(),
            }
            .at(at.lines));
        }
        let source = match from {
            Some(from) => self.stages[from].state.clone(),
            None => self.context.clone(),
        };
        let (destination, os) = self.destination(at, &copy.transfer)?;
        let config = Config {
            transfer: &copy.transfer,
            add: None,
            source,
            from_context: from.is_none(),
            missing: from.and_then(|from| self.stages[from].missing.clone()),
            chown: copy.chown.as_deref(),
            is_classic: self.is_classic(),
            chmod: copy.chmod.as_deref(),
            mode: parse_mode(copy.chmod.as_deref()).map_err(|e| e.at(at.lines))?,
            excludes: &copy.excludes,
            link: copy.link,
            parents: copy.parents,
            destination,
            os,
            keep_git_dir: None,
            checksum: None,
            name: String::new(),
        };
        let os = config.os.clone();
        self.transfer(at, config, code)?;
        let used = copy.transfer.sources.iter().map(|source| used_path(&os, source));
        match from {
            Some(from) => self.used_paths[self.stages[from].paths].extend(used),
            None => self.stages[at.stage].context_paths.extend(used),
        }
        Ok(())
    }

    /// Where files go, and what for.
    fn destination(&self, at: &At, transfer: &Transfer) -> Lowered<(String, String)> {
        let os = self.os(at.stage);
        let wanted = path::of_os(os, &transfer.destination, true).map_err(|error| error.at(at.lines))?;
        Ok((path::destination(&self.stages[at.stage].state.meta().dir, &wanted), os.to_owned()))
    }

    fn transfer(&mut self, at: &At, mut config: Config<'_>, code: &str) -> Lowered<()> {
        let env = self.stages[at.stage].state.meta().env.clone();
        let platform = self.stages[at.stage].platform.clone();
        let text = expanded(code, &self.lexer, &env);
        config.name = self.step_name(at.stage, &text, platform.as_ref(), Some(&env));

        if let Some(why) = &config.missing {
            return Err(LowerError::Classic(why.clone()).at(at.lines));
        }
        if let Some(chown) = config.chown.filter(|chown| self.is_classic() && chown.split(':').count() > 2) {
            let why = "unable to convert uid/gid chown string to host mapping: invalid chown string format";
            return Err(LowerError::Classic(format!("{why}: {chown}")).at(at.lines));
        }
        let mut actions = Vec::with_capacity(config.transfer.sources.len());
        for source in &config.transfer.sources {
            let action = self.copy_of(at, &mut config, source)?;
            actions.push(FileAction::Copy(Box::new(action)));
        }
        for file in &config.transfer.inline_files {
            let name = path::of_os(&config.os, &file.name, false).map_err(|error| error.at(at.lines))?;
            let mkfile = Mkfile {
                path: name.clone().into_owned(),
                mode: 0o644,
                data: file.data.clone().into_bytes(),
                ..Mkfile::default()
            };
            let mut options = OpOptions::internal("preparing inline document");
            options.platform = platform.clone();
            let from = self.graph.file(&State::scratch(), vec![FileAction::Mkfile(mkfile)], options);
            let mut copy = config.copy(from, &name);
            copy.create_destination = true;
            actions.push(FileAction::Copy(Box::new(copy)));
        }

        let hash = match self.is_classic() {
            true => Some(self.hash_of(at, &config, &actions)?),
            false => None,
        };
        let mut options = OpOptions::named(config.name.clone());
        options.locations.push(self.location(at.lines));
        options.metadata.ignore_cache = self.stages[at.stage].ignore_cache;
        let state = self.stages[at.stage].state.clone();
        // A mode is applied to what is copied, and BuildKit does not do that in a layer of its own.
        let state = if config.link && config.chmod.is_none() {
            self.linked(at, &config, &text, &state, actions, options, platform)
        } else {
            self.graph.file(&state, actions, options)
        };
        self.set_state(at.stage, state);
        match hash {
            None => self.commit(at.stage, config.history(), true),
            Some(hash) => {
                let created_by = self.nop(at.stage, &config.classic_history(&hash));
                self.commit_classic(at.stage, created_by, true, config.is_plain(), Some(self.place));
            }
        }
        Ok(())
    }

    /// What the classic history has in the place of the sources.
    fn hash_of(&mut self, at: &At, config: &Config<'_>, actions: &[FileAction]) -> Lowered<String> {
        let files = actions.iter().filter_map(|action| match action {
            FileAction::Copy(copy) => Some(copy),
            _ => None,
        });
        let mut sources = Vec::with_capacity(actions.len());
        for (source, copy) in config.transfer.sources.iter().zip(files) {
            let git = git::parse(source).ok().flatten().is_some_and(|git| !git.could_be_path);
            sources.push(match (git, git::is_http(source)) {
                (true, _) => DraftSource::Said(source.clone()),
                (_, true) => DraftSource::Download { state: copy.from.clone(), path: copy.source.clone() },
                _ if config.from_context => DraftSource::Context { path: source.clone() },
                _ => DraftSource::Tree { state: config.source.clone(), path: source.clone() },
            });
        }
        for file in &config.transfer.inline_files {
            sources.push(DraftSource::Said(format!("inline:{}", Digest::sha256_of(&file.data).hex())));
        }
        let keyword = if config.add.is_some() { "ADD" } else { "COPY" };
        let to_directory = config.transfer.destination.ends_with('/');
        self.copied(at, DraftCopy { place: self.place, keyword, sources, to_directory })
    }

    /// `--link`: the files become a layer that does not depend on what is below, and is then laid upon it.
    #[allow(clippy::too_many_arguments, reason = "all of them are the caller's locals")]
    fn linked(
        &mut self,
        at: &At,
        config: &Config<'_>,
        text: &str,
        state: &State,
        actions: Vec<FileAction>,
        options: OpOptions,
        platform: Option<Platform>,
    ) -> State {
        self.next_group += 1;
        let id = format!("link-{}-{}", at.stage, self.next_group);
        let group = |weak| Some(ProgressGroup { id: id.clone(), name: config.name.clone(), weak });
        let mut copy_options = OpOptions { platform: platform.clone(), ..options.clone() };
        copy_options.metadata.progress_group = group(true);
        let copied = self.graph.file(&State::scratch(), actions, copy_options);

        let mut merge_options = options;
        merge_options.metadata.progress_group = group(false);
        // The same step again, not the next one.
        self.stages[at.stage].step_index = self.stages[at.stage].step_index.saturating_sub(1);
        let env = state.meta().env.clone();
        let name = self.step_name(at.stage, &format!("LINK {text}"), platform.as_ref(), Some(&env));
        merge_options.metadata.set_custom_name(name);
        let merged = self.graph.merge(&[state.clone(), copied], merge_options);
        state.clone().with_output(merged.output())
    }

    fn copy_of(&mut self, at: &At, config: &mut Config<'_>, source: &str) -> Lowered<CopyAction> {
        let git = git::parse(source).map_err(|e| LowerError::GitReference(e).at(at.lines))?;
        if let Some(git) = git.filter(|git| !git.could_be_path) {
            return self.copy_from_git(config, git).map_err(|e| e.at(at.lines));
        }
        if git::is_http(source) {
            return self.copy_from_http(config, source).map_err(|e| e.at(at.lines));
        }
        if config.from_context {
            self.check_ignored(at, source, if config.add.is_some() { "Add" } else { "Copy" });
        }
        config.copy_from_files(source).map_err(|error| error.at(at.lines))
    }

    fn copy_from_git(
        &mut self,
        config: &mut Config<'_>,
        mut git: git::GitReference,
    ) -> Result<CopyAction, LowerError> {
        if config.add.is_none() {
            return Err(LowerError::RemoteCopy("a git ref"));
        }
        if let (Some(flag), Some(url)) = (config.keep_git_dir, git.keep_git_dir)
            && flag != url
        {
            return Err(LowerError::KeepGitDir);
        }
        config.keep_git_dir = git.keep_git_dir.or(config.keep_git_dir);
        git.keep_git_dir = config.keep_git_dir;
        match &config.checksum {
            Some(flag) if !git.checksum.is_empty() && git.checksum != *flag => {
                return Err(LowerError::ChecksumMismatch { flag: flag.clone(), url: git.checksum });
            }
            Some(flag) => git.checksum.clone_from(flag),
            None => config.checksum = Some(git.checksum.clone()).filter(|checksum| !checksum.is_empty()),
        }
        // Times are a choice for contexts only.
        git.mtime.clear();
        let from = self.graph.git(git.source(), OpOptions::named(config.name.clone()));
        let mut copy = config.copy(from, "/");
        copy.create_destination = true;
        Ok(copy)
    }

    fn copy_from_http(&mut self, config: &Config<'_>, url: &str) -> Result<CopyAction, LowerError> {
        let Some(add) = config.add else { return Err(LowerError::RemoteCopy("a URL")) };
        let name = git::url_file_name(url).unwrap_or_else(|| "__unnamed__".to_owned());
        let checksum = config.checksum.as_deref().map(Digest::parse).transpose();
        let source = HttpSource {
            url: url.to_owned(),
            filename: Some(name.clone()),
            checksum: checksum.map_err(|e| LowerError::ChecksumFormat(e.to_string()))?,
            ..HttpSource::default()
        };
        let mut options = OpOptions::named(config.name.clone());
        options.metadata.description.insert("com.docker.dockerfile.v1.command".to_owned(), String::new());
        let from = self.graph.http(source, options);
        let mut copy = config.copy(from, &name);
        copy.create_destination = true;
        copy.unpack = add.unpack == Some(true);
        Ok(copy)
    }
}

impl Config<'_> {
    fn copy(&self, from: State, source: &str) -> CopyAction {
        let mut copy = CopyAction::new(from, source, self.destination.clone());
        copy.mode = self.mode.clone();
        copy.owner = self.chown.map(|chown| match (self.is_classic, chown.contains(':')) {
            // There a group's name is the user's unless it is said.
            (true, false) => Owner::parse(&format!("{chown}:{chown}")),
            _ => Owner::parse(chown),
        });
        copy.exclude_patterns = self.excludes.to_vec();
        copy
    }

    fn copy_from_files(&self, source: &str) -> Result<CopyAction, LowerError> {
        let normalized = |path: &str| -> Result<String, LowerError> {
            Ok(path::normalize("/", &path::of_os(&self.os, path, false)?, false))
        };
        let (mut source, mut include, mut required) = (source.to_owned(), Vec::new(), Vec::new());
        if self.parents {
            // What is before `/./` is not kept.
            let (parent, pattern) = match source.split_once("/./") {
                Some((parent, pattern)) => (parent.to_owned(), pattern.to_owned()),
                None => ("/".to_owned(), source.clone()),
            };
            let pattern = normalized(&pattern)?;
            include.push(pattern.strip_prefix('/').unwrap_or(&pattern).to_owned());
            if !has_wildcards(&parent) && !has_wildcards(&pattern) {
                required.push(normalized(&join_path(&[&parent, &pattern]))?);
            }
            source = parent;
        }
        let mut copy = self.copy(self.source.clone(), &normalized(&source)?);
        copy.follow_symlinks = true;
        copy.contents_only = true;
        copy.include_patterns = include;
        copy.required_paths = required;
        copy.unpack = self.add.is_some_and(|add| add.unpack.unwrap_or(true));
        copy.create_destination = true;
        copy.allow_wildcard = true;
        copy.allow_empty_wildcard = true;
        Ok(copy)
    }

    /// Whether the classic builder has all of it.
    fn is_plain(&self) -> bool {
        let bare = self.transfer.inline_files.is_empty() && self.excludes.is_empty();
        bare && !self.link
            && !self.parents
            && self.chmod.is_none()
            && self.add.is_none_or(|add| {
                add.checksum.is_none() && add.unpack.is_none() && add.keep_git_dir.is_none()
            })
    }

    /// As the classic history has it, where nothing stands between the owner and the hash.
    fn classic_history(&self, hash: &str) -> String {
        let keyword = if self.add.is_some() { "ADD" } else { "COPY" };
        let chmod = self.chmod.map(|chmod| format!("--chmod={chmod} ")).unwrap_or_default();
        let chown = self.chown.map(|chown| format!("--chown={chown}")).unwrap_or_default();
        format!("{keyword} {chmod}{chown}{hash} in {} ", self.transfer.destination)
    }

    fn history(&self) -> String {
        let mut text = if self.add.is_some() { "ADD".to_owned() } else { "COPY".to_owned() };
        if self.parents {
            text.push_str(" --parents");
        }
        for (flag, value) in [("chown", self.chown), ("chmod", self.chmod)] {
            if let Some(value) = value {
                text.push_str(&format!(" --{flag}={value}"));
            }
        }
        for source in &self.transfer.sources {
            let source = if self.add.is_some() { git::without_login(source) } else { source.into() };
            text.push_str(&format!(" {source}"));
        }
        for file in &self.transfer.inline_files {
            text.push_str(&format!(" <<{}", file.name));
        }
        format!("{text} {} # buildkit", self.transfer.destination)
    }
}

/// What a copy needs of where it copies from.
fn used_path(os: &str, source: &str) -> String {
    // A URL of git has a colon, and is no path: it is needed as little as what is not there.
    let source = path::of_os(os, source, false).unwrap_or(source.into());
    join_path(&["/", &source])
}

fn parse_mode(chmod: Option<&str>) -> Result<Option<CopyMode>, LowerError> {
    let Some(text) = chmod else { return Ok(None) };
    // Go's ParseUint takes no sign.
    if !text.starts_with('+')
        && let Ok(bits) = u32::from_str_radix(text, 8)
    {
        return if bits > 0o7777 {
            Err(LowerError::Chmod(text.to_owned()))
        } else {
            Ok(Some(CopyMode::Bits(bits)))
        };
    }
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(LowerError::Chmod(text.to_owned()));
    }
    if SYMBOLIC_MODE.is_match(text) {
        Ok(Some(CopyMode::Symbolic(text.to_owned())))
    } else {
        Err(LowerError::ChmodSymbolic(text.to_owned()))
    }
}

fn has_wildcards(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' => return true,
            '\\' => _ = chars.next(),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_for_windows_copies_is_asked_for_by_its_name_on_the_client() {
        for (os, source, used) in [
            ("windows", r"tools\*.exe", "/tools/*.exe"),
            ("windows", r"C:\a\", "/a"),
            ("windows", "https://example.org/x.git", "/https:/example.org/x.git"),
            ("linux", r"a\*", r"/a\*"),
        ] {
            assert_eq!(used_path(os, source), used, "{source}");
        }
    }
}
