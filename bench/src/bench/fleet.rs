//! Nodes in processes of their own: started, asked, harmed, and gone at the end for certain, whatever happens. Dropping
//! a fleet kills what still runs of it; should this process be killed itself, the kernel does it.

use super::nodes::{Look, Shape};
use super::protocol::{Reply, Request, UNKNOWN, trace_of_nanos};
use super::remote::{Known, RemotePort};
use crate::cluster::free_addresses;
use crate::load::Port;
use anyhow::{Context, Result, bail};
use polyraft::ProposalTrace;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Processes, one for each node.
pub struct Fleet {
    members: Vec<Arc<Member>>,
    known: Arc<Known>,
    groups: u64,
}

struct Member {
    id: u64,
    process: Pid,
    socket: String,
    /// Its process has ended, or was told to. Nothing but this process may make it so.
    is_over: AtomicBool,
    state: Mutex<State>,
}

struct State {
    process: Child,
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
    is_paused: bool,
    /// Told the last time.
    last: Look,
}

impl Drop for State {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // A thread may still wait for the answer of one: only its end ends that.
        for member in self.members.iter().filter(|member| member.runs()) {
            let _ = kill_process(member.process, Signal::KILL);
        }
    }
}

impl Member {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no thread panics while it asks a node")
    }

    fn runs(&self) -> bool {
        !self.is_over.load(Relaxed)
    }

    /// Fails if its process has ended by itself, which would make any figures those of fewer nodes.
    fn check(&self) -> Result<()> {
        if let Some(status) = self.lock().process.try_wait()? {
            self.is_over.store(true, Relaxed);
            bail!("the process of node {} ended by itself: {status}", self.id);
        }
        Ok(())
    }

    fn ask(&self, request: Request) -> Result<Reply> {
        let mut state = self.lock();
        let mut line = serde_json::to_string(&request)?;
        line.push('\n');
        state
            .requests
            .write_all(line.as_bytes())
            .and_then(|()| state.requests.flush())
            .with_context(|| format!("the process of node {} has ended", self.id))?;
        self.hear(&mut state)
    }

    fn hear(&self, state: &mut State) -> Result<Reply> {
        let mut line = String::new();
        state.replies.read_line(&mut line)?;
        if line.is_empty() {
            bail!("the process of node {} has ended", self.id);
        }
        match serde_json::from_str(&line)? {
            Reply::Failed(why) => bail!("node {}: {why}", self.id),
            reply => Ok(reply),
        }
    }
}

impl Fleet {
    /// Starts all nodes below `dir`, links them, creates the groups and waits until all are led. Also returns the lowest
    /// round trip.
    pub async fn start(shape: &Shape, dir: &Path) -> Result<(Self, Option<Duration>)> {
        let config = dir.join("config.toml");
        std::fs::write(&config, shape.config.to_toml_string())?;
        let addresses: Vec<String> = free_addresses(shape.nodes as usize)?
            .iter()
            .map(ToString::to_string)
            .collect();
        let mut fleet = Self {
            members: Vec::new(),
            known: Arc::new(Known::new(shape.nodes as usize, shape.groups)),
            groups: shape.groups,
        };
        for id in 1..=shape.nodes {
            let socket = format!(
                "polyraft-bench-{}-{id}-{}",
                std::process::id(),
                addresses.join("-")
            );
            let mut process = Command::new(std::env::current_exe()?)
                .arg("bench-node")
                .args([
                    "--parent",
                    &std::process::id().to_string(),
                    "--id",
                    &id.to_string(),
                ])
                .args(["--addresses", &addresses.join(","), "--socket", &socket])
                .args(["--populate", &(shape.populate / shape.nodes).to_string()])
                .arg("--data")
                .arg(dir.join(format!("node-{id}")))
                .arg("--ca")
                .arg(dir.join("ca"))
                .arg("--config")
                .arg(&config)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                // Ctrl-C at the terminal is for the parent, which then ends the nodes.
                .process_group(0)
                .spawn()
                .context("a node's process cannot be started")?;
            let (requests, replies) = (process.stdin.take(), process.stdout.take());
            let (Some(requests), Some(replies)) = (requests, replies) else {
                unreachable!("both are piped");
            };
            fleet.members.push(Arc::new(Member {
                id,
                process: Pid::from_child(&process),
                socket,
                is_over: AtomicBool::new(false),
                state: Mutex::new(State {
                    process,
                    requests,
                    replies: BufReader::new(replies),
                    is_paused: false,
                    last: Look::default(),
                }),
            }));
            // The first one makes the certificate authority; the others find it.
            if id == 1 {
                fleet
                    .on_all(|member| member.hear(&mut member.lock()))
                    .await?;
            }
        }
        let others = fleet.members[1..].to_vec();
        on_each(others, |member| member.hear(&mut member.lock())).await?;
        let replies = fleet.on_all(|member| member.ask(Request::Link)).await?;
        let round_trip = replies.iter().filter_map(|reply| match reply {
            Reply::Linked { round_trip } => round_trip.map(Duration::from_micros),
            _ => None,
        });
        let round_trip = round_trip.min();
        let groups = shape.groups;
        let first = fleet.members[..1].to_vec();
        on_each(first, move |member| member.ask(Request::Create { groups })).await?;
        fleet
            .on_all(move |member| member.ask(Request::Lead { groups }))
            .await?;
        fleet.look().await?;
        Ok((fleet, round_trip))
    }

    /// Asks all nodes that run, side by side, on threads that may wait.
    async fn on_all(
        &self,
        ask: impl Fn(&Member) -> Result<Reply> + Clone + Send + 'static,
    ) -> Result<Vec<Reply>> {
        let running = self.members.iter().filter(|member| member.runs()).cloned();
        on_each(running.collect(), ask).await
    }

