//! A node's log file under openraft, shared by all of its groups: what arrives while one sync runs is written and synced
//! together with the next. The file is filled with zeros before it is used, which makes a sync about twice as fast.

use super::Types;
use anyhow::{Context, Result, ensure};
use openraft::storage::LogFlushed;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// How much is written at a time while the file is filled.
const PIECE_BYTES: u64 = 1 << 20;

/// Length and checksum before each record.
const HEADER_BYTES: usize = 8;

/// Whom to tell that everything before is durable.
pub enum Waiter {
    /// openraft, about appended entries.
    Appended(LogFlushed<Types>),
    /// A vote that must be durable before it counts.
    Voted(oneshot::Sender<()>),
}

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    waiters: Vec<Waiter>,
    /// Whether the writer has to be woken.
    is_waiting: bool,
    is_closed: bool,
}

/// What groups and the writer's thread share.
#[derive(Default)]
pub struct LogFile {
    pending: Mutex<Pending>,
    arrived: Condvar,
    syncs: AtomicU64,
}

impl LogFile {
    /// Creates the file, fills `fill_bytes` of it, to the next MiB, and starts its writer, which fails when it ends if it
    /// has written more.
    pub fn start(path: &Path, fill_bytes: u64) -> Result<(Arc<Self>, JoinHandle<Result<()>>)> {
        let file = File::create_new(path).context("the log file cannot be made")?;
        let filled = fill(&file, fill_bytes)?;
        let log = Arc::new(Self::default());
        let writer = Writer {
            file,
            position: 0,
            filled,
            log: Arc::clone(&log),
        };
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer.run())?;
        Ok((log, thread))
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending
            .lock()
            .expect("no thread panics while it holds the log")
    }

    /// Adds records, each written by `put` behind its header; `waiter` is told when they are durable.
    pub fn append<T>(
        &self,
        records: impl Iterator<Item = T>,
        put: impl Fn(T, &mut Vec<u8>),
        waiter: Option<Waiter>,
    ) {
        let mut pending = self.lock();
        for record in records {
            let start = pending.bytes.len();
            pending.bytes.extend_from_slice(&[0; HEADER_BYTES]);
            put(record, &mut pending.bytes);
            let body = start + HEADER_BYTES;
            let length = (pending.bytes.len() - body) as u32;
            let checksum = crc32fast::hash(&pending.bytes[body..]);
            pending.bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
            pending.bytes[start + 4..body].copy_from_slice(&checksum.to_le_bytes());
        }
        pending.waiters.extend(waiter);
        if pending.is_waiting {
            self.arrived.notify_one();
        }
    }

    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Has the writer end when everything is written.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_one();
    }
}

struct Writer {
    file: File,
    /// End of what is written.
    position: u64,
    /// End of what was filled with zeros.
    filled: u64,
    log: Arc<LogFile>,
}

impl Writer {
    fn run(mut self) -> Result<()> {
        let mut batch = Pending::default();
        loop {
            {
                let mut pending = self.log.lock();
                while pending.waiters.is_empty() && !pending.is_closed {
                    pending.is_waiting = true;
                    pending = self
                        .log
                        .arrived
                        .wait(pending)
                        .expect("no thread panics while it holds the log");
                }
                pending.is_waiting = false;
                if pending.waiters.is_empty() {
                    break;
                }
                std::mem::swap(&mut pending.bytes, &mut batch.bytes);
                std::mem::swap(&mut pending.waiters, &mut batch.waiters);
            }
            self.write(&batch.bytes)?;
            batch.bytes.clear();
            for waiter in batch.waiters.drain(..) {
                match waiter {
                    Waiter::Appended(callback) => callback.log_io_completed(Ok(())),
                    // Who gave up waiting need not be told.
                    Waiter::Voted(sender) => drop(sender.send(())),
                }
            }
        }
        let (position, filled) = (self.position, self.filled);
        ensure!(
            position <= filled,
            "a log of {position} bytes outgrew the {filled} that were filled ahead, which slows its syncs"
        );
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, self.position)?;
        self.position += bytes.len() as u64;
        self.file.sync_data()?;
        self.log.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Returns how much was filled.
fn fill(file: &File, bytes: u64) -> Result<u64> {
    let zeros = vec![0; PIECE_BYTES as usize];
    let pieces = bytes.div_ceil(PIECE_BYTES);
    for piece in 0..pieces {
        file.write_all_at(&zeros, piece * PIECE_BYTES)?;
    }
    file.sync_all()?;
    Ok(pieces * PIECE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes one record whose body has so many bytes, and ends the log.
    fn write_one(body_bytes: usize) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (log, writer) = LogFile::start(&dir.path().join("log"), PIECE_BYTES - 1)?;
        let (sender, mut durable) = oneshot::channel();
        let put = |body: Vec<u8>, out: &mut Vec<u8>| out.extend(body);
        let record = std::iter::once(vec![7; body_bytes]);
        log.append(record, put, Some(Waiter::Voted(sender)));
        log.close();
        let outcome = writer.join().expect("the writer does not panic");
        durable.try_recv()?;
        assert_eq!(log.syncs(), 1);
        outcome
    }

    #[test]
    fn a_log_that_outgrows_what_was_filled_is_an_error_at_the_end() {
        let room = PIECE_BYTES as usize - HEADER_BYTES;
        write_one(room).unwrap();
        let error = write_one(room + 1).unwrap_err().to_string();
        assert!(
            error.starts_with("a log of 1048577 bytes outgrew"),
            "{error}"
        );
    }
}
