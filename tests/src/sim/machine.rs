//! The state machine of simulated groups: registers by key, and a digest of everything applied. What it applies it
//! reports to the world, which runs on the same thread. It must never decide what is right; the checkers do.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft::{
    Entry, FrozenState, GroupId, Index, MachineError, Merge, Replies, Split, StateMachine, Term,
};
use polyraft_storage::parse_name_of;

use super::rng::mix;
use crate::history::Answer;

/// What a client asks of a register. Values are never 0, which stands for "not written".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Tell the value, through the log.
    Read,
    /// Set the value.
    Write(u64),
    /// Set the value and tell what was there.
    Swap(u64),
    /// Set `new` if `expect` is there; tell whether it was.
    CompareAndSet {
        /// What must be there.
        expect: u64,
        /// What is there afterwards.
        new: u64,
    },
}

/// A proposal: a command on a key, under a number that is never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Names the operation among all operations of the world.
    pub id: u64,
    /// The register.
    pub key: u8,
    /// What to do.
    pub command: Command,
}

impl Request {
    /// The payload of a proposal, with `padding` bytes that mean nothing.
    pub fn encode(&self, padding: usize) -> Bytes {
        let (kind, first, second) = match self.command {
            Command::Read => (0, 0, 0),
            Command::Write(value) => (1, value, 0),
            Command::Swap(value) => (2, value, 0),
            Command::CompareAndSet { expect, new } => (3, new, expect),
        };
        let mut out = BytesMut::with_capacity(26 + padding);
        out.put_u64_le(self.id);
        out.put_u8(self.key);
        out.put_u8(kind);
        out.put_u64_le(first);
        out.put_u64_le(second);
        out.put_bytes(self.id as u8, padding);
        out.freeze()
    }

    /// What is in the register after the request was answered so.
    pub fn leaves(&self, answer: Answer) -> u64 {
        match (self.command, answer) {
            (Command::Read, Answer::Value(value)) => value,
            (Command::CompareAndSet { expect, .. }, Answer::Matched(false)) => expect,
            _ => self.id,
        }
    }

    fn decode(mut bytes: &[u8]) -> Option<Request> {
        if bytes.len() < 26 {
            return None;
        }
        let (id, key, kind) = (bytes.get_u64_le(), bytes.get_u8(), bytes.get_u8());
        let (first, second) = (bytes.get_u64_le(), bytes.get_u64_le());
        let command = match kind {
            0 => Command::Read,
            1 => Command::Write(first),
            2 => Command::Swap(first),
            3 => Command::CompareAndSet {
                expect: second,
                new: first,
            },
            _ => return None,
        };
        Some(Request { id, key, command })
    }
}

/// One entry that a state machine has applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Applied {
    /// Where.
    pub node: u64,
    /// In which group.
    pub group: GroupId,
    /// In which life of its id.
    pub life: u32,
    /// The entry's place.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// The operation in it.
    pub request: u64,
    /// Of everything that this state machine has applied, this entry included.
    pub digest: u64,
    /// It was about a key that the group does not have, and did nothing. It may be asked for again.
    pub is_refused: bool,
}

/// A state machine that was given the state of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restored {
    /// Where.
    pub node: u64,
    /// In which group.
    pub group: GroupId,
    /// In which life of its id.
    pub life: u32,
    /// The last entry that the snapshot covers.
    pub last: Index,
    /// The last command in it.
    pub applied: Index,
    /// Of everything that was applied before.
    pub digest: u64,
}

/// A state machine that gave a part of its state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Born {
    /// Where.
    pub node: u64,
    /// Which group.
    pub parent: GroupId,
    /// To which group.
    pub child: GroupId,
    /// The place in the log.
    pub index: Index,
    /// The first key that the child has.
    pub first: u8,
    /// Of the child's state.
    pub digest: u64,
}

/// A state machine that let go of a part that it gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shed {
    /// Where.
    pub node: u64,
    /// To which group.
    pub child: GroupId,
}

/// A state machine that took the state of another group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Where.
    pub node: u64,
    /// Whose state.
    pub source: GroupId,
    /// Into which group.
    pub target: GroupId,
    /// The place in the log of that group.
    pub index: Index,
    /// Of the state that it took.
    pub digest: u64,
}

