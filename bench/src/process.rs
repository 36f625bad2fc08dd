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

/// Reads the resident memory from `/proc/self/statm`.
pub fn resident() -> Resident {
    let page = rustix::param::page_size() as u64;
    std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| parse_statm(&text, page))
        .unwrap_or_default()
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
    fn this_process_uses_memory_and_cpu() {
        assert!(resident().total > 0);
        assert!(cpu_time() > Duration::ZERO);
    }
}
