//! What must hold for any frame that a peer sends, and for any text that is given as a configuration: the bodies of
//! the fuzz targets in `tests/fuzz`, and of a test over their seeds. It must never be part of a normal build, and
//! never test what only valid input does.

use bytes::{Bytes, BytesMut};

use crate::config::Config;
use crate::merge::{MergeAnswer, MergeCommand};
use crate::sessions::{self, Command, SECTION_HEAD_BYTES, Table};
use crate::split::SplitEntry;
use crate::wire::{self, Record, Records, WireError};

fn decode_all(frame: &Bytes) -> Vec<Result<Record<'_>, WireError>> {
    let mut records = Records::new(frame);
    std::iter::from_fn(|| records.next_for(|_| true)).collect()
}

fn encode(out: &mut BytesMut, record: &Record<'_>) {
    match record {
        Record::Group {
            group,
            message,
            blocks,
        } => wire::put_message(out, *group, message, std::iter::once(*blocks)),
        Record::HollowAppend {
            group,
            message,
            blocks,
        } => wire::put_hollow_append(out, *group, message, blocks),
        Record::Place {
            group,
            term,
            last,
            configuration,
        } => wire::put_place(out, *group, *term, *last, configuration),
        Record::UnknownGroup { group } => wire::put_unknown_group(out, *group),
        Record::Forward {
            group,
            request,
            kind,
            payload,
        } => wire::put_forward(out, *group, *request, *kind, payload),
        Record::ForwardReply {
            group,
            request,
            outcome,
        } => wire::put_forward_reply(out, *group, *request, outcome),
        Record::ReadAsk {
            group,
            request,
            by_lease,
        } => wire::put_read_ask(out, *group, *request, *by_lease),
        Record::ReadReply {
            group,
            request,
            outcome,
        } => wire::put_read_reply(out, *group, *request, outcome),
        Record::SnapshotOffer { term, file } => wire::put_snapshot_offer(out, *term, file),
        Record::SnapshotFetch {
            group,
            id,
            offset,
            bytes,
        } => wire::put_snapshot_fetch(out, *group, *id, *offset, *bytes),
        Record::SnapshotChunk { group, id, chunk } => {
            wire::put_snapshot_chunk(out, *group, *id, chunk)
        }
        Record::SnapshotRefused { group, id, why } => {
            wire::put_snapshot_refused(out, *group, *id, *why);
        }
        Record::Join {
            group,
            welcome,
            configuration,
        } => wire::put_join(out, *group, *welcome, configuration),
        Record::Removed {
            group,
            at,
            term,
            grounds,
        } => wire::put_removed(out, *group, *at, *term, *grounds),
        Record::MemberAsk {
            group,
            wants,
            question,
        } => wire::put_member_ask(out, *group, *wants, *question),
        Record::Beat(beat) => wire::put_beat(out, beat),
        Record::ClaimsDelta {
            from_version,
            version,
            changes,
        } => wire::put_claims_delta(out, *from_version, *version, changes),
        Record::ClaimsTable {
            version,
            is_first,
            total,
            claims,
        } => wire::put_claims_table(out, *version, *is_first, *total, claims),
        Record::ClaimsRequest => wire::put_claims_request(out),
        Record::Create {
            request,
            ticket,
            groups,
            members,
        } => wire::put_create(out, *request, *ticket, groups, members),
        Record::CreateReply { request, result } => wire::put_create_reply(out, *request, result),
        Record::LifeOver { group } => wire::put_life_over(out, *group),
        Record::Survey {
            request,
            hold,
            groups,
        } => wire::put_survey(out, *request, *hold, groups),
        Record::SurveyReply {
            request,
            ticket,
            found,
        } => wire::put_survey_reply(out, *request, *ticket, found),
        Record::Release { creation } => wire::put_release(out, *creation),
        Record::Destroy { request, groups } => wire::put_destroy(out, *request, groups),
        Record::Ends { request, groups } => wire::put_ends(out, *request, groups),
    }
}

/// The records of a frame. Every record that is read comes back as it was when written again, and the router sees
/// as many as the shards do.
pub fn records(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    let records = decode_all(&frame);
    let mut visits = 0;
    wire::shards_in(&frame, |group| group.0 as usize % 7, |_| visits += 1);
    assert_eq!(visits, records.len());
    for record in records.into_iter().flatten() {
        let mut again = BytesMut::new();
        encode(&mut again, &record);
        assert_eq!(decode_all(&again.freeze()), [Ok(record)]);
    }
}