/// What became of the state of a state machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Where.
    pub node: u64,
    /// In which group.
    pub group: GroupId,
    /// In which life of its id.
    pub life: u32,
    /// What.
    pub what: Keeping,
}

/// See [`Kept`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keeping {
    /// It was opened, and has the effect of everything through here.
    Opened(Index),
    /// It is on stable storage as of here.
    Saved(Index),
    /// It is removed from there.
    Removed,
}

/// How a state machine is going to fail, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Poison {
    /// At what.
    pub at: Call,
    /// So many calls of that kind go well before; of entries, each one counts.
    pub spared: u64,
    /// It panics, instead of returning an error.
    pub panics: bool,
}

/// What a state machine may fail at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// What changes its state: entries, splits, merges, the state of a snapshot.
    Change,
    /// A query.
    Query,
    /// A snapshot.
    Snapshot,
}

/// A state machine that has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Struck {
    /// Where.
    pub node: u64,
    /// In which group.
    pub group: GroupId,
    /// In which life of its id.
    pub life: u32,
    /// At what.
    pub at: Call,
}

/// What a state machine that fails says.
pub const POISONED: &str = "poisoned by the simulator";

/// An entry at which the state machine of one node panics, whenever it comes to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoisonedEntry {
    /// Where.
    pub node: u64,
    /// In which group.
    pub group: GroupId,
    /// What the entry writes.
    pub key: u8,
    /// See `key`.
    pub value: u64,
}

/// The argument of a merge that no group takes.
pub const UNWANTED: &[u8] = b"no";

/// What a group answers that does not have the key.
pub const NOT_MINE: &[u8] = b"?";

/// Numbers of entries that are no operation of a client.
const SPLIT_NUMBERS: u64 = 1 << 62;
const MERGE_NUMBERS: u64 = 1 << 61;

/// Some of the keys, as bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Keys([u64; 4]);

impl Keys {
    const ALL: Keys = Keys([u64::MAX; 4]);

    fn has(&self, key: u8) -> bool {
        self.0[usize::from(key / 64)] & 1 << (key % 64) != 0
    }

    /// Those below `first`, and the others.
    fn split_at(&self, first: u8) -> (Keys, Keys) {
        let (mut below, mut above) = (Keys::default(), Keys::default());
        for key in (0..=u8::MAX).filter(|key| self.has(*key)) {
            let half = if key < first { &mut below } else { &mut above };
            half.0[usize::from(key / 64)] |= 1 << (key % 64);
        }
        (below, above)
    }

    fn with(&self, other: &Keys) -> Keys {
        Keys(std::array::from_fn(|at| self.0[at] | other.0[at]))
    }

    fn meets(&self, other: &Keys) -> bool {
        (0..4).any(|at| self.0[at] & other.0[at] != 0)
    }
}

/// The state of one group on one node.
#[derive(Clone, Default, Debug)]
struct State {
    /// The keys that the group has.
    keys: Keys,
    values: BTreeMap<u8, u64>,
    applied: Index,
    digest: u64,
}

impl State {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64_le(self.applied.0);
        out.put_u64_le(self.digest);
        self.keys.0.iter().for_each(|word| out.put_u64_le(*word));
        for (key, value) in &self.values {
            out.put_u8(*key);
            out.put_u64_le(*value);
        }
        out
    }

    fn decode(mut bytes: &[u8]) -> Option<State> {
        if bytes.len() < 48 || !(bytes.len() - 48).is_multiple_of(9) {
            return None;
        }
        let (applied, digest) = (Index(bytes.get_u64_le()), bytes.get_u64_le());
        let keys = Keys(std::array::from_fn(|_| bytes.get_u64_le()));
        let mut values = BTreeMap::new();
        while bytes.has_remaining() {
            values.insert(bytes.get_u8(), bytes.get_u64_le());
        }
        Some(State {
            keys,
            values,
            applied,
            digest,
        })
    }

    fn has(&self, key: u8) -> bool {
        self.keys.has(key)
    }

    /// What a child begins with, if the split is one of keys that the group has.
    fn part(&self, split: &Split<'_>) -> Option<(u8, State)> {
        let [first] = *split.argument else {
            return None;
        };
        let (below, above) = self.keys.split_at(first);
        if !self.has(first) || below == Keys::default() {
            return None;
        }
        let part = State {
            keys: above,
            values: self
                .values
                .range(first..)
                .map(|(key, value)| (*key, *value))
                .collect(),
            applied: split.index,
            digest: mix(self.digest ^ mix(split.index.0 ^ u64::from(first))),
        };
        Some((first, part))
    }
}

