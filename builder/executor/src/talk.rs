//! How a process is talked to while it runs: standard input, a terminal, signals, and further processes beside it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;

use crate::ExecError;

/// Where standard input comes from. At its end the process reads an end of file; on a terminal nothing is added (people type
/// control-D themselves).
#[derive(Default)]
pub enum InputSource {
    /// Nothing: `/dev/null`.
    #[default]
    Empty,
    /// What this gives. It is read no faster than the process reads, and no more once the process has ended.
    Reader(Box<dyn AsyncRead + Send + Unpin>),
}

impl fmt::Debug for InputSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "Empty",
            Self::Reader(_) => "Reader",
        })
    }
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What is done to a process while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Its terminal has this size from now on. Without a terminal it is passed over.
    Resize(WindowSize),
    /// It gets a signal. A container's first process gets only those that it has a handler for, and SIGKILL, as pid 1 does anywhere.
    Signal(Signal),
}

/// A signal that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(nix::sys::signal::Signal);

impl Signal {
    /// Its number on this machine.
    pub fn number(self) -> i32 {
        self.0 as i32
    }
}

impl FromStr for Signal {
    type Err = ExecError;

    /// By name, with or without `SIG` and in any case, or by number: `SIGINT`, `int`, `2`.
    fn from_str(text: &str) -> Result<Self, ExecError> {
        let bad =
            || ExecError::Invalid { field: "signal", value: text.to_owned(), reason: "is not a signal" };
        if let Ok(number) = text.parse::<i32>() {
            return nix::sys::signal::Signal::try_from(number).map(Self).map_err(|_| bad());
        }
        let name = text.to_ascii_uppercase();
        let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
        name.parse().map(Self).map_err(|_| bad())
    }
}

/// A process to be run beside a container's first one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtraProcess {
    /// Program and arguments; never empty. A program without a slash is searched in the `PATH` of `env`.
    pub args: Vec<String>,
    /// `KEY=value` each, and nothing of the first process's. The last of several with one key counts. `HOME` is added when missing.
    pub env: Vec<String>,
    /// Working directory, absolute; empty means `/`. It has to be there.
    pub cwd: String,
    /// As [`crate::ProcessSpec::user`].
    pub user: String,
}

/// The same as it crosses to the helper; checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Extra {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) user: String,
    pub(crate) talk: Talk,
}

/// Which of all this a process has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Talk {
    /// A descriptor of standard input comes with the request. (Not for a terminal, which is that itself.)
    pub(crate) stdin: bool,
    /// A terminal in place of all three streams.
    pub(crate) terminal: Option<WindowSize>,
    /// Whether somebody waits for the program's start.
    pub(crate) started: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["SIGINT", "INT", "int", "SigInt", "2"] {
            assert_eq!(text.parse::<Signal>().unwrap().number(), libc::SIGINT, "{text}");
        }
        for text in ["", "SIG", "SIGNAL", "0", "-1", "4000", "SIGINT "] {
            let error = text.parse::<Signal>().unwrap_err();
            assert!(matches!(error, ExecError::Invalid { field: "signal", .. }), "{text}: {error}");
        }
    }
}
