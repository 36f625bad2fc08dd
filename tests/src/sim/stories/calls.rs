//! Who asked which node for what, and what they were told. It must never take a silent node for an answer.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use polyraft::{
    Committed, CompletionQueue, Error, GroupHandle, GroupId, LogPosition, Membership, Node,
    ProposalNumber, SessionId,
};

use super::super::machine::{self, NOT_MINE, Registers};
use super::super::world::World;
use super::commands::{Number, Request, What};
use super::watch::ids;

/// How long a change of members, or a node that hands over its groups, may take.
const WITHIN: Duration = Duration::from_secs(10);

/// An answer that is on its way.
type Answer = Pin<Box<dyn Future<Output = Result<Reply, Error>>>>;

/// What nodes answer.
enum Reply {
    Done,
    Applied(Committed),
    Value(Bytes),
    Members(Membership),
    Snapshot(LogPosition),
    /// Groups that a node still leads.
    Left(u64),
}

/// Somebody who waits.
struct Call {
    number: u64,
    node: u64,
    /// Of the node, when it was asked.
    life: u32,
    what: What,
    /// What is printed before the answer, if the script has gone on meanwhile.
    words: Option<String>,
    /// The operation that is proposed, and whether a state machine had applied it before.
    operation: Option<(u64, bool)>,
    answer: Answer,
}

/// What is proposed, and as what.
struct Proposal {
    payload: Bytes,
    number: Option<ProposalNumber>,
}

/// A session by the name that the script gives it.
struct Opened {
    id: SessionId,
    /// The name under which it was opened: it has its numbers wherever it goes.
    first_name: String,
}

/// All that is asked in a story.
#[derive(Default)]
pub(super) struct Calls {
    open: Vec<Call>,
    asked: u64,
    sessions: BTreeMap<String, Opened>,
    /// Operations of sessions, by the first name of the session and number: tried again, they are the same ones.
    numbered: BTreeMap<(String, u64), u64>,
    /// By key and value: the operation that put it last.
    puts: BTreeMap<(u8, u64), u64>,
}

