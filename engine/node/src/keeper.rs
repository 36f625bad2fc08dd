//! Keepers: threads that write snapshots and rebuild state machines from them, gather the state of groups that are merged, and write
//! what children begin with, so that neither shards nor appliers wait for it.
//! A keeper must never decide what is snapshotted or when, and never touch the log; what it did goes to a shard's inbox.

use std::any::Any;
use std::io::Write;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{GroupId, Index, Life};
use polyraft_storage::{SnapshotError, SnapshotFile, SnapshotMeta, SnapshotStore};

use crate::apply::{Gathered, Held, Returned, Task, Unheld, guarded};
use crate::event::ShardEvent;
use crate::machine::{FrozenState, StateMachine};
use crate::mailbox::Mailbox;
use crate::merge::{Frozen, MAX_STATE};
use crate::sessions::{self, Table};
use crate::shard::{ChunkTrouble, MergeEvent, Shared, SplitEvent, Wanted};
use crate::split::SplitPlace;
use crate::wire::{Chunk, SnapshotId};

/// What belongs to a state machine, on its way to a keeper. A panic while it is dropped unused, because a file can't be made or the
/// node is shut down, stops nobody.
pub(crate) struct Contained<T>(Option<T>);

impl<T> Contained<T> {
    pub(crate) fn new(what: T) -> Self {
        Contained(Some(what))
    }

    fn take(mut self) -> T {
        self.0.take().expect("it is taken once")
    }
}

impl<T> Drop for Contained<T> {
    fn drop(&mut self) {
        let unused = self.0.take();
        let _ = guarded(|| {
            drop(unused);
            Ok(())
        });
    }
}

/// Work for a keeper. The jobs of one group are done in order, by the same keeper.
pub(crate) enum Job {
    /// Write a state into a file.
    Save {
        meta: SnapshotMeta,
        state: Contained<FrozenState>,
    },
    /// Write what a child begins with, which its parent splits off.
    SaveChild {
        at: SplitPlace,
        meta: SnapshotMeta,
        state: Contained<FrozenState>,
        campaigns: bool,
    },
    /// Write the state of a frozen group into memory, for a leader that has it merged.
    Gather {
        group: GroupId,
        life: Life,
        frozen: Frozen,
        state: Contained<FrozenState>,
    },
    /// Give a state machine, whose worker has lent it, the state in a file; or only the sessions in it, if it `held` something
    /// that need not be replaced.
    Restore {
        file: SnapshotFile,
        machine: Contained<Box<dyn Any + Send>>,
        held: Index,
    },
    /// Read a part of a snapshot that a follower wants.
    Read { file: SnapshotFile, wanted: Wanted },
    /// A snapshot of a group is going to come. It begins only where there is room for so many bytes.
    Begin {
        group: GroupId,
        number: u64,
        needs: u64,
    },
    /// A part of it came.
    Receive {
        group: GroupId,
        number: u64,
        chunk: Chunk,
    },
    /// All of it came: check it and give it its name.
    Finish { file: SnapshotFile, number: u64 },
    /// What came of it is of no use.
    Abandon { group: GroupId },
    /// A follower found a snapshot damaged: see whether it is so here.
    Look { file: SnapshotFile },
    /// Remove what there is of a life of a group, and of those before it.
    Remove { group: GroupId, life: Life },
    /// The same for a replica that has ended, which had a slot if it was open; and tell the shard that nothing is left of it.
    End {
        group: GroupId,
        life: Life,
        slot: Option<u32>,
    },
    /// Leave the loop.
    Stop,
}

/// One keeper of state machines of type `M`.
pub(crate) struct Keeper<M> {
    shared: Arc<Shared>,
    store: SnapshotStore,
    machine: PhantomData<fn() -> M>,
}

impl<M: StateMachine> Keeper<M> {
    pub(crate) fn new(shared: Arc<Shared>, store: SnapshotStore) -> Self {
        Keeper {
            shared,
            store,
            machine: PhantomData,
        }
    }

    /// Serves jobs until told to stop.
    pub(crate) fn run(mut self, jobs: Mailbox<Job>) {
        while let Some(job) = jobs.take(None) {
            if matches!(job, Job::Stop) {
                return;
            }
            self.perform(job);
        }
    }

