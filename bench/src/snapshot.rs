//! `polyraft snapshot`: copies snapshots out of data directories and into others. It must never change a directory that a
//! node has open: the directory's lock sees to that.

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use polyraft::{Config, SnapshotInfo};
use std::io::Write;
use std::path::PathBuf;

/// List, check, export and import snapshots of groups.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Print the newest snapshot of each group in a data directory; its node may run
    List {
        /// The data directory of a node
        dir: PathBuf,
    },
    /// Check every byte of exported snapshots
    Verify {
        /// The files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Copy the newest snapshot of a group to a file; the node may run
    Export {
        /// The data directory of a node
        dir: PathBuf,
        /// The group
        group: u64,
        /// The file, which must not exist
        file: PathBuf,
    },
    /// Begin a group with the state in an exported snapshot. Do it on every member, then start the nodes
    Import {
        /// The data directory of a node that does not run; it is made if there is none
        dir: PathBuf,
        /// The file
        file: PathBuf,
        /// The cluster that the node belongs to
        #[arg(long)]
        cluster: String,
        /// The node's id
        #[arg(long)]
        node: u64,
        /// The members of the group, the same on all of them
        #[arg(long, value_delimiter = ',', required = true)]
        members: Vec<u64>,
        /// The group; that of the snapshot if it is not given
        #[arg(long)]
        group: Option<u64>,
        /// The configuration of the node, as TOML
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

/// Runs the command.
pub fn run(command: &SnapshotCommand) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match command {
        SnapshotCommand::List { dir } => {
            ensure!(dir.is_dir(), "{} is no directory", dir.display());
            for found in polyraft::snapshots_in(dir)? {
                writeln!(out, "{}", line(&found))?;
            }
        }
        SnapshotCommand::Verify { files } => {
            for file in files {
                let found = polyraft::verify_snapshot(file)?;
                writeln!(out, "{}: sound; {}", file.display(), line(&found))?;
            }
        }
        SnapshotCommand::Export { dir, group, file } => {
            let found = polyraft::export_snapshot(dir, *group, file)?;
            writeln!(out, "{}: {}", file.display(), line(&found))?;
        }
        SnapshotCommand::Import {
            dir,
            file,
            cluster,
            node,
            members,
            group,
            config,
        } => {
            let config = match config {
                None => Config::default(),
                Some(path) => {
                    let text = std::fs::read_to_string(path)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    Config::from_toml_str(&text)?
                }
            };
            let group = match group {
                Some(group) => *group,
                None => polyraft::verify_snapshot(file)?.group.0,
            };
            let found = polyraft::NodePlace {
                data_dir: dir.clone(),
                cluster: cluster.clone(),
                node: *node,
                config,
            }
            .import_snapshot(file, group, members)?;
            writeln!(out, "{}: imported {}", dir.display(), line(&found))?;
        }
    }
    Ok(())
}

fn line(found: &SnapshotInfo) -> String {
    format!(
        "group {} through index {} of term {}, {} bytes, members {:?}",
        found.group.0,
        found.last.index.0,
        found.last.term.0,
        found.bytes,
        found.members.iter().map(|node| node.0).collect::<Vec<_>>()
    )
}
