//! Requests of the system to end. Whoever waits for one decides what to do about it.

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

/// Completes at Ctrl-C or when the process is asked to terminate.
pub async fn interruption() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}
