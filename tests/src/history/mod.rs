//! What clients did and saw, and whether a single copy of the data could have answered so: recording operations on
//! keys in virtual time, and checking the record for linearizability. It knows nothing of Raft or of how a history
//! came to be, and must never excuse one: what a client was not told is unknown, not failed.
//!
//! ```
//! use polyraft_tests::history::{Answer, Call, History};
//!
//! let mut history = History::new();
//! let write = history.invoke(10, 1, 7, Call::Write(42));
//! let read = history.invoke(12, 2, 7, Call::Read);
//! history.ok(read, 15, Answer::Value(42));
//! history.ok(write, 20, Answer::Done);
//! let late = history.invoke(25, 2, 7, Call::Read);
//! history.ok(late, 30, Answer::Value(0));
//! let violation = history.check().unwrap_err();
//! assert!(violation.to_string().contains("write 42"));
//! ```

mod search;
#[cfg(test)]
mod tests;
mod zones;

use std::collections::{BTreeMap, HashSet};
use std::fmt;

pub use search::{DEFAULT_BUDGET, Verdict, search};
pub use zones::zones;

/// What a key holds. [`INITIAL`] before anything was written.
pub type Value = u64;

/// The value of every key at the start.
pub const INITIAL: Value = 0;

/// What a client asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Call {
    /// Set the key to a value. Answered by [`Answer::Done`].
    Write(Value),
    /// Tell the key's value. Answered by [`Answer::Value`].
    Read,
    /// Set the key to `new` if it holds `expect`. Answered by [`Answer::Matched`].
    CompareAndSet {
        /// What must be there.
        expect: Value,
        /// What is there afterwards.
        new: Value,
    },
    /// Set the key to a value and tell what was there. Answered by [`Answer::Value`].
    Swap(Value),
}

/// What a client was answered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Answer {
    /// To a write.
    Done,
    /// To a read: what is there. To a swap: what was there.
    Value(Value),
    /// To a compare-and-set: whether the key held what was expected, and so was set.
    Matched(bool),
}

/// What is known about an operation's effect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// It took effect, at one moment between its invocation and its return.
    Ok(Answer),
    /// It definitely had no effect and never will.
    Failed,
    /// It may take effect at any time after its invocation, or never.
    Unknown,
}

/// Names an operation of one [`History`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct OperationId(usize);

/// The place of an event in the order in which the recorder was told; unlike times, no two are equal.
type Moment = usize;

/// Later than every event.
const NEVER: Moment = usize::MAX;

/// One operation of one client on one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Who called.
    pub process: u64,
    /// On what.
    pub key: u64,
    /// For what.
    pub call: Call,
    /// To what effect.
    pub outcome: Outcome,
    /// When it was called.
    pub invoked_us: u64,
    /// When the client was answered or gave up; `None` while it waits.
    pub returned_us: Option<u64>,
    /// The event of the call.
    start: Moment,
    /// The event of the answer; [`NEVER`] unless it is `Ok`.
    end: Moment,
}

impl Operation {
    /// Whether it had returned before `other` was called, so that it must come first.
    fn is_before(&self, other: &Operation) -> bool {
        self.end < other.start
    }

    /// Whether it tells anything about the key: failed operations and unanswered reads do not.
    fn counts(&self) -> bool {
        match self.outcome {
            Outcome::Ok(_) => true,
            Outcome::Failed => false,
            Outcome::Unknown => self.call != Call::Read,
        }
    }
}

/// `12..30 µs  client 3  write 7: ok`
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..", self.invoked_us)?;
        if let Some(returned) = self.returned_us {
            write!(f, "{returned}")?;
        }
        write!(f, " µs  client {}  ", self.process)?;
        match self.call {
            Call::Write(value) => write!(f, "write {value}")?,
            Call::Read => write!(f, "read")?,
            Call::CompareAndSet { expect, new } => write!(f, "set {new} if {expect}")?,
            Call::Swap(value) => write!(f, "swap {value}")?,
        }
        match self.outcome {
            Outcome::Ok(Answer::Done) => write!(f, ": ok"),
            Outcome::Ok(Answer::Value(value)) => write!(f, ": {value}"),
            Outcome::Ok(Answer::Matched(true)) => write!(f, ": set"),
            Outcome::Ok(Answer::Matched(false)) => write!(f, ": held something else"),
            Outcome::Failed => write!(f, ": failed, without effect"),
            Outcome::Unknown => write!(f, ": unknown"),
        }
    }
}

/// How many operations ended in which way.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// Took effect and were answered.
    pub ok: usize,
    /// Had no effect.
    pub failed: usize,
    /// Nobody can tell.
    pub unknown: usize,
}

/// What a check looked at, so that a run that proves nothing can be told from one that does.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Checked {
    /// Keys judged by the zones of their values.
    pub by_zones: usize,
    /// Keys judged by a search for an order.
    pub by_search: usize,
    /// Keys whose search was given up; nothing is known about them.
    pub undecided: usize,
}

/// A key whose operations no single copy could have answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The key.
    pub key: u64,
    /// What is wrong, in a sentence.
    pub reason: String,
    /// The operations that cannot all be true, in the order of their calls. Leaving any more out loses the proof
    /// or makes it longer to explain.
    pub operations: Vec<Operation>,
}

impl Violation {
    fn new(reason: String, operations: impl IntoIterator<Item = Operation>) -> Box<Violation> {
        let mut operations: Vec<Operation> = operations.into_iter().collect();
        operations.sort_unstable_by_key(|o| o.start);
        operations.dedup_by_key(|o| o.start);
        Box::new(Violation {
            key: operations.first().map_or(0, |o| o.key),
            reason,
            operations,
        })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} is not linearizable: {}", self.key, self.reason)?;
        self.operations
            .iter()
            .try_for_each(|operation| write!(f, "\n  {operation}"))
    }
}