/// What a query finds, and in which state.
#[derive(Clone, Debug)]
pub struct Look {
    /// The last entry with an effect on the state.
    pub applied: Index,
    /// Of everything that was applied.
    pub digest: u64,
    /// The life of the group's id.
    pub life: u32,
    /// What a query for the key alone is answered.
    pub answer: Bytes,
}

impl Look {
    fn at(registers: &Registers, key: u8) -> Look {
        let state = &registers.state;
        let value = state.values.get(&key).copied().unwrap_or_default();
        Look {
            applied: state.applied,
            digest: state.digest,
            life: registers.life,
            answer: match state.has(key) {
                true => Bytes::copy_from_slice(&value.to_le_bytes()),
                false => Bytes::from_static(NOT_MINE),
            },
        }
    }

    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u64_le(self.applied.0);
        out.put_u64_le(self.digest);
        out.put_u32_le(self.life);
        out.put_slice(&self.answer);
        out.freeze()
    }

    /// Reads the answer to such a query.
    pub fn decode(mut bytes: Bytes) -> Look {
        let (applied, digest) = (Index(bytes.get_u64_le()), bytes.get_u64_le());
        Look {
            applied,
            digest,
            life: bytes.get_u32_le(),
            answer: bytes,
        }
    }
}

/// Names a state machine: its node, its group, and the life of the group's id.
type Whose = (u64, GroupId, u32);

/// What the state machines of one thread share with the world.
#[derive(Default)]
struct Stage {
    /// After how many entries a state machine saves itself; `None`: never, and restarts apply the whole log.
    saves_every: Option<u64>,
    /// What stable storage holds.
    saved: BTreeMap<Whose, State>,
    /// Groups that have all keys when they begin; others have none before they are given some.
    roots: u64,
    applied: Vec<Applied>,
    restored: Vec<Restored>,
    born: RefCell<Vec<Born>>,
    shed: Vec<Shed>,
    taken: Vec<Taken>,
    kept: Vec<Kept>,
    /// By node and group.
    poisons: BTreeMap<(u64, GroupId), Poison>,
    struck: Vec<Struck>,
    poisoned_entries: Vec<PoisonedEntry>,
}

thread_local! {
    static STAGE: RefCell<Stage> = RefCell::default();
}

/// The saved state machines of one node.
#[derive(Clone, Debug)]
pub struct Saved(BTreeMap<Whose, State>);

/// Forgets earlier worlds of this thread.
pub fn begin(saves_every: Option<u64>, roots: u64) {
    STAGE.replace(Stage {
        saves_every,
        roots,
        ..Stage::default()
    });
}

/// Moves what was applied since the last call into `into`.
pub fn take_applied(into: &mut Vec<Applied>) {
    STAGE.with_borrow_mut(|stage| into.append(&mut stage.applied));
}

/// Moves what was restored since the last call out.
pub fn take_restored() -> Vec<Restored> {
    STAGE.with_borrow_mut(|stage| std::mem::take(&mut stage.restored))
}

/// Moves what was split off since the last call out.
pub fn take_born() -> Vec<Born> {
    STAGE.with_borrow_mut(|stage| stage.born.take())
}

/// Moves out what was let go of since the last call.
pub fn take_shed() -> Vec<Shed> {
    STAGE.with_borrow_mut(|stage| std::mem::take(&mut stage.shed))
}

/// Moves out what was taken from other groups since the last call.
pub fn take_taken() -> Vec<Taken> {
    STAGE.with_borrow_mut(|stage| std::mem::take(&mut stage.taken))
}

/// Moves out what became of states since the last call.
pub fn take_kept() -> Vec<Kept> {
    STAGE.with_borrow_mut(|stage| std::mem::take(&mut stage.kept))
}