impl Calls {
    pub(super) fn are_over(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn is_open(&self, number: u64) -> bool {
        self.open.iter().any(|call| call.number == number)
    }

    /// A group was merged into another one, where its session has another name.
    pub(super) fn carry(&mut self, session: &str, from: GroupId, name: String) {
        let Opened { id, first_name } = self.session(session);
        let opened = Opened {
            id: id.merged_from(from),
            first_name: first_name.clone(),
        };
        self.sessions.insert(name, opened);
    }

    /// The payload of the proposal that put a value.
    pub(super) fn put_of(&self, key: u8, value: u64) -> Bytes {
        let operation = self.puts.get(&(key, value));
        put(*operation.expect("nobody put that"), key, value)
    }

    /// The key and the value that an operation put.
    pub(super) fn put_by(&self, operation: u64) -> Option<(char, u64)> {
        let mut puts = self.puts.iter();
        let put = puts.find(|(_, by)| **by == operation);
        put.map(|((key, value), _)| (char::from(*key), *value))
    }

    /// Asks a node. Returns the number of the call.
    pub(super) fn ask(
        &mut self,
        world: &mut World,
        request: Request,
        words: Option<String>,
    ) -> u64 {
        let Request { node, what } = request;
        self.asked += 1;
        let operation = self.operation_of(&what);
        let is_applied = |id| world.checks.iter().any(|group| group.life_of(id).is_some());
        let operation = operation.map(|id| (id, is_applied(id)));
        let proposal = match (&what, operation) {
            (
                What::Put {
                    key, value, number, ..
                },
                Some((id, _)),
            ) => Some(Proposal {
                payload: put(id, *key, *value),
                number: number.as_ref().map(|number| self.number(number)),
            }),
            _ => None,
        };
        world.set_clock(node);
        let host = &world.hosts[node as usize];
        let handle = host.node.as_ref().expect("who is asked has to run").node();
        let answer = Box::pin(answer(handle.clone(), what.clone(), proposal));
        self.open.push(Call {
            number: self.asked,
            node,
            life: host.life,
            what,
            words,
            operation,
            answer,
        });
        self.asked
    }

    /// The number of the operation in a proposal: the same one when it is tried again.
    fn operation_of(&mut self, what: &What) -> Option<u64> {
        let What::Put {
            key, value, number, ..
        } = what
        else {
            return None;
        };
        let id = match number {
            None => self.asked,
            Some(number) => {
                let first_name = self.session(&number.session).first_name.clone();
                let numbered = self.numbered.entry((first_name, number.sequence));
                *numbered.or_insert(self.asked)
            }
        };
        self.puts.insert((*key, *value), id);
        Some(id)
    }

    fn session(&self, name: &str) -> &Opened {
        let session = self.sessions.get(name);
        session.unwrap_or_else(|| panic!("no session is called {name}"))
    }

    fn number(&self, number: &Number) -> ProposalNumber {
        ProposalNumber {
            session: self.session(&number.session).id,
            sequence: number.sequence,
            lowest: number.lowest,
        }
    }

    /// Tells what was answered, and who will never be.
    pub(super) fn take_answers(&mut self, world: &mut World, lines: &mut Vec<String>) {
        let mut context = Context::from_waker(Waker::noop());
        for mut call in std::mem::take(&mut self.open) {
            let host = &world.hosts[call.node as usize];
            let told = if host.node.is_none() || host.life != call.life {
                format!("nothing, as n{} went down", call.node)
            } else {
                let polled = call.answer.as_mut().poll(&mut context);
                // The first look puts the question, and later ones may go on with it.
                world.schedule(call.node);
                let Poll::Ready(answer) = polled else {
                    self.open.push(call);
                    continue;
                };
                self.tell(world, &call, answer)
            };
            lines.push(match call.words {
                Some(words) => format!("who asked to {words}: {told}"),
                None => format!("caller: {told}"),
            });
        }
    }

    /// What a caller was told, in words.
    fn tell(&mut self, world: &mut World, call: &Call, answer: Result<Reply, Error>) -> String {
        match (&call.what, answer) {
            (_, Err(error @ Error::SessionExpired { session })) => {
                let named = |(_, opened): &(&String, &Opened)| opened.id == session;
                let (name, _) = self.sessions.iter().find(named).expect("it was opened");
                error.to_string().replace(&session.to_string(), name)
            }
            (_, Err(error)) => error.to_string(),
            (What::Put { group, key, .. }, Ok(Reply::Applied(done))) => {
                let (id, was_applied) = call.operation.expect("a proposal is an operation");
                if done.reply[..] == *NOT_MINE {
                    return not_there(*group, *key);
                }
                let verdict = world.check_acknowledged(*group, done.index, id);
                world.judge(verdict);
                let how = match was_applied {
                    true => "was applied before",
                    false => "committed",
                };
                let before = number_in(&done.reply);
                format!("{how} at {}, {} was {before}", done.index, char::from(*key))
            }
            (What::Open { session, .. }, Ok(Reply::Applied(done))) => {
                let opened = Opened {
                    id: SessionId::opened(&done).expect("the answer names the session"),
                    first_name: session.clone(),
                };
                self.sessions.insert(session.clone(), opened);
                format!("session {session} was opened at {}", done.index)
            }
            (What::Read { group, key, .. }, Ok(Reply::Value(value))) => {
                match value[..] == *NOT_MINE {
                    true => not_there(*group, *key),
                    false => format!("{} is {}", char::from(*key), number_in(&value)),
                }
            }
            (_, Ok(Reply::Members(members))) => {
                let [voters, learners] = [members.voters, members.learners]
                    .map(|nodes| ids(nodes.iter().map(|node| node.0)));
                match learners.is_empty() {
                    true => format!("voters{voters}"),
                    false => format!("voters{voters}, learners{learners}"),
                }
            }
            (_, Ok(Reply::Snapshot(last))) => format!("taken through {}", last.index),
            (_, Ok(Reply::Left(left))) => format!("leads {left} groups still"),
            (_, Ok(_)) => "done".to_owned(),
        }
    }
}

fn not_there(group: GroupId, key: u8) -> String {
    format!("{group} does not have {}", char::from(key))
}

fn number_in(reply: &[u8]) -> u64 {
    u64::from_le_bytes(reply.try_into().expect("registers answer with eight bytes"))
}

/// The payload of a proposal.
fn put(id: u64, key: u8, value: u64) -> Bytes {
    let command = machine::Command::Write(value);
    machine::Request { id, key, command }.encode(0)
}

/// Asks a node, with the first look at this, and tells what it answers.
async fn answer(
    node: Node<Registers>,
    what: What,
    proposal: Option<Proposal>,
) -> Result<Reply, Error> {
    let group = |group: GroupId| node.group(group.0);
    match what {
        What::Create { groups, members } => node.create_groups(groups, &members).await?,
        What::Destroy { groups } => node.destroy_groups(groups).await?,
        What::Put { group: of, .. } => {
            let Proposal { payload, number } = proposal.expect("that is one");
            let done = match number {
                Some(number) => group(of).propose_numbered(number, payload).await?,
                None => group(of).propose(payload).await?,
            };
            return Ok(Reply::Applied(done));
        }
        What::Read {
            group: of,
            key,
            how,
        } => {
            let value = group(of).read(how, vec![key]).await?;
            return Ok(Reply::Value(value));
        }
        What::Open { group: of, .. } => {
            return Ok(Reply::Applied(open_session(&group(of)).await?));
        }
        What::Split {
            group: of,
            first,
            child,
        } => _ = group(of).split(child, vec![first]).await?,
        What::Merge { group: of, target } => _ = group(of).merge_into(target, Bytes::new()).await?,
        What::Transfer { group: of, to } => group(of).transfer_leadership(to).await?,
        What::Drain => return Ok(Reply::Left(node.drain(WITHIN).await?)),
        What::Change { group: of, changes } => {
            let members = group(of).change_members(changes, WITHIN).await?;
            return Ok(Reply::Members(members));
        }
        What::Snapshot { group: of } => return Ok(Reply::Snapshot(group(of).snapshot().await?)),
    }
    Ok(Reply::Done)
}

/// One attempt: whoever tries again has to say so in the script.
async fn open_session(group: &GroupHandle<Registers>) -> Result<Committed, Error> {
    let queue = CompletionQueue::new();
    group.open_session_with(0, &queue)?;
    let mut done = Vec::new();
    let opened = poll_fn(|_| {
        queue.drain(&mut done, Duration::ZERO);
        let opened = done.pop();
        opened.map_or(Poll::Pending, |done| Poll::Ready(done.result))
    });
    opened.await
}
