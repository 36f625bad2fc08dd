//! A session from the point of view of its client: numbers for proposals, and trying again until the outcome is known.
//! It must never give a number to two payloads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{ProposalNumber, SESSION_WINDOW, SessionId};
use crate::completion::Committed;
use crate::error::Error;
use crate::group::GroupHandle;

/// How long to wait before the second attempt, and before later ones at most.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// A session of a client with a group: what is proposed in it is applied at most once, however often it is tried.
///
/// [`GroupHandle::open_session`] opens one. Cloning gives another handle to the same session, and [`Session::at`] one through
/// another node. Several proposals may be under way at the same time, [`SESSION_WINDOW`] of them at most; they are
/// applied in any order. A session needs a tokio runtime with timers.
///
/// A group keeps `apply.max_sessions` sessions. If one more is opened, the one that was used least recently is
/// forgotten, and its client gets [`Error::SessionExpired`].
///
/// ```
/// # use std::{io::Read, path::Path};
/// use std::time::Duration;
/// # use bytes::Bytes;
/// # use polyraft::{Entry, FrozenState, GroupId, Index, MachineError, Node, Replies, StateMachine, Tls};
/// # struct Counter(u64);
/// # impl StateMachine for Counter {
/// #     fn open(_: GroupId, _: &Path) -> Result<(Self, Index), MachineError> { Ok((Counter(0), Index::ZERO)) }
/// #     fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
/// #         for _ in entries { self.0 += 1; replies.push(self.0.to_string()); }
/// #         Ok(())
/// #     }
/// #     fn query(&self, _: &[u8]) -> Result<Bytes, MachineError> { Ok(Bytes::new()) }
/// #     fn snapshot(&self) -> Result<FrozenState, MachineError> { Err("none".into()) }
/// #     fn restore(&mut self, _: Index, _: &mut dyn Read) -> Result<(), MachineError> { Ok(()) }
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let builder = Node::<Counter>::builder().id(1).cluster("example").data_dir(dir.path().join("1"));
/// # let node = builder.listen("127.0.0.1:0".parse()?).tls(Tls::dev(dir.path().join("ca"))).open().await?;
/// # node.create_groups(7..8, &[1]).await?;
/// let group = node.group(7);
/// let session = group.open_session(Duration::from_secs(10)).await?;
/// // Leaders may change and answers get lost meanwhile: it is applied once.
/// let done = session.propose("move 5 from a to b", Duration::from_secs(10)).await?;
///
/// // A client that may crash takes a number, writes it down with the payload, and then proposes.
/// let number = session.take_number().await;
/// let first = session.propose_as(number, "move 5 from b to c", Duration::from_secs(10)).await?;
/// // Restarted, it goes on with what it has written down, and gets the same answer.
/// let session = group.resume_session(session.id(), [number], number + 1);
/// let again = session.propose_as(number, "move 5 from b to c", Duration::from_secs(10)).await?;
/// assert_eq!(again, first);
/// assert!(again.index > done.index);
/// session.close(Duration::from_secs(10)).await?;
/// # node.shutdown().await?;
/// # Ok(())
/// # }
/// ```
pub struct Session<M> {
    group: GroupHandle<M>,
    id: SessionId,
    numbers: Arc<Numbers>,
}

/// The numbers of a session that are in use.
#[derive(Debug)]
struct Numbers {
    state: Mutex<State>,
    /// A number has been given back.
    freed: Notify,
}

#[derive(Debug)]
struct State {
    next: u64,
    open: BTreeSet<u64>,
}

impl State {
    fn lowest(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }
}

impl<M> Clone for Session<M> {
    fn clone(&self) -> Self {
        self.at(self.group.clone())
    }
}

