//! What this process costs: CPU time and resident memory, read from the kernel. Never estimates: a number that
//! cannot be read is reported as zero.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// CPU time, user and system, that all threads of this process have used so far.
pub fn cpu_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(used.tv_sec).unwrap_or(0),
        u32::try_from(used.tv_nsec).unwrap_or(0),
    )
}

/// Resident memory of this process in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Everything resident, mapped files included.
    pub total: u64,
    /// The part that belongs to files (WAL segments, the executable): the kernel can drop it at any time.
    pub files: u64,
}

impl Resident {
    /// The part that belongs to no file.
    pub fn anonymous(&self) -> u64 {
        self.total.saturating_sub(self.files)
    }
}

/// How often the threads that run now have given up the processor, of their own will or not.
pub fn context_switches() -> u64 {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let status = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("status"));
    let texts = threads.flatten().filter_map(|thread| status(thread).ok());
    texts.map(|text| parse_switches(&text)).sum()
}

/// Adds up both kinds in the text of a thread's status (proc_pid_status(5)).
fn parse_switches(text: &str) -> u64 {
    let counts = text.lines().filter_map(|line| {
        let (name, count) = line.split_once(':')?;
        name.ends_with("voluntary_ctxt_switches")
            .then(|| count.trim().parse::<u64>().ok())?
    });
    counts.sum()
}

/// Reads the resident memory from `/proc/self/statm`.
pub fn resident() -> Resident {
    let page = rustix::param::page_size() as u64;
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| parse_statm(&text, page))
        .unwrap_or_default()
}

/// Memory in bytes that could be taken without that anything else is pushed out (`MemAvailable` of proc_pid_meminfo(5)).
pub fn available_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    parse_available(&text).unwrap_or_default()
}

fn parse_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

/// Fields of `statm`: size, resident, shared, ...; all in pages (proc_pid_statm(5)).
fn parse_statm(text: &str, page: u64) -> Option<Resident> {
    let mut pages = text
        .split_ascii_whitespace()
        .map(|field| field.parse::<u64>().ok());
    let _size = pages.next()??;
    let total = pages.next()??;
    let files = pages.next()??;
    Some(Resident {
        total: total * page,
        files: files * page,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_kibibytes() {
        let text = "MemTotal:       24684444 kB\nMemAvailable:   12 kB\nBuffers: 5 kB\n";
        assert_eq!(parse_available(text), Some(12 << 10));
        assert_eq!(parse_available("MemTotal: 1 kB\n"), None);
        assert!(available_memory() > 0);
    }

    #[test]
    fn statm_is_read_in_pages() {
        let parsed = parse_statm("900 20 5 1 0 30 0\n", 4096);
        assert_eq!(
            parsed,
            Some(Resident {
                total: 20 * 4096,
                files: 5 * 4096
            })
        );
        assert_eq!(parse_statm("900 x", 4096), None);
        assert_eq!(parse_statm("", 4096), None);
    }

    #[test]
    fn both_kinds_of_switches_count() {
        let text = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t545\n";
        assert_eq!(parse_switches(text), 695);
        assert_eq!(parse_switches("Name:\tx\n"), 0);
    }

    #[test]
    fn this_process_uses_memory_and_cpu() {
        assert!(context_switches() > 0);
        assert!(resident().total > 0);
        assert!(cpu_time() > Duration::ZERO);
    }
}
