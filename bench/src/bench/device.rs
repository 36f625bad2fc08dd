//! Which disk data are on, as the kernel names it: one file system says little about the disk below it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Name and model of the block device that `path` is on, such as `nvme0n1p2 (Samsung SSD 990)`. None if there is none, as
/// for a file system in memory or one that spans several devices.
pub fn device_of(path: &Path) -> Option<String> {
    let device = fs::metadata(path).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    describe(&fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?)
}

/// `place` is the device's directory in sysfs. That of a partition is in that of its disk, and only this one has a model.
fn describe(place: &Path) -> Option<String> {
    let name = place.file_name()?.to_string_lossy().into_owned();
    let mut disks = place.ancestors().take(2);
    let model = disks.find_map(|disk| fs::read_to_string(disk.join("device/model")).ok());
    Some(match model {
        Some(model) => format!("{name} ({})", model.trim()),
        None => name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_told_with_the_model_of_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("nvme0n1");
        let partition = disk.join("nvme0n1p2");
        fs::create_dir_all(&partition).unwrap();
        assert_eq!(describe(&partition).as_deref(), Some("nvme0n1p2"));
        fs::create_dir(disk.join("device")).unwrap();
        fs::write(disk.join("device/model"), "Fast 990  \n").unwrap();
        let told = describe(&partition);
        assert_eq!(told.as_deref(), Some("nvme0n1p2 (Fast 990)"));
        assert_eq!(describe(&disk).as_deref(), Some("nvme0n1 (Fast 990)"));
        assert_eq!(device_of(Path::new("/proc")), None);
    }
}
