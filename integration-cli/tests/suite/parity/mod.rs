//! Same input, both engines: every Dockerfile of `cases/` is built by us and by Debian's dockerd (20.10.24, with BuildKit 0.8), with the same
//! client, and comes to the same.
//!
//! A case is a `<name>.Dockerfile`, perhaps with its `.dockerignore`. All have one context ([`context()`]). A last line `# parity: …` has further
//! arguments, `context=<directory>` for a part of the context, and `error="…"` for what both engines have to say when the build fails, as it
//! must where the name begins with `fail_`.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use lapstrake_integration_cli::{
    BASE_IMAGE, Daemon, Docker, Dockerd, SavedImage, differences, hand_over, saved_image,
};

use context::context;
use tar::EntryType;

mod context;

/// How many cases are built at once.
const AT_ONCE: usize = 6;

/// Where today's BuildKit, which is ours, and that of 2020 differ: the case, how the difference begins, and why it is right.
const KNOWN: &[(&str, &str, &str)] = &[
    ("add_tar_chown", "tree x/", UNPACKED_OWNER),
    ("copy_chmod", "tree 2:", MODES),
    ("copy_chmod", "tree 3:", MODES),
    ("copy_from_links", "tree o/p: Some(Fifo", "pipes are copied today"),
    ("run_bind", "tree ctx: None", MOUNT_POINT),
    ("run_bind_from", "tree root-of-a: None", MOUNT_POINT),
    ("run_bind_readonly", "tree m: None", MOUNT_POINT),
    ("run_bind_rw", "tree m: None", MOUNT_POINT),
    ("run_bind_source", "tree m: None", MOUNT_POINT),
    ("run_cache", "tree c: None", MOUNT_POINT),
    ("run_cache_from", "tree c: None", MOUNT_POINT),
    ("run_cache_mode", "tree c: None", MOUNT_POINT),
    ("run_mount_points", "tree new", MOUNT_POINT),
    ("run_mount_points", "tree opt", MOUNT_POINT),
    ("run_secret", "tree run", MOUNT_POINT),
    ("run_secret", "tree s: None", MOUNT_POINT),
    ("run_tmpfs", "tree t: None", MOUNT_POINT),
];

const MOUNT_POINT: &str = "today's BuildKit removes the directories that it made to mount something on";
const MODES: &str = "0.8 knew --chmod for regular files and their permissions only";
const UNPACKED_OWNER: &str = "0.8 did not apply --chown to what was in an archive";

/// A client, and where its daemon listens.
type Engine = (Docker, PathBuf);

struct Case {
    name: String,
    file: PathBuf,
    arguments: Vec<String>,
    directory: String,
    error: Option<String>,
}

impl Case {
    fn all() -> Vec<Case> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/cases");
        let mut files: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "Dockerfile"));
        files.sort();
        files.into_iter().map(Case::read).collect()
    }

    fn read(file: PathBuf) -> Case {
        let text = fs::read_to_string(&file).unwrap();
        let last = text.lines().last().unwrap_or_default();
        let options = last.strip_prefix("# parity: ").unwrap_or_default();
        let (options, error) = match options.split_once("error=\"") {
            Some((options, error)) => (options, Some(error.trim_end_matches('"').to_owned())),
            None => (options, None),
        };
        let (places, arguments): (Vec<&str>, Vec<&str>) =
            options.split_whitespace().partition(|word| word.starts_with("context="));
        Case {
            name: file.file_stem().unwrap().to_str().unwrap().to_owned(),
            file,
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            directory: places.first().map_or("", |word| &word["context=".len()..]).to_owned(),
            error,
        }
    }

    /// The image, or what the client said of why there is none.
    fn build(&self, (docker, socket): &Engine, context: &Path) -> Result<SavedImage, String> {
        let context_text = context.to_str().unwrap();
        let mut arguments: Vec<String> =
            ["build", "--network=host", "-t", &self.name, "-f"].map(str::to_owned).to_vec();
        arguments.push(self.file.to_str().unwrap().to_owned());
        arguments.extend(self.arguments.iter().map(|argument| argument.replace("{context}", context_text)));
        arguments.push(context.join(&self.directory).to_str().unwrap().to_owned());
        let built = docker.run(&arguments);
        if built.code != 0 {
            return Err(built.all());
        }
        Ok(saved_image(&save(socket, &self.name)))
    }

    /// What is not the same.
    fn compare(&self, mine: &Engine, theirs: &Engine, context: &Path, began: u64) -> Vec<String> {
        let must_fail = self.name.starts_with("fail_");
        match (self.build(mine, context), self.build(theirs, context)) {
            (Ok(mine), Ok(theirs)) if !must_fail => images(&mine.without_user_attributes(), &theirs, began),
            (Err(mine), Err(theirs)) if must_fail => {
                let wanted = self.error.iter();
                let silent =
                    |error: &&String| !(mine.contains(error.as_str()) && theirs.contains(error.as_str()));
                let silent = wanted.filter(silent);
                silent.map(|error| format!("message: {error:?}\n{mine}\n{theirs}")).collect()
            }
            (mine, theirs) => {
                let text = |built: Result<SavedImage, String>| {
                    built.map_or_else(|error| error, |_| "an image".to_owned())
                };
                vec![format!("outcome: {} | {}", text(mine), text(theirs))]
            }
        }
    }
}