    /// Counters and costs of all nodes that can answer; of one that stands still or was killed, those of the last time.
    /// Fails if one has ended without being told to.
    pub async fn look(&self) -> Result<Look> {
        let groups = self.groups;
        let running = self.members.iter().filter(|member| member.runs());
        running.clone().try_for_each(|member| member.check())?;
        let awake = running.filter(|member| !member.lock().is_paused);
        let awake: Vec<_> = awake.cloned().collect();
        let replies = on_each(awake.clone(), move |member| {
            member.ask(Request::Look { groups })
        })
        .await?;
        for (member, reply) in awake.iter().zip(replies) {
            if let Reply::Seen {
                totals,
                cpu_micros,
                resident,
                leaders,
            } = reply
            {
                for (group, leader) in leaders.iter().enumerate() {
                    // Whoever leads knows best.
                    if u64::from(*leader) + 1 == member.id {
                        self.known.leaders[group].store(*leader, Relaxed);
                    }
                }
                member.lock().last = Look {
                    totals,
                    cpu: Duration::from_micros(cpu_micros),
                    shares_process: false,
                    resident,
                };
            }
        }
        let mut sum = Look::default();
        for member in &self.members {
            let last = member.lock().last;
            sum.totals = sum.totals + last.totals;
            sum.cpu += last.cpu;
            sum.resident += last.resident;
        }
        Ok(sum)
    }

    /// A port for each thread of a generator.
    pub fn ports(&self, threads: usize) -> Result<Vec<Box<dyn Port>>> {
        let sockets: Vec<String> = self
            .members
            .iter()
            .map(|member| member.socket.clone())
            .collect();
        (0..threads)
            .map(|_| Ok(Box::new(RemotePort::connect(&self.known, &sockets)?) as Box<dyn Port>))
            .collect()
    }

    /// Which of the first `active_groups` groups the node that leads the most of them leads.
    pub fn busiest(&self, active_groups: u64) -> Option<(u64, Vec<u64>)> {
        let leader = |group: &u64| self.known.leaders[*group as usize].load(Relaxed);
        let led =
            |id: u64| (0..active_groups).filter(move |group| u64::from(leader(group)) + 1 == id);
        let running = self
            .members
            .iter()
            .filter(|member| member.runs())
            .map(|member| member.id);
        let busiest = running.max_by_key(|id| led(*id).count())?;
        Some((busiest, led(busiest).collect()))
    }

    /// Records of traced proposals of all nodes that can answer.
    pub async fn take_traces(&self) -> Result<Vec<ProposalTrace>> {
        let awake = self
            .members
            .iter()
            .filter(|member| member.runs() && !member.lock().is_paused);
        let replies = on_each(awake.cloned().collect(), |member| {
            member.ask(Request::Traces)
        })
        .await?;
        let records = replies.into_iter().filter_map(|reply| match reply {
            Reply::Traces(records) => Some(records),
            _ => None,
        });
        Ok(records.flatten().map(trace_of_nanos).collect())
    }

    fn member(&self, id: u64) -> &Arc<Member> {
        &self.members[(id - 1) as usize]
    }

    /// SIGKILL.
    pub fn kill(&self, id: u64) -> Result<()> {
        self.member(id).is_over.store(true, Relaxed);
        self.known.runs[(id - 1) as usize].store(false, Relaxed);
        for leader in &self.known.leaders {
            if u64::from(leader.load(Relaxed)) + 1 == id {
                leader.store(UNKNOWN, Relaxed);
            }
        }
        let mut state = self.member(id).lock();
        state.process.kill()?;
        state.process.wait()?;
        Ok(())
    }

    /// SIGSTOP.
    pub fn pause(&self, id: u64) -> Result<()> {
        let mut state = self.member(id).lock();
        state.is_paused = true;
        Ok(kill_process(Pid::from_child(&state.process), Signal::STOP)?)
    }

    /// SIGCONT.
    pub fn resume(&self, id: u64) -> Result<()> {
        let mut state = self.member(id).lock();
        state.is_paused = false;
        Ok(kill_process(Pid::from_child(&state.process), Signal::CONT)?)
    }

    /// Has the syncs of one node's log end no sooner than `lasts` from now.
    pub async fn stall_disk(&self, id: u64, lasts: Duration) -> Result<()> {
        let micros = lasts.as_micros() as u64;
        let member = vec![Arc::clone(self.member(id))];
        on_each(member, move |member| member.ask(Request::Stall { micros })).await?;
        Ok(())
    }

    /// Shuts all nodes down that run, and waits until their processes are gone.
    pub async fn stop(&self) -> Result<()> {
        let stopped = self.on_all(|member| member.ask(Request::Stop)).await;
        for member in &self.members {
            member.is_over.store(true, Relaxed);
            self.known.runs[(member.id - 1) as usize].store(false, Relaxed);
            let mut state = member.lock();
            if stopped.is_err() {
                let _ = state.process.kill();
            }
            state.process.wait()?;
        }
        stopped.map(|_| ())
    }
}

/// Asks members side by side; the replies are in their order.
async fn on_each(
    members: Vec<Arc<Member>>,
    ask: impl Fn(&Member) -> Result<Reply> + Clone + Send + 'static,
) -> Result<Vec<Reply>> {
    let asked: Vec<_> = members
        .into_iter()
        .map(|member| {
            let ask = ask.clone();
            tokio::task::spawn_blocking(move || ask(&member))
        })
        .collect();
    let mut replies = Vec::new();
    for reply in asked {
        replies.push(reply.await??);
    }
    Ok(replies)
}
