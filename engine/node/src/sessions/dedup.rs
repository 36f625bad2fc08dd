//! What an apply worker does about entries of sessions: it decides before the state machine runs, and answers afterwards.
//! A decision must never depend on a reply, because the next entries of a batch are decided before there is one.

use bytes::Bytes;
use polyraft_raft::{Index, Term};

use super::table::{Table, Verdict};
use super::{Command, Opener, ProposalNumber, SessionId};
use crate::completion::{Committed, Outcome};
use crate::error::Error;

/// The place of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    pub(crate) index: Index,
    pub(crate) term: Term,
}

/// The entries of sessions among those that a group applies together, in order. Made to be cleared and filled again.
#[derive(Debug, Default)]
pub(crate) struct Deduplication {
    steps: Vec<(Position, Step)>,
    gone: Vec<SessionId>,
}

#[derive(Debug)]
enum Step {
    /// The replies of a session go. Nobody waits for this.
    Forget(SessionId),
    /// The reply is its name.
    Opened(SessionId),
    /// There is nothing to reply.
    Closed,
    /// The state machine applies it, as the entry with this number of those that it is given.
    Apply(ProposalNumber, usize),
    /// It was applied before.
    Seen(ProposalNumber),
    Refused(Error),
}

/// What is to be done with an entry's payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Payload<'a> {
    /// Give it to the state machine.
    Apply(&'a [u8]),
    /// Nothing.
    Drop,
}

impl Deduplication {
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.steps.clear();
    }

    /// Decides about an entry. `table` is made with the first session of a group. The state machine is going to be given the
    /// payload as entry number `next`; of one that `is_held` it has the effect already.
    pub(crate) fn decide<'a>(
        &mut self,
        (opener, table): (Opener, &mut Option<Box<Table>>),
        place: Position,
        entry: &'a [u8],
        next: usize,
        is_held: bool,
    ) -> Payload<'a> {
        let Some((command, payload)) = Command::parse(entry) else {
            // No node proposes such a thing.
            let refusal = Error::SessionExpired {
                session: SessionId(0),
            };
            self.steps.push((place, Step::Refused(refusal)));
            return Payload::Drop;
        };
        if let Command::Open { .. } = command {
            table.get_or_insert_default();
        }
        let verdict = match table {
            Some(table) => table.decide(opener, place.index, command, &mut self.gone),
            None => Verdict::Expired,
        };
        let gone = self.gone.drain(..);
        self.steps
            .extend(gone.map(|session| (place, Step::Forget(session))));
        let step = match (command, verdict) {
            (Command::Propose(number), Verdict::Apply) if is_held => Step::Seen(number),
            (Command::Propose(number), Verdict::Apply) => {
                self.steps.push((place, Step::Apply(number, next)));
                return Payload::Apply(payload);
            }
            (Command::Propose(number), Verdict::Seen) => Step::Seen(number),
            (Command::Propose(number), Verdict::Late { lowest }) => {
                let sequence = number.sequence;
                Step::Refused(Error::ProposalNumber { sequence, lowest })
            }
            (Command::Propose(number), _) => Step::Refused(Error::SessionExpired {
                session: number.session,
            }),
            (_, Verdict::Opened(session)) => Step::Opened(session),
            _ => Step::Closed,
        };
        self.steps.push((place, step));
        Payload::Drop
    }

    /// The state machine has answered: keeps what may be asked for again, and says what became of each entry.
    pub(crate) fn settle(
        &mut self,
        table: Option<&mut Table>,
        replies: &[Bytes],
    ) -> Vec<(Position, Outcome)> {
        let mut nowhere = Table::default();
        let table = table.unwrap_or(&mut nowhere);
        let mut outcomes = Vec::with_capacity(self.steps.len());
        for (place, step) in self.steps.drain(..) {
            let index = place.index;
            let done = |reply| Ok(Committed { index, reply });
            let outcome = match step {
                Step::Forget(session) => {
                    table.forget(session);
                    continue;
                }
                Step::Opened(session) => done(Bytes::copy_from_slice(&session.0.to_le_bytes())),
                Step::Closed => done(Bytes::new()),
                Step::Apply(number, at) => {
                    table.acknowledge(number);
                    table.keep(number, index, &replies[at]);
                    done(replies[at].clone())
                }
                Step::Seen(number) => {
                    table.acknowledge(number);
                    let kept = table.reply(number).map(|kept| Committed {
                        index: kept.index,
                        reply: kept.bytes.clone(),
                    });
                    kept.ok_or(Error::ReplyNotKept)
                }
                Step::Refused(error) => Err(error),
            };
            outcomes.push((place, outcome));
        }
        outcomes
    }
}
