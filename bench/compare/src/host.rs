//! What the figures were measured on, read from the system: hardware, kernel, disk. What cannot be read is said to be
//! unknown.

use std::path::Path;

/// The machine, one line each.
pub struct Host {
    pub cpu: String,
    pub memory: String,
    pub kernel: String,
    pub disk: String,
}

impl Host {
    /// This machine, with the disk that holds `dir`.
    pub fn read(dir: &Path) -> Self {
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let model = field("/proc/cpuinfo", "model name");
        let memory_kib: Option<u64> = field("/proc/meminfo", "MemTotal")
            .and_then(|text| text.trim_end_matches(" kB").parse().ok());
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        Self {
            cpu: format!("{cpus} × {}", or_unknown(model)),
            memory: or_unknown(memory_kib.map(|kib| format!("{} GiB", (kib + (1 << 19)) >> 20))),
            kernel: format!("Linux {}", or_unknown(release).trim()),
            disk: or_unknown(disk(dir)),
        }
    }
}

fn or_unknown(text: Option<String>) -> String {
    text.unwrap_or_else(|| "unknown".into())
}

/// The value of the first line `key : value`.
fn field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

/// File system, device and write cache below `dir`.
fn disk(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mount = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (device, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
            dir.starts_with(place)
                .then_some((place.len(), device, kind))
        })
        .max_by_key(|(length, ..)| *length)?;
    let (_, device, kind) = mount;
    let name = device.rsplit('/').next()?;
    let queue = format!("/sys/class/block/{name}/queue");
    let read = |what: &str| std::fs::read_to_string(format!("{queue}/{what}")).ok();
    let cache = read("write_cache").map_or_else(String::new, |cache| format!(", {}", cache.trim()));
    Some(format!("{kind} on {device}{cache}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let host = Host::read(Path::new("."));
        assert!(host.kernel.starts_with("Linux ") && !host.kernel.ends_with("unknown"));
        assert!(!host.cpu.starts_with('0'));
    }
}