    /// Does one job.
    pub(crate) fn perform(&mut self, job: Job) {
        match job {
            Job::Save { meta, state } => {
                let group = meta.group;
                let life = meta.life().unwrap_or_default();
                let saved = self.save(&meta, state);
                let result = saved.map_err(Unsaved::words);
                let event = ShardEvent::Saved {
                    group,
                    life,
                    result,
                };
                self.tell(group, event);
            }
            Job::SaveChild {
                at,
                meta,
                state,
                campaigns,
            } => {
                let child = meta.group;
                let event = SplitEvent::ChildSaved {
                    at,
                    child,
                    life: meta.life().unwrap_or_default(),
                    result: self.save(&meta, state),
                    campaigns,
                };
                self.tell(child, ShardEvent::Split(event));
            }
            Job::Gather {
                group,
                life,
                frozen,
                state,
            } => {
                let mut out = Gathered {
                    bytes: Vec::new(),
                    most: MAX_STATE,
                };
                let given = guarded(|| state.take()(&mut out).map_err(|error| error.to_string()));
                let event = MergeEvent::StateReady {
                    group,
                    life,
                    frozen,
                    state: given.map(|()| out.into_bytes()),
                };
                self.tell(group, ShardEvent::Merge(event));
            }
            Job::Restore {
                file,
                machine,
                held,
            } => self.restore(file, machine.take(), held),
            Job::Read { file, wanted } => {
                let (offset, bytes) = (wanted.offset, wanted.bytes as usize);
                match self.store.chunk(&file, offset, bytes) {
                    Ok(chunk) => {
                        let chunk = Chunk::new(offset, Bytes::from(chunk));
                        self.tell(wanted.group, ShardEvent::ChunkRead { wanted, chunk });
                    }
                    // If a newer one has taken its place, the shard knows of that by now.
                    Err(error) => {
                        let event = ShardEvent::Looked {
                            group: wanted.group,
                            id: wanted.id,
                            result: Err(error.to_string()),
                        };
                        self.tell(wanted.group, event);
                    }
                }
            }
            Job::Begin {
                group,
                number,
                needs,
            } => {
                if let Err(error) = self.store.begin_receiving(group, needs) {
                    let result = Err(ChunkTrouble::Disk(error.to_string()));
                    self.tell_written(group, number, result);
                }
            }
            Job::Receive {
                group,
                number,
                chunk,
            } => {
                let result = self.receive(group, &chunk);
                self.tell_written(group, number, result);
            }
            Job::Finish { file, number } => {
                let finished = self.store.finish_receiving(&file);
                let event = ShardEvent::Arrived {
                    group: file.meta.group,
                    number,
                    result: finished,
                };
                self.tell(file.meta.group, event);
            }
            Job::Abandon { group } => self.store.abandon_receiving(group),
            Job::Look { file } => {
                let looked = self.store.read(&file);
                let event = ShardEvent::Looked {
                    group: file.meta.group,
                    id: SnapshotId::of(&file),
                    result: looked.map(|_| ()).map_err(|error| error.to_string()),
                };
                self.tell(file.meta.group, event);
            }
            Job::Remove { group, life } => self.store.remove(group, life),
            Job::End { group, life, slot } => {
                self.store.remove(group, life);
                self.tell(group, ShardEvent::Ended { group, slot });
            }
            Job::Stop => {}
        }
    }

    fn tell(&self, group: GroupId, event: ShardEvent) {
        self.shared.tell(self.shared.shard_of(group), event);
    }

    fn tell_written(&self, group: GroupId, number: u64, result: Result<u64, ChunkTrouble>) {
        let event = ShardEvent::ChunkWritten {
            group,
            number,
            result,
        };
        self.tell(group, event);
    }

    fn receive(&self, group: GroupId, chunk: &Chunk) -> Result<u64, ChunkTrouble> {
        if !chunk.is_whole() && !mutants::is_active(Mutant::SnapshotNotVerified) {
            return Err(ChunkTrouble::Corrupt);
        }
        match self.store.receive(group, chunk.offset, &chunk.bytes) {
            Ok(()) => Ok(chunk.offset + chunk.bytes.len() as u64),
            Err(error) => Err(ChunkTrouble::Disk(error.to_string())),
        }
    }

    fn save(
        &self,
        meta: &SnapshotMeta,
        state: Contained<FrozenState>,
    ) -> Result<SnapshotFile, Unsaved> {
        let shared = &self.shared;
        let mut is_machine = false;
        let written = self.store.write(meta, |out| {
            let mut out = UntilClosed {
                out,
                shared,
                has_failed: false,
            };
            let given = guarded(|| state.take()(&mut out).map_err(|error| error.to_string()));
            is_machine = given.is_err() && !out.has_failed;
            given
        });
        written.map_err(|error| match is_machine {
            true => Unsaved::Machine(error.to_string()),
            false => Unsaved::Disk(error.to_string()),
        })
    }

