//! `polyraft bench reads`: how many reads of each kind a second, beside proposals on the same nodes in the same run, and what
//! confirming all groups at once costs in messages. Kinds take turns in short rounds, so that what the machine does
//! meanwhile hits all of them alike. It must never count a read that was refused.

use super::args::ReadsArgs;
use super::{Ending, Json, Setting, Shape, until_interrupted};
use crate::screen;
use crate::tally::Tally;
use anyhow::{Result, bail};
use bytes::Bytes;
use polyraft::{Completion, CompletionQueue, Counters, Error, GroupHandle, Node, NodeId, Read};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Each kind gets so many turns.
const ROUNDS: u32 = 4;

/// Reads by the lease are at least so many times as fast as proposals, or something is wrong.
const LEAST_LEASE_READS: f64 = 5.0;

/// So many messages from each node to each other one, on average, are enough to confirm any number of groups.
const MOST_MESSAGES: u64 = 10;

/// An answer comes much sooner, or nothing works.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// What is asked of a group's leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Proposal,
    Read(Read),
}

const LEASE_READS: &str = "lease reads";

const KINDS: [(&str, Kind); 4] = [
    ("proposals", Kind::Proposal),
    ("linearizable reads", Kind::Read(Read::Linearizable)),
    (LEASE_READS, Kind::Read(Read::Lease)),
    ("local reads", Kind::Read(Read::LOCAL)),
];

/// How fast one kind went.
#[derive(Clone, Debug, Serialize)]
struct Speed {
    kind: &'static str,
    operations: u64,
    seconds: f64,
    per_second: f64,
    /// Times the rate of proposals.
    beside_proposals: f64,
}

/// Confirming every group once.
#[derive(Clone, Debug, Serialize)]
struct Round {
    nodes: u64,
    groups: u64,
    /// Beats that asked another node to stand by the leaders, and their answers.
    messages: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Figures {
    inflight: usize,
    payload_bytes: usize,
    speeds: Vec<Speed>,
    read_index: Round,
}

impl Figures {
    /// Which bounds are not held.
    fn beyond(&self) -> Vec<String> {
        let mut beyond = Vec::new();
        for speed in &self.speeds {
            // Without a proposal there is nothing to be faster than.
            let is_fast =
                speed.beside_proposals >= LEAST_LEASE_READS && speed.beside_proposals.is_finite();
            if speed.kind == LEASE_READS && !is_fast {
                beyond.push(format!(
                    "lease reads are {:.1} times as fast as proposals, and should be {LEAST_LEASE_READS} times",
                    speed.beside_proposals
                ));
            }
        }
        let Round {
            nodes, messages, ..
        } = self.read_index;
        let most = MOST_MESSAGES * nodes * nodes.saturating_sub(1);
        if messages == 0 {
            beyond.push("no message confirmed the groups".to_owned());
        }
        if messages > most {
            beyond.push(format!(
                "{messages} messages confirmed the groups, and {most} should be enough"
            ));
        }
        beyond
    }
}

/// A group's handle on the node that leads it.
type Leaders = Vec<GroupHandle<Tally>>;

pub fn run(args: &ReadsArgs) -> Result<Ending> {
    if args.cluster.processes {
        bail!("reads are measured in this process: leave --processes out");
    }
    let config = args.cluster.load_config()?;
    let json = Json::open(args.json.as_deref())?;
    let mut setting = Setting::new(&args.cluster)?;
    until_interrupted(
        measure(args, &mut setting, config, json),
        Ending::Interrupted,
    )
}

async fn measure(
    args: &ReadsArgs,
    setting: &mut Setting,
    config: polyraft::Config,
    json: Json,
) -> Result<Ending> {
    let shape = Shape {
        nodes: args.cluster.nodes,
        groups: args.cluster.groups,
        config,
        processes: false,
        populate: 0,
    };
    let nodes = setting.start_nodes(&shape, "cluster").await?;
    let running = nodes.running();
    let (inflight, payload) = (args.inflight, vec![7; args.payload]);
    let payload = Bytes::from(payload);
    // The load waits with a blocking queue, so it has a thread of its own.
    let turn = args.time() / (ROUNDS * KINDS.len() as u32);
    let (groups, node_count) = (shape.groups, shape.nodes);
    let load = tokio::task::spawn_blocking(move || -> Result<Figures> {
        let leaders = leaders(&running, groups)?;
        let mut sums = [(0, Duration::ZERO); KINDS.len()];
        for _ in 0..ROUNDS {
            for (sum, (_, kind)) in sums.iter_mut().zip(KINDS) {
                let (count, took) = drive(&leaders, kind, inflight, &payload, turn)?;
                sum.0 += count;
                sum.1 += took;
            }
        }
        let rate = |(count, took): (u64, Duration)| count as f64 / took.as_secs_f64();
        let proposals = rate(sums[0]);
        let speeds = KINDS.iter().zip(sums).map(|((kind, _), sum)| Speed {
            kind,
            operations: sum.0,
            seconds: sum.1.as_secs_f64(),
            per_second: rate(sum),
            beside_proposals: rate(sum) / proposals,
        });
        let speeds = speeds.collect();
        let messages = confirm_all(&running, &leaders)?;
        Ok(Figures {
            inflight,
            payload_bytes: payload.len(),
            speeds,
            read_index: Round {
                nodes: node_count,
                groups,
                messages,
            },
        })
    });
    setting
        .screen
        .live("reading and proposing ...".into(), false);
    let figures = load.await??;
    nodes.stop().await?;
    setting.screen.clear();
    for speed in &figures.speeds {
        let text = format!(
            "{}/s, {:.1} x proposals",
            screen::count(speed.per_second as u64),
            speed.beside_proposals
        );
        setting.screen.done(speed.kind, &text);
    }
    let round = &figures.read_index;
    let text = format!(
        "{} messages between {} nodes to confirm {} groups",
        round.messages,
        round.nodes,
        screen::count(round.groups)
    );
    setting.screen.done("read index", &text);
    json.write(&setting.screen, &figures)?;
    let beyond = figures.beyond();
    for what in &beyond {
        setting.screen.line(what);
    }
    Ok(match beyond.is_empty() {
        true => Ending::Good,
        false => Ending::Bad,
    })
}

/// By group, its handle on the node that leads it.
fn leaders(nodes: &[Node<Tally>], groups: u64) -> Result<Leaders> {
    let asked = &nodes[0];
    let leader_of = |group| {
        let (leader, _) = asked.group(group).leader()?;
        let node = nodes.iter().find(|node| NodeId(node.id().0) == leader)?;
        Some(node.group(group))
    };
    let leaders: Option<Leaders> = (0..groups).map(leader_of).collect();
    leaders.ok_or_else(|| anyhow::anyhow!("a group has lost its leader"))
}

fn send(
    handle: &GroupHandle<Tally>,
    kind: Kind,
    payload: &Bytes,
    tag: u64,
    queue: &CompletionQueue,
) -> Result<(), Error> {
    match kind {
        Kind::Proposal => handle.propose_with(payload.clone(), tag, queue),
        Kind::Read(read) => handle.read_with(read, Bytes::new(), tag, queue),
    }
}

/// A closed loop for a time: how many answers came, and in which time.
fn drive(
    leaders: &Leaders,
    kind: Kind,
    inflight: usize,
    payload: &Bytes,
    turn: Duration,
) -> Result<(u64, Duration)> {
    let queue = CompletionQueue::new();
    let mut done: Vec<Completion> = Vec::new();
    let (mut next, mut open, mut count) = (0, 0, 0);
    let started = Instant::now();
    loop {
        let is_over = started.elapsed() >= turn;
        if is_over && open == 0 {
            return Ok((count, started.elapsed()));
        }
        while !is_over && open < inflight {
            match send(&leaders[next % leaders.len()], kind, payload, 0, &queue) {
                Ok(()) => open += 1,
                Err(Error::Busy { .. }) => break,
                Err(error) => return Err(error.into()),
            }
            next += 1;
        }
        done.clear();
        if open > 0 && queue.drain(&mut done, ANSWER_LIMIT) == 0 {
            bail!("{kind:?}: no answer within {} s", ANSWER_LIMIT.as_secs());
        }
        open -= done.len();
        for completion in &done {
            match &completion.result {
                Ok(_) => count += 1,
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error.clone().into()),
            }
        }
    }
}

