//! The leaders of the model's groups, who drive merges, and the logs that they ask.
//! A leader must never let its group go on but by the answer that its attempt is refused.

use bytes::{Buf, BufMut, Bytes};
use polyraft_raft::{GroupId, Index, Life};

use super::{Attempt, Model, Rule};
use crate::merge::{Frozen, MergeAnswer, MergeCommand, Step};
use crate::sessions::{Decision, Whole, read_section, section};

/// A merge as one leader of the source sees it.
#[derive(Clone)]
pub(super) struct Drive {
    source: GroupId,
    life: Life,
    target: GroupId,
    stage: Stage,
}

#[derive(Clone)]
enum Stage {
    /// With the number of the question.
    Opening(u64),
    /// The state, its stream, and how much of it the target has.
    Sending(Frozen, Bytes, u64, usize),
    Refusing(Frozen),
}

impl Drive {
    /// What it asks the target.
    fn question(&self) -> Bytes {
        let (source, life) = (self.source, self.life);
        let (frozen, step) = match &self.stage {
            Stage::Opening(number) => {
                let (number, argument) = (*number, &b""[..]);
                return MergeCommand::Open {
                    source,
                    life,
                    number,
                    argument,
                }
                .encode();
            }
            Stage::Sending(frozen, state, stream, offset) if *offset < state.len() => {
                let half = state.len().div_ceil(2);
                let bytes = &state[*offset..state.len().min(offset + half)];
                let (stream, offset) = (*stream, *offset as u64);
                let part = Step::Part {
                    stream,
                    offset,
                    bytes,
                };
                (frozen, part)
            }
            Stage::Sending(frozen, state, stream, _) => {
                let (stream, length) = (*stream, state.len() as u64);
                let crc = crc32c::crc32c(state);
                let take = Step::Take {
                    stream,
                    length,
                    crc,
                };
                (frozen, take)
            }
            Stage::Refusing(frozen) => (frozen, Step::Refuse),
        };
        let (target_life, attempt) = (frozen.life, frozen.attempt);
        MergeCommand::Go {
            source,
            life,
            target_life,
            attempt,
            step,
        }
        .encode()
    }
}

impl Model {
    pub(super) fn begin_merge(&mut self, source: GroupId) {
        let target = self.rng.of(self.groups.keys().copied());
        let Some(target) = target.filter(|target| *target != source) else {
            return;
        };
        self.last_number += 1;
        self.drives.push(Drive {
            source,
            life: self.groups[&source].life,
            target,
            stage: Stage::Opening(self.last_number),
        });
    }

    /// A question comes late, or once more. Nobody waits for the answer.
    pub(super) fn ask_late(&mut self) -> Result<(), Rule> {
        let late = self.rng.below(self.questions.len());
        if let Some((target, question)) = self.questions.get(late).cloned() {
            self.merge_step(target, &question)?;
        }
        Ok(())
    }

    /// A leader freezes its group long after the target has answered.
    pub(super) fn freeze_late(&mut self) -> Result<(), Rule> {
        let Some((source, life, entry)) = self.freezes.pop() else {
            return Ok(());
        };
        self.append(source, life, &entry)
    }

    /// Another leader of a frozen group goes on with what it was frozen for.
    pub(super) fn take_over(&mut self, source: GroupId) -> Option<Drive> {
        let group = self.groups.get(&source)?;
        let (life, frozen) = (group.life, group.frozen()?);
        let table = group.table.as_ref().map(|table| table.for_target());
        let mut state = section(table.as_ref());
        state.put_u64_le(self.states.len() as u64);
        self.states.push((group.keys.clone(), group.known.clone()));
        self.last_number += 1;
        let stage = match self.rng.one_in(4) {
            true => Stage::Refusing(frozen),
            false => Stage::Sending(frozen, state.into(), self.last_number, 0),
        };
        let target = frozen.target;
        Some(Drive {
            source,
            life,
            target,
            stage,
        })
    }

    /// Some leader asks its question, and goes on by the answer if it hears one.
    pub(super) fn drive(&mut self) -> Result<(), Rule> {
        let at = self.rng.below(self.drives.len());
        let Some(mut drive) = self.drives.get(at).cloned() else {
            return Ok(());
        };
        if let Stage::Sending(frozen, ..) = drive.stage
            && self.rng.one_in(12)
        {
            drive.stage = Stage::Refusing(frozen);
        }
        let (target, question) = (drive.target, drive.question());
        self.questions.push((target, question.clone()));
        let comes = !self.rng.one_in(6);
        let answer = match comes {
            true => self.merge_step(target, &question)?,
            false => None,
        };
        let is_lost = self.rng.one_in(6);
        let Some(answer) = answer.filter(|_| !is_lost) else {
            return Ok(());
        };
        let goes_on = self.hear(drive, answer)?;
        self.drives.swap_remove(at);
        self.drives.extend(goes_on);
        Ok(())
    }

