//! What the daemon asks of its own process: open files, the pid file, signals.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::{error::ProgramError, memory};

/// Raises the number of files that may be open to what the kernel allows this process. Layers, connections and pipes of many
/// builds at once need more than a shell's 1024.
pub(crate) fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "limit of open files not raised");
    }
}

/// Starts the threads that everything runs on: the last thing before there is more than one.
pub(crate) fn start_threads() -> Result<Runtime, ProgramError> {
    memory::share_arenas();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().build().map_err(ProgramError::system("start threads"))
}

/// The file that says which process the daemon is. Removed when dropped.
pub(crate) struct PidFile(PathBuf);

impl PidFile {
    /// Writes it. Refused while the process that it names lives.
    pub(crate) fn create(path: &Path) -> Result<Self, ProgramError> {
        if let Ok(text) = fs::read_to_string(path)
            && let Ok(pid) = text.trim().parse::<u32>()
            && pid != std::process::id()
            && Path::new(&format!("/proc/{pid}")).exists()
        {
            return Err(ProgramError::setting(
                format!("pid file {}", path.display()),
                format!("process {pid} is running; is it another daemon?"),
            ));
        }
        if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
            let why = "there is something that is no regular file";
            return Err(ProgramError::setting(format!("pid file {}", path.display()), why));
        }
        // Written beside it and renamed, so that nobody reads half a number.
        let new = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&new)?;
            writeln!(file, "{}", std::process::id())?;
            drop(file);
            fs::rename(&new, path)
        };
        write().map_err(ProgramError::file("write pid file", path))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "pid file not removed");
        }
    }
}

/// Cancels `stop` at SIGTERM or SIGINT; a second one ends the process at once, leaving the rest to the next start.
pub(crate) fn stop_on_signals(stop: CancellationToken) -> Result<(), ProgramError> {
    let failed = || ProgramError::system("listen for signals");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed())?;
    tokio::spawn(async move {
        for is_first in [true, false] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if is_first {
                tracing::info!(signal = name, "stopping; builds that run are cancelled");
                stop.cancel();
            } else {
                tracing::warn!(signal = name, "ending at once");
                std::process::exit(1);
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_of_a_living_process_is_refused_and_one_of_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "1\n").unwrap();
        let Err(error) = PidFile::create(&path) else { panic!("process 1 lives") };
        assert!(error.to_string().contains("process 1 is running"), "{error}");
        // Above the largest pid that Linux gives.
        fs::write(&path, "4194305\n").unwrap();
        let file = PidFile::create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), std::process::id().to_string());
        drop(file);
        assert!(!path.exists());
    }
}
