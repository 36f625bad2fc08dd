//! Runs the scripts in `tests/data/raft`. A script is plain text: a line `> command` is run, the indented lines
//! after it are what it must print, `#` starts a comment. `UPDATE=1` writes what was printed into the files.
//!
//! | command | does |
//! |---|---|
//! | `nodes N [key=value ...]` | starts N nodes that see each other; keys: voters, outgoing, learners, witnesses (lists such as 1,2; all vote unless said), entries, window-entries, window-messages, seed |
//! | `given N tT [T ...] [voters=1,2]` | node N starts anew with a disk that holds term T, an entry of each term, and its own idea of who votes; prints nothing |
//! | `campaign N` | steps a campaign |
//! | `lead N` | N campaigns and all rests, after every follower has heard of the first commit; prints nothing |
//! | `transfer N M` | N shall hand the leadership to M |
//! | `propose N [count]` | proposes |
//! | `change N +A ~B -C ^D _E !F` | A shall vote, B shall learn, C shall be no member, D shall be a witness, E a learning one, F should lead: N is asked |
//! | `priority N P` | all nodes learn the priority of N |
//! | `members` | prints whom each node takes for members |
//! | `read N [A,B]`, `read N bound` | whether N may answer reads, and from which index on, while the nodes of the list stand by it, or all that are bound to it now |
//! | `barrier N` | appends an entry that stands for nothing |
//! | `bound MS` | nodes that restart from now on keep for that long what they may have promised to a leader; prints nothing |
//! | `persist N \| all [count]` | completes writes of a disk, and tells the node |
//! | `sync N [count]`, `durable N wW` | completes writes and tells nobody; tells of a write that is completed |
//! | `apply N` | the state machine takes what was handed out |
//! | `deliver A>B [count]`, `deliver all` | delivers messages, oldest first; `all` includes those that arise |
//! | `drop A>B [count]`, `reverse A>B`, `duplicate A>B` | loses them, turns their order round, delivers the oldest and keeps it |
//! | `say A>B MESSAGE` | B hears a message from A, who may be anybody, as `network` would print it |
//! | `claims [N]` | delivers what all nodes, or one, learn of each other: up, down, claims |
//! | `down A B`, `up A B` | cuts or heals a link (seen with the next `claims`) |
//! | `claimed N M tT`, `unclaimed N M` | N learns that M leads term T, or does not any more, whatever is true |
//! | `crash N [count]`, `restart N [applied]` | loses what is not on disk, after `count` more writes got there; starts again |
//! | `snapshot A>B tT INDEX` | B has a durable snapshot of the committed state through an index, which A sent as the leader of term T |
//! | `forget N INDEX` | a node that is down was removed, committed at that index, and has no log any more |
//! | `lose N` | a node that is down has lost its log, and what it knows of how far that went |
//! | `anew N M` | N learns that M's replica began anew |
//! | `install N INDEX` | a node that is down gets the committed state through an index from elsewhere |
//! | `advance MS` | lets time pass and rings deadlines |
//! | `timeout N` | lets time pass until the deadline of N |
//! | `settle` | disks, messages and claims until all rests; no time passes; prints nothing |
//! | `purge N INDEX` | drops the front of a log |
//! | `network`, `status`, `logs`, `progress N` | prints |

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use polyraft_raft::{Configuration, Event, Index, MemberChange, NodeId, Settings, Term, WriteId};

use crate::cluster::{Cluster, Packet};
use crate::text::{self, message};

fn number(word: Option<&&str>) -> Option<u64> {
    word.and_then(|w| w.trim_start_matches('n').parse().ok())
}

fn start(words: &[&str]) -> Cluster {
    let count = number(words.first()).expect("nodes needs a count");
    let (mut settings, mut seed) = (Settings::default(), 7);
    let (mut voters, mut outgoing, mut learners) = (None, Vec::new(), Vec::new());
    let mut witnesses = Vec::new();
    for word in &words[1..] {
        let (key, value) = word.split_once('=').expect("key=value");
        match key {
            "voters" => voters = Some(ids(value)),
            "outgoing" => outgoing = ids(value),
            "learners" => learners = ids(value),
            "witnesses" => witnesses = ids(value),
            _ => {}
        }
        if matches!(key, "voters" | "outgoing" | "learners" | "witnesses") {
            continue;
        }
        let value: u64 = value.parse().expect("a number");
        match key {
            "entries" => settings.max_append_entries = value as u32,
            "window-entries" => settings.inflight_entries = value,
            "window-messages" => settings.inflight_messages = value as u32,
            "seed" => seed = value,
            _ => panic!("unknown key {key}"),
        }
    }
    let others = |n: &NodeId| !outgoing.contains(n) && !learners.contains(n);
    let voters = voters.unwrap_or((1..=count).map(NodeId).filter(others).collect());
    let members =
        Configuration::joint(voters, outgoing, learners, []).with_witnesses(witnesses.clone());
    Cluster::with_witnesses(count, seed, settings, members, witnesses)
}