impl<M> std::fmt::Debug for Session<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("group", &self.group.id())
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl<M> Session<M> {
    pub(crate) fn new(
        group: GroupHandle<M>,
        id: SessionId,
        next: u64,
        open: BTreeSet<u64>,
    ) -> Self {
        let state = Mutex::new(State { next, open });
        Session {
            group,
            id,
            numbers: Arc::new(Numbers {
                state,
                freed: Notify::new(),
            }),
        }
    }

    /// Its name in the group.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// The same session through another node, as after the loss of the one that it went through. The numbers are shared.
    pub fn at(&self, group: GroupHandle<M>) -> Self {
        Session {
            group,
            id: self.id,
            numbers: Arc::clone(&self.numbers),
        }
    }

    /// The same session in a group that the one that it was opened in was merged into, under the name that it has there. The
    /// numbers are shared: what was proposed before the merge may be proposed again, and is applied once.
    pub fn merged_into(&self, target: GroupHandle<M>) -> Self {
        Session {
            id: self.id.merged_from(self.group.id()),
            group: target,
            numbers: Arc::clone(&self.numbers),
        }
    }

    /// Proposes `payload`, again and again until its outcome is known, for at most `within`. Returns the reply to the one
    /// time that it was applied.
    ///
    /// Waits for a number while [`SESSION_WINDOW`] of them are in use.
    ///
    /// # Errors
    /// [`Error::Unknown`] when the time is over and an attempt may have been taken: the number is given up then, and is not
    /// applied after the session's next proposal, if it has not been before. The error of the last attempt when none was.
    /// [`Error::SessionExpired`] when the group does not know the session any more: what was under way in it may or may not have
    /// been applied. [`Error::ReplyNotKept`] when it was applied, and the reply is not there any more.
    pub async fn propose(
        &self,
        payload: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Committed, Error> {
        let deadline = Instant::now() + within;
        let taken = timeout_at(deadline, self.take_number()).await;
        let taken = taken.map_err(|_| {
            let state = self.numbers.state.lock();
            Error::ProposalNumber {
                sequence: state.next,
                lowest: state.lowest(),
            }
        })?;
        // Also if the caller stops waiting for this future.
        let number = Given {
            numbers: &self.numbers,
            sequence: taken,
        };
        self.insist(number.sequence, payload.into(), deadline).await
    }

    /// Takes the next number, for a client that writes it down before it proposes with [`Session::propose_as`]. Waits while
    /// [`SESSION_WINDOW`] of them are in use.
    pub async fn take_number(&self) -> u64 {
        loop {
            let freed = self.numbers.freed.notified();
            if let Some(sequence) = self.try_take_number() {
                return sequence;
            }
            freed.await;
        }
    }

    fn try_take_number(&self) -> Option<u64> {
        let mut state = self.numbers.state.lock();
        let sequence = state.next;
        if sequence - state.lowest() >= SESSION_WINDOW {
            return None;
        }
        state.next += 1;
        state.open.insert(sequence);
        Some(sequence)
    }

    /// Proposes `payload` under a number that was taken before, or is open in a session that was resumed. As
    /// [`Session::propose`], but the number stays in use until its outcome is known or [`Session::give_up`] is called: after
    /// [`Error::Unknown`] the same payload may be proposed under it again.
    ///
    /// # Errors
    /// Those of [`Session::propose`], and [`Error::ProposalNumber`] when the number is not in use.
    pub async fn propose_as(
        &self,
        sequence: u64,
        payload: impl Into<Bytes>,
        within: Duration,
    ) -> Result<Committed, Error> {
        let lowest = {
            let state = self.numbers.state.lock();
            (!state.open.contains(&sequence)).then(|| state.lowest())
        };
        if let Some(lowest) = lowest {
            return Err(Error::ProposalNumber { sequence, lowest });
        }
        let deadline = Instant::now() + within;
        let outcome = self.insist(sequence, payload.into(), deadline).await;
        if matches!(outcome, Ok(_) | Err(Error::ReplyNotKept)) {
            self.give_up(sequence);
        }
        outcome
    }

    /// Waits for the outcome of a number no more. If it was not applied before the session's next proposal, it never will be.
    pub fn give_up(&self, sequence: u64) {
        self.numbers.give_back(sequence);
    }

    /// Tries until the outcome is known or the time is over.
    async fn insist(
        &self,
        sequence: u64,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<Committed, Error> {
        let mut attempts = Attempts::new(deadline);
        loop {
            let number = ProposalNumber {
                session: self.id,
                sequence,
                lowest: self.numbers.state.lock().lowest(),
            };
            let attempt = self.group.propose_numbered(number, payload.clone());
            match attempts.outcome(timeout_at(deadline, attempt).await) {
                Some(outcome) => return outcome,
                None => attempts.pause().await,
            }
        }
    }

    /// Has the group forget the session, which it would do by itself sooner or later. Nothing may be under way in it.
    ///
    /// # Errors
    /// Those of a proposal. Closing again is harmless.
    pub async fn close(self, within: Duration) -> Result<(), Error> {
        let mut attempts = Attempts::new(Instant::now() + within);
        loop {
            let attempt = self.group.close_session_once(self.id);
            match attempts.outcome(timeout_at(attempts.deadline, attempt).await) {
                Some(outcome) => return outcome.map(|_| ()),
                None => attempts.pause().await,
            }
        }
    }
}

/// Opens a session: an attempt that is lost leaves one that nobody uses, which goes before those in use.
pub(crate) async fn open<M>(group: &GroupHandle<M>, within: Duration) -> Result<Session<M>, Error> {
    let mut attempts = Attempts::new(Instant::now() + within);
    loop {
        let attempt = timeout_at(attempts.deadline, group.open_session_once()).await;
        match attempts.outcome(attempt) {
            Some(outcome) => {
                let opened = SessionId::opened(&outcome?);
                let id = opened.expect("the group answers with the name of the session");
                return Ok(Session::new(group.clone(), id, 1, BTreeSet::new()));
            }
            None => attempts.pause().await,
        }
    }
}

impl Numbers {
    fn give_back(&self, sequence: u64) {
        self.state.lock().open.remove(&sequence);
        self.freed.notify_waiters();
    }
}

/// A number that is given back in any case.
struct Given<'a> {
    numbers: &'a Numbers,
    sequence: u64,
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        self.numbers.give_back(self.sequence);
    }
}

/// Attempts of one thing.
struct Attempts {
    deadline: Instant,
    pause: Duration,
    /// One of them may have been taken.
    is_open: bool,
}

impl Attempts {
    fn new(deadline: Instant) -> Self {
        Attempts {
            deadline,
            pause: FIRST_PAUSE,
            is_open: false,
        }
    }

    /// What the caller is told after an attempt; nothing: try again.
    fn outcome(
        &mut self,
        attempt: Result<Result<Committed, Error>, tokio::time::error::Elapsed>,
    ) -> Option<Result<Committed, Error>> {
        const LATE: Error = Error::Unknown {
            why: "no attempt was answered in time",
        };
        let error = match attempt {
            Ok(Ok(committed)) => return Some(Ok(committed)),
            Ok(Err(error)) => error,
            Err(_) => return Some(Err(LATE)),
        };
        self.is_open |= error.may_have_committed();
        let is_worth_it = error.is_retryable() || matches!(error, Error::Unknown { .. });
        if is_worth_it && Instant::now() + self.pause < self.deadline {
            return None;
        }
        // The last attempt was refused, but an earlier one may have been taken.
        let is_hidden = self.is_open && !error.may_have_committed();
        Some(Err(if is_hidden { LATE } else { error }))
    }

    async fn pause(&mut self) {
        sleep_until(Instant::now() + self.pause).await;
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
    }
}