/// An entry of a session, and the sessions in a snapshot behind a right checksum. What is read comes back as it was when written
/// again.
pub fn sessions(data: &[u8]) {
    if let Some((command, payload)) = Command::parse(data) {
        assert_eq!(command.encode(payload), data);
    }
    if let Some(table) = table_of(data) {
        assert_eq!(sessions::section(Some(&table))[SECTION_HEAD_BYTES..], *data);
    }
}

fn table_of(body: &[u8]) -> Option<Box<Table>> {
    let mut section = Vec::with_capacity(SECTION_HEAD_BYTES + body.len());
    section.extend_from_slice(&(body.len() as u32).to_le_bytes());
    section.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
    section.extend_from_slice(body);
    sessions::read_section(&mut &section[..]).ok().flatten()
}

/// Entries that split a group or merge it into another one, and the answers to these. What is read comes back as it was when
/// written again.
pub fn entries(data: &[u8]) {
    if let Some(entry) = SplitEntry::parse(data) {
        assert_eq!(SplitEntry::parse(&entry.encode()), Some(entry));
    }
    if let Some(command) = MergeCommand::parse(data) {
        assert_eq!(MergeCommand::parse(&command.encode()), Some(command));
    }
    if let Some(answer) = MergeAnswer::parse(data) {
        assert_eq!(MergeAnswer::parse(&answer.encode()), Some(answer));
    }
}