/// Moves out which state machines have failed since the last call.
pub fn take_struck() -> Vec<Struck> {
    STAGE.with_borrow_mut(|stage| std::mem::take(&mut stage.struck))
}

/// The state machine of a group on a node is going to fail.
pub fn poison(node: u64, group: GroupId, poison: Poison) {
    STAGE.with_borrow_mut(|stage| stage.poisons.insert((node, group), poison));
}

/// The nodes on which the state machine of a group is going to fail at a change.
pub fn poisoned(group: GroupId) -> Vec<u64> {
    STAGE.with_borrow(|stage| {
        let poisons = stage.poisons.iter();
        let poisons = poisons.filter(|((_, of), poison)| *of == group && poison.at == Call::Change);
        poisons.map(|((node, _), _)| *node).collect()
    })
}

/// No state machine is going to fail.
pub fn end_poisons() {
    STAGE.with_borrow_mut(|stage| stage.poisons.clear());
}

/// From now on an entry is too much for a state machine.
pub fn poison_entry(entry: PoisonedEntry) {
    STAGE.with_borrow_mut(|stage| stage.poisoned_entries.push(entry));
}

/// From now on no entry is too much for the state machines of a node.
pub fn cure(node: u64) {
    STAGE.with_borrow_mut(|stage| stage.poisoned_entries.retain(|entry| entry.node != node));
}

/// Whether there is an entry that is too much for a group's state machine on a node.
pub fn has_poisoned_entry(node: u64, group: GroupId) -> bool {
    let is_its = |entry: &PoisonedEntry| (entry.node, entry.group) == (node, group);
    STAGE.with_borrow(|stage| stage.poisoned_entries.iter().any(is_its))
}

/// What the state machines of a node have on stable storage.
pub fn saved(node: u64) -> Saved {
    STAGE.with_borrow(|stage| {
        let mine = stage.saved.iter().filter(|((owner, ..), _)| *owner == node);
        Saved(mine.map(|(key, state)| (*key, state.clone())).collect())
    })
}

/// Removes what the state machines of a node have of lives that are over.
pub fn remove_leftovers(node: u64, is_over: impl Fn(GroupId, u32) -> bool) {
    STAGE.with_borrow_mut(|stage| {
        stage
            .saved
            .retain(|(owner, group, life), _| *owner != node || !is_over(*group, *life));
    });
}

/// Puts the stable storage of a node's state machines back; none of it with `None`.
pub fn restore(node: u64, saved: Option<Saved>) {
    STAGE.with_borrow_mut(|stage| {
        stage.saved.retain(|(owner, ..), _| *owner != node);
        stage
            .saved
            .extend(saved.into_iter().flat_map(|saved| saved.0));
    });
}

/// The data directory of a node.
pub fn data_dir(node: u64) -> PathBuf {
    PathBuf::from(format!("/{node}"))
}

/// The node whose data directory holds `dir`.
fn owner_of(dir: &Path) -> Option<u64> {
    dir.components().nth(1)?.as_os_str().to_str()?.parse().ok()
}

/// The group and the life whose state machine has this directory.
fn life_of(dir: &Path) -> Option<(GroupId, u32)> {
    let (group, life) = parse_name_of(dir.file_name()?.to_str()?)?;
    Some((group, life.get()))
}

/// A group's registers on one node.
#[derive(Debug)]
pub struct Registers {
    node: u64,
    group: GroupId,
    life: u32,
    state: State,
    unsaved: u64,
}

impl Registers {
    fn perform(&mut self, request: &Request) -> Bytes {
        if !self.state.has(request.key) {
            return Bytes::from_static(NOT_MINE);
        }
        let value = self.state.values.entry(request.key).or_default();
        let before = *value;
        match request.command {
            Command::Read => {}
            Command::Write(new) | Command::Swap(new) => *value = new,
            Command::CompareAndSet { expect, new } if before == expect => *value = new,
            Command::CompareAndSet { .. } => {}
        }
        Bytes::copy_from_slice(&before.to_le_bytes())
    }
}

impl Registers {
    fn panic_if_poisoned(&self, request: &Request) {
        let Command::Write(value) = request.command else {
            return;
        };
        let entry = PoisonedEntry {
            node: self.node,
            group: self.group,
            key: request.key,
            value,
        };
        if STAGE.with_borrow(|stage| stage.poisoned_entries.contains(&entry)) {
            // Wanted as it is, it needs no word on the terminal.
            std::panic::resume_unwind(Box::new("it is poisoned"));
        }
    }

