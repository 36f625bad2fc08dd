//! What a group knows of merges, for as long as its log says: that it takes nothing any more, what came of groups that are to be
//! merged into it, and which were. It must never look at anything but the entries: every replica has to decide alike.
//!
//! An attempt is named by the place of the log that opened it. What is not known of an attempt never was, or was refused, and
//! can't come back, as no place of a log comes twice.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut};
use polyraft_raft::mutants::{self, Mutant};
use polyraft_raft::{GroupId, Index, Life};

use crate::merge::{self, Frozen, MAX_ARGUMENT, MAX_STATE, MergeAnswer, MergeCommand, Step};

/// Attempts that are open at the same time. The oldest goes first.
const MOST_OPEN: usize = 4;

/// Merged groups that are remembered. The oldest goes first.
const MOST_MERGED: usize = 1024;

/// What a group knows of merges.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Merges {
    /// It is to be merged.
    frozen: Option<Frozen>,
    /// By the place that opened it: what is to be merged into it.
    open: BTreeMap<Index, Attempt>,
    /// What was.
    merged: BTreeMap<GroupId, Merged>,
    /// Whatever was merged by attempts that were opened later than here is among that.
    forgotten: Index,
    /// What groups that are parts of this one, perhaps by way of others, knew of what was merged into them.
    inherited: BTreeMap<GroupId, Inherited>,
    /// Where the group was split the last time: a copy of the sessions of that moment went its own way.
    split_at: Index,
    /// Sessions that take no number any more which they have not applied. What comes back with a merged group may have been
    /// applied there already, under a number that is still on its way to this group.
    spent: BTreeSet<u64>,
}

/// A group that is to be merged.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Attempt {
    source: GroupId,
    life: Life,
    number: u64,
    stream: u64,
    argument: Vec<u8>,
    state: Vec<u8>,
}

/// A group that was merged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Merged {
    life: Life,
    attempt: Index,
    at: Index,
}

/// What a group that is a part of another one knew in the end of what was merged into it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Inherited {
    life: Life,
    /// Where this came here.
    at: Index,
    merged: BTreeMap<GroupId, Merged>,
    forgotten: Index,
}

/// A state that is whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) source: GroupId,
    life: Life,
    attempt: Index,
    pub(crate) argument: Vec<u8>,
    pub(crate) state: Vec<u8>,
}

/// What follows from an entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Answer(MergeAnswer),
    /// The state is to be taken; or refused, if it can't be read.
    Take(Whole),
}

impl Merges {
    /// Whether it is to be merged.
    pub(crate) fn frozen(&self) -> Option<Frozen> {
        self.frozen
    }

