//! The words of a script, as commands. It must never guess: what it does not understand is no command.

use std::time::Duration;

use polyraft::config::ByteSize;
use polyraft::{Config, GroupId, MemberChange, NodeId, Read};

use super::super::plan::{MILLI, roomy_config};
use super::deeds::Deed;

/// A line of a script.
pub(super) enum Command {
    Nodes {
        count: u64,
        config: Box<Config>,
    },
    Ask {
        request: Request,
        /// The words of the request, if nobody waits for the answer.
        begun: Option<String>,
    },
    Carry {
        session: String,
        from: GroupId,
        name: String,
    },
    Lead {
        group: GroupId,
        node: u64,
    },
    Run {
        micros: u64,
    },
    Until(Condition),
    Crash {
        node: u64,
    },
    Start {
        node: u64,
    },
    Cut {
        node: u64,
        others: Vec<u64>,
    },
    Heal,
    Rot {
        node: u64,
        key: u8,
        value: u64,
    },
    Befall(Deed),
    Plan {
        survivors: Vec<u64>,
        lost: Vec<u64>,
    },
    Apply {
        /// The power fails before this operation on the disk of this node, counted from 1.
        cut: Option<(u64, u64)>,
    },
    Show,
}

/// What somebody asks a node for.
pub(super) struct Request {
    pub(super) node: u64,
    pub(super) what: What,
}

#[derive(Clone)]
pub(super) enum What {
    Create {
        groups: Vec<u64>,
        members: Vec<u64>,
    },
    Destroy {
        groups: Vec<u64>,
    },
    Put {
        group: GroupId,
        key: u8,
        value: u64,
        number: Option<Number>,
    },
    Read {
        group: GroupId,
        key: u8,
        how: Read,
    },
    Open {
        session: String,
        group: GroupId,
    },
    Split {
        group: GroupId,
        first: u8,
        child: u64,
    },
    Merge {
        group: GroupId,
        target: u64,
    },
    Transfer {
        group: GroupId,
        to: u64,
    },
    Drain,
    Change {
        group: GroupId,
        changes: Vec<MemberChange>,
    },
    Snapshot {
        group: GroupId,
    },
}

/// Which proposal of a session one is, the session by its name in the script.
#[derive(Clone)]
pub(super) struct Number {
    pub(super) session: String,
    pub(super) sequence: u64,
    pub(super) lowest: u64,
}

/// What a script can wait for.
#[derive(Clone, Copy)]
pub(super) enum Condition {
    Led { group: GroupId, by: Option<u64> },
    Equal(GroupId),
    Begun { group: GroupId, node: u64 },
    Gone { group: GroupId, node: Option<u64> },
    Frozen(GroupId),
    Merged(GroupId),
    Served,
}

impl Command {
    pub(super) fn parse(line: &str) -> Option<Command> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let command = match words[..] {
            ["nodes", count, ref options @ ..] => Command::Nodes {
                count: number(count)?,
                config: Box::new(config(options)?),
            },
            ["run", millis] => Command::Run {
                micros: number(millis)? * MILLI,
            },
            ["until", ref condition @ ..] => Command::Until(Condition::parse(condition)?),
            ["crash", node] => Command::Crash {
                node: number(node)?,
            },
            ["start", node] => Command::Start {
                node: number(node)?,
            },
            ["cut", node, ref others @ ..] => Command::Cut {
                node: number(node)?,
                others: numbers(others)?,
            },
            ["heal"] => Command::Heal,
            ["rot", node, key, value] => Command::Rot {
                node: number(node)?,
                key: letter(key)?,
                value: number(value)?,
            },
            ["leader", group, "is", node] => Command::Lead {
                group: group_of(group)?,
                node: number(node)?,
            },
            ["carry", session, "from", group, "as", name] => Command::Carry {
                session: session.to_owned(),
                from: group_of(group)?,
                name: name.to_owned(),
            },
            ["plan", ref nodes @ ..] => {
                let without = nodes.iter().position(|word| *word == "without")?;
                Command::Plan {
                    survivors: numbers(&nodes[..without])?,
                    lost: numbers(&nodes[without + 1..])?,
                }
            }
            ["apply"] => Command::Apply { cut: None },
            ["apply", "cut", node, operation] => Command::Apply {
                cut: Some((number(node)?, number(operation)?)),
            },
            ["show"] => Command::Show,
            ["begin", ref request @ ..] => Command::Ask {
                request: Request::parse(request)?,
                begun: Some(request.join(" ")),
            },
            ref words => match Deed::parse(words) {
                Some(deed) => Command::Befall(deed),
                None => Command::Ask {
                    request: Request::parse(words)?,
                    begun: None,
                },
            },
        };
        Some(command)
    }
}

