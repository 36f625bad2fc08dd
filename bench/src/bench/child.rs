//! A node in a process of its own: does what its parent asks for, and ends when the parent does. It never outlives the
//! parent, and never prints anything but replies on its standard output.

use super::protocol::{
    Operation, Reply, Request, UNKNOWN, address, put_answer, take_operation, trace_to_nanos,
};
use crate::allocator;
use crate::cluster::place;
use crate::load::{Answer, Answered, Elsewhere, Reads, judge_proposal, judge_read};
use crate::process;
use crate::tally::Tally;
use crate::totals::Totals;
use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use clap::Args;
use polyraft::{Completion, CompletionQueue, Config, GroupHandle, Node, Read, Tls};
use polyraft_storage::sim::StallDisk;
use std::io::{BufRead, Read as _, Write};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long it may take until all nodes hear one another, and until all groups are led.
const LIMIT: Duration = Duration::from_secs(120);
/// How often a state that is not there yet is looked at again.
const POLL: Duration = Duration::from_millis(5);
/// How long the writing thread of a connection waits for something to write.
const MAX_WAIT: Duration = Duration::from_millis(100);

/// What a node is started with.
#[derive(Clone, Debug, Args)]
pub struct ChildArgs {
    /// Process id of the parent
    #[arg(long)]
    pub parent: u32,
    /// Its id
    #[arg(long)]
    pub id: u64,
    /// Addresses of all nodes, in the order of their ids
    #[arg(long, value_delimiter = ',')]
    pub addresses: Vec<SocketAddr>,
    /// Its data directory
    #[arg(long)]
    pub data: PathBuf,
    /// Where the development CA lives
    #[arg(long)]
    pub ca: PathBuf,
    /// Its configuration
    #[arg(long)]
    pub config: PathBuf,
    /// Bytes of memory to populate
    #[arg(long)]
    pub populate: u64,
    /// The name of its socket
    #[arg(long)]
    pub socket: String,
}

/// Runs until the parent says so or is gone.
pub fn run(args: &ChildArgs) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // It may have died before that call.
    let parent = rustix::process::getppid().map(|id| id.as_raw_nonzero().get() as u32);
    ensure!(
        parent == Some(args.parent),
        "the process that started this node is gone"
    );
    allocator::populate(args.populate)
        .context("memory can't be populated; --populate 0 goes without")?;
    let disk = StallDisk::default();
    let peers: Vec<(u64, SocketAddr)> = (1..).zip(args.addresses.iter().copied()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let builder = Node::<Tally>::builder()
        .id(args.id)
        .cluster("bench")
        .data_dir(&args.data)
        .listen(args.addresses[place(args.id)])
        .peers(peers)
        .tls(Tls::dev(&args.ca))
        .disk(Arc::new(disk.clone()))
        .config(Config::load(&args.config)?)
        .on_idle(process::give_back);
    let node = match runtime.block_on(builder.open()) {
        Ok(node) => node,
        Err(error) => return tell(&Reply::Failed(format!("{error:#}"))),
    };
    let listener = UnixListener::bind_addr(&address(&args.socket)?)?;
    let serving = node.clone();
    std::thread::Builder::new()
        .name("bench-accept".into())
        .spawn(move || accept(&listener, &serving))?;
    tell(&Reply::Done)?;
    let child = Child {
        members: (1..=args.addresses.len() as u64).collect(),
        node,
        disk,
    };
    // Its end is the end of the parent.
    for line in std::io::stdin().lock().lines() {
        let request: Request = serde_json::from_str(&line?).context("a request of the parent")?;
        let reply = runtime.block_on(child.answer(request));
        let reply = reply.unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
        tell(&reply)?;
        if request == Request::Stop {
            break;
        }
    }
    Ok(())
}

fn tell(reply: &Reply) -> Result<()> {
    let mut line = serde_json::to_string(reply)?;
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes())?;
    Ok(out.flush()?)
}

struct Child {
    node: Node<Tally>,
    members: Vec<u64>,
    disk: StallDisk,
}

impl Child {
    async fn answer(&self, request: Request) -> Result<Reply> {
        match request {
            Request::Link => self.link().await,
            Request::Create { groups } => {
                self.node.create_groups(0..groups, &self.members).await?;
                Ok(Reply::Done)
            }
            Request::Lead { groups } => {
                let mut waiting: Vec<_> = (0..groups).map(|group| self.node.group(group)).collect();
                self.until("some groups have no leader", || {
                    waiting.retain(|handle| handle.leader().is_none());
                    waiting.is_empty()
                })
                .await?;
                Ok(Reply::Done)
            }
            Request::Look { groups } => self.look(groups),
            Request::Traces => {
                let traces = self.node.take_traces();
                Ok(Reply::Traces(traces.iter().map(trace_to_nanos).collect()))
            }
            Request::Stall { micros } => {
                self.disk.stall(Duration::from_micros(micros));
                Ok(Reply::Done)
            }
            Request::Stop => {
                self.node.shutdown().await?;
                Ok(Reply::Done)
            }
        }
    }

    async fn link(&self) -> Result<Reply> {
        self.until("the nodes do not hear one another", || {
            let peers = self.node.status().peers;
            peers
                .iter()
                .all(|peer| peer.alive && peer.round_trip.is_some())
        })
        .await?;
        // The connection smooths it, beginning with the handshake, so it takes some beats to come down.
        let mut lowest: Option<Duration> = None;
        for _ in 0..20 {
            let peers = self.node.status().peers;
            lowest = peers
                .iter()
                .filter_map(|peer| peer.round_trip)
                .chain(lowest)
                .min();
            tokio::time::sleep(10 * POLL).await;
        }
        Ok(Reply::Linked {
            round_trip: lowest.map(|time| time.as_micros() as u64),
        })
    }

