//! Plays the scripts in `tests/data/cluster`: stories of several groups and their callers, in the same kind of world as a seed's, but
//! without faults and clients of its own. Whatever goes wrong, and whoever asks for something, stands in the script. It must
//! never print what could differ between two machines or builds: no time, no address, no order of a hash map.
//!
//! A line `> command` is run; the indented lines after it are what nodes did and callers were told until it was over; everything
//! else is kept. A broken rule of the simulator fails the script, and so does a wait without an end. Nodes with lower numbers have
//! the higher priority: of those that are there, the first one leads as a rule what nobody leads.
//!
//! | command | does |
//! |---|---|
//! | `nodes N [sessions=K] [snapshot=ENTRIES] [keep=ENTRIES] [rebalance=MS] [chunk=BYTES] [rate=BYTES]` | begins a new story with N nodes; K sessions are kept by a group, snapshots taken after so many entries and so many kept behind them, groups moved to whom they prefer after that time, snapshots sent in parts of so many bytes and so many bytes a second |
//! | `run MS` | lets so many milliseconds pass |
//! | `until CONDITION` | lets time pass until it is so |
//! | `crash N` | cuts the power of a node: what no sync has covered is lost |
//! | `start N` | starts it again |
//! | `cut A B [C ...]` | A on the one side and the others no longer hear each other |
//! | `mute A B [C ...]` | the others no longer hear A, which hears them |
//! | `heal` | all hear each other again |
//! | `rot N K V` | the entry that put V to the key K rots in the log of a node that is down |
//! | `stall N MS` | the disk of a node takes no write for that time |
//! | `break A B` | the connection of two nodes breaks, and what was under way is lost; they connect again |
//! | `poison K V in G at N` | the state machine of the group on this node panics at the entry that puts V to K, also after a restart |
//! | `cure N` | nothing is poison to a node any more |
//! | `arriving N` | prints how many bytes of snapshots that are still on their way are on a node's disk |
//! | `join A at N ...`, `part A at N ...` | N takes A for a peer, or not any more, and after that the next one; all are peers at first |
//! | `leader G is N` | waits until somebody leads the group, and has it handed to the node, unless that is the one |
//! | `carry S from G as T` | calls T what became of the session S of G in the group that G was merged into |
//! | `plan N ... without M ...` | says what a recovery of lost quorums would make of the data directories of N, without M |
//! | `apply` | carries the last plan out, and tells what was applied and is lost; the nodes M never start again |
//! | `apply cut N I` | begins with that; the power fails before the operation number I on the disk of N |
//! | `show` | prints every node's groups, and what it knows of those that are over |
//!
//! Somebody asks the node N for something and waits for the answer; with `begin` in front nobody waits, and the answer is printed
//! when it comes. Groups 1 to 9 have all keys when they are created, groups 10 to 19 none: they get some by a split. Keys are
//! letters, and a key that was never put is 0.
//!
//! | request | asks for |
//! |---|---|
//! | `create G ... on M ... at N`, `destroy G ... at N` | groups to begin on these members, to end |
//! | `put K V in G at N [as S #I [since L]]` | a proposal; with the number I of a session, whose client waits for nothing before L (1 unless said) |
//! | `read K in G at N [lease \| stale MS]` | a linearizable read; one by the leader's lease; one of a state that is at most so old |
//! | `open S in G at N` | a session, called S from now on |
//! | `split G from K into C at N`, `merge G into T at N` | the keys from K on for a new group; all of G for T |
//! | `transfer G to M at N`, `drain N` | another leader for a group, for all groups that N leads |
//! | `change G at N +A ~B -C !F` | other members: A votes, B learns, C leaves, F is preferred |
//! | `snapshot G at N` | a snapshot |
//!
//! | condition | is so when |
//! |---|---|
//! | `led G`, `led G by N` | somebody, or that node, leads it and has committed in its term |
//! | `equal G` | it is led, and all members run and have the same log, committed and applied, byte by byte |
//! | `begun G at N`, `gone G at N`, `gone G` | the node has a replica of it, has none; no node that runs has one |
//! | `frozen G`, `merged G` | a replica waits for what becomes of its merge; it is a part of another group |
//! | `served` | nobody waits for an answer |

mod calls;
mod commands;
mod deeds;
mod recovery;
#[cfg(test)]
mod tests;
mod watch;

