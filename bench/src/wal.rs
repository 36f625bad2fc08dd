//! `polyraft wal`: looks into write-ahead logs that no node has open. It never writes to them.

use anyhow::{Context, Result};
use clap::Subcommand;
use polyraft_storage::inspect::{self, DumpError};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Look into a write-ahead log offline. Stop the node first: a log that is being written changes under the reader.
#[derive(Clone, Debug, Subcommand)]
pub enum WalCommand {
    /// Print every record: position, group, kind, term, indexes
    Dump {
        /// The data directory of a node, its wal directory, or the directory of a demo
        dir: PathBuf,
    },
    /// Check every record; what is not sound is told with its position, and the exit code is 1
    Verify {
        /// The data directory of a node, its wal directory, or the directory of a demo
        dir: PathBuf,
    },
}

/// Runs the command. False if a log is damaged.
pub fn run(command: &WalCommand) -> Result<bool> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let result = match command {
        WalCommand::Dump { dir } => dump(dir, &mut out).map(|()| true),
        WalCommand::Verify { dir } => verify(dir, &mut out),
    };
    // A reader that has seen enough (`| head`) is no failure.
    match result.and_then(|sound| Ok(out.flush().map(|()| sound)?)) {
        Err(error) if is_broken_pipe(&error) => Ok(true),
        result => result,
    }
}

fn dump(dir: &Path, out: &mut dyn Write) -> Result<()> {
    for log in logs(dir)? {
        writeln!(out, "# {}", log.display())?;
        inspect::dump(&log, out).map_err(|error| match error {
            // Unwrapped, so that a closed pipe is recognised.
            DumpError::Output(error) => error.into(),
            error @ DumpError::Log(_) => anyhow::Error::new(error),
        })?;
    }
    Ok(())
}

fn verify(dir: &Path, out: &mut dyn Write) -> Result<bool> {
    let mut is_sound = true;
    for log in logs(dir)? {
        match inspect::verify(&log) {
            Ok(report) => writeln!(out, "{}: sound; {report}", log.display())?,
            Err(damage) => {
                is_sound = false;
                writeln!(out, "{}: NOT SOUND; {damage}", log.display())?;
            }
        }
    }
    Ok(is_sound)
}

/// The directory itself, or those of the nodes below it if it is the directory of a demo.
fn logs(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)
        .with_context(|| format!("cannot read the directory {}", dir.display()))?;
    let mut nodes = Vec::new();
    for entry in entries {
        let entry = entry?;
        let is_node = entry.file_name().to_str().and_then(node_number).is_some();
        if is_node && entry.file_type()?.is_dir() {
            nodes.push(entry.path());
        }
    }
    nodes.sort();
    if nodes.is_empty() {
        nodes.push(dir.to_owned());
    }
    Ok(nodes)
}

/// The number in `node-7`.
fn node_number(name: &str) -> Option<u64> {
    name.strip_prefix("node-")?.parse().ok()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_directory_stands_for_its_nodes() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(logs(dir.path()).unwrap(), [dir.path()]);
        for name in ["node-2", "node-1", "ca", "node-x"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("node-3"), "not a directory").unwrap();
        assert_eq!(
            logs(dir.path()).unwrap(),
            [dir.path().join("node-1"), dir.path().join("node-2")]
        );
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = logs(Path::new("/no/such/dir")).unwrap_err().to_string();
        assert!(error.contains("/no/such/dir"), "{error}");
    }

    #[test]
    fn a_closed_pipe_is_recognised_under_context() {
        let error = anyhow::Error::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe))
            .context("printing");
        assert!(is_broken_pipe(&error));
        assert!(!is_broken_pipe(&anyhow::anyhow!("damage")));
    }
}