impl Request {
    fn parse(words: &[&str]) -> Option<Request> {
        if let ["drain", node] = words {
            let what = What::Drain;
            return Some(Request {
                node: number(node)?,
                what,
            });
        }
        let at = words.iter().position(|word| *word == "at")?;
        let node = number(words.get(at + 1)?)?;
        let what = match words[..at] {
            ["create", ref rest @ ..] => {
                let on = rest.iter().position(|word| *word == "on")?;
                What::Create {
                    groups: numbers(&rest[..on])?,
                    members: numbers(&rest[on + 1..])?,
                }
            }
            ["destroy", ref groups @ ..] => What::Destroy {
                groups: numbers(groups)?,
            },
            ["put", key, value, "in", group] => What::Put {
                group: group_of(group)?,
                key: letter(key)?,
                value: number(value)?,
                number: Number::parse(&words[at + 2..])?,
            },
            ["read", key, "in", group] => What::Read {
                group: group_of(group)?,
                key: letter(key)?,
                how: how_to_read(&words[at + 2..])?,
            },
            ["open", session, "in", group] => What::Open {
                session: session.to_owned(),
                group: group_of(group)?,
            },
            ["split", group, "from", key, "into", child] => What::Split {
                group: group_of(group)?,
                first: letter(key)?,
                child: number(child)?,
            },
            ["merge", group, "into", target] => What::Merge {
                group: group_of(group)?,
                target: number(target)?,
            },
            ["transfer", group, "to", to] => What::Transfer {
                group: group_of(group)?,
                to: number(to)?,
            },
            ["change", group] => What::Change {
                group: group_of(group)?,
                changes: words[at + 2..].iter().map(change).collect::<Option<_>>()?,
            },
            ["snapshot", group] => What::Snapshot {
                group: group_of(group)?,
            },
            _ => return None,
        };
        let takes_more = matches!(
            what,
            What::Put { .. } | What::Read { .. } | What::Change { .. }
        );
        (takes_more || words.len() == at + 2).then_some(Request { node, what })
    }
}

impl Number {
    /// Nothing, or `as S #I`, or `as S #I since L`. The outer `None`: none of these.
    fn parse(words: &[&str]) -> Option<Option<Number>> {
        let (session, sequence, lowest) = match *words {
            [] => return Some(None),
            ["as", session, sequence] => (session, sequence, 1),
            ["as", session, sequence, "since", lowest] => (session, sequence, number(lowest)?),
            _ => return None,
        };
        Some(Some(Number {
            session: session.to_owned(),
            sequence: number(sequence.strip_prefix('#')?)?,
            lowest,
        }))
    }
}

impl Condition {
    fn parse(words: &[&str]) -> Option<Condition> {
        let condition = match *words {
            ["led", group] => Condition::Led {
                group: group_of(group)?,
                by: None,
            },
            ["led", group, "by", node] => Condition::Led {
                group: group_of(group)?,
                by: Some(number(node)?),
            },
            ["equal", group] => Condition::Equal(group_of(group)?),
            ["begun", group, "at", node] => Condition::Begun {
                group: group_of(group)?,
                node: number(node)?,
            },
            ["gone", group] => Condition::Gone {
                group: group_of(group)?,
                node: None,
            },
            ["gone", group, "at", node] => Condition::Gone {
                group: group_of(group)?,
                node: Some(number(node)?),
            },
            ["frozen", group] => Condition::Frozen(group_of(group)?),
            ["merged", group] => Condition::Merged(group_of(group)?),
            ["served"] => Condition::Served,
            _ => return None,
        };
        Some(condition)
    }
}

/// What the nodes of a story are configured with.
fn config(options: &[&str]) -> Option<Config> {
    let mut config = roomy_config();
    for option in options {
        let (key, value) = option.split_once('=')?;
        let value = number(value)?;
        match key {
            "sessions" => config.apply.max_sessions = u32::try_from(value).ok()?,
            "snapshot" => config.snapshot.entries = value,
            "keep" => config.snapshot.keep_entries = value,
            "chunk" => config.snapshot.chunk_bytes = ByteSize::b(value),
            "rate" => config.snapshot.rate = ByteSize::b(value),
            "rebalance" => config.election.rebalance_delay = Duration::from_millis(value),
            _ => return None,
        }
    }
    Some(config)
}

pub(super) fn number(word: &str) -> Option<u64> {
    word.parse().ok()
}

pub(super) fn numbers(words: &[&str]) -> Option<Vec<u64>> {
    words.iter().map(|word| number(word)).collect()
}

pub(super) fn group_of(word: &str) -> Option<GroupId> {
    number(word).map(GroupId)
}

/// A key.
pub(super) fn letter(word: &str) -> Option<u8> {
    match *word.as_bytes() {
        [letter] if letter.is_ascii_lowercase() => Some(letter),
        _ => None,
    }
}

/// Which state a read may see.
fn how_to_read(words: &[&str]) -> Option<Read> {
    match *words {
        [] => Some(Read::Linearizable),
        ["lease"] => Some(Read::Lease),
        ["stale", millis] => Some(Read::Stale {
            max_lag: Duration::from_millis(number(millis)?),
        }),
        _ => None,
    }
}

fn change(word: &&str) -> Option<MemberChange> {
    let (sign, node) = word.split_at_checked(1)?;
    let node = NodeId(number(node)?);
    match sign {
        "+" => Some(MemberChange::Voter(node)),
        "~" => Some(MemberChange::Learner(node)),
        "-" => Some(MemberChange::Remove(node)),
        "!" => Some(MemberChange::Prefer(node)),
        _ => None,
    }
}
