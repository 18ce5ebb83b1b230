//! An ordinary user's program: root of a user namespace of its own, in which the user is root and their subordinate ids are everybody else.
//!
//! ```text
//!   this process ── starts ─► mapper (the same program; waits)        /etc/subuid, /etc/subgid
//!        │ unshare: user and mount namespace                              │
//!        └──────── a byte ─────────────────────► newuidmap, newgidmap ◄───┘
//!   the process goes on as uid 0 of the namespace; mounts, chown and containers work, within it
//! ```
//!
//! Only a process with one thread may do so: this comes before the executor's helper and the runtime's threads. Only `newuidmap` and
//! `newgidmap` (Debian's `uidmap`), which belong to root, may map more than the user's own id; and only from outside the namespace.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    sched::CloneFlags,
    unistd::{Uid, User},
};

use crate::error::ProgramError;

/// `argv[0]` of the process that maps ids.
const MAPPER: &str = "lapstrake-id-mapper";
/// Ids without which common images cannot be unpacked: `nobody` is 65534.
const ENOUGH: u64 = 65_536;

/// Ids of the machine that are one user's to give away: the first, and how many.
type Range = (u64, u64);

static ENTERED: AtomicBool = AtomicBool::new(false);

/// Makes this process, if it is not root, root of a namespace of its own. Files that it makes there belong to the user, and to the user's subordinate
/// ids.
///
/// Errors say what the machine lacks, and how it gets it.
pub(crate) fn enter() -> Result<(), ProgramError> {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return Ok(());
    }
    let name = user_name(user.as_raw())?;
    let uids = ranges(Path::new("/etc/subuid"), &name, user.as_raw())?;
    let gids = ranges(Path::new("/etc/subgid"), &name, user.as_raw())?;
    let group = rustix::process::getegid().as_raw();
    let failed = || ProgramError::system("start the process that maps ids");
    let mut mapper = Command::new("/proc/self/exe");
    std::os::unix::process::CommandExt::arg0(&mut mapper, MAPPER);
    mapper.arg(std::process::id().to_string());
    mapper.arg(map(user.as_raw(), &uids)).arg(map(group, &gids));
    let mut mapper =
        mapper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed())?;
    let unshared = nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS);
    let mut go = mapper.stdin.take().expect("it is piped");
    if unshared.is_ok() {
        // When it is gone already, it has said why.
        let _ = go.write_all(b"\n");
    }
    drop(go);
    let told = mapper.wait_with_output().map_err(failed())?;
    unshared.map_err(|errno| refused("make a user namespace", &errno.to_string()))?;
    if !told.status.success() {
        return Err(refused("map ids", String::from_utf8_lossy(&told.stderr).trim()));
    }
    // Where the machine lets ordinary users have such namespaces, but no power in them (AppArmor on Ubuntu 24.04).
    let propagation =
        rustix::mount::MountPropagationFlags::DOWNSTREAM | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", propagation)
        .map_err(|errno| refused("use the namespace", &errno.to_string()))?;
    ENTERED.store(true, Ordering::Relaxed);
    Ok(())
}

/// Whether an ordinary user runs this, root of a namespace ([`enter`]) or not yet.
pub(crate) fn is_ordinary_user() -> bool {
    ENTERED.load(Ordering::Relaxed) || !rustix::process::geteuid().is_root()
}

/// Turns this process into the one that maps ids, when it has been started as that; then it never returns. `main` calls it before anything else.
pub(crate) fn maybe_map_ids() {
    let mut args = std::env::args();
    if args.next().is_none_or(|name| name != MAPPER) {
        return;
    }
    let (Some(pid), Some(uids), Some(gids)) = (args.next(), args.next(), args.next()) else {
        std::process::exit(2)
    };
    // Its end means that there is no namespace.
    if !matches!(io::stdin().read(&mut [0]), Ok(1)) {
        std::process::exit(1);
    }
    for (program, map) in [("newuidmap", uids), ("newgidmap", gids)] {
        match Command::new(program).arg(&pid).args(map.split(' ')).stdin(Stdio::null()).status() {
            Ok(status) if status.success() => {}
            Ok(status) => {
                eprintln!("{program}: {status}");
                std::process::exit(1);
            }
            Err(error) => {
                eprintln!("{program}: {error}; apt-get install uidmap");
                std::process::exit(1);
            }
        }
    }
    std::process::exit(0)
}

