//! The general check: searching for an order of the operations on one key that explains every answer (Wing and
//! Gong, 1993, with Lowe's memory of what was tried, 2017). It takes compare-and-set and swap, and its time can grow
//! exponentially with how many operations overlap: it is for short histories, and has a budget. It must never call
//! a history wrong because the budget ran out.

use std::collections::HashSet;

use super::{Answer, Call, INITIAL, Moment, NEVER, Operation, Outcome, Value, Violation};

/// How many situations [`History::check`](super::History::check) looks at per key before it gives up.
pub const DEFAULT_BUDGET: usize = 2_000_000;

/// The same for each of the many searches that cut a violation down.
const EXPLAIN_BUDGET: usize = 5_000;

/// What a search found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none.
    Violation(Box<Violation>),
    /// The budget ran out first.
    Undecided,
}

/// Searches for an order of the operations on one key, looking at `budget` situations at most. Failed operations and
/// unanswered reads do not count.
///
/// A violation is cut down to the operations that cannot all be true: the history ends with the first answer that no
/// order explains, and of the answers before it only those stay without which there would be an order.
#[must_use]
pub fn search(operations: &[Operation], budget: usize) -> Verdict {
    let mut operations: Vec<Operation> =
        operations.iter().filter(|o| o.counts()).copied().collect();
    operations.sort_unstable_by_key(|o| o.start);
    match Search::new(&relevant(&operations)).run(budget) {
        Some(true) => Verdict::Linearizable,
        Some(false) => Verdict::Violation(explain(operations, budget.min(EXPLAIN_BUDGET))),
        None => Verdict::Undecided,
    }
}

/// Whether there is an order; giving up counts as one, which keeps an explanation true though longer.
fn has_order(operations: &[Operation], budget: usize) -> bool {
    Search::new(&relevant(operations)).run(budget) != Some(false)
}

/// Without the unanswered writes whose value nobody needs: wherever they would go in an order, they can be left out
/// of it. A compare-and-set that did not match may need anything.
fn relevant(operations: &[Operation]) -> Vec<Operation> {
    let mut needed = HashSet::new();
    for operation in operations {
        match (operation.call, operation.outcome) {
            (Call::CompareAndSet { .. }, Outcome::Ok(Answer::Matched(false))) => {
                return operations.to_vec();
            }
            (Call::CompareAndSet { expect, .. }, _) => needed.insert(expect),
            (_, Outcome::Ok(Answer::Value(value))) => needed.insert(value),
            _ => continue,
        };
    }
    let is_relevant = |operation: &&Operation| match operation.call {
        Call::Write(new) | Call::Swap(new) | Call::CompareAndSet { new, .. } => {
            operation.end != NEVER || needed.contains(&new)
        }
        Call::Read => true,
    };
    operations.iter().filter(is_relevant).copied().collect()
}

fn explain(mut operations: Vec<Operation>, budget: usize) -> Box<Violation> {
    // An order of a history is one of each of its beginnings, so the first bad answer can be found by halving.
    let mut ends: Vec<Moment> = operations.iter().map(|o| o.end).collect();
    ends.retain(|&end| end != NEVER);
    ends.sort_unstable();
    let bad = ends.partition_point(|&end| has_order(&until(&operations, end), budget));
    let last = ends[bad.min(ends.len() - 1)];
    operations = until(&operations, last);
    // What is still wrong when an operation's answer is forgotten does not depend on that answer. A forgotten read
    // says nothing at all; anything else may or may not have happened.
    let mut at = 0;
    while at < operations.len() {
        let kept = operations[at];
        if kept.end == NEVER || kept.end == last {
            at += 1;
            continue;
        }
        forget(&mut operations[at]);
        if !operations[at].counts() {
            operations.remove(at);
            if has_order(&operations, budget) {
                operations.insert(at, kept);
                at += 1;
            }
        } else {
            if has_order(&operations, budget) {
                operations[at] = kept;
            }
            at += 1;
        }
    }
    let (told, open): (Vec<_>, Vec<_>) = operations.into_iter().partition(|o| o.end != NEVER);
    let mut reason = String::from("no order explains these answers");
    if !open.is_empty() {
        reason += &format!(", whichever of {} other operations took effect", open.len());
    }
    Violation::new(reason, told)
}

