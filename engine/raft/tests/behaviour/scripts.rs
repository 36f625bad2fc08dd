//! Runs the scripts in `tests/data/raft`. A script is plain text: a line `> command` is run, the indented lines
//! after it are what it must print, `#` starts a comment. `UPDATE=1` writes what was printed into the files.
//!
//! | command | does |
//! |---|---|
//! | `nodes N [key=value ...]` | starts N nodes that see each other; keys: entries, window-entries, window-messages, seed |
//! | `campaign N` | steps a campaign |
//! | `propose N [count]` | proposes |
//! | `persist N \| all [count]` | completes writes of a disk |
//! | `deliver A>B [count]`, `deliver all` | delivers messages, oldest first; `all` includes those that arise |
//! | `drop A>B [count]`, `reverse A>B` | loses them, or turns their order round |
//! | `claims [N]` | delivers what all nodes, or one, learn of each other: up, down, claims |
//! | `down A B`, `up A B` | cuts or heals a link (seen with the next `claims`) |
//! | `crash N`, `restart N [applied]` | loses what is not on disk; starts again |
//! | `advance MS` | lets time pass and rings deadlines |
//! | `timeout N` | lets time pass until the deadline of N |
//! | `settle` | disks, messages and claims until all rests; no time passes; prints nothing |
//! | `purge N INDEX` | drops the front of a log |
//! | `network`, `status`, `logs`, `progress N` | prints |

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use polyraft_raft::{Event, Index, NodeId, Settings};

use crate::cluster::{Cluster, message};

fn number(word: Option<&&str>) -> Option<u64> {
    word.and_then(|w| w.trim_start_matches('n').parse().ok())
}

fn start(words: &[&str]) -> Cluster {
    let count = number(words.first()).expect("nodes needs a count");
    let (mut settings, mut seed) = (Settings::default(), 7);
    for word in &words[1..] {
        let (key, value) = word.split_once('=').expect("key=value");
        let value: u64 = value.parse().expect("a number");
        match key {
            "entries" => settings.max_append_entries = value as u32,
            "window-entries" => settings.inflight_entries = value,
            "window-messages" => settings.inflight_messages = value as u32,
            "seed" => seed = value,
            _ => panic!("unknown key {key}"),
        }
    }
    Cluster::new(count, seed, settings)
}

/// The places in the network of the messages that `link` (`A>B`) carries, oldest first.
fn on_link(cluster: &Cluster, link: &str) -> Vec<usize> {
    let (from, to) = link.split_once('>').expect("a link is A>B");
    let (from, to) = (
        number(Some(&from)).expect("a node"),
        number(Some(&to)).expect("a node"),
    );
    let matches =
        |at: &usize| cluster.network[*at].from.0 == from && cluster.network[*at].to.0 == to;
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
        "campaign" => cluster.step(node(), Event::Campaign),
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
        "claims" => match number(words.first()) {
            Some(observer) => cluster.deliver_notes_of(NodeId(observer)),
            None => drop(cluster.deliver_notes()),
        },
        "down" => cluster.cut(node(), NodeId(second().expect("two nodes"))),
        "up" => cluster.heal(node(), NodeId(second().expect("two nodes"))),
        "crash" => cluster.crash(node()),
        "restart" => cluster.restart(node(), Index(second().unwrap_or(0))),
        "advance" => cluster.advance(1000 * number(words.first()).expect("milliseconds")),
        "timeout" => {
            let at = cluster
                .group(node())
                .deadline()
                .expect("the node has a deadline");
            cluster.advance(at.since(cluster.now));
        }
        "settle" => {
            cluster.settle();
            cluster.trace.clear();
        }
        "purge" => {
            let through = Index(second().expect("an index"));
            cluster.purge(node(), through);
        }
        "network" => {
            let line =
                |p: &crate::cluster::Packet| format!("{}>{} {}", p.from, p.to, message(p.message));
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
fn play(script: &str) -> String {
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

fn scripts() -> Vec<PathBuf> {
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
    assert!(files.len() >= 12, "scripts are missing: {files:?}");
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