    /// Saves the state if there is enough that is not saved.
    fn note_unsaved(&mut self, entries: u64) {
        self.unsaved += entries;
        STAGE.with_borrow_mut(|stage| {
            if stage.saves_every.is_some_and(|every| self.unsaved >= every) {
                self.unsaved = 0;
                self.save(stage);
            }
        });
    }

    fn save(&self, stage: &mut Stage) {
        let whose = (self.node, self.group, self.life);
        stage.saved.insert(whose, self.state.clone());
        stage
            .kept
            .push(kept(whose, Keeping::Saved(self.state.applied)));
    }

    /// Fails, if it is to fail at this.
    fn may_fail(&self, at: Call) -> Result<(), MachineError> {
        let panics = STAGE.with_borrow_mut(|stage| {
            let whose = (self.node, self.group);
            let poison = stage.poisons.get_mut(&whose);
            let poison = poison.filter(|poison| poison.at == at)?;
            if poison.spared > 0 {
                poison.spared -= 1;
                return None;
            }
            let panics = poison.panics;
            stage.poisons.remove(&whose);
            stage.struck.push(Struck {
                node: self.node,
                group: self.group,
                life: self.life,
                at,
            });
            Some(panics)
        });
        match panics {
            None => Ok(()),
            Some(true) => panic!("{POISONED}"),
            Some(false) => Err(POISONED.into()),
        }
    }
}

fn kept((node, group, life): Whose, what: Keeping) -> Kept {
    Kept {
        node,
        group,
        life,
        what,
    }
}

impl StateMachine for Registers {
    fn open(group: GroupId, dir: &Path) -> Result<(Self, Index), MachineError> {
        let node = owner_of(dir).ok_or("the directory belongs to no node")?;
        let (_, life) = life_of(dir).ok_or("the directory names no life")?;
        let state = STAGE.with_borrow_mut(|stage| {
            let whose = (node, group, life);
            let saved = stage.saved.get(&whose).cloned();
            let state = saved.unwrap_or_else(|| State {
                keys: match group.0 <= stage.roots {
                    true => Keys::ALL,
                    false => Keys::default(),
                },
                ..State::default()
            });
            let opened = Keeping::Opened(state.applied);
            stage.kept.push(kept(whose, opened));
            state
        });
        let applied = state.applied;
        let registers = Registers {
            node,
            group,
            life,
            state,
            unsaved: 0,
        };
        Ok((registers, applied))
    }

    fn destroy(group: GroupId, dir: &Path) -> Result<(), MachineError> {
        let node = owner_of(dir).ok_or("the directory belongs to no node")?;
        let (_, life) = life_of(dir).ok_or("the directory names no life")?;
        STAGE.with_borrow_mut(|stage| {
            let whose = (node, group, life);
            stage.saved.remove(&whose);
            stage.kept.push(kept(whose, Keeping::Removed));
        });
        Ok(())
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        for entry in entries {
            self.may_fail(Call::Change)?;
            let request = Request::decode(entry.payload).ok_or("not a request")?;
            self.panic_if_poisoned(&request);
            let reply = self.perform(&request);
            let is_refused = reply[..] == *NOT_MINE;
            replies.push(reply);
            let state = &mut self.state;
            state.applied = entry.index;
            state.digest = mix(state.digest ^ mix(entry.index.0 ^ mix(entry.term.0)));
            state.digest = mix(state.digest ^ crc(entry.payload));
            let applied = Applied {
                node: self.node,
                group: self.group,
                life: self.life,
                index: entry.index,
                term: entry.term,
                request: request.id,
                digest: state.digest,
                is_refused,
            };
            STAGE.with_borrow_mut(|stage| stage.applied.push(applied));
        }
        self.note_unsaved(entries.len() as u64);
        Ok(())
    }

