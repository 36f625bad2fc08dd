//! The entries by which a group is merged into another, and what is answered to them, byte by byte. `docs/wal-format.md` has the
//! map. Nothing may be asked of anybody when one is applied: replicas decide alike by their logs.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use polyraft_raft::{GroupId, Index, Life};

/// The longest argument of a merge: every replica of the target keeps it until the merge is decided.
pub(crate) const MAX_ARGUMENT: usize = 64 << 10;

/// The most that a group which is merged may take, its sessions included. A part of the format.
pub(crate) const MAX_STATE: u64 = 64 << 20;

/// A bound on the bytes of an entry that carries a part of a state, beyond that part.
pub(crate) const PART_OVERHEAD: usize = 64;

/// A group that takes nothing any more, because it is to be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frozen {
    /// Into which group, and in which life of its id.
    pub(crate) target: GroupId,
    pub(crate) life: Life,
    /// The place of the target's log at which the attempt was opened: its name.
    pub(crate) attempt: Index,
    /// The place of the own log behind which nothing is taken.
    pub(crate) at: Index,
}

/// What an entry of the kind [`EntryKind::Merge`](polyraft_storage::EntryKind::Merge) asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MergeCommand<'a> {
    // ---- in the log of the source ----
    /// Take nothing from here on.
    Freeze {
        target: GroupId,
        life: Life,
        attempt: Index,
    },
    /// Go on: this attempt came to nothing. Attempts at two targets may have the same name.
    Thaw {
        target: GroupId,
        life: Life,
        attempt: Index,
    },
    // ---- in the log of the target ----
    /// Begin an attempt. The same number means the same one, however often it is asked for.
    Open {
        source: GroupId,
        life: Life,
        number: u64,
        argument: &'a [u8],
    },
    /// Do something about an attempt.
    Go {
        source: GroupId,
        life: Life,
        /// Of the target: in another one of its lives this means nothing.
        target_life: Life,
        attempt: Index,
        step: Step<'a>,
    },
    // ---- in the log of the group that the target has become a part of ----
    /// Say what became of an attempt in the target, from what that knew in the end.
    AskHeir {
        target: GroupId,
        target_life: Life,
        source: GroupId,
        life: Life,
        attempt: Index,
    },
}

/// What is to be done about an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    /// Keep a part of the source's state. Those of one stream belong together.
    Part {
        stream: u64,
        offset: u64,
        bytes: &'a [u8],
    },
    /// Take the state, if all of it is here.
    Take { stream: u64, length: u64, crc: u32 },
    /// Say what became of it. From here on it can't succeed, unless it has.
    Refuse,
}