    /// Which groups were merged into this one, also by way of others, each in a life of its id.
    pub(crate) fn merged(&self) -> impl Iterator<Item = (GroupId, Life)> + '_ {
        let merged = self.merged.iter();
        let merged = merged.map(|(source, merged)| (*source, merged.life));
        let inherited = self.inherited.iter();
        let others = inherited.filter(|(group, _)| !self.merged.contains_key(group));
        merged.chain(others.map(|(group, known)| (*group, known.life)))
    }

    /// Whether nothing is known that counts.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Merges::default()
    }

    /// Takes the entry at `index` of the group, in a life of its id.
    pub(crate) fn decide(
        &mut self,
        life: Life,
        index: Index,
        command: &MergeCommand<'_>,
    ) -> Decision {
        Decision::Answer(match *command {
            MergeCommand::Freeze { .. } if self.frozen.is_some() => MergeAnswer::Refused,
            // It is a part of this one, and was frozen before: it can't have taken this one.
            MergeCommand::Freeze { target, life, .. } if self.has_merged(target, life) => {
                MergeAnswer::Refused
            }
            MergeCommand::Freeze {
                target,
                life,
                attempt,
            } => {
                self.frozen = Some(Frozen {
                    target,
                    life,
                    attempt,
                    at: index,
                });
                // What is gathered could not be taken any more.
                self.open.clear();
                MergeAnswer::Done
            }
            MergeCommand::Thaw {
                target,
                life,
                attempt,
            } => {
                let is_it = |frozen: &mut Frozen| {
                    (frozen.target, frozen.life, frozen.attempt) == (target, life, attempt)
                };
                self.frozen.take_if(is_it);
                MergeAnswer::Done
            }
            MergeCommand::Open {
                source,
                life: source_life,
                number,
                argument,
            } => self.open((source, source_life), (life, index), number, argument),
            MergeCommand::Go { target_life, .. } if target_life != life => MergeAnswer::OtherLife,
            MergeCommand::Go {
                source,
                life,
                attempt,
                step,
                ..
            } => return self.go(source, life, attempt, step),
            MergeCommand::AskHeir {
                target,
                target_life,
                source,
                life,
                attempt,
            } => match self.inherited.get(&target) {
                Some(known) if known.life == target_life => {
                    became(&known.merged, known.forgotten, (source, life), attempt)
                }
                _ => MergeAnswer::Forgotten,
            },
        })
    }

    fn has_merged(&self, source: GroupId, life: Life) -> bool {
        let merged = self.merged.get(&source);
        merged.is_some_and(|merged| merged.life >= life)
    }

    /// The group is split at `index`: it may not be able to take what it was asked to.
    pub(crate) fn note_split(&mut self, index: Index) {
        self.split_at = index;
        self.open.clear();
    }

    /// What goes to the group that this one becomes a part of.
    pub(super) fn of_source(&self) -> Option<Merges> {
        let known = Merges {
            spent: self.spent.clone(),
            merged: self.merged.clone(),
            forgotten: self.forgotten,
            inherited: self.inherited.clone(),
            ..Merges::default()
        };
        (!known.is_empty()).then_some(known)
    }

    /// What a group that is split off begins with: what it was asked for is asked of the group that stays.
    pub(super) fn of_child(&self) -> Option<Merges> {
        let child = Merges {
            spent: self.spent.clone(),
            ..Merges::default()
        };
        (!child.is_empty()).then_some(child)
    }

    /// What a group that begins with an exported snapshot of this one begins with: what counts for its sessions. Groups were merged
    /// into the exported one. Here they may live, or be other groups with their ids.
    pub(super) fn of_import(&self) -> Option<Merges> {
        let begun = Merges {
            spent: self.spent.clone(),
            split_at: self.split_at,
            ..Merges::default()
        };
        (!begun.is_empty()).then_some(begun)
    }

    // ---- sessions ----

    /// Where the group was split the last time; 0: it was not, since it had sessions.
    pub(super) fn split_at(&self) -> Index {
        self.split_at
    }

    /// Whether a session takes no number any more that it has not applied.
    pub(super) fn is_spent(&self, session: u64) -> bool {
        self.spent.contains(&session)
    }

    pub(super) fn spend(&mut self, session: u64) {
        self.spent.insert(session);
    }

    /// A session is forgotten.
    pub(super) fn forget_session(&mut self, session: u64) {
        self.spent.remove(&session);
    }

    pub(super) fn spent(&self) -> impl Iterator<Item = u64> + '_ {
        self.spent.iter().copied()
    }

    fn open(
        &mut self,
        (source, source_life): (GroupId, Life),
        (life, index): (Life, Index),
        number: u64,
        argument: &[u8],
    ) -> MergeAnswer {
        if let Some(frozen) = self.frozen {
            return MergeAnswer::Frozen {
                into: frozen.target,
            };
        }
        if let Some(merged) = self.merged.get(&source)
            && merged.life >= source_life
        {
            return MergeAnswer::Merged { at: merged.at };
        }
        let opened = |attempt| MergeAnswer::Opened {
            attempt,
            life,
            is_welcome: true,
        };
        let is_it = |known: &Attempt| {
            (known.source, known.life, known.number) == (source, source_life, number)
        };
        if let Some((attempt, _)) = self.open.iter().find(|(_, known)| is_it(known)) {
            return opened(*attempt);
        }
        self.open.retain(|_, known| known.source != source);
        while self.open.len() >= MOST_OPEN {
            self.open.pop_first();
        }
        let attempt = Attempt {
            source,
            life: source_life,
            number,
            stream: 0,
            argument: argument.to_vec(),
            state: Vec::new(),
        };
        self.open.insert(index, attempt);
        opened(index)
    }

    fn go(&mut self, source: GroupId, life: Life, at: Index, step: Step<'_>) -> Decision {
        let is_it = |known: &&mut Attempt| (known.source, known.life) == (source, life);
        let Some(attempt) = self.open.get_mut(&at).filter(is_it) else {
            let answer = became(&self.merged, self.forgotten, (source, life), at);
            return Decision::Answer(answer);
        };
        let gathers = |attempt: &Attempt| MergeAnswer::Gathered {
            bytes: attempt.state.len() as u64,
        };
        Decision::Answer(match step {
            Step::Part {
                stream,
                offset,
                bytes,
            } => {
                if stream != attempt.stream && offset == 0 {
                    attempt.stream = stream;
                    attempt.state.clear();
                }
                if stream != attempt.stream {
                    MergeAnswer::Gathered { bytes: 0 }
                } else if offset != attempt.state.len() as u64 {
                    gathers(attempt)
                } else if (attempt.state.len() + bytes.len()) as u64 > MAX_STATE {
                    self.open.remove(&at);
                    MergeAnswer::Refused
                } else {
                    attempt.state.extend_from_slice(bytes);
                    let answer = gathers(attempt);
                    self.make_room(at);
                    answer
                }
            }
            Step::Take {
                stream,
                length,
                crc,
            } => {
                let is_whole = attempt.stream == stream
                    && attempt.state.len() as u64 == length
                    && crc32c::crc32c(&attempt.state) == crc;
                if !is_whole {
                    return Decision::Answer(MergeAnswer::Gathered { bytes: 0 });
                }
                let taken = self.open.remove(&at).expect("it was found just now");
                return Decision::Take(Whole {
                    source,
                    life,
                    attempt: at,
                    argument: taken.argument,
                    state: taken.state,
                });
            }
            Step::Refuse => {
                if !mutants::is_active(Mutant::MergeRefusalForgotten) {
                    self.open.remove(&at);
                }
                MergeAnswer::Refused
            }
        })
    }

    /// Gives the oldest attempts but this one up while all of them have gathered too much: one whose source is gone would
    /// otherwise keep all others out.
    fn make_room(&mut self, kept: Index) {
        let gathered = |open: &BTreeMap<Index, Attempt>| -> usize {
            open.values().map(|attempt| attempt.state.len()).sum()
        };
        while gathered(&self.open) as u64 > MAX_STATE
            && let Some(oldest) = self.open.keys().copied().find(|at| *at != kept)
        {
            self.open.remove(&oldest);
        }
    }

    /// The state was taken by the entry at `index`, with what the source knew of merges.
    pub(crate) fn note_merged(
        &mut self,
        whole: &Whole,
        known: Option<&Merges>,
        index: Index,
    ) -> MergeAnswer {
        self.inherit(whole, known, index);
        let merged = Merged {
            life: whole.life,
            attempt: whole.attempt,
            at: index,
        };
        self.merged.insert(whole.source, merged);
        while self.merged.len() > MOST_MERGED {
            let oldest = self.merged.iter().min_by_key(|(_, merged)| merged.attempt);
            let (source, attempt) = oldest
                .map(|(source, merged)| (*source, merged.attempt))
                .expect("there are some");
            self.merged.remove(&source);
            self.forgotten = self.forgotten.max(attempt);
        }
        MergeAnswer::Merged { at: index }
    }

    /// Whoever was to be merged into the source asks here what became of that.
    fn inherit(&mut self, whole: &Whole, known: Option<&Merges>, at: Index) {
        let none = Merges::default();
        let known = known.unwrap_or(&none);
        let own = Inherited {
            life: whole.life,
            at,
            merged: known.merged.clone(),
            forgotten: known.forgotten,
        };
        for (group, more) in &known.inherited {
            let is_later = |here: &Inherited| here.life >= more.life;
            if !self.inherited.get(group).is_some_and(is_later) {
                let more = Inherited { at, ..more.clone() };
                self.inherited.insert(*group, more);
            }
        }
        self.inherited.insert(whole.source, own);
        let weight = |inherited: &BTreeMap<GroupId, Inherited>| -> usize {
            inherited.values().map(|more| 1 + more.merged.len()).sum()
        };
        // What the source itself knew stays: it is the first that somebody may ask for.
        while weight(&self.inherited) > MOST_MERGED
            && let others = self
                .inherited
                .iter()
                .filter(|(group, _)| **group != whole.source)
            && let Some((oldest, _)) = others.min_by_key(|(_, more)| more.at)
        {
            let oldest = *oldest;
            self.inherited.remove(&oldest);
        }
    }

    // ---- in snapshots ----

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self.frozen {
            None => out.put_u8(0),
            Some(frozen) => {
                out.put_u8(1);
                out.put_u64_le(frozen.target.0);
                out.put_u32_le(frozen.life.get());
                out.put_u64_le(frozen.attempt.0);
                out.put_u64_le(frozen.at.0);
            }
        }
        out.put_u64_le(self.forgotten.0);
        out.put_u64_le(self.split_at.0);
        out.put_u32_le(self.spent.len() as u32);
        self.spent.iter().for_each(|id| out.put_u64_le(*id));
        put_merged(out, &self.merged);
        out.put_u32_le(self.inherited.len() as u32);
        for (group, known) in &self.inherited {
            out.put_u64_le(group.0);
            out.put_u32_le(known.life.get());
            out.put_u64_le(known.at.0);
            out.put_u64_le(known.forgotten.0);
            put_merged(out, &known.merged);
        }
        out.put_u32_le(self.open.len() as u32);
        for (at, attempt) in &self.open {
            out.put_u64_le(at.0);
            out.put_u64_le(attempt.source.0);
            out.put_u32_le(attempt.life.get());
            out.put_u64_le(attempt.number);
            out.put_u64_le(attempt.stream);
            out.put_u32_le(attempt.argument.len() as u32);
            out.put_u32_le(attempt.state.len() as u32);
            out.put_slice(&attempt.argument);
            out.put_slice(&attempt.state);
        }
    }

    /// Reads what [`Merges::encode`] wrote, if it is nothing else and not about nothing.
    pub(super) fn decode(mut rest: &[u8]) -> Option<Merges> {
        let rest = &mut rest;
        let mut merges = Merges {
            frozen: match rest.try_get_u8().ok()? {
                0 => None,
                1 => Some(Frozen {
                    target: merge::group(rest)?,
                    life: merge::life(rest)?,
                    attempt: merge::index(rest)?,
                    at: merge::index(rest)?,
                }),
                _ => return None,
            },
            forgotten: Index(rest.try_get_u64_le().ok()?),
            split_at: Index(rest.try_get_u64_le().ok()?),
            ..Merges::default()
        };
        for _ in 0..rest.try_get_u32_le().ok()? {
            let id = rest.try_get_u64_le().ok()?;
            if merges.spent.last().is_some_and(|last| *last >= id) {
                return None;
            }
            merges.spent.insert(id);
        }
        merges.merged = merged_of(rest)?;
        for _ in 0..rest.try_get_u32_le().ok()? {
            let group = merge::group(rest)?;
            let known = Inherited {
                life: merge::life(rest)?,
                at: merge::index(rest)?,
                forgotten: Index(rest.try_get_u64_le().ok()?),
                merged: merged_of(rest)?,
            };
            let last = merges.inherited.last_key_value();
            if last.is_some_and(|(last, _)| *last >= group) {
                return None;
            }
            merges.inherited.insert(group, known);
        }
        let mut before = None;
        for _ in 0..rest.try_get_u32_le().ok()? {
            let at = merge::index(rest)?;
            let (source, life) = (merge::group(rest)?, merge::life(rest)?);
            let number = rest.try_get_u64_le().ok()?;
            let stream = rest.try_get_u64_le().ok()?;
            let argument = rest.try_get_u32_le().ok()? as usize;
            let state = rest.try_get_u32_le().ok()? as usize;
            let argument = rest
                .split_off(..argument)
                .filter(|_| argument <= MAX_ARGUMENT)?;
            let state = rest
                .split_off(..state)
                .filter(|_| state as u64 <= MAX_STATE)?;
            if before.replace(at).is_some_and(|before| before >= at) {
                return None;
            }
            let attempt = Attempt {
                source,
                life,
                number,
                stream,
                argument: argument.to_vec(),
                state: state.to_vec(),
            };
            merges.open.insert(at, attempt);
        }
        (rest.is_empty() && !merges.is_empty()).then_some(merges)
    }
}