fn refused(what: &str, why: &str) -> ProgramError {
    ProgramError::setting(
        "rootless",
        format!(
            "cannot {what}: {why}. An ordinary user needs user namespaces (sysctl user.max_user_namespaces, and where they are there \
             kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0) and newuidmap and newgidmap (apt-get install \
             uidmap); or run it as root"
        ),
    )
}

fn user_name(uid: u32) -> Result<String, ProgramError> {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => Ok(user.name),
        Ok(None) => Err(ProgramError::setting("rootless", format!("user {uid} has no name in /etc/passwd"))),
        Err(errno) => Err(ProgramError::System { doing: "look up the user", source: errno.into() }),
    }
}

/// The user's ranges of a file of subordinate ids.
fn ranges(file: &Path, name: &str, uid: u32) -> Result<Vec<Range>, ProgramError> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ProgramError::file("read", file)(error));
        }
        text => text.unwrap_or_default(),
    };
    let found = ranges_of(&text, name, uid);
    let count: u64 = found.iter().map(|(_, count)| count).sum();
    if count < ENOUGH {
        let why = format!(
            "user {name} has {count} subordinate ids, and images need {ENOUGH}: as root, usermod --add-subuids 100000-165535 --add-subgids \
             100000-165535 {name} (or another range that nobody has)"
        );
        return Err(ProgramError::setting(file.display().to_string(), why));
    }
    Ok(found)
}

/// subuid(5): `name or uid:first:count`.
fn ranges_of(text: &str, name: &str, uid: u32) -> Vec<Range> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.trim().split(':');
        let (Some(who), Some(first), Some(count), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let is_of = who == name || who == uid.to_string();
        if let (true, Ok(first), Ok(count)) = (is_of, first.parse(), count.parse())
            && count > 0
            && !found.contains(&(first, count))
        {
            found.push((first, count));
        }
    }
    found
}

/// What `newuidmap` takes: the user's own id becomes 0, the subordinate ones 1 and so on.
fn map(own: u32, ranges: &[Range]) -> String {
    let mut map = format!("0 {own} 1");
    let mut next = 1u64;
    for (first, count) in ranges {
        map.push_str(&format!(" {next} {first} {count}"));
        next = next.saturating_add(*count);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_the_users_own() {
        let text = "other:100000:65536\nme:200000:1000\n 1000:300000:5 \nme:bad:1\nme:1:0\nme:200000:1000\nme:1:2:3\n\n";
        assert_eq!(ranges_of(text, "me", 1000), [(200_000, 1000), (300_000, 5)]);
        assert_eq!(ranges_of(text, "nobody", 65_534), []);
    }

    #[test]
    fn the_user_is_root_and_all_others_follow() {
        assert_eq!(map(1000, &[(200_000, 1000), (300_000, 5)]), "0 1000 1 1 200000 1000 1001 300000 5");
    }

    #[test]
    fn too_few_ids_are_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("subuid");
        let refused = || ranges(&file, "me", 1000).unwrap_err().to_string();
        for (text, count) in [(None, 0), (Some("you:1:65536\n"), 0), (Some("me:1:1000\n"), 1000)] {
            if let Some(text) = text {
                fs::write(&file, text).unwrap();
            }
            let why = refused();
            assert!(why.contains(&format!("has {count} subordinate ids")), "{why}");
            assert!(
                why.contains("usermod --add-subuids") && why.ends_with("(or another range that nobody has)"),
                "{why}"
            );
        }
        fs::write(&file, "me:100000:65536\n").unwrap();
        assert_eq!(ranges(&file, "me", 1000).unwrap(), [(100_000, 65_536)]);
    }
}