impl MergeCommand<'_> {
    /// Whether it changes nothing unless the lives that it names are those that are there: whoever is asked can answer it.
    pub(crate) fn is_question(&self) -> bool {
        matches!(
            self,
            MergeCommand::Open { .. } | MergeCommand::AskHeir { .. }
        )
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match *self {
            MergeCommand::Freeze {
                target,
                life,
                attempt,
            } => {
                out.put_u8(1);
                out.put_u64_le(target.0);
                out.put_u32_le(life.get());
                out.put_u64_le(attempt.0);
            }
            MergeCommand::Thaw {
                target,
                life,
                attempt,
            } => {
                out.put_u8(2);
                out.put_u64_le(target.0);
                out.put_u32_le(life.get());
                out.put_u64_le(attempt.0);
            }
            MergeCommand::Open {
                source,
                life,
                number,
                argument,
            } => {
                out.put_u8(3);
                out.put_u64_le(source.0);
                out.put_u32_le(life.get());
                out.put_u64_le(number);
                out.put_slice(argument);
            }
            MergeCommand::Go {
                source,
                life,
                target_life,
                attempt,
                step,
            } => {
                out.put_u8(match step {
                    Step::Part { .. } => 4,
                    Step::Take { .. } => 5,
                    Step::Refuse => 6,
                });
                out.put_u64_le(source.0);
                out.put_u32_le(life.get());
                out.put_u32_le(target_life.get());
                out.put_u64_le(attempt.0);
                match step {
                    Step::Part {
                        stream,
                        offset,
                        bytes,
                    } => {
                        out.put_u64_le(stream);
                        out.put_u64_le(offset);
                        out.put_slice(bytes);
                    }
                    Step::Take {
                        stream,
                        length,
                        crc,
                    } => {
                        out.put_u64_le(stream);
                        out.put_u64_le(length);
                        out.put_u32_le(crc);
                    }
                    Step::Refuse => {}
                }
            }
            MergeCommand::AskHeir {
                target,
                target_life,
                source,
                life,
                attempt,
            } => {
                out.put_u8(7);
                out.put_u64_le(target.0);
                out.put_u32_le(target_life.get());
                out.put_u64_le(source.0);
                out.put_u32_le(life.get());
                out.put_u64_le(attempt.0);
            }
        }
        out.freeze()
    }

    pub(crate) fn parse(entry: &[u8]) -> Option<MergeCommand<'_>> {
        let mut rest = entry;
        let kind = rest.try_get_u8().ok()?;
        let command = match kind {
            1 => MergeCommand::Freeze {
                target: group(&mut rest)?,
                life: life(&mut rest)?,
                attempt: index(&mut rest)?,
            },
            2 => MergeCommand::Thaw {
                target: group(&mut rest)?,
                life: life(&mut rest)?,
                attempt: index(&mut rest)?,
            },
            3 => MergeCommand::Open {
                source: group(&mut rest)?,
                life: life(&mut rest)?,
                number: rest.try_get_u64_le().ok()?,
                argument: Some(std::mem::take(&mut rest))
                    .filter(|argument| argument.len() <= MAX_ARGUMENT)?,
            },
            4..=6 => MergeCommand::Go {
                source: group(&mut rest)?,
                life: life(&mut rest)?,
                target_life: life(&mut rest)?,
                attempt: index(&mut rest)?,
                step: match kind {
                    4 => Step::Part {
                        stream: rest.try_get_u64_le().ok()?,
                        offset: rest.try_get_u64_le().ok()?,
                        bytes: std::mem::take(&mut rest),
                    },
                    5 => Step::Take {
                        stream: rest.try_get_u64_le().ok()?,
                        length: rest.try_get_u64_le().ok()?,
                        crc: rest.try_get_u32_le().ok()?,
                    },
                    _ => Step::Refuse,
                },
            },
            7 => MergeCommand::AskHeir {
                target: group(&mut rest)?,
                target_life: life(&mut rest)?,
                source: group(&mut rest)?,
                life: life(&mut rest)?,
                attempt: index(&mut rest)?,
            },
            _ => return None,
        };
        rest.is_empty().then_some(command)
    }
}

/// A group that an entry about a merge names beside its own, by its first nine bytes.
pub(crate) fn other_group(mut head: &[u8]) -> Option<GroupId> {
    let kind = head.try_get_u8().ok()?;
    let other = group(&mut head);
    other.filter(|_| (1..=7).contains(&kind))
}

/// What came of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MergeAnswer {
    /// It is done: the source is frozen, or goes on.
    Done,
    /// The target waits for the state, in this life of its id. Or its state machine does not want it.
    Opened {
        attempt: Index,
        life: Life,
        is_welcome: bool,
    },
    /// So many bytes of the stream are here.
    Gathered { bytes: u64 },
    /// The target has taken the state, at this place of its log.
    Merged { at: Index },
    /// It has not, and never will.
    Refused,
    /// It may have, so long ago that this is forgotten.
    Forgotten,
    /// The target was destroyed, and is another group now.
    OtherLife,
    /// The target is to be merged itself.
    Frozen { into: GroupId },
}

impl MergeAnswer {
    pub(crate) fn encode(self) -> Bytes {
        let (kind, first, second) = match self {
            MergeAnswer::Done => (1, 0, 0),
            MergeAnswer::Opened {
                attempt,
                life,
                is_welcome,
            } => (2 + u8::from(is_welcome), attempt.0, life.get()),
            MergeAnswer::Gathered { bytes } => (4, bytes, 0),
            MergeAnswer::Merged { at } => (5, at.0, 0),
            MergeAnswer::Refused => (6, 0, 0),
            MergeAnswer::Forgotten => (7, 0, 0),
            MergeAnswer::OtherLife => (8, 0, 0),
            MergeAnswer::Frozen { into } => (9, into.0, 0),
        };
        let mut out = BytesMut::with_capacity(13);
        out.put_u8(kind);
        out.put_u64_le(first);
        out.put_u32_le(second);
        out.freeze()
    }

