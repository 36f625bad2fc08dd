//! How scripts write what replicas say, and how they read it. One text for one message, both ways.

use polyraft_raft::*;

pub fn name(node: Option<NodeId>) -> String {
    node.map_or("none".into(), |n| n.to_string())
}

pub fn unreadable(why: Unreadable) -> String {
    match why {
        Unreadable::NotLeader { hint } => format!("not the leader, that is {}", name(hint)),
        Unreadable::NotReady => "nothing of the term is committed".to_owned(),
        Unreadable::GivenAway => "somebody was told to campaign".to_owned(),
        Unreadable::Unconfirmed => "too few stand by it".to_owned(),
    }
}

pub fn refusal(why: ChangeRefused) -> String {
    match why {
        ChangeRefused::NotLeader { hint } => format!("not the leader, that is {}", name(hint)),
        ChangeRefused::Busy => "another change or a handover is under way".to_owned(),
        ChangeRefused::NotReady => "nothing of the term is committed".to_owned(),
        ChangeRefused::NotCaughtUp { node } => format!("{node} does not have all of the log"),
        ChangeRefused::Repeated { node } => format!("{node} is named twice"),
        ChangeRefused::NoVoters => "nobody would vote".to_owned(),
        ChangeRefused::TooManyWitnesses => "witnesses alone could decide".to_owned(),
        ChangeRefused::CannotLead { node } => format!("{node} could not lead"),
        ChangeRefused::KindKept { node } => format!("{node} has to be removed first"),
        ChangeRefused::NoQuorum => "too few voters are alive to commit it".to_owned(),
        ChangeRefused::Unchanged => "everybody is that already".to_owned(),
    }
}

pub fn hard_state(state: HardState) -> String {
    format!(
        "hard state {} vote {} commit {}",
        state.term,
        name(state.vote),
        state.commit
    )
}

pub fn message(message: Message) -> String {
    let answer = |granted| if granted { "yes" } else { "no" };
    match message {
        Message::PreVote { term, last } => format!("pre-vote {term} last {last}"),
        Message::PreVoteReply { term, granted } => {
            format!("pre-vote reply {term} {}", answer(granted))
        }
        Message::Vote {
            term,
            last,
            transfer,
        } => {
            format!(
                "vote {term} last {last}{}",
                if transfer { " transfer" } else { "" }
            )
        }
        Message::VoteReply { term, granted } => format!("vote reply {term} {}", answer(granted)),
        Message::Append {
            term,
            prev,
            entries,
            commit,
        } if entries.is_empty() => {
            format!("append {term} after {prev} empty commit {commit}")
        }
        Message::Append {
            term,
            prev,
            entries,
            commit,
        } => {
            format!("append {term} after {prev} entries {entries} commit {commit}")
        }
        Message::Matched {
            term,
            matched,
            commit,
        } => format!("matched {term} {matched} commit {commit}"),
        Message::Conflict {
            term,
            rejected,
            hint,
        } => format!("conflict {term} at {rejected} hint {hint}"),
        Message::Stale { term } => format!("stale {term}"),
        Message::TimeoutNow { term, last } => format!("timeout-now {term} last {last}"),
    }
}

fn number<T>(word: &str, prefix: &str, make: impl Fn(u64) -> T) -> T {
    let digits = word
        .strip_prefix(prefix)
        .and_then(|digits| digits.parse().ok());
    make(digits.unwrap_or_else(|| panic!("{word:?} is not a number like {prefix}7")))
}

pub fn term(word: &str) -> Term {
    number(word, "t", Term)
}

pub fn index(word: &str) -> Index {
    number(word, "", Index)
}

fn position(word: &str) -> LogPosition {
    let (at, of) = word.split_once('@').expect("a position is index@term");
    LogPosition {
        term: term(of),
        index: index(at),
    }
}

/// Reads what [`message`] writes, except for appends with entries: their entries are somebody's.
pub fn parse(words: &[&str]) -> Message {
    let granted = |word: &str| match word {
        "yes" => true,
        "no" => false,
        _ => panic!("yes or no, not {word:?}"),
    };
    match *words {
        ["pre-vote", "reply", at, answer] => Message::PreVoteReply {
            term: term(at),
            granted: granted(answer),
        },
        ["pre-vote", at, "last", last] => Message::PreVote {
            term: term(at),
            last: position(last),
        },
        ["vote", "reply", at, answer] => Message::VoteReply {
            term: term(at),
            granted: granted(answer),
        },
        ["vote", at, "last", last, ref rest @ ..] => Message::Vote {
            term: term(at),
            last: position(last),
            transfer: rest == ["transfer"],
        },
        ["append", at, "after", prev, "empty", "commit", commit] => {
            let prev = position(prev);
            Message::Append {
                term: term(at),
                prev,
                entries: EntryRange::empty(prev.term, prev.index.next()),
                commit: index(commit),
            }
        }
        ["matched", at, matched, "commit", commit] => Message::Matched {
            term: term(at),
            matched: index(matched),
            commit: index(commit),
        },
        ["conflict", at, "at", rejected, "hint", hint] => Message::Conflict {
            term: term(at),
            rejected: index(rejected),
            hint: position(hint),
        },
        ["stale", at] => Message::Stale { term: term(at) },
        ["timeout-now", at, "last", last] => Message::TimeoutNow {
            term: term(at),
            last: index(last),
        },
        _ => panic!("not a message: {}", words.join(" ")),
    }
}