use polyraft::sim::SimNode;
use polyraft::{Config, GroupId, Role};
use polyraft_storage::Disk as _;
use polyraft_storage::sim::{Payload, payloads};

use self::calls::Calls;
use self::commands::{Command, Condition, Request, What};
use self::recovery::Planned;
use self::watch::Watch;
use super::machine::Registers;
use super::plan::{Plan, SECOND, roomy_config};
use super::rng::Rng;
use super::trace::Trace;
use super::world::World;

/// No wait of a script takes longer, or there is nothing to wait for.
const LONGEST_WAIT: u64 = 30 * SECOND;

/// Groups behind these begin by a split.
const ROOTS: u64 = 9;

/// All groups that a story may have.
const GROUPS: u64 = 19;

/// The script as it should read: comments and commands kept, outputs fresh.
///
/// # Panics
/// When a command can't be understood or makes no sense, a wait has no end, or a rule of the simulator is broken.
pub fn play(script: &str) -> String {
    let mut story = Story::begin(1, roomy_config());
    let mut text = String::new();
    for line in script.lines() {
        match line.strip_prefix("> ") {
            Some(words) => {
                text += &format!("{line}\n");
                story.obey(words);
                for line in story.lines.drain(..) {
                    text += &format!("  {line}\n");
                }
            }
            None if line.starts_with("  ") => {}
            None => text += &format!("{line}\n"),
        }
    }
    text
}

/// A world, and what is told of it.
struct Story {
    world: World,
    watch: Watch,
    calls: Calls,
    planned: Option<Planned>,
    /// What was noteworthy since the last command.
    lines: Vec<String>,
    /// The command that is obeyed, for whoever has to mend the script.
    command: String,
}

impl Story {
    fn begin(nodes: u64, config: Config) -> Story {
        let plan = Plan::calm(nodes, ROOTS, GROUPS, config);
        let mut story = Story {
            world: World::new(plan, Rng::new(0), Trace::default()),
            watch: Watch::new(nodes),
            calls: Calls::default(),
            planned: None,
            lines: Vec::new(),
            command: "nodes".to_owned(),
        };
        story.world.begin();
        // Nodes that don't hear each other yet have nothing to tell.
        story.run(SECOND);
        story.lines.clear();
        story
    }

    fn obey(&mut self, words: &str) {
        words.clone_into(&mut self.command);
        let command = Command::parse(words).unwrap_or_else(|| panic!("what is {words:?}?"));
        match command {
            Command::Nodes { count, config } => *self = Story::begin(count, *config),
            Command::Ask { request, begun } => self.ask(request, begun),
            Command::Carry {
                session,
                from,
                name,
            } => self.calls.carry(&session, from, name),
            Command::Lead { group, node } => self.lead(group, node),
            Command::Run { micros } => self.run(micros),
            Command::Until(condition) => self.wait_until(|story| story.holds(condition)),
            Command::Crash { node } => self.crash(node),
            Command::Start { node } => self.start(node),
            Command::Cut { node, others } => {
                for other in others {
                    self.world.block(node, other);
                    self.world.block(other, node);
                }
            }
            Command::Heal => self.world.heal_network(),
            Command::Rot { node, key, value } => self.rot(node, key, value),
            Command::Befall(deed) => self.befall(deed),
            Command::Plan { survivors, lost } => self.plan(survivors, &lost),
            Command::Apply { cut } => self.apply(cut),
            Command::Show => self.lines.extend(watch::show(&self.world)),
        }
        self.look();
    }

    /// One thing happens in the world, and is told.
    fn step(&mut self) {
        self.world.step();
        self.look();
    }

    fn look(&mut self) {
        if let Some(failure) = &self.world.failure {
            panic!("{:?}: {failure:?}", self.command);
        }
        self.watch.look(&self.world, &mut self.lines);
        self.calls.take_answers(&mut self.world, &mut self.lines);
    }

    fn run(&mut self, micros: u64) {
        let end = self.world.now + micros;
        while self.world.next_at().is_some_and(|at| at <= end) {
            self.step();
        }
        self.world.now = end;
    }

    fn wait_until(&mut self, is_so: impl Fn(&Story) -> bool) {
        let end = self.world.now + LONGEST_WAIT;
        while !is_so(self) {
            if self.world.now > end {
                self.lines.extend(watch::show(&self.world));
                panic!("{:?} has no end:\n{}", self.command, self.lines.join("\n"));
            }
            self.step();
        }
    }