impl std::error::Error for Violation {}

/// Records operations as they are called and answered.
///
/// The methods must be called in the order in which things happen: of two events at the same microsecond the one
/// that was recorded first came first.
#[derive(Clone, Default, Debug)]
pub struct History {
    operations: Vec<Operation>,
    events: Moment,
    now_us: u64,
}

impl History {
    /// Without operations.
    #[must_use]
    pub fn new() -> History {
        History::default()
    }

    fn event(&mut self, at_us: u64) -> Moment {
        assert!(
            at_us >= self.now_us,
            "{at_us} µs is before {} µs, which is already recorded",
            self.now_us
        );
        self.now_us = at_us;
        self.events += 1;
        self.events
    }

    /// A client calls. Until it is told otherwise the outcome is unknown.
    ///
    /// # Panics
    /// Here and below, when `at_us` is before something that was recorded already.
    pub fn invoke(&mut self, at_us: u64, process: u64, key: u64, call: Call) -> OperationId {
        let start = self.event(at_us);
        self.operations.push(Operation {
            process,
            key,
            call,
            outcome: Outcome::Unknown,
            invoked_us: at_us,
            returned_us: None,
            start,
            end: NEVER,
        });
        OperationId(self.operations.len() - 1)
    }

    fn end(&mut self, id: OperationId, at_us: u64, outcome: Outcome) {
        let end = self.event(at_us);
        let operation = &mut self.operations[id.0];
        assert!(
            operation.outcome == Outcome::Unknown,
            "ended before: {operation}"
        );
        operation.outcome = outcome;
        operation.returned_us = Some(at_us);
        if matches!(outcome, Outcome::Ok(_)) {
            operation.end = end;
        }
    }

    /// The operation took effect, and its client was told so.
    ///
    /// # Panics
    /// When the answer is not of the call's kind, or when the operation's outcome was told before.
    pub fn ok(&mut self, id: OperationId, at_us: u64, answer: Answer) {
        let call = self.operations[id.0].call;
        assert!(
            matches!(
                (call, answer),
                (Call::Write(_), Answer::Done)
                    | (Call::Read | Call::Swap(_), Answer::Value(_))
                    | (Call::CompareAndSet { .. }, Answer::Matched(_))
            ),
            "{call:?} cannot be answered by {answer:?}"
        );
        self.end(id, at_us, Outcome::Ok(answer));
    }

    /// The operation definitely has no effect, now or later.
    ///
    /// # Panics
    /// When the operation's outcome was told before.
    pub fn failed(&mut self, id: OperationId, at_us: u64) {
        self.end(id, at_us, Outcome::Failed);
    }

    /// The client gave up. The operation may still take effect at any time, and an answer may still be recorded if
    /// it comes after all.
    pub fn unknown(&mut self, id: OperationId, at_us: u64) {
        self.event(at_us);
        let operation = &mut self.operations[id.0];
        if operation.outcome == Outcome::Unknown {
            operation.returned_us = Some(at_us);
        }
    }

    /// One operation as it was recorded.
    #[must_use]
    pub fn operation(&self, id: OperationId) -> &Operation {
        &self.operations[id.0]
    }

    /// It is known now that an operation was on another key than its client could tell.
    pub fn relabel(&mut self, id: OperationId, key: u64) {
        self.operations[id.0].key = key;
    }

    /// An operation tells nothing about any key: what it was on was not what its client took it for.
    pub fn forget(&mut self, id: OperationId) {
        let operation = &mut self.operations[id.0];
        (operation.outcome, operation.end) = (Outcome::Failed, NEVER);
    }

    /// What was recorded, in the order of the calls.
    #[must_use]
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Counts the outcomes.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for operation in &self.operations {
            match operation.outcome {
                Outcome::Ok(_) => totals.ok += 1,
                Outcome::Failed => totals.failed += 1,
                Outcome::Unknown => totals.unknown += 1,
            }
        }
        totals
    }

    /// The operations on each key.
    #[must_use]
    pub fn by_key(&self) -> BTreeMap<u64, Vec<Operation>> {
        let mut keys: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
        for operation in &self.operations {
            keys.entry(operation.key).or_default().push(*operation);
        }
        keys
    }

    /// Checks every key: by [`zones`] where all that happened is reads and writes of different values, else by
    /// [`search`] within [`DEFAULT_BUDGET`].
    ///
    /// # Errors
    /// The first key that is not linearizable, with the operations that show it.
    pub fn check(&self) -> Result<Checked, Box<Violation>> {
        let mut checked = Checked::default();
        for operations in self.by_key().values() {
            if is_register(operations) {
                zones(operations)?;
                checked.by_zones += 1;
                continue;
            }
            match search(operations, DEFAULT_BUDGET) {
                Verdict::Linearizable => checked.by_search += 1,
                Verdict::Undecided => checked.undecided += 1,
                Verdict::Violation(violation) => return Err(violation),
            }
        }
        Ok(checked)
    }
}

/// Whether the operations are reads and writes only, and no value is written twice or is the initial one.
#[must_use]
pub fn is_register(operations: &[Operation]) -> bool {
    let mut written = HashSet::from([INITIAL]);
    operations.iter().all(|operation| match operation.call {
        Call::Write(value) => written.insert(value),
        Call::Read => true,
        Call::CompareAndSet { .. } | Call::Swap(_) => false,
    })
}
