//! Opening state machines: after a restart many at a time, on several threads, while the worker that owns them waits.
//! It must never open one before the tasks that came earlier are done, nor let what the threads do decide about an order.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use polyraft_raft::{GroupId, Index, Life};
use polyraft_storage::name_of;

use super::{Applier, Machine, Task, drop_guarded, guarded};
use crate::event::ShardEvent;
use crate::machine::StateMachine;
use crate::mailbox::Mailbox;

/// How many are opened before the worker looks after those that are open.
const AT_A_TIME: usize = 256;

/// A state machine and what it holds, or why there is none.
type Opened<M> = Result<(M, Index), String>;

impl<M: StateMachine> Applier<M> {
    /// Does the tasks that wait. State machines whose openings wait one behind the other are opened by so many threads.
    /// Returns whether it was told to stop.
    pub(super) fn serve(&mut self, tasks: &Mailbox<Task>, openers: usize) -> bool {
        let mut next = None;
        while let Some(task) = next.take().or_else(|| tasks.try_take()) {
            match task {
                Task::Stop => return true,
                Task::Open { group, life } => {
                    let mut groups = vec![(group, life)];
                    while groups.len() < AT_A_TIME {
                        match tasks.try_take() {
                            Some(Task::Open { group, life }) => groups.push((group, life)),
                            other => {
                                next = other;
                                break;
                            }
                        }
                    }
                    self.open_all(&groups, openers);
                }
                task => self.perform(task),
            }
        }
        false
    }

    /// Drops the state machines. One that panics now must take neither the others with it nor the node.
    pub(super) fn close(&mut self) {
        for group in self.machines.keys().collect::<Vec<_>>() {
            drop_guarded(self.machines.remove(group));
        }
    }

    pub(super) fn open(&mut self, group: GroupId, life: Life) {
        let opened = open_one(&self.machines_dir, (group, life));
        self.take_opened((group, life), opened);
    }

    /// Opens state machines side by side, and takes them in the order in which they were asked for.
    fn open_all(&mut self, groups: &[(GroupId, Life)], openers: usize) {
        let opened = open_together(&self.machines_dir, groups, openers);
        for (place, opened) in groups.iter().zip(opened) {
            self.take_opened(*place, opened);
        }
    }

    fn take_opened(&mut self, (group, life): (GroupId, Life), opened: Opened<M>) {
        let applied = match opened {
            Ok((machine, applied)) => {
                self.machines.insert(group, Machine::Running(machine));
                self.forget_sessions(group);
                match life {
                    Life::FIRST => _ = self.lives.remove(&group),
                    life => _ = self.lives.insert(group, life),
                }
                if applied > Index::ZERO {
                    self.held.insert(group, applied);
                }
                Ok(applied)
            }
            Err(reason) => {
                self.machines
                    .insert(group, Machine::Stopped(reason.clone()));
                Err(reason)
            }
        };
        let event = ShardEvent::Opened {
            group,
            life,
            applied,
        };
        self.tell(self.shard_of(group), event);
    }
}

fn open_one<M: StateMachine>(machines: &Path, (group, life): (GroupId, Life)) -> Opened<M> {
    let dir = machines.join(name_of(group, life));
    guarded(|| M::open(group, &dir).map_err(|error| error.to_string()))
}

/// Opens state machines on so many threads, this one among them. Gives them in the order of the groups.
fn open_together<M: StateMachine>(
    machines: &Path,
    groups: &[(GroupId, Life)],
    threads: usize,
) -> Vec<Opened<M>> {
    let next = AtomicUsize::new(0);
    let open = || {
        let mut opened = Vec::new();
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && let Some(place) = groups.get(at)
        {
            opened.push((at, open_one::<M>(machines, *place)));
        }
        opened
    };
    let mut opened = thread::scope(|scope| {
        let spawn = |_| {
            let thread = thread::Builder::new().name("polyraft-opener".to_owned());
            thread.spawn_scoped(scope, open)
        };
        // Fewer threads than wanted do the same in more time.
        let others: Vec<_> = (1..threads.min(groups.len()))
            .map_while(|at| spawn(at).ok())
            .collect();
        let mut opened = open();
        for other in others {
            opened.extend(other.join().expect("what a state machine does is guarded"));
        }
        opened
    });
    opened.sort_unstable_by_key(|(at, _)| *at);
    opened.into_iter().map(|(_, opened)| opened).collect()
}
