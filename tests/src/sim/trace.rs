//! The trace of a run: a hash over everything that happened, and, when asked for, the events of some groups in words.
//! It must never change what happens: a run with words has the same hash as one without.

use std::fmt;

use polyraft::GroupId;
use rustc_hash::FxHashMap;

/// Hash and words of a run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    /// Groups whose events are written down; empty: of all. `None`: nothing is written down.
    wanted: Option<Vec<GroupId>>,
    lines: Vec<String>,
    /// By node and group: how its replica stood when that was last written down.
    stood: FxHashMap<(u64, GroupId), String>,
}

impl Trace {
    /// Only the hash, or also words about `wanted` groups (all if empty).
    pub fn new(wanted: Option<Vec<GroupId>>) -> Trace {
        Trace {
            wanted,
            ..Trace::default()
        }
    }

    /// Takes a number into the hash.
    #[inline]
    pub fn note(&mut self, number: u64) {
        self.hash = fold(self.hash, number);
    }

    /// Takes bytes into the hash.
    pub fn note_bytes(&mut self, bytes: &[u8]) {
        self.hash = hash_bytes(self.hash, bytes);
    }

    /// The hash over all that was noted.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Whether words are wanted at all.
    pub fn is_on(&self) -> bool {
        self.wanted.is_some()
    }

    /// Whether words about a group are wanted.
    pub fn wants(&self, group: GroupId) -> bool {
        self.wanted
            .as_ref()
            .is_some_and(|wanted| wanted.is_empty() || wanted.contains(&group))
    }

    /// Writes a line about a group, if wanted.
    pub fn group(&mut self, now: u64, node: u64, group: GroupId, what: impl FnOnce() -> String) {
        if self.wants(group) {
            self.line(now, node, format_args!("group {group} {}", what()));
        }
    }

    /// Writes how a replica of a wanted group stands and what made it so; not twice in a row the same.
    pub fn replica(
        &mut self,
        now: u64,
        node: u64,
        group: GroupId,
        causes: &[String],
        stands: impl FnOnce() -> String,
    ) {
        let stands = stands();
        let before = self.stood.insert((node, group), stands.clone());
        if causes.is_empty() && before.as_ref() == Some(&stands) {
            return;
        }
        let causes = match causes {
            [] => String::new(),
            causes => format!(" (after {})", causes.join(", ")),
        };
        self.line(now, node, format_args!("group {group} is {stands}{causes}"));
    }

    /// A node is gone: nothing of it stands as it stood.
    pub fn forget(&mut self, node: u64) {
        self.stood.retain(|(of, _), _| *of != node);
    }

    /// Writes a line about a node or about the world (node 0), if words are wanted.
    pub fn event(&mut self, now: u64, node: u64, what: impl FnOnce() -> String) {
        if self.is_on() {
            self.line(now, node, format_args!("{}", what()));
        }
    }

    fn line(&mut self, now: u64, node: u64, what: fmt::Arguments<'_>) {
        let (millis, micros) = (now / 1000, now % 1000);
        self.lines
            .push(format!("{millis:>7}.{micros:03} ms  node {node}  {what}"));
    }

    /// The words, in order.
    pub fn into_lines(self) -> Vec<String> {
        self.lines
    }
}

#[inline]
fn fold(hash: u64, number: u64) -> u64 {
    (hash.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Folds bytes into a hash, the same on every machine.
pub fn hash_bytes(mut hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = fold(hash, u64::from_le_bytes(*word));
    }
    let last = rest
        .iter()
        .fold(0, |last: u64, byte| last << 8 | u64::from(*byte));
    fold(fold(hash, last), bytes.len() as u64)
}