/// Reads every group once, all at the same time, and counts the messages that confirmed them: beats that ask and their answers,
/// and whatever was said of single groups meanwhile.
fn confirm_all(nodes: &[Node<Tally>], leaders: &Leaders) -> Result<u64> {
    let said = || -> u64 {
        let counters = nodes.iter().map(|node| node.status().counters);
        // Each beat that asks is answered by one.
        let of_one = |counters: Counters| {
            2 * counters.standing_asked + counters.reads_asked + counters.group_messages
        };
        counters.map(of_one).sum()
    };
    let before = said();
    let queue = CompletionQueue::new();
    for handle in leaders {
        let kind = Kind::Read(Read::Linearizable);
        send(handle, kind, &Bytes::new(), 0, &queue)?;
    }
    let mut done: Vec<Completion> = Vec::new();
    while done.len() < leaders.len() {
        if queue.drain(&mut done, ANSWER_LIMIT) == 0 {
            bail!("no answer within {} s", ANSWER_LIMIT.as_secs());
        }
    }
    if let Some(error) = done.iter().find_map(|done| done.result.as_ref().err()) {
        return Err(error.clone().into());
    }
    Ok(said() - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_lease_reads_and_messages_for_single_groups_are_beyond_the_bounds() {
        let figures = |times: f64, messages| Figures {
            inflight: 1,
            payload_bytes: 1,
            speeds: vec![Speed {
                kind: LEASE_READS,
                operations: 1,
                seconds: 1.0,
                per_second: 1.0,
                beside_proposals: times,
            }],
            read_index: Round {
                nodes: 3,
                groups: 1_000,
                messages,
            },
        };
        assert!(figures(5.0, 60).beyond().is_empty());
        assert_eq!(figures(4.9, 60).beyond().len(), 1);
        assert_eq!(figures(5.0, 61).beyond().len(), 1);
        assert_eq!(figures(5.0, 0).beyond().len(), 1);
        assert_eq!(figures(4.9, 1_000).beyond().len(), 2);
    }
}
