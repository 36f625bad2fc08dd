//! The zone check for registers whose written values are all different: whoever read a value tells which write it
//! saw, so no order needs to be searched for (Gibbons and Korach, "Testing shared memories", 1997). It takes
//! O(n log n) and must never be given compare-and-set or swap.
//!
//! All operations on one value form a cluster. Its *zone* lies between the earliest end and the latest start in the
//! cluster. If the earliest end comes first, the value must have been there through the whole zone (*forward*);
//! if not, all of the cluster can happen at one moment anywhere in the zone (*backward*). The history is
//! linearizable when no read ends before its write starts, no two forward zones overlap, and no backward zone lies
//! inside a forward one.
//!
//! A write whose outcome is unknown has no end. When nobody read its value its zone never ends, and so is in nobody's
//! way; when somebody did, it happened, and its readers say by when.

use std::collections::HashMap;

use super::{Answer, Call, INITIAL, Moment, Operation, Outcome, Value, Violation};

/// Everything that was done with one value.
struct Cluster<'a> {
    value: Value,
    /// `None` for the initial value.
    write: Option<&'a Operation>,
    /// The operation that ended first. The initial value's write ended before everything else.
    first_end: Option<&'a Operation>,
    /// The operation that started last.
    last_start: Option<&'a Operation>,
}

impl<'a> Cluster<'a> {
    fn new(value: Value, write: Option<&'a Operation>) -> Cluster<'a> {
        Cluster {
            value,
            write,
            first_end: write,
            last_start: write,
        }
    }

    fn add(&mut self, read: &'a Operation) {
        // Nothing ends before the write of the initial value did.
        if self.first_end.is_some_and(|o| read.end < o.end) {
            self.first_end = Some(read);
        }
        if self.last_start.is_none_or(|o| read.start > o.start) {
            self.last_start = Some(read);
        }
    }

    /// The end of the operation that ended first.
    fn first_end(&self) -> Moment {
        self.first_end.map_or(0, |o| o.end)
    }

    /// The start of the operation that started last.
    fn last_start(&self) -> Moment {
        self.last_start.map_or(0, |o| o.start)
    }

    fn is_forward(&self) -> bool {
        self.first_end() < self.last_start()
    }

    fn witnesses(&self) -> impl Iterator<Item = Operation> + use<'a> {
        [self.write, self.first_end, self.last_start]
            .into_iter()
            .flatten()
            .copied()
    }
}

/// Whether the operations on one key are those of a register. Failed writes and unanswered reads do not count.
///
/// # Errors
/// Says which values were in each other's way, with at most six operations that show it.
///
/// # Panics
/// When the operations do not fulfil [`is_register`](super::is_register).
pub fn zones(operations: &[Operation]) -> Result<(), Box<Violation>> {
    let clusters = clusters(operations)?;
    let mut forward: Vec<&Cluster<'_>> = clusters.iter().filter(|c| c.is_forward()).collect();
    forward.sort_unstable_by_key(|c| c.first_end());
    if let Some(pair) = forward
        .windows(2)
        .find(|pair| pair[1].first_end() < pair[0].last_start())
    {
        let reason = format!(
            "{} and {} each must have been there before the other and after it",
            pair[0].value, pair[1].value
        );
        return Err(conflict(reason, pair[0], pair[1]));
    }
    for inner in clusters.iter().filter(|c| !c.is_forward()) {
        let after = forward.partition_point(|c| c.first_end() < inner.last_start());
        let Some(outer) = after.checked_sub(1).map(|before| forward[before]) else {
            continue;
        };
        if inner.first_end() < outer.last_start() {
            let reason = format!(
                "{} was there before and after all that was done with {}",
                outer.value, inner.value
            );
            return Err(conflict(reason, outer, inner));
        }
    }
    Ok(())
}

fn conflict(reason: String, one: &Cluster<'_>, other: &Cluster<'_>) -> Box<Violation> {
    Violation::new(reason, one.witnesses().chain(other.witnesses()))
}

/// The clusters of all values that count, once every read has been given to its write.
fn clusters(operations: &[Operation]) -> Result<Vec<Cluster<'_>>, Box<Violation>> {
    let mut clusters = vec![Cluster::new(INITIAL, None)];
    let mut by_value = HashMap::from([(INITIAL, 0)]);
    let mut failed = HashMap::new();
    for write in operations {
        let Call::Write(value) = write.call else {
            continue;
        };
        if write.outcome == Outcome::Failed {
            failed.insert(value, write);
            continue;
        }
        assert!(
            by_value.insert(value, clusters.len()).is_none(),
            "written twice, or the initial value: {write}"
        );
        clusters.push(Cluster::new(value, Some(write)));
    }
    for read in operations {
        let value = match (read.call, read.outcome) {
            (Call::Read, Outcome::Ok(Answer::Value(value))) => value,
            (Call::Read | Call::Write(_), _) => continue,
            (call, _) => panic!("{call:?} on a register"),
        };
        let Some(&cluster) = by_value.get(&value) else {
            let write = failed.get(&value).copied();
            let reason = match write {
                Some(_) => format!("{value} was read, but its write failed without effect"),
                None => format!("{value} was read, but nobody wrote it"),
            };
            return Err(Violation::new(
                reason,
                write.into_iter().chain([read]).copied(),
            ));
        };
        let cluster: &mut Cluster<'_> = &mut clusters[cluster];
        if let Some(write) = cluster.write.filter(|write| read.is_before(write)) {
            let reason = format!("{value} was read before it was written");
            return Err(Violation::new(reason, [*write, *read]));
        }
        cluster.add(read);
    }
    Ok(clusters)
}