    /// The value of a key, also with which state it is from, or the digest of everything.
    fn query(&self, query: &[u8]) -> Result<Bytes, MachineError> {
        self.may_fail(Call::Query)?;
        let answer = match query {
            [key, _] => return Ok(Look::at(self, *key).encode()),
            [key] if !self.state.has(*key) => return Ok(Bytes::from_static(NOT_MINE)),
            [key] => self.state.values.get(key).copied().unwrap_or_default(),
            _ => self.state.digest,
        };
        Ok(Bytes::copy_from_slice(&answer.to_le_bytes()))
    }

    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        self.may_fail(Call::Snapshot)?;
        let state = self.state.clone();
        Ok(Box::new(move |out| Ok(out.write_all(&state.encode())?)))
    }

    fn restore(&mut self, last: Index, from: &mut dyn Read) -> Result<(), MachineError> {
        self.may_fail(Call::Change)?;
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        self.state = State::decode(&bytes).ok_or("not a snapshot of registers")?;
        self.unsaved = 0;
        let restored = Restored {
            node: self.node,
            group: self.group,
            life: self.life,
            last,
            applied: self.state.applied,
            digest: self.state.digest,
        };
        STAGE.with_borrow_mut(|stage| {
            stage.restored.push(restored);
            if stage.saves_every.is_some() {
                self.save(stage);
            }
        });
        Ok(())
    }

    fn can_split(&self, split: &Split<'_>) -> bool {
        self.state.part(split).is_some()
    }

    fn split_off(&self, split: &Split<'_>) -> Result<FrozenState, MachineError> {
        self.may_fail(Call::Change)?;
        let (first, part) = self.state.part(split).ok_or("there is no such part")?;
        let born = Born {
            node: self.node,
            parent: self.group,
            child: split.child,
            index: split.index,
            first,
            digest: part.digest,
        };
        STAGE.with_borrow(|stage| stage.born.borrow_mut().push(born));
        Ok(Box::new(move |out| Ok(out.write_all(&part.encode())?)))
    }

    fn shed(&mut self, split: &Split<'_>) -> Result<(), MachineError> {
        self.may_fail(Call::Change)?;
        let (first, part) = self.state.part(split).ok_or("there is no such part")?;
        let state = &mut self.state;
        state.values.split_off(&first);
        state.keys = state.keys.split_at(first).0;
        (state.applied, state.digest) = (split.index, mix(part.digest));
        let applied = Applied {
            node: self.node,
            group: self.group,
            life: self.life,
            index: split.index,
            term: split.term,
            request: SPLIT_NUMBERS | self.group.0 << 32 | split.index.0,
            digest: state.digest,
            is_refused: false,
        };
        let shed = Shed {
            node: self.node,
            child: split.child,
        };
        STAGE.with_borrow_mut(|stage| {
            stage.applied.push(applied);
            stage.shed.push(shed);
        });
        self.note_unsaved(1);
        Ok(())
    }

    fn can_merge(&self, merge: &Merge<'_>) -> bool {
        merge.argument != UNWANTED
    }

    fn merge(&mut self, merge: &Merge<'_>, from: &mut dyn Read) -> Result<(), MachineError> {
        self.may_fail(Call::Change)?;
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes)?;
        let theirs = State::decode(&bytes).ok_or("not a state of registers")?;
        if self.state.keys.meets(&theirs.keys) {
            return Err("two groups have the same key".into());
        }
        let state = &mut self.state;
        state.keys = state.keys.with(&theirs.keys);
        state.values.extend(theirs.values);
        state.applied = merge.index;
        state.digest = mix(state.digest ^ mix(theirs.digest ^ mix(merge.index.0)));
        let applied = Applied {
            node: self.node,
            group: self.group,
            life: self.life,
            index: merge.index,
            term: merge.term,
            request: MERGE_NUMBERS | self.group.0 << 32 | merge.index.0,
            digest: state.digest,
            is_refused: false,
        };
        let taken = Taken {
            node: self.node,
            source: merge.source,
            target: self.group,
            index: merge.index,
            digest: theirs.digest,
        };
        STAGE.with_borrow_mut(|stage| {
            stage.applied.push(applied);
            stage.taken.push(taken);
        });
        self.note_unsaved(1);
        Ok(())
    }
}

/// A fingerprint of a payload.
fn crc(bytes: &[u8]) -> u64 {
    super::trace::hash_bytes(0, bytes)
}