    fn hear(&mut self, mut drive: Drive, answer: MergeAnswer) -> Result<Option<Drive>, Rule> {
        let (source, target) = (drive.source, drive.target);
        match (&mut drive.stage, answer) {
            (Stage::Opening(_), MergeAnswer::Opened { attempt, life, .. }) => {
                let freeze = MergeCommand::Freeze {
                    target,
                    life,
                    attempt,
                };
                let freeze = freeze.encode();
                if self.rng.one_in(4) {
                    self.freezes.push((source, drive.life, freeze));
                    return Ok(None);
                }
                self.append(source, drive.life, &freeze)?;
                return Ok(self.take_over(source));
            }
            (Stage::Opening(_), _) => {}
            (Stage::Sending(_, state, stream, offset), MergeAnswer::Gathered { bytes }) => {
                if *offset >= state.len() {
                    self.last_number += 1;
                    (*stream, *offset) = (self.last_number, 0);
                } else {
                    *offset = state.len().min(bytes as usize);
                }
                return Ok(Some(drive));
            }
            (Stage::Sending(frozen, ..) | Stage::Refusing(frozen), MergeAnswer::Refused) => {
                let (life, attempt) = (frozen.life, frozen.attempt);
                let thaw = MergeCommand::Thaw {
                    target,
                    life,
                    attempt,
                };
                let thaw = thaw.encode();
                self.append(source, drive.life, &thaw)?;
            }
            (_, MergeAnswer::Merged { .. }) => {
                let group = self.groups.get(&source);
                if group.is_some_and(|group| group.life == drive.life) {
                    self.groups.remove(&source);
                    self.ended.insert(source, drive.life);
                }
            }
            // Nobody can say what became of it.
            _ => {}
        }
        Ok(None)
    }

    /// Appends to the log of a source, if its life is not over.
    fn append(&mut self, source: GroupId, life: Life, entry: &Bytes) -> Result<(), Rule> {
        let group = self.groups.get(&source);
        if group.is_some_and(|group| group.life == life) {
            self.merge_step(source, entry)?;
        }
        Ok(())
    }

    /// Appends a merge's entry to a log, and applies it as a worker does.
    fn merge_step(&mut self, id: GroupId, entry: &Bytes) -> Result<Option<MergeAnswer>, Rule> {
        let Some(group) = self.groups.get_mut(&id) else {
            return Ok(None);
        };
        let (index, life) = (group.next(), group.life);
        let command = MergeCommand::parse(entry).ok_or("entries are read")?;
        let table = group.table.get_or_insert_default();
        let decision = table.with_merges(|merges| merges.decide(life, index, &command));
        let MergeCommand::Go {
            source,
            life: source_life,
            target_life,
            attempt,
            ..
        } = command
        else {
            return Ok(match decision {
                Decision::Answer(answer) => Some(answer),
                Decision::Take(_) => None,
            });
        };
        let name = ((source, source_life), (id, target_life), attempt);
        let answer = match decision {
            Decision::Answer(answer) => answer,
            Decision::Take(whole) => self.take(name, index, &whole)?,
        };
        let has_merged = self.merged.get(&name.0) == Some(&name);
        match answer {
            MergeAnswer::Merged { .. } if !has_merged => Err("what is called merged was"),
            MergeAnswer::Refused if has_merged => Err("what was merged is not refused"),
            MergeAnswer::Refused => {
                self.refused.insert(name);
                Ok(Some(answer))
            }
            _ => Ok(Some(answer)),
        }
    }

    /// The target takes a state.
    fn take(&mut self, name: Attempt, index: Index, whole: &Whole) -> Result<MergeAnswer, Rule> {
        let ((source, life), (id, _), _) = name;
        let mut from = &whole.state[..];
        let theirs = read_section(&mut from).map_err(|_| "sections are read")?;
        let (keys, known) = self.states[from.get_u64_le() as usize].clone();
        if self.refused.contains(&name) {
            return Err("what was refused is not merged");
        }
        let group = self.groups.get(&source);
        let is_same = group.is_some_and(|group| group.life == life && group.keys == keys);
        if !is_same || self.merged.insert(name.0, name).is_some() {
            return Err("a state is taken once, and is the last one");
        }
        let group = self.groups.get_mut(&id).expect("it was found just now");
        for (key, applied) in keys {
            let way = self.ways.entry(key).or_default();
            way.push((id, Some(source)));
            group.keys.insert(key, applied);
        }
        for (session, numbers) in known {
            let session = session.merged_from(source);
            // A source that is made again may have a name once more. The first one stays.
            group.known.entry(session).or_insert(numbers);
        }
        let table = group.table.get_or_insert_default();
        table.spend_shared();
        if let Some(theirs) = &theirs {
            table.absorb(index, source, theirs);
        }
        let known = theirs.as_ref().and_then(|theirs| theirs.merges());
        Ok(table.with_merges(|merges| merges.note_merged(whole, known, index)))
    }
}
