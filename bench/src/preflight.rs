//! What this machine can do, measured before a run, so that its numbers can be read against something. Leaves no
//! file behind.

use crate::process;
use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Facts about the machine and the directory.
#[derive(Clone, Debug, Serialize)]
pub struct Preflight {
    /// The processor's name.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// File system of the directory.
    pub filesystem: String,
    /// Bytes free in it.
    pub free_bytes: u64,
    /// Time of one 4 KiB write with `fdatasync` into a zero-filled file there.
    pub fsync_us: SyncTimes,
    /// QUIC round trip between two nodes, once they are linked: the lowest that any pair reports. None with one node.
    pub quic_round_trip_us: Option<u64>,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct SyncTimes {
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// Rounds of write and sync.
const ROUNDS: u64 = 200;
/// Bytes of a round; also the WAL's unit of padding.
const ROUND_BYTES: usize = 4096;
/// A disk so slow that the rounds take longer than this is known well enough by then.
const MAX_TIME: Duration = Duration::from_secs(3);

/// Measures everything but the round trip, which needs nodes.
pub fn run(dir: &Path) -> Result<Preflight> {
    let fsync_us =
        measure_sync(dir).with_context(|| format!("cannot measure fsync in {}", dir.display()))?;
    let free =
        rustix::fs::statvfs(dir).with_context(|| format!("cannot stat {}", dir.display()))?;
    Ok(Preflight {
        cpu: named_in("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
        cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        memory_bytes: process::system_memory("MemTotal").unwrap_or(0),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .map_or_else(|_| "unknown".into(), |text| text.trim().into()),
        filesystem: filesystem(dir),
        free_bytes: free.f_bavail * free.f_frsize,
        fsync_us,
        quic_round_trip_us: None,
    })
}

impl Preflight {
    /// What the user should know before believing the numbers.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if matches!(self.filesystem.as_str(), "tmpfs" | "ramfs") {
            warnings.push(format!(
                "the directory is on {}, which lives in memory: syncs are free and nothing survives a power cut; \
                 choose a --dir on a disk",
                self.filesystem
            ));
        }
        if self.free_bytes < 4 << 30 {
            warnings.push(format!(
                "only {} are free in the directory; a long run may fill it",
                crate::screen::bytes(self.free_bytes)
            ));
        }
        warnings
    }
}

/// The first `name : value` of a file of the kernel.
fn named_in(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(key, _)| key.trim() == name)?;
    Some(value.trim().to_owned())
}

fn filesystem(dir: &Path) -> String {
    // The magic numbers of statfs(2).
    match rustix::fs::statfs(dir).map(|stat| stat.f_type as u64) {
        Ok(0xef53) => "ext4".into(),
        Ok(0x5846_5342) => "xfs".into(),
        Ok(0x9123_683e) => "btrfs".into(),
        Ok(0x2fc1_2fc1) => "zfs".into(),
        Ok(0x0102_1994) => "tmpfs".into(),
        Ok(0x8584_58f6) => "ramfs".into(),
        Ok(0x794c_7630) => "overlayfs".into(),
        Ok(0x6969) => "nfs".into(),
        Ok(other) => format!("type {other:#x}"),
        Err(_) => "unknown".into(),
    }
}

fn measure_sync(dir: &Path) -> Result<SyncTimes> {
    let nanos = sync_rounds(dir, Some(ROUNDS), MAX_TIME)?;
    let mut times = Histogram::<u64>::new(3)?;
    for value in nanos.iter_recorded() {
        times.saturating_record_n(value.value_iterated_to() / 1_000, value.count_at_value());
    }
    Ok(SyncTimes {
        p50: times.value_at_quantile(0.5),
        p99: times.value_at_quantile(0.99),
        p999: times.value_at_quantile(0.999),
        max: times.max(),
    })
}

/// Times syncs for `lasts`, for a look at their tail. Nanoseconds.
pub fn sync_times(dir: &Path, lasts: Duration) -> Result<Histogram<u64>> {
    sync_rounds(dir, None, lasts)
        .with_context(|| format!("cannot measure fsync in {}", dir.display()))
}

fn sync_rounds(dir: &Path, rounds: Option<u64>, lasts: Duration) -> Result<Histogram<u64>> {
    let path = dir.join("preflight.tmp");
    let times = time_syncs(&path, rounds, lasts);
    fs::remove_file(&path)?;
    times
}

/// Writes and syncs page after page of a zero-filled file, from its start again after its end.
fn time_syncs(path: &Path, rounds: Option<u64>, lasts: Duration) -> Result<Histogram<u64>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    let block = [0_u8; ROUND_BYTES];
    for round in 0..ROUNDS {
        file.write_all_at(&block, round * ROUND_BYTES as u64)?;
    }
    file.sync_all()?;
    let mut times = crate::load::histogram();
    let started = Instant::now();
    for round in 0..rounds.unwrap_or(u64::MAX) {
        let block = [round as u8 | 1; ROUND_BYTES];
        let before = Instant::now();
        file.write_all_at(&block, round % ROUNDS * ROUND_BYTES as u64)?;
        file.sync_data()?;
        times.saturating_record(crate::load::nanos(before.elapsed()));
        if started.elapsed() > lasts {
            break;
        }
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preflight_measures_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let preflight = run(dir.path()).unwrap();
        assert!(preflight.cores > 0 && preflight.memory_bytes > 0);
        assert!(!preflight.cpu.is_empty());
        assert!(preflight.fsync_us.p50 <= preflight.fsync_us.p99);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_system_in_memory_is_called_out() {
        let dir = tempfile::tempdir().unwrap();
        let mut preflight = run(dir.path()).unwrap();
        preflight.free_bytes = u64::MAX;
        preflight.filesystem = "tmpfs".into();
        assert_eq!(preflight.warnings().len(), 1);
        preflight.filesystem = "ext4".into();
        assert_eq!(preflight.warnings().len(), 0);
        preflight.free_bytes = 1;
        assert_eq!(preflight.warnings().len(), 1);
    }
}