/// What `docker save` writes, without starting a client for it: half of what the test takes would be that.
fn save(socket: &Path, image: &str) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).unwrap();
    // To HTTP/1.0 the answer comes in one piece that ends with the connection.
    write!(stream, "GET /images/{image}/get HTTP/1.0\r\nHost: engine\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    assert!(head.lines().next().unwrap().contains(" 200 "), "{head}");
    assert!(!head.to_lowercase().contains("chunked"), "{head}");
    answer.split_off(end + 4)
}

fn images(mine: &SavedImage, theirs: &SavedImage, began: u64) -> Vec<String> {
    let mut found: Vec<String> =
        differences(&mine.tree, &theirs.tree).iter().map(|line| format!("tree {line}")).collect();
    for (path, node) in &mine.tree {
        let Some(other) = theirs.tree.get(path) else { continue };
        // What was made by the build is as old as it was then. BuildKit 0.8 also makes directories new that are copied, that an archive does not name (1970 here), or in which it
        // has to make mount points, and today's does not.
        let is_new = node.mtime >= began || node.kind == EntryType::Directory;
        if node.mtime != other.mtime && !(is_new && other.mtime >= began) {
            found.push(format!("time {path}: {} | {}", node.mtime, other.mtime));
        }
    }
    let (one, other) = (mine.comparable(), theirs.comparable());
    for (one, other) in
        [(&one, &other), (one["config"].as_object().unwrap(), other["config"].as_object().unwrap())]
    {
        let keys: BTreeSet<_> = one.keys().chain(other.keys()).filter(|key| *key != "config").collect();
        let differing = keys.into_iter().filter(|key| one.get(*key) != other.get(*key));
        found.extend(differing.map(|key| format!("config {key}: {:?} | {:?}", one.get(key), other.get(key))));
    }
    // The texts have changed since; `dockerd.rs` compares them.
    let made = |image: &SavedImage| -> Vec<bool> {
        image.history().iter().map(|line| line.ends_with("|true")).collect()
    };
    if made(mine) != made(theirs) {
        found.push(format!("history: {:#?} | {:#?}", mine.history(), theirs.history()));
    }
    found
}

#[test]
fn every_dockerfile_comes_to_the_same_in_both_engines() {
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (ours, engine) = (Daemon::with_base(), Dockerd::start());
    let mine = (ours.docker().buildkit(), ours.socket());
    let theirs = (engine.docker().buildkit(), engine.socket());
    hand_over(&mine.0, &theirs.0, BASE_IMAGE);
    let context = context(&ours.scratch());
    let cases = Case::all();
    assert!(cases.len() >= 180, "{} cases", cases.len());
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let differences = case.compare(&mine, &theirs, &context, began);
                    let differences = differences.into_iter().map(|line| (case.name.clone(), line));
                    found.lock().unwrap().extend(differences);
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort();
    let is_known = |(name, line): &(String, String), (case, start, _): &(&str, &str, &str)| {
        name == case && line.starts_with(start)
    };
    let unused: Vec<_> =
        KNOWN.iter().filter(|known| !found.iter().any(|line| is_known(line, known))).collect();
    found.retain(|line| !KNOWN.iter().any(|known| is_known(line, known)));
    let lines: Vec<_> = found.iter().map(|(name, line)| format!("{name}: {line}")).collect();
    assert!(lines.is_empty(), "{} differences, ours | dockerd's\n{}", lines.len(), lines.join("\n"));
    assert!(unused.is_empty(), "no differences any more: {unused:?}");
}