    /// The sessions in a snapshot; nothing else of it is looked at.
    fn sessions(&self, file: &SnapshotFile) -> Result<Option<Box<Table>>, Unheld> {
        let peek = |bytes| self.store.peek(file, bytes).map_err(unread);
        let head = peek(sessions::SECTION_HEAD_BYTES)?;
        let section = peek(sessions::section_bytes(&head))?;
        sessions::read_section(&mut &section[..]).map_err(Unheld::Snapshot)
    }

    /// Gives a state machine the state of a snapshot, or leaves it what it holds. Returns the sessions that belong to it.
    fn give(
        &self,
        file: &SnapshotFile,
        machine: &mut M,
        held: Index,
    ) -> Result<(Held, Option<Box<Table>>), Unheld> {
        let last = file.meta.last.index;
        if held > Index::ZERO {
            let sessions = self.sessions(file)?;
            // Where there were never any sessions, there were none before either.
            if held >= last || sessions.is_none() {
                let found = Held {
                    sessions: held.min(last),
                    ..Held::all(held)
                };
                return Ok((found, sessions));
            }
        }
        let mut from = self.store.read(file).map_err(unread)?;
        let sessions = sessions::read_section(&mut from).map_err(Unheld::Other)?;
        guarded(|| {
            machine
                .restore(last, &mut from)
                .map_err(|error| error.to_string())
        })
        .map_err(Unheld::Other)?;
        let held = Held {
            is_restored: true,
            ..Held::all(last)
        };
        Ok((held, sessions))
    }

    fn restore(&self, file: SnapshotFile, machine: Box<dyn Any + Send>, held: Index) {
        let group = file.meta.group;
        let life = file.meta.life().unwrap_or_default();
        let mut machine = machine
            .downcast::<M>()
            .expect("a node's state machines are of one type");
        let (result, sessions) = match self.give(&file, &mut machine, held) {
            Ok((held, sessions)) => (Ok(held), sessions),
            Err(reason) => (Err(reason), None),
        };
        let machine = match &result {
            Ok(_) => Ok(Returned { machine, sessions }),
            Err(reason) => {
                // Its own clean-up may panic too.
                let _ = guarded(|| {
                    drop(machine);
                    Ok(())
                });
                Err(reason.clone().reason())
            }
        };
        // The worker gets it first: what the shard has it apply from now on comes after.
        self.shared.worker_of(group).send(Task::TakeBack {
            group,
            life,
            machine,
            held: match &result {
                Ok(held) if held.sessions < held.machine => held.machine,
                _ => Index::ZERO,
            },
        });
        let event = ShardEvent::Restored {
            group,
            life,
            result,
        };
        self.tell(group, event);
    }
}

/// Why a snapshot that is here can't be given to a state machine.
fn unread(error: SnapshotError) -> Unheld {
    let is_gone =
        matches!(error, SnapshotError::Io { kind, .. } if kind == std::io::ErrorKind::NotFound);
    match is_gone || matches!(error, SnapshotError::Damaged { .. }) {
        true => Unheld::Snapshot(error.to_string()),
        false => Unheld::Other(error.to_string()),
    }
}

/// Why a snapshot was not written.
#[derive(Debug)]
pub(crate) enum Unsaved {
    /// The state machine did not give its state.
    Machine(String),
    Disk(String),
}

impl Unsaved {
    fn words(self) -> String {
        match self {
            Unsaved::Machine(why) | Unsaved::Disk(why) => why,
        }
    }
}

/// Stops a long snapshot when the node is shut down.
struct UntilClosed<'a> {
    out: &'a mut dyn Write,
    shared: &'a Shared,
    /// The disk did not take something, or the node was shut down.
    has_failed: bool,
}

impl Write for UntilClosed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.shared.is_closed.load(Ordering::Acquire) {
            self.has_failed = true;
            return Err(std::io::Error::other("the node is shut down"));
        }
        let written = self.out.write(bytes);
        self.has_failed |= written.is_err();
        written
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let flushed = self.out.flush();
        self.has_failed |= flushed.is_err();
        flushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cleans up after itself, or tries to.
    struct Untidy;

    impl Drop for Untidy {
        fn drop(&mut self) {
            panic!("nothing to clean up");
        }
    }

    #[test]
    fn a_state_that_panics_while_it_is_dropped_unwritten_stops_nobody() {
        let untidy = Untidy;
        let state: FrozenState = Box::new(move |_| {
            let _untidy = untidy;
            Ok(())
        });
        drop(Contained::new(state));
        let machine: Box<dyn Any + Send> = Box::new(Untidy);
        drop(Contained::new(machine));
    }
}
