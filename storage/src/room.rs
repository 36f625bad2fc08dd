//! How much of the disk snapshots may take while they are written or received. Must never let them take the room in which the
//! log makes its next segments: all groups of the node would stand still for the sake of one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// What snapshots leave to the log, and those that are not whole yet.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Bytes that the log needs to go on.
    kept: u64,
    unfinished: Mutex<BTreeMap<PathBuf, Unfinished>>,
}

#[derive(Clone, Copy, Debug)]
struct Unfinished {
    /// Bytes that the file has.
    taken: u64,
    /// Bytes that it is going to have, if that is known.
    needs: u64,
}

impl Room {
    pub(crate) fn keeping(kept: u64) -> Self {
        Room {
            kept,
            ..Room::default()
        }
    }

    /// A file of a length that is known is about to be made.
    ///
    /// # Errors
    /// When `free` bytes are not enough for it, for the others and for the log.
    pub(crate) fn reserve(&self, path: &Path, needs: u64, free: u64) -> io::Result<()> {
        let mut unfinished = self.unfinished.lock();
        let others = unfinished.values();
        let others = others.map(|other| other.needs.saturating_sub(other.taken));
        let wanted = others.fold(needs.saturating_add(self.kept), u64::saturating_add);
        if free < wanted {
            return Err(full(format!(
                "{wanted} bytes are needed, and {free} are free"
            )));
        }
        unfinished.insert(path.to_owned(), Unfinished { taken: 0, needs });
        Ok(())
    }

    /// A file has so many bytes now, and `free` are left.
    ///
    /// # Errors
    /// When the log has no room because of files that are not whole. Where it would have none without them either, a snapshot may
    /// be what gives it some.
    pub(crate) fn take(&self, path: &Path, taken: u64, free: u64) -> io::Result<()> {
        let mut unfinished = self.unfinished.lock();
        let known = unfinished.get(path);
        let needs = known.map_or(0, |known| known.needs);
        unfinished.insert(path.to_owned(), Unfinished { taken, needs });
        let all = unfinished.values().map(|file| file.taken);
        let without = all.fold(free, u64::saturating_add);
        match free < self.kept && self.kept <= without {
            true => Err(full(format!(
                "{free} bytes are free, and the log needs {}",
                self.kept
            ))),
            false => Ok(()),
        }
    }

    /// A file is whole, or gone.
    pub(crate) fn end(&self, path: &Path) {
        self.unfinished.lock().remove(path);
    }
}

fn full(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_take_what_is_free_but_not_what_the_log_needs() {
        let room = Room::keeping(100);
        let [a, b, c] = ["/a", "/b", "/c"].map(Path::new);
        room.reserve(a, 600, 1000).unwrap();
        room.reserve(b, 400, 1000).unwrap_err();
        room.reserve(b, 300, 1000).unwrap();
        room.take(a, 500, 500).unwrap();
        room.reserve(c, 1, 500).unwrap_err();
        room.end(b);
        room.reserve(c, 300, 500).unwrap();

        // Nobody knew how long this one was going to be. It is not the only one to blame.
        room.take(b, 50, 150).unwrap();
        room.take(b, 101, 99).unwrap_err();
        room.end(b);
        room.take(c, 10, 99).unwrap_err();
        for path in [a, c] {
            room.end(path);
        }
        // The log was short of room before.
        room.take(b, 30, 60).unwrap();
        room.take(b, 41, 59).unwrap_err();
    }
}
