//! A node's log file under openraft, shared by all of its groups: what arrives while one sync runs is written and synced
//! together with the next. The file is filled with zeros ahead, which makes a sync about twice as fast.

use super::Types;
use anyhow::{Context, Result};
use openraft::storage::LogFlushed;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// How much is filled with zeros at a time.
const FILL_BYTES: u64 = 64 << 20;

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
    /// Creates the file and starts its writer.
    pub fn start(path: &Path) -> Result<(Arc<Self>, JoinHandle<Result<()>>)> {
        let file = File::create_new(path).context("the log file cannot be made")?;
        fill(&file, 0)?;
        let log = Arc::new(Self::default());
        let writer = Writer {
            file,
            position: 0,
            filled: FILL_BYTES,
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
    position: u64,
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
                    return Ok(());
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
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        while self.position + bytes.len() as u64 > self.filled {
            fill(&self.file, self.filled)?;
            self.filled += FILL_BYTES;
        }
        self.file.write_all_at(bytes, self.position)?;
        self.position += bytes.len() as u64;
        self.file.sync_data()?;
        self.log.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn fill(file: &File, from: u64) -> Result<()> {
    let zeros = vec![0; 1 << 20];
    for at in (from..from + FILL_BYTES).step_by(zeros.len()) {
        file.write_all_at(&zeros, at)?;
    }
    Ok(file.sync_all()?)
}