    async fn until(&self, complaint: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !is_so() {
            if Instant::now() > deadline {
                bail!("{complaint} after {} s", LIMIT.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn look(&self, groups: u64) -> Result<Reply> {
        let status = self.node.status();
        if let Some(fault) = status.fault {
            bail!("node {} has stopped serving: {fault}", status.id);
        }
        ensure!(
            status.quarantined == 0,
            "node {} has {} groups in quarantine",
            status.id,
            status.quarantined
        );
        let leader = |group| self.node.group(group).leader();
        Ok(Reply::Seen {
            totals: Totals::of(std::slice::from_ref(&self.node)),
            cpu_micros: process::cpu_time().as_micros() as u64,
            resident: process::resident().total,
            leaders: (0..groups)
                .map(|group| leader(group).map_or(UNKNOWN, |(node, _)| place(node.0) as u8))
                .collect(),
        })
    }
}

/// Serves each connection with two threads, which end with it.
fn accept(listener: &UnixListener, node: &Node<Tally>) {
    for stream in listener.incoming() {
        let served = stream
            .map_err(anyhow::Error::from)
            .and_then(|stream| serve(stream, node.clone()));
        if let Err(error) = served {
            tracing::error!(%error, "a connection of the generator cannot be served");
        }
    }
}

/// What the reading thread of a connection hands to the writing one.
#[derive(Default)]
struct Handover {
    refused: Vec<Answered>,
    reads: Vec<(u64, GroupHandle<Tally>)>,
    is_over: bool,
}

fn serve(stream: UnixStream, node: Node<Tally>) -> Result<()> {
    let queue = CompletionQueue::new();
    let handover = Arc::new(Mutex::new(Handover::default()));
    let (writing, wake, over) = (stream.try_clone()?, queue.clone(), Arc::clone(&handover));
    let names =
        ["bench-read", "bench-write"].map(|name| std::thread::Builder::new().name(name.into()));
    let [reader, writer] = names;
    reader.spawn(move || {
        read_operations(stream, &node, &wake, &over);
        lock(&over).is_over = true;
        wake.wake();
    })?;
    writer.spawn(move || write_answers(writing, &queue, &handover))?;
    Ok(())
}

fn lock(handover: &Mutex<Handover>) -> std::sync::MutexGuard<'_, Handover> {
    handover
        .lock()
        .expect("no thread panics while it holds the handover")
}

/// Until the connection ends, however it does: whoever is at the other end notices by itself.
fn read_operations(
    mut stream: UnixStream,
    node: &Node<Tally>,
    queue: &CompletionQueue,
    handover: &Mutex<Handover>,
) {
    let mut handles: Vec<Option<GroupHandle<Tally>>> = Vec::new();
    let mut buffer = BytesMut::new();
    let mut chunk = vec![0; 256 << 10];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(bytes) => buffer.extend_from_slice(&chunk[..bytes]),
        }
        while let Some(Operation {
            tag,
            group,
            payload,
        }) = take_operation(&mut buffer)
        {
            let at = group as usize;
            if handles.len() <= at {
                handles.resize(at + 1, None);
            }
            let handle = handles[at].get_or_insert_with(|| node.group(group));
            let Some(payload) = payload else {
                lock(handover).reads.push((tag, handle.clone()));
                queue.wake();
                continue;
            };
            if let Err(error) = handle.propose_with(payload, tag, queue) {
                // Not taken, so not in any log, whatever the reason.
                let answer = match judge_proposal(&error) {
                    Answer::Open => Answer::Refused(Elsewhere::Anywhere),
                    other => other,
                };
                lock(handover).refused.push(Answered { tag, answer });
                queue.wake();
            }
        }
    }
}

fn write_answers(mut stream: UnixStream, queue: &CompletionQueue, handover: &Mutex<Handover>) {
    let mut reads: Reads<Result<Bytes, polyraft::Error>> = Reads::new(queue.clone());
    let mut completions: Vec<Completion> = Vec::new();
    let mut answers: Vec<Answered> = Vec::new();
    let mut out = BytesMut::new();
    loop {
        let mut given = std::mem::take(&mut *lock(handover));
        if given.is_over {
            lock(handover).is_over = true;
            return;
        }
        answers.append(&mut given.refused);
        for (tag, handle) in given.reads {
            reads.start(
                tag,
                async move { handle.read(Read::LOCAL, Bytes::new()).await },
            );
        }
        reads.poll(|tag, result| {
            answers.push(Answered {
                tag,
                answer: judge_read(result),
            })
        });
        let timeout = if answers.is_empty() {
            MAX_WAIT
        } else {
            Duration::ZERO
        };
        queue.drain(&mut completions, timeout);
        answers.extend(completions.drain(..).map(|completion| Answered {
            tag: completion.tag,
            answer: match completion.result {
                Ok(_) => Answer::Done,
                Err(error) => judge_proposal(&error),
            },
        }));
        for answered in answers.drain(..) {
            if let Answer::Fault(text) = &answered.answer {
                tracing::error!(%text, "an operation failed");
            }
            put_answer(&mut out, &answered);
        }
        if stream.write_all(&out).is_err() {
            return;
        }
        out.clear();
    }
}