/// A list of nodes, such as `1,2,3`.
fn ids(list: &str) -> Vec<NodeId> {
    let id = |word| NodeId(number(Some(&word)).expect("a list of nodes"));
    list.split(',').map(id).collect()
}

/// The two ends of `A>B`.
fn link(word: &str) -> (NodeId, NodeId) {
    let (from, to) = word.split_once('>').expect("a link is A>B");
    let node = |word| NodeId(number(Some(&word)).expect("a node"));
    (node(from), node(to))
}

/// The places in the network of the messages that `link` carries, oldest first.
fn on_link(cluster: &Cluster, word: &str) -> Vec<usize> {
    let (from, to) = link(word);
    let matches = |at: &usize| cluster.network[*at].from == from && cluster.network[*at].to == to;
    (0..cluster.network.len()).filter(matches).collect()
}

fn run(cluster: &mut Cluster, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (command, words) = words.split_first().expect("a command");
    let node = || NodeId(number(words.first()).expect("a node"));
    let second = || number(words.get(1));
    cluster.trace.clear();
    let mut printed = Vec::new();
    match *command {
        "nodes" => *cluster = start(words),
        "given" => {
            let (terms, options): (Vec<&str>, Vec<&str>) =
                words[2..].iter().partition(|w| !w.contains('='));
            let terms: Vec<Term> = terms.iter().map(|t| Term(text::index(t).0)).collect();
            let members = options
                .first()
                .and_then(|o| o.strip_prefix("voters="))
                .map(|list| Configuration::simple(ids(list)));
            cluster.given(node(), text::term(words[1]), &terms, members);
        }
        "campaign" => cluster.step(node(), Event::Campaign),
        "lead" => {
            cluster.step(node(), Event::Campaign);
            cluster.settle();
            assert_eq!(cluster.leader(), Some(node()), "{line}");
            cluster.advance(cluster.settings.commit_notice_interval);
            cluster.settle();
            cluster.trace.clear();
        }
        "transfer" => {
            let to = NodeId(second().expect("two nodes"));
            cluster.step(node(), Event::Transfer { to });
        }
        "change" => {
            let change = |word: &&str| {
                let node = NodeId(number(Some(&&word[1..])).expect("a node"));
                match &word[..1] {
                    "+" => MemberChange::Voter(node),
                    "~" => MemberChange::Learner(node),
                    "^" => MemberChange::Witness(node),
                    "!" => MemberChange::Prefer(node),
                    "_" => MemberChange::WitnessLearner(node),
                    _ => MemberChange::Remove(node),
                }
            };
            let changes: Vec<MemberChange> = words[1..].iter().map(change).collect();
            cluster.step(node(), Event::ChangeMembers { changes: &changes });
        }
        "priority" => {
            let priority = second().expect("a priority") as u8;
            cluster.set_priority(node(), priority);
        }
        "members" => {
            printed.extend(cluster.ids().into_iter().map(|id| cluster.members_line(id)));
        }
        "barrier" => cluster.step(node(), Event::Barrier),
        "bound" => cluster.bound_for = 1000 * number(words.first()).expect("milliseconds"),
        "read" => {
            let standing = match words.get(1) {
                Some(&"bound") => cluster.bound_to(node()),
                Some(list) => ids(list),
                None => Vec::new(),
            };
            let found = cluster.group(node()).read_index(|n| standing.contains(&n));
            printed.push(match found {
                Ok(index) => format!("reads what holds {index}"),
                Err(why) => format!("reads nothing: {}", text::unreadable(why)),
            });
        }
        "propose" => cluster.step(
            node(),
            Event::Propose {
                count: second().unwrap_or(1) as u32,
            },
        ),
        "persist" => {
            let nodes = if words[0] == "all" {
                cluster.running()
            } else {
                vec![node()]
            };
            for id in nodes {
                cluster.persist(id, second().unwrap_or(u64::MAX) as usize);
            }
        }
        "sync" => cluster.sync(node(), second().unwrap_or(u64::MAX) as usize),
        "durable" => {
            let write = words[1].strip_prefix('w').and_then(|w| w.parse().ok());
            cluster.tell_durable(node(), WriteId(write.expect("a write is wN")));
        }
        "apply" => cluster.finish_applying(node()),
        "deliver" if words[0] == "all" => {
            while !cluster.network.is_empty() {
                cluster.deliver(0);
            }
        }
        "deliver" => {
            let count = second().unwrap_or(on_link(cluster, words[0]).len() as u64);
            for _ in 0..count {
                let at = on_link(cluster, words[0])
                    .first()
                    .copied()
                    .expect("a message on that link");
                cluster.deliver(at);
            }
        }
        "drop" => {
            let count = second().unwrap_or(u64::MAX) as usize;
            let lost: Vec<usize> = on_link(cluster, words[0]).into_iter().take(count).collect();
            printed.push(format!("lost {}", lost.len()));
            lost.into_iter()
                .rev()
                .for_each(|at| drop(cluster.network.remove(at)));
        }
        "reverse" => {
            let places = on_link(cluster, words[0]);
            let half = places.len() / 2;
            for (&a, &b) in places.iter().zip(places.iter().rev()).take(half) {
                cluster.network.swap(a, b);
            }
        }
        "duplicate" => {
            let places = on_link(cluster, words[0]);
            cluster.duplicate(*places.first().expect("a message on that link"));
        }
        "say" => {
            let (from, to) = link(words[0]);
            let message = text::parse(&words[1..]);
            cluster.step(to, Event::Message { from, message });
        }
        "claims" => match number(words.first()) {
            Some(observer) => cluster.deliver_notes_of(NodeId(observer)),
            None => drop(cluster.deliver_notes()),
        },
        "down" => cluster.cut(node(), NodeId(second().expect("two nodes"))),
        "up" => cluster.heal(node(), NodeId(second().expect("two nodes"))),
        "claimed" => {
            let by = NodeId(second().expect("two nodes"));
            let term = text::term(words[2]);
            cluster.step(node(), Event::Claimed { by, term });
        }
        "unclaimed" => {
            let by = NodeId(second().expect("two nodes"));
            cluster.step(node(), Event::Unclaimed { by });
        }
        "crash" => {
            cluster.sync(node(), second().unwrap_or(0) as usize);
            cluster.crash(node());
        }
        "snapshot" => {
            let (from, to) = link(words[0]);
            let through = Index(number(words.get(2)).expect("an index"));
            cluster.receive_snapshot(to, from, text::term(words[1]), through);
        }
        "forget" => cluster.forget(node(), Index(second().expect("an index"))),
        "lose" => cluster.lose(node()),
        "anew" => {
            let event = Event::BeganAnew {
                node: NodeId(second().expect("two nodes")),
            };
            cluster.step(node(), event);
        }
        "install" => cluster.install(node(), Index(second().expect("an index"))),
        "restart" => cluster.restart(node(), Index(second().unwrap_or(0))),
        "advance" => cluster.advance(1000 * number(words.first()).expect("milliseconds")),
        "timeout" => match cluster.group(node()).deadline() {
            Some(at) => cluster.advance(at.since(cluster.now)),
            None => printed.push(format!("{} waits for nothing", node())),
        },
        "settle" => {
            cluster.settle();
            cluster.trace.clear();
        }
        "purge" => {
            let through = Index(second().expect("an index"));
            cluster.purge(node(), through);
        }
        "network" => {
            let line = |p: &Packet| format!("{}>{} {}", p.from, p.to, message(p.message));
            printed.extend(cluster.network.iter().map(line));
        }
        "status" => printed.extend(cluster.ids().into_iter().map(|id| cluster.status_line(id))),
        "logs" => printed.extend(cluster.ids().into_iter().map(|id| cluster.log_line(id))),
        "progress" => printed.extend(cluster.progress_lines(node())),
        _ => panic!("unknown command {command}"),
    }
    cluster.check_logs();
    let mut text = String::new();
    for line in cluster.trace.drain(..).chain(printed) {
        writeln!(text, "  {line}").expect("a string takes everything");
    }
    text
}

