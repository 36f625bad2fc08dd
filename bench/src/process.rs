//! What this process costs: CPU time and resident memory, read from the kernel; and giving memory back. Never estimates: a number that
//! cannot be read is reported as zero.

use rustix::time::{ClockId, clock_gettime};
use std::path::Path;
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

/// Memory in bytes that this process can take without that the system swaps or ends one: the kernel's estimate (`MemAvailable` of
/// proc_pid_meminfo(5)), or what control groups of the unified hierarchy leave if that is less, cached files not counted. `None` if
/// the kernel does not say.
pub fn available_memory() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let system = system_memory("MemAvailable")?;
    let own = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let own = parse_control_group(&own).unwrap_or_default();
    let mounted = Path::new("/sys/fs/cgroup");
    let place = mounted.join(own.trim_start_matches('/'));
    let groups = place
        .ancestors()
        .take_while(|group| group.starts_with(mounted));
    let left = |group: &Path| {
        let number = |name| read(&group.join(name))?.trim().parse::<u64>().ok();
        let taken = number("memory.current")?;
        let cached = parse_cached(&read(&group.join("memory.stat")).unwrap_or_default());
        Some(number("memory.max")?.saturating_sub(taken.saturating_sub(cached)))
    };
    Some(groups.filter_map(left).fold(system, u64::min))
}

/// Bytes of files that a group has cached, in its `memory.stat`.
fn parse_cached(text: &str) -> u64 {
    let files = text.lines().filter_map(|line| {
        let (name, bytes) = line.split_once(' ')?;
        ["active_file", "inactive_file"]
            .contains(&name)
            .then(|| bytes.parse::<u64>().ok())?
    });
    files.sum()
}

/// Takes in what other threads freed of this thread's memory, which an idle thread never does by itself, and gives back to the
/// system what nobody uses.
pub fn give_back() {
    // SAFETY: may be called at any time, by any thread.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// What `/proc/meminfo` says under this name, in bytes (proc_pid_meminfo(5)).
pub fn system_memory(name: &str) -> Option<u64> {
    parse_memory(&std::fs::read_to_string("/proc/meminfo").ok()?, name)
}

fn parse_memory(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(key, _)| *key == name)?;
    let kibibytes: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}

/// The path of a process's group in the unified hierarchy (cgroups(7)).
fn parse_control_group(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
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
        assert_eq!(parse_memory(text, "MemAvailable"), Some(12 << 10));
        assert_eq!(parse_memory("MemTotal: 1 kB\n", "MemAvailable"), None);
        assert!(available_memory().unwrap() > 0);
        let text = "1:cpu:/old\n0::/user.slice/a\n";
        assert_eq!(parse_control_group(text), Some("/user.slice/a"));
        let text = "anon 9\ninactive_file 30\nactive_file 4\nslab 1\n";
        assert_eq!(parse_cached(text), 34);
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
