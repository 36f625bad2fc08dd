//! The port to nodes in processes of their own. It never waits for a node that stands still: what its socket does not
//! take is kept until it does.

use super::protocol::{UNKNOWN, address, put_operation, take_answer};
use crate::load::{Answer, Answered, Elsewhere, Port};
use crate::workload::ReadMode;
use anyhow::{Context, Result};
use bytes::{Buf, Bytes, BytesMut};
use rustc_hash::FxHashSet;
use rustix::net::{SendFlags, send};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What is known of the nodes, shared by the parent and all ports.
#[derive(Debug)]
pub struct Known {
    /// By node: whether it takes operations. No longer once its connection has ended, for whatever reason.
    pub runs: Vec<AtomicBool>,
    /// By group: the place of its leader's node, or [`UNKNOWN`].
    pub leaders: Vec<AtomicU8>,
}

impl Known {
    /// All run, nobody leads.
    pub fn new(nodes: usize, groups: u64) -> Self {
        Self {
            runs: (0..nodes).map(|_| AtomicBool::new(true)).collect(),
            leaders: (0..groups).map(|_| AtomicU8::new(UNKNOWN)).collect(),
        }
    }
}

/// A port to nodes by their sockets.
pub struct RemotePort {
    known: Arc<Known>,
    links: Vec<Link>,
    inbox: Arc<Inbox>,
}

struct Link {
    stream: UnixStream,
    /// Records not sent yet.
    out: BytesMut,
    /// Operations without an answer.
    open: FxHashSet<u64>,
}

/// Where the reading threads put what arrives.
#[derive(Default)]
struct Inbox {
    arrived: Mutex<Arrived>,
    changed: Condvar,
}

#[derive(Default)]
struct Arrived {
    /// (node, answer)
    answers: Vec<(usize, Answered)>,
    /// Nodes whose connection has ended.
    ended: Vec<usize>,
}

impl Arrived {
    fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.ended.is_empty()
    }
}

fn lock(arrived: &Mutex<Arrived>) -> std::sync::MutexGuard<'_, Arrived> {
    arrived
        .lock()
        .expect("no thread panics while it holds the inbox")
}

impl RemotePort {
    /// Connects to every node that runs.
    pub fn connect(known: &Arc<Known>, sockets: &[String]) -> Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let mut links = Vec::new();
        for (node, socket) in sockets.iter().enumerate() {
            let stream = address(socket)
                .and_then(|address| UnixStream::connect_addr(&address))
                .with_context(|| format!("node {} does not take a connection", node + 1))?;
            let reading = stream.try_clone()?;
            let into = Arc::clone(&inbox);
            std::thread::Builder::new()
                .name(format!("load-read-{node}"))
                .spawn(move || read_answers(reading, node, &into))?;
            links.push(Link {
                stream,
                out: BytesMut::new(),
                open: FxHashSet::default(),
            });
        }
        Ok(Self {
            known: Arc::clone(known),
            links,
            inbox,
        })
    }
}

impl Drop for RemotePort {
    fn drop(&mut self) {
        // Ends the reading threads, here and in the nodes.
        for link in &self.links {
            let _ = link.stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn read_answers(mut stream: UnixStream, node: usize, inbox: &Inbox) {
    let mut buffer = BytesMut::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let bytes = stream.read(&mut chunk).unwrap_or(0);
        buffer.extend_from_slice(&chunk[..bytes]);
        let mut arrived = lock(&inbox.arrived);
        while let Some(answered) = take_answer(&mut buffer) {
            arrived.answers.push((node, answered));
        }
        if bytes == 0 {
            arrived.ended.push(node);
        }
        inbox.changed.notify_one();
        if bytes == 0 {
            return;
        }
    }
}

impl Port for RemotePort {
    fn refresh(&mut self) {}

    fn nodes(&self) -> usize {
        self.links.len()
    }

    fn runs(&self, node: usize) -> bool {
        self.known
            .runs
            .get(node)
            .is_some_and(|runs| runs.load(Relaxed))
    }

    fn leader(&self, _node: usize, group: u64) -> Option<usize> {
        let leader = self.known.leaders[group as usize].load(Relaxed);
        (leader != UNKNOWN).then_some(usize::from(leader))
    }

    fn propose(&mut self, node: usize, group: u64, payload: Bytes, tag: u64) -> Result<(), Answer> {
        let link = &mut self.links[node];
        put_operation(&mut link.out, tag, group, Some(&payload));
        link.open.insert(tag);
        Ok(())
    }

    /// Stale reads only: the command line refuses others for nodes in processes of their own.
    fn read(&mut self, node: usize, group: u64, tag: u64, _mode: ReadMode) {
        let link = &mut self.links[node];
        put_operation(&mut link.out, tag, group, None);
        link.open.insert(tag);
    }

    fn flush(&mut self) {
        for link in &mut self.links {
            while !link.out.is_empty() {
                match send(
                    &link.stream,
                    &link.out,
                    SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
                ) {
                    Ok(bytes) => link.out.advance(bytes),
                    // Full: later. Broken: the reading thread says so.
                    Err(_) => break,
                }
            }
        }
    }

    fn drain(&mut self, into: &mut Vec<Answered>, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut arrived = lock(&self.inbox.arrived);
        while arrived.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let (guard, _) = self
                .inbox
                .changed
                .wait_timeout(arrived, left)
                .expect("no thread panics while it holds the inbox");
            arrived = guard;
        }
        let Arrived { answers, ended } = std::mem::take(&mut *arrived);
        drop(arrived);
        for (node, answered) in answers {
            self.links[node].open.remove(&answered.tag);
            into.push(answered);
        }
        for node in ended {
            self.known.runs[node].store(false, Relaxed);
            let link = &mut self.links[node];
            link.out.clear();
            let open = Answer::Open;
            into.extend(link.open.drain().map(|tag| Answered {
                tag,
                answer: open.clone(),
            }));
        }
    }

    fn hint(&mut self, group: u64, elsewhere: Elsewhere) {
        let leader = match elsewhere {
            Elsewhere::Here => return,
            Elsewhere::At(node) => node as u8,
            Elsewhere::Anywhere => UNKNOWN,
        };
        self.known.leaders[group as usize].store(leader, Relaxed);
    }
}