/// The script as it should read: comments and commands kept, outputs fresh.
pub fn play(script: &str) -> String {
    let mut cluster = Cluster::new(1, 7, Settings::default());
    let mut text = String::new();
    for line in script.lines() {
        match line.strip_prefix("> ") {
            Some(command) => {
                text += &format!("> {command}\n{}", run(&mut cluster, command));
            }
            None if line.starts_with("  ") => {}
            None => text += &format!("{line}\n"),
        }
    }
    text
}

pub fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/raft");
    let entries = fs::read_dir(folder).expect("the folder of scripts");
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("a folder entry").path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "txt"));
    files.sort();
    files
}

#[test]
fn scripts_print_what_they_say() {
    let files = scripts();
    assert!(files.len() >= 40, "scripts are missing: {files:?}");
    let update = env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for file in files {
        let expected = fs::read_to_string(&file).expect("a readable script");
        let actual = play(&expected);
        if update {
            fs::write(&file, actual).expect("a writable script");
        } else if let Some(at) = expected
            .lines()
            .zip(actual.lines())
            .position(|(e, a)| e != a)
        {
            let line = |text: &str| text.lines().nth(at).unwrap_or_default().to_owned();
            wrong.push(format!(
                "{}:{}\n  expected {:?}\n  printed  {:?}",
                file.display(),
                at + 1,
                line(&expected),
                line(&actual)
            ));
        } else if expected != actual {
            wrong.push(format!("{}: one is longer than the other", file.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "run with UPDATE=1 if this is intended\n{}",
        wrong.join("\n")
    );
}