/// A configuration file. What is accepted is within its own rules and is read back from its own text; what is
/// refused says why.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Config::from_toml_str(text) {
        Ok(config) => {
            config.validate().expect("it was accepted");
            let again = Config::from_toml_str(&config.to_toml_string());
            assert_eq!(again.expect("its own text"), config);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

#[cfg(test)]
#[path = "../../../tests/fuzz/seeds.rs"]
mod kept;

#[cfg(test)]
mod tests {
    use polyraft_raft::{
        Configuration, EntryRange, GroupId, Index, Life, LogPosition, Message, NodeId, Term,
    };
    use polyraft_storage::{EntryKind, SnapshotFile, SnapshotMeta};

    use super::*;
    use crate::completion::Committed;
    use crate::error::Error;
    use crate::event::{CreationId, Hold, Reign, Ticket};
    use crate::liveness::Beat;
    use crate::merge::Step;
    use crate::sessions::{Deduplication, Opener, Payload, Position, ProposalNumber, SessionId};
    use crate::wire::{Chunk, Fate, Found, Grounds, Refusal, SnapshotId, Wants};

    #[test]
    fn kept_inputs_do_no_harm() {
        kept::try_all("wire", records);
        kept::try_all("sessions", sessions);
        kept::try_all("entries", entries);
        kept::try_all("config", config);
    }

    /// A seed that does not decode teaches a fuzzer nothing. `UPDATE=1` writes the seeds anew.
    #[test]
    fn seeds_decode() {
        for (target, name, data) in seeds() {
            let data = kept::seed(target, name, &data);
            let decodes = match target {
                "wire" => decode_all(&data.into()).iter().all(Result::is_ok),
                "sessions" => Command::parse(&data).is_some() || table_of(&data).is_some(),
                "entries" => {
                    SplitEntry::parse(&data).is_some()
                        || MergeCommand::parse(&data).is_some()
                        || MergeAnswer::parse(&data).is_some()
                }
                _ => Config::from_toml_str(&String::from_utf8(data).unwrap()).is_ok(),
            };
            assert!(decodes, "{target}/{name}");
        }
    }

    /// Entries about splits and merges, by what they ask for.
    fn entry_seeds() -> Vec<(&'static str, Vec<u8>)> {
        let (child, attempt) = (GroupId(8), Index(9));
        let split = SplitEntry {
            child,
            life: Life::FIRST,
            members: Configuration::simple([1, 2, 3].map(NodeId)),
            argument: Bytes::from_static(b"m"),
        };
        let go = |step| MergeCommand::Go {
            source: child,
            life: Life::FIRST,
            target_life: Life::FIRST,
            attempt,
            step,
        };
        let part = Step::Part {
            stream: 3,
            offset: 0,
            bytes: b"state",
        };
        let take = Step::Take {
            stream: 3,
            length: 5,
            crc: 7,
        };
        let open = MergeCommand::Open {
            source: child,
            life: Life::FIRST,
            number: 2,
            argument: b"m",
        };
        let freeze = MergeCommand::Freeze {
            target: GroupId(7),
            life: Life::FIRST,
            attempt,
        };
        let thaw = MergeCommand::Thaw {
            target: GroupId(7),
            life: Life::FIRST,
            attempt,
        };
        let ask = MergeCommand::AskHeir {
            target: GroupId(7),
            target_life: Life::FIRST,
            source: child,
            life: Life::FIRST,
            attempt,
        };
        let opened = MergeAnswer::Opened {
            attempt,
            life: Life::FIRST,
            is_welcome: true,
        };
        let commands = [
            ("open", open),
            ("freeze", freeze),
            ("thaw", thaw),
            ("part", go(part)),
            ("take", go(take)),
            ("refuse", go(Step::Refuse)),
            ("ask-heir", ask),
        ];
        let commands = commands.map(|(name, command)| (name, command.encode().to_vec()));
        let others = [
            ("split", split.encode().to_vec()),
            ("opened", opened.encode().to_vec()),
        ];
        commands.into_iter().chain(others).collect()
    }

    /// Two numbers of a session that were applied, one with a reply.
    fn session_table() -> Vec<u8> {
        let (mut dedup, mut table) = (Deduplication::default(), None);
        let opener = Opener::new(GroupId(1), Life::FIRST);
        let number = |sequence| {
            Command::Propose(ProposalNumber {
                session: SessionId(4),
                sequence,
                lowest: 1,
            })
        };
        let commands = [Command::Open { most: 9 }, number(1), number(3)];
        let mut next = 0;
        for (index, command) in (4..).map(Index).zip(commands) {
            let term = Term(3);
            let entry = command.encode(b"");
            let place = Position { index, term };
            let payload = dedup.decide((opener, &mut table), place, &entry, next, false);
            next += usize::from(payload != Payload::Drop);
        }
        dedup.settle(table.as_deref_mut(), &[Bytes::from("one"), Bytes::new()]);
        sessions::section(table.as_deref())[SECTION_HEAD_BYTES..].to_vec()
    }

    /// Valid inputs for the targets, by target and name.
    fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
        let (group, term, index) = (GroupId(7), Term(3), Index(9));
        let last = LogPosition { term, index };
        let entries = EntryRange {
            term,
            first: Index(10),
            end: Index(12),
        };
        let messages = [
            Message::PreVote { term, last },
            Message::PreVoteReply {
                term,
                granted: true,
            },
            Message::Vote {
                term,
                last,
                transfer: false,
            },
            Message::VoteReply {
                term,
                granted: false,
            },
            Message::Append {
                term,
                prev: last,
                entries,
                commit: index,
            },
            Message::Matched {
                term,
                matched: index,
                commit: index,
            },
            Message::Conflict {
                term,
                rejected: index,
                hint: last,
            },
            Message::Stale { term },
        ];
        let mut raft = BytesMut::new();
        for message in &messages {
            let blocks: &[&[u8]] = match message {
                Message::Append { .. } => &[b"blocks"],
                _ => &[],
            };
            wire::put_message(&mut raft, group, message, blocks.iter().copied());
        }
        let committed = Committed {
            index,
            reply: Bytes::from_static(b"reply"),
        };
        let errors = [
            Error::NotLeader {
                hint: Some(NodeId(2)),
            },
            Error::Busy {
                what: "",
                limit: 64,
            },
            Error::Unknown { why: "" },
            Error::NoSuchGroup { group },
            Error::GroupExists {
                group,
                members: vec![NodeId(1), NodeId(2)],
            },
            Error::Fault {
                reason: "rot".into(),
            },
            Error::SessionExpired {
                session: SessionId(9),
            },
            Error::ReplyNotKept,
            Error::ProposalNumber {
                sequence: 2,
                lowest: 3,
            },
            Error::Merging { into: group },
            Error::TooLarge { bytes: 9, limit: 8 },
            Error::CreationUnderWay { group },
        ];
        let mut forwards = BytesMut::new();
        wire::put_unknown_group(&mut forwards, group);
        wire::put_forward(&mut forwards, group, 5, EntryKind::Normal, b"payload");
        let session = SessionId(4);
        let entry = Command::Close { session }.encode(b"");
        wire::put_forward(&mut forwards, group, 5, EntryKind::Session, &entry);
        wire::put_forward_reply(&mut forwards, group, 5, &Ok(committed));
        for error in errors {
            wire::put_forward_reply(&mut forwards, group, 5, &Err(error));
        }
        let mut reads = BytesMut::new();
        wire::put_read_ask(&mut reads, group, 5, true);
        wire::put_read_reply(&mut reads, group, 5, &Ok(index));
        wire::put_read_reply(&mut reads, group, 5, &Err(Error::Unconfirmed));
        let mut members = BytesMut::new();
        let joint = Configuration::joint([1, 2].map(NodeId), [2, 3].map(NodeId), [], []);
        for flag in 0..3 {
            let welcome = wire::Welcome {
                term,
                answers: 7,
                proof: index,
                leads: flag == 0,
                is_witness: flag == 1,
                has_begun: flag == 2,
            };
            wire::put_join(&mut members, group, welcome, &joint);
        }
        for grounds in [Grounds::Hearsay, Grounds::Leader, Grounds::Proof(7)] {
            wire::put_removed(&mut members, group, index, term, grounds);
        }
        for wants in [Wants::Word, Wants::Proof, Wants::Return] {
            wire::put_member_ask(&mut members, group, wants, 7);
        }
        let mut node = BytesMut::new();
        let beat = Beat {
            incarnation: 1,
            sequence: 2,
            heard: 3,
            claims_version: 4,
            of: 5,
            taken: 6,
            promise: 7,
            wants_answer: true,
            priority: 100,
        };
        wire::put_beat(&mut node, &beat);
        let later = Reign {
            life: Life::new(3).unwrap(),
            term,
        };
        let first = Reign {
            life: Life::FIRST,
            term,
        };
        wire::put_claims_delta(&mut node, 3, 4, &[(group, Some(later)), (GroupId(8), None)]);
        let claims = [(group, first), (GroupId(9), later)];
        wire::put_claims_table(&mut node, 4, true, 2, &claims);
        wire::put_claims_request(&mut node);
        let lives = vec![(1..4, Life::FIRST), (9..10, Life::LAST)];
        wire::put_create(
            &mut node,
            5,
            Ticket::new(8),
            &lives,
            &[NodeId(1), NodeId(2)],
        );
        wire::put_create_reply(&mut node, 5, &Ok(vec![]));
        wire::put_create_reply(&mut node, 5, &Ok(lives.clone()));
        let mut ends = BytesMut::new();
        wire::put_life_over(&mut ends, (group, Life::LAST));
        let hold = Hold {
            creation: CreationId::MIN,
            ticket: Ticket::new(8),
        };
        wire::put_survey(&mut ends, 6, Some(hold), &vec![1..4, 9..10]);
        wire::put_release(&mut ends, CreationId::MIN);
        let found = |groups, fate| Found {
            groups,
            life: Life::FIRST,
            fate,
        };
        let found = [
            found(1..4, Fate::Here(joint)),
            found(9..10, Fate::Damaged),
            found(10..11, Fate::Elsewhere),
            found(11..12, Fate::Stays(Configuration::simple([NodeId(4)]))),
            found(9..10, Fate::Target(GroupId(70))),
            found(10..11, Fate::Parent(GroupId(80))),
        ];
        wire::put_survey_reply(&mut ends, 6, Ticket::new(8), &found);
        wire::put_destroy(&mut ends, 7, &lives);
        let mut snapshots = BytesMut::new();
        let file = SnapshotFile {
            meta: SnapshotMeta {
                group,
                incarnation: 0,
                last,
                configuration: Configuration::simple([1, 2, 3].map(NodeId)),
            },
            bytes: 100,
            checksum: 5,
        };
        let id = SnapshotId::of(&file);
        wire::put_snapshot_offer(&mut snapshots, term, &file);
        wire::put_snapshot_fetch(&mut snapshots, group, id, 0, 64);
        let chunk = Chunk::new(0, Bytes::from_static(b"state"));
        wire::put_snapshot_chunk(&mut snapshots, group, id, &chunk);
        wire::put_snapshot_refused(&mut snapshots, group, id, Refusal::Damaged);
        let entries = entry_seeds().into_iter();
        let entries = entries.map(|(name, data)| ("entries", name, data));
        let seeds = vec![
            ("wire", "raft", raft.to_vec()),
            ("wire", "snapshots", snapshots.to_vec()),
            ("wire", "forwards", forwards.to_vec()),
            ("wire", "reads", reads.to_vec()),
            ("wire", "members", members.to_vec()),
            ("wire", "node", node.to_vec()),
            ("wire", "ends", ends.to_vec()),
            (
                "sessions",
                "open",
                Command::Open { most: 9 }.encode(b"").to_vec(),
            ),
            ("sessions", "table", session_table()),
            (
                "config",
                "defaults",
                Config::default().to_toml_string().into_bytes(),
            ),
            (
                "config",
                "few",
                b"[shards]\ncount = 2\n[wal]\nsegment_bytes = \"128MiB\"\n".to_vec(),
            ),
        ];
        seeds.into_iter().chain(entries).collect()
    }
}