/// The history up to and with the event `last`: what was called later is gone, what was answered later is unknown.
fn until(operations: &[Operation], last: Moment) -> Vec<Operation> {
    let begun = operations.iter().filter(|o| o.start < last);
    let mut begun: Vec<Operation> = begun.copied().collect();
    begun
        .iter_mut()
        .filter(|o| o.end != NEVER && o.end > last)
        .for_each(forget);
    begun.retain(Operation::counts);
    begun
}

fn forget(operation: &mut Operation) {
    operation.outcome = Outcome::Unknown;
    operation.end = NEVER;
}

/// What the key holds after `operation`, if it can take effect and be answered as it was while the key holds `value`.
fn after(operation: &Operation, value: Value) -> Option<Value> {
    let answer = match operation.outcome {
        Outcome::Ok(answer) => Some(answer),
        Outcome::Failed => return None,
        Outcome::Unknown => None,
    };
    match operation.call {
        Call::Write(new) => Some(new),
        Call::Read => (answer == Some(Answer::Value(value))).then_some(value),
        Call::Swap(new) => {
            (answer.is_none() || answer == Some(Answer::Value(value))).then_some(new)
        }
        Call::CompareAndSet { expect, new } => match answer {
            Some(Answer::Matched(false)) => (value != expect).then_some(value),
            // Without an answer it matters only if it matches.
            _ => (value == expect).then_some(new),
        },
    }
}

/// What was put in order already, without the part that says nothing: all ones at the front, all zeros at the end.
#[derive(PartialEq, Eq, Hash)]
struct Situation {
    value: Value,
    full: usize,
    ordered: Box<[u64]>,
}

struct Search<'a> {
    /// Ascending by start.
    operations: &'a [Operation],
    /// The operations that must be put in order, ascending by end.
    by_end: Vec<usize>,
    /// One bit per operation that was put in order.
    ordered: Vec<u64>,
    seen: HashSet<Situation>,
}

/// A choice that was made, to go back to.
struct Choice {
    operation: usize,
    value_before: Value,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation]) -> Search<'a> {
        let mut by_end: Vec<usize> = (0..operations.len())
            .filter(|&o| operations[o].end != NEVER)
            .collect();
        by_end.sort_unstable_by_key(|&o| operations[o].end);
        Search {
            operations,
            by_end,
            ordered: vec![0; operations.len().div_ceil(64)],
            seen: HashSet::new(),
        }
    }

    fn is_ordered(&self, operation: usize) -> bool {
        self.ordered[operation / 64] >> (operation % 64) & 1 == 1
    }

    fn flip(&mut self, operation: usize) {
        self.ordered[operation / 64] ^= 1 << (operation % 64);
    }

    fn situation(&self, value: Value) -> Situation {
        let is_full = |word: &&u64| **word == u64::MAX;
        let full = self.ordered.iter().take_while(is_full).count();
        let end = self.ordered.iter().rposition(|&word| word != 0);
        let end = end.map_or(full, |last| (last + 1).max(full));
        Situation {
            value,
            full,
            ordered: self.ordered[full..end].into(),
        }
    }

    /// Whether there is an order; `None` when the budget ran out.
    fn run(mut self, budget: usize) -> Option<bool> {
        let mut value = INITIAL;
        let mut choices: Vec<Choice> = Vec::new();
        // Where in `by_end` the first operation is that still must be put in order, before each choice.
        let mut next = 0;
        // The operation from which on to look for the next choice.
        let mut from = 0;
        loop {
            while next < self.by_end.len() && self.is_ordered(self.by_end[next]) {
                next += 1;
            }
            let Some(&first) = self.by_end.get(next) else {
                return Some(true);
            };
            // Whatever comes next must have been called before the first of the others was answered.
            let until = self.operations[first].end;
            let candidate = (from..self.operations.len())
                .take_while(|&o| self.operations[o].start < until)
                .find_map(|o| {
                    let value = after(&self.operations[o], value)?;
                    (!self.is_ordered(o)).then_some((o, value))
                });
            if let Some((operation, new)) = candidate {
                self.flip(operation);
                if self.seen.insert(self.situation(new)) {
                    if self.seen.len() > budget {
                        return None;
                    }
                    choices.push(Choice {
                        operation,
                        value_before: value,
                    });
                    value = new;
                    from = 0;
                } else {
                    self.flip(operation);
                    from = operation + 1;
                }
            } else {
                let Some(choice) = choices.pop() else {
                    return Some(false);
                };
                self.flip(choice.operation);
                value = choice.value_before;
                from = choice.operation + 1;
                next = 0;
            }
        }
    }
}
