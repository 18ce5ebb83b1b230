//! Telling systemd how the daemon is (`sd_notify(3)`).

use std::os::{
    linux::net::SocketAddrExt as _,
    unix::{
        ffi::OsStrExt as _,
        net::{SocketAddr, UnixDatagram},
    },
};

/// The daemon answers requests.
pub(crate) fn ready() {
    tell("READY=1\nSTATUS=Serving\n");
}

/// The daemon is about to end.
pub(crate) fn stopping() {
    tell("STOPPING=1\nSTATUS=Ending builds\n");
}

/// Sends a state where somebody asked for it. Nobody can do anything about a failure but read of it.
fn tell(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(socket = %name.display(), %error, "service manager not notified");
    }
}