/// What became of an attempt that is not open.
fn became(
    merged: &BTreeMap<GroupId, Merged>,
    forgotten: Index,
    (source, life): (GroupId, Life),
    attempt: Index,
) -> MergeAnswer {
    match merged.get(&source) {
        Some(merged) if (merged.life, merged.attempt) == (life, attempt) => {
            MergeAnswer::Merged { at: merged.at }
        }
        // What became of an earlier life is not known any more.
        Some(merged) if merged.life > life => MergeAnswer::Forgotten,
        _ if attempt <= forgotten => MergeAnswer::Forgotten,
        _ => MergeAnswer::Refused,
    }
}

fn put_merged(out: &mut Vec<u8>, all: &BTreeMap<GroupId, Merged>) {
    out.put_u32_le(all.len() as u32);
    for (source, merged) in all {
        out.put_u64_le(source.0);
        out.put_u32_le(merged.life.get());
        out.put_u64_le(merged.attempt.0);
        out.put_u64_le(merged.at.0);
    }
}

fn merged_of(rest: &mut &[u8]) -> Option<BTreeMap<GroupId, Merged>> {
    let mut all = BTreeMap::new();
    for _ in 0..rest.try_get_u32_le().ok()? {
        let source = merge::group(rest)?;
        let merged = Merged {
            life: merge::life(rest)?,
            attempt: merge::index(rest)?,
            at: merge::index(rest)?,
        };
        if all
            .last_key_value()
            .is_some_and(|(last, _)| *last >= source)
        {
            return None;
        }
        all.insert(source, merged);
    }
    Some(all)
}

#[cfg(test)]
mod tests;
