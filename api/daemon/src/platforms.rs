//! `lapstrake platforms`.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use lapstrake_builder_executor::{Architectures, NativeExecutor, NetworkOptions};

use crate::{assembly, error::ProgramError, process};

/// Lists the platforms whose processes run here, this machine's own first.
pub(crate) fn run() -> Result<(), ProgramError> {
    let helper = assembly::start_helper(None, NetworkOptions::default())?.ready()?;
    let directory = tempfile::tempdir().map_err(ProgramError::system("make a temporary directory"))?;
    let runtime = process::start_threads()?;
    let platforms = runtime.block_on(async {
        let executor = Arc::new(NativeExecutor::new(helper)?);
        let architectures = Architectures::new(executor, directory.path().to_owned());
        Ok::<_, ProgramError>(lapstrake_builder_engine::platforms(&architectures).await)
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    let mut text = String::new();
    for platform in platforms? {
        let _ = writeln!(text, "{platform}"); // a String takes everything
    }
    crate::say(&text);
    Ok(())
}