    pub(crate) fn parse(mut reply: &[u8]) -> Option<MergeAnswer> {
        if reply.len() != 13 {
            return None;
        }
        let (kind, first, second) = (reply.get_u8(), reply.get_u64_le(), reply.get_u32_le());
        Some(match kind {
            1 => MergeAnswer::Done,
            2 | 3 => MergeAnswer::Opened {
                attempt: Index(first),
                life: Life::new(second)?,
                is_welcome: kind == 3,
            },
            4 => MergeAnswer::Gathered { bytes: first },
            5 => MergeAnswer::Merged { at: Index(first) },
            6 => MergeAnswer::Refused,
            7 => MergeAnswer::Forgotten,
            8 => MergeAnswer::OtherLife,
            9 => MergeAnswer::Frozen {
                into: GroupId(first),
            },
            _ => return None,
        })
    }
}

pub(crate) fn group(rest: &mut &[u8]) -> Option<GroupId> {
    rest.try_get_u64_le().ok().map(GroupId)
}

pub(crate) fn life(rest: &mut &[u8]) -> Option<Life> {
    rest.try_get_u32_le().ok().and_then(Life::new)
}

/// A place of a log that is not its beginning.
pub(crate) fn index(rest: &mut &[u8]) -> Option<Index> {
    let index = rest.try_get_u64_le().ok()?;
    (1..=u64::MAX / 2).contains(&index).then_some(Index(index))
}

#[cfg(test)]
mod tests {
    use polyraft_storage::MERGE_HEAD_BYTES;

    use super::*;

    #[test]
    fn entries_and_answers_are_read_back_and_bad_ones_are_refused() {
        let life = |number| Life::new(number).unwrap();
        let go = |step| MergeCommand::Go {
            source: GroupId(7),
            life: life(1),
            target_life: life(2),
            attempt: Index(9),
            step,
        };
        let commands = [
            MergeCommand::Freeze {
                target: GroupId(8),
                life: life(2),
                attempt: Index(9),
            },
            MergeCommand::Thaw {
                target: GroupId(8),
                life: life(2),
                attempt: Index(9),
            },
            MergeCommand::Open {
                source: GroupId(7),
                life: life(1),
                number: 5,
                argument: b"",
            },
            go(Step::Part {
                stream: 3,
                offset: 4,
                bytes: b"",
            }),
            go(Step::Take {
                stream: 3,
                length: 4,
                crc: 5,
            }),
            go(Step::Refuse),
            MergeCommand::AskHeir {
                target: GroupId(8),
                target_life: life(2),
                source: GroupId(7),
                life: life(1),
                attempt: Index(9),
            },
        ];
        for command in commands {
            let bytes = command.encode();
            assert!(bytes.len() <= PART_OVERHEAD);
            let other = match command {
                MergeCommand::Freeze { target, .. }
                | MergeCommand::Thaw { target, .. }
                | MergeCommand::AskHeir { target, .. } => target,
                MergeCommand::Open { source, .. } | MergeCommand::Go { source, .. } => source,
            };
            assert_eq!(other_group(&bytes[..MERGE_HEAD_BYTES]), Some(other));
            assert_eq!(MergeCommand::parse(&bytes), Some(command));
            for cut in 0..bytes.len() {
                assert_eq!(MergeCommand::parse(&bytes[..cut]), None, "{command:?}");
            }
        }
        for kind in [0, 8] {
            assert_eq!(MergeCommand::parse(&[kind; 60]), None);
        }
        let answers = [
            MergeAnswer::Done,
            MergeAnswer::Opened {
                attempt: Index(4),
                life: life(2),
                is_welcome: false,
            },
            MergeAnswer::Opened {
                attempt: Index(4),
                life: life(2),
                is_welcome: true,
            },
            MergeAnswer::Gathered { bytes: 1 << 40 },
            MergeAnswer::Merged { at: Index(4) },
            MergeAnswer::Refused,
            MergeAnswer::Forgotten,
            MergeAnswer::OtherLife,
            MergeAnswer::Frozen { into: GroupId(3) },
        ];
        for answer in answers {
            assert_eq!(MergeAnswer::parse(&answer.encode()), Some(answer));
        }
        assert_eq!(MergeAnswer::parse(&[1; 12]), None);
        assert_eq!(MergeAnswer::parse(&[0; 13]), None);
    }
}
