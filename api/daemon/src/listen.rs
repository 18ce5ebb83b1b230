//! Sockets: made or taken over, and served.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use lapstrake_api_server::{AppState, ServeLimits, serve};
use nix::unistd::{Gid, Group, Uid};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    error::ProgramError,
    host::Host,
    rootless,
    settings::{DaemonSettings, TcpSecurity},
    tls::{self, TlsListener},
};

/// The group that may use the unix socket where there is one of this name, as with Docker.
const DEFAULT_GROUP: &str = "docker";

/// A socket that is listened on.
pub(crate) enum Listener {
    /// A unix socket of ours, or one that systemd made.
    Unix(UnixListener, Option<SocketFile>),
    /// TCP, open to everybody.
    Tcp(TcpListener),
    /// TCP with TLS.
    Tls(TcpListener, TlsAcceptor),
}

/// A socket's file; removed when dropped, if it is still that socket's.
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            // Gone already is what was wanted.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes all listeners of the settings; `inherited` are systemd's sockets.
pub(crate) async fn bind(
    settings: &DaemonSettings,
    inherited: Vec<(u32, OwnedFd)>,
) -> Result<Vec<(String, Listener)>, ProgramError> {
    let acceptor = tls::acceptor(&settings.tcp)?;
    let gid = group(settings.group.as_deref())?;
    let owner = Owner { uid: settings.uid.map(Uid::from_raw), gid };
    let mut inherited: Vec<Option<(u32, OwnedFd)>> = inherited.into_iter().map(Some).collect();
    let mut listeners = Vec::new();
    for host in &settings.hosts {
        let name = host.to_string();
        let failed = |source| ProgramError::Listen { host: host.to_string(), source };
        match host {
            Host::Unix(path) => {
                let (listener, file) = unix(path, owner).await.map_err(failed)?;
                listeners.push((name, Listener::Unix(listener, Some(file))));
            }
            Host::Tcp(address) => {
                let address = Host::tcp_address(address, acceptor.is_some());
                let listener = TcpListener::bind(&address).await.map_err(failed)?;
                listeners.push((name, secured(listener, acceptor.clone())));
            }
            Host::Inherited(wanted) => {
                let before = listeners.len();
                for slot in &mut inherited {
                    if slot.as_ref().is_some_and(|(number, _)| wanted.is_none_or(|wanted| wanted == *number))
                        && let Some((number, fd)) = slot.take()
                    {
                        let listener = adopt(fd, settings, acceptor.clone())?;
                        listeners.push((format!("fd://{number}"), listener));
                    }
                }
                if listeners.len() == before {
                    let why = "systemd passed no such socket: is the daemon started by its socket unit?";
                    return Err(failed(io::Error::new(io::ErrorKind::NotFound, why)));
                }
            }
        }
    }
    Ok(listeners)
}

fn secured(listener: TcpListener, acceptor: Option<TlsAcceptor>) -> Listener {
    match acceptor {
        Some(acceptor) => Listener::Tls(listener, acceptor),
        None => Listener::Tcp(listener),
    }
}

/// Whose a socket is; who makes it where nothing is said.
#[derive(Debug, Clone, Copy, Default)]
struct Owner {
    uid: Option<Uid>,
    gid: Option<Gid>,
}

impl Owner {
    fn own(self, path: &Path) -> io::Result<()> {
        if self.uid.is_none() && self.gid.is_none() {
            return Ok(());
        }
        std::os::unix::fs::chown(path, self.uid.map(Uid::as_raw), self.gid.map(Gid::as_raw))
    }
}

/// Makes a directory and those above it that are not there, for whoever may use the socket in it. As buildkitd's, but that those above are passable, too.
fn directory(path: &Path, owner: Owner) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        directory(above, owner)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    owner.own(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o770))
}

/// Makes a unix socket that its owner and one group may use. A socket file that nobody listens on is replaced.
async fn unix(path: &Path, owner: Owner) -> io::Result<(UnixListener, SocketFile)> {
    if let Some(parent) = path.parent() {
        directory(parent, owner)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon listens there"));
        }
        _ => {}
    }
    // Made beside its place, given its owner, and then put there: nobody ever meets it with the wrong permissions.
    let mut new = path.as_os_str().to_owned();
    new.push("~");
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new); // left by a crash, or not there
    let listener = UnixListener::bind(&new)?;
    let place = || -> io::Result<SocketFile> {
        owner.own(&new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o660))?;
        let inode = fs::symlink_metadata(&new)?.ino();
        fs::rename(&new, path)?;
        Ok(SocketFile { path: path.to_owned(), inode })
    };
    let file = place().inspect_err(|_| drop(fs::remove_file(&new)))?;
    Ok((listener, file))
}