    /// Asks a node, and waits for the answer unless it is one that is only begun.
    fn ask(&mut self, request: Request, begun: Option<String>) {
        let is_awaited = begun.is_none();
        let number = self.calls.ask(&mut self.world, request, begun);
        self.look();
        if is_awaited {
            self.wait_until(|story| !story.calls.is_open(number));
        }
    }

    fn holds(&self, condition: Condition) -> bool {
        match condition {
            Condition::Led { group, by } => {
                let leader = self.leader_of(group);
                leader.is_some_and(|leader| by.is_none_or(|by| by == leader))
            }
            Condition::Equal(group) => {
                let is_equal = self.leader_of(group).is_some() && self.world.is_equal(group);
                if is_equal && let Err(failure) = self.world.check_logs(group) {
                    panic!("{:?}: {failure:?}", self.command);
                }
                is_equal
            }
            Condition::Begun { group, node } => self.has(node, group),
            Condition::Gone { group, node: None } => {
                (1..=self.world.plan.nodes).all(|node| !self.has(node, group))
            }
            Condition::Gone {
                group,
                node: Some(node),
            } => !self.has(node, group),
            Condition::Frozen(group) => {
                let mut nodes = self.nodes();
                nodes.any(|node| node.merging_into(group).is_some())
            }
            Condition::Merged(group) => self.world.merges.target_of(group).is_some(),
            Condition::Served => self.calls.are_over(),
        }
    }

    /// The nodes that run.
    fn nodes(&self) -> impl Iterator<Item = &SimNode<Registers>> {
        let hosts = self.world.hosts.iter();
        hosts.filter_map(|host| host.node.as_ref())
    }

    fn has(&self, node: u64, group: GroupId) -> bool {
        let node = self.world.hosts[node as usize].node.as_ref();
        node.is_some_and(|node| node.life(group).is_some())
    }

    /// The newest leader of a group, if it has committed in its term.
    fn leader_of(&self, group: GroupId) -> Option<u64> {
        let replicas = self.nodes().filter_map(|node| node.replica(group));
        let cores = replicas.filter_map(|(core, fault)| fault.is_none().then_some(core));
        let leaders = cores.filter(|core| core.role() == Role::Leader);
        let newest = leaders.max_by_key(|core| core.term())?;
        let has_committed = newest.term_at(newest.committed()) == Some(newest.term());
        has_committed.then_some(newest.node().0)
    }

    fn lead(&mut self, group: GroupId, node: u64) {
        self.wait_until(|story| story.leader_of(group).is_some());
        let leader = self.leader_of(group).expect("it has one");
        if leader != node {
            let what = What::Transfer { group, to: node };
            self.ask(Request { node: leader, what }, None);
            self.wait_until(|story| story.leader_of(group) == Some(node));
        }
    }

    fn crash(&mut self, node: u64) {
        assert!(self.world.hosts[node as usize].node.is_some(), "it is down");
        self.world.drop_node(node);
        self.lose_power(node);
    }

    fn start(&mut self, node: u64) {
        let host = &self.world.hosts[node as usize];
        assert!(host.node.is_none(), "it runs");
        assert!(!host.is_outcast, "it is lost for good");
        self.world.boot(node);
    }

    /// Flips a bit of an entry where later records of the log say that it was durable: elsewhere it would look like a torn write.
    fn rot(&mut self, node: u64, key: u8, value: u64) {
        let entry = self.calls.put_of(key, value);
        let host = &mut self.world.hosts[node as usize];
        assert!(host.node.is_none(), "a node that runs has it in memory");
        let mut hits = 0;
        for path in host.disk.files() {
            if path.extension().is_none_or(|end| end != "seg") {
                continue;
            }
            let segment = host.disk.read(&path).expect("a file of the log");
            for Payload { group, place, .. } in payloads(&segment) {
                let record = &segment[place.start as usize..place.end as usize];
                let places = record.windows(entry.len()).enumerate();
                for (at, _) in places.filter(|(_, found)| *found == entry) {
                    host.disk.flip_bits(&path, place.start + at as u64, 1);
                    host.damage.hit_group(group);
                    hits += 1;
                }
            }
        }
        assert!(hits > 0, "the log has no such entry before its last batch");
    }
}