/// The group that is named, by name or number; where none is, `docker` if there is one.
fn group(wanted: Option<&str>) -> Result<Option<Gid>, ProgramError> {
    let find = |name: &str| {
        Group::from_name(name)
            .map_err(|errno| ProgramError::System { doing: "look up a group", source: errno.into() })
            .map(|group| group.map(|group| group.gid))
    };
    match wanted {
        None if rootless::is_ordinary_user() => Ok(None),
        Some(text) if rootless::is_ordinary_user() => Err(ProgramError::setting(
            format!("--group {text}"),
            "an ordinary user's daemon cannot give its socket to a group",
        )),
        None => find(DEFAULT_GROUP),
        Some(text) => match text.parse::<u32>() {
            Ok(number) => Ok(Some(Gid::from_raw(number))),
            Err(_) => match find(text)? {
                Some(gid) => Ok(Some(gid)),
                None => Err(ProgramError::setting(format!("--group {text}"), "there is no such group")),
            },
        },
    }
}

/// A socket of systemd's, of whatever family it is.
fn adopt(
    fd: OwnedFd,
    settings: &DaemonSettings,
    acceptor: Option<TlsAcceptor>,
) -> Result<Listener, ProgramError> {
    let failed = |source: io::Error| ProgramError::Listen { host: "fd://".to_owned(), source };
    let family = rustix::net::getsockname(&fd).map_err(|errno| failed(errno.into()))?.address_family();
    rustix::io::ioctl_fionbio(&fd, true).map_err(|errno| failed(errno.into()))?;
    if family == rustix::net::AddressFamily::UNIX {
        let listener = UnixListener::from_std(fd.into()).map_err(failed)?;
        return Ok(Listener::Unix(listener, None));
    }
    if settings.tcp == TcpSecurity::Plain && !settings.insecure_tcp {
        return Err(ProgramError::setting(
            "fd://",
            "systemd passed a TCP socket: it needs --tlscacert, --tlscert and --tlskey, or --insecure-tcp",
        ));
    }
    Ok(secured(TcpListener::from_std(fd.into()).map_err(failed)?, acceptor))
}

/// Serves every listener until `stop`, then until what runs has ended or its time is over.
pub(crate) async fn serve_all(
    listeners: Vec<(String, Listener)>,
    state: Arc<AppState>,
    stop: CancellationToken,
) {
    let limits = ServeLimits::default();
    let tasks = TaskTracker::new();
    for (name, listener) in listeners {
        let (state, stop) = (Arc::clone(&state), stop.clone());
        tracing::info!(host = name, "listening");
        match listener {
            Listener::Unix(listener, file) => tasks.spawn(async move {
                serve(listener, state, limits, stop).await;
                drop(file);
            }),
            Listener::Tcp(listener) => tasks.spawn(serve(listener, state, limits, stop)),
            Listener::Tls(listener, acceptor) => {
                tasks.spawn(serve(TlsListener::start(listener, acceptor), state, limits, stop))
            }
        };
    }
    tasks.close();
    tasks.wait().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_nobody_listens_on_is_replaced_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/x.sock");
        let (first, file) = unix(&path, Owner::default()).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = unix(&path, Owner::default()).await.err().unwrap();
        assert!(error.to_string().contains("another daemon"), "{error}");
        drop(first);
        let (_second, second_file) = unix(&path, Owner::default()).await.unwrap();
        // The first socket's file is another's now.
        drop(file);
        assert!(path.exists());
        drop(second_file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn directories_that_are_made_are_for_who_may_use_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o751)).unwrap();
        let owner = Owner { uid: Some(Uid::from_raw(12)), gid: Some(Gid::from_raw(34)) };
        let path = dir.path().join("deep/er/x.sock");
        let _socket = unix(&path, owner).await.unwrap();
        let seen = |path: &Path| {
            let found = fs::metadata(path).unwrap();
            (found.mode() & 0o777, found.uid(), found.gid())
        };
        assert_eq!(seen(&path), (0o660, 12, 34));
        assert_eq!(seen(path.parent().unwrap()), (0o770, 12, 34));
        assert_eq!(seen(&dir.path().join("deep")), (0o770, 12, 34));
        assert_eq!(seen(dir.path()).0, 0o751, "what was there stays as it was");
    }

    #[tokio::test]
    async fn a_file_in_the_sockets_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "precious").unwrap();
        let error = unix(&path, Owner::default()).await.err().unwrap();
        assert!(error.to_string().contains("no socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        assert_eq!(group(Some("root")).unwrap(), Some(Gid::from_raw(0)));
        assert_eq!(group(Some("1234")).unwrap(), Some(Gid::from_raw(1234)));
        assert!(group(Some("no-such-group-here")).unwrap_err().to_string().contains("no-such-group-here"));
    }
}
