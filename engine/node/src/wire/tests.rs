//! What is written comes back as it was; what is damaged is an error and never a panic.

use polyraft_raft::{Configuration, NodeId};
use polyraft_storage::SnapshotMeta;
use proptest::prelude::*;

use super::*;
use crate::sessions::SessionId;

fn decode_all(frame: &Bytes) -> Vec<Result<Record<'_>, WireError>> {
    let mut records = Records::new(frame);
    std::iter::from_fn(|| records.next_for(|_| true)).collect()
}

#[test]
fn every_message_comes_back_as_it_was_sent() {
    let last = LogPosition {
        term: Term(2),
        index: Index(8),
    };
    let entries = EntryRange {
        term: Term(3),
        first: Index(9),
        end: Index(11),
    };
    let messages = [
        Message::PreVote {
            term: Term(4),
            last,
        },
        Message::PreVoteReply {
            term: Term(4),
            granted: true,
        },
        Message::Vote {
            term: Term(4),
            last,
            transfer: false,
        },
        Message::VoteReply {
            term: Term(4),
            granted: false,
        },
        Message::Append {
            term: Term(3),
            prev: last,
            entries,
            commit: Index(7),
        },
        Message::Matched {
            term: Term(3),
            matched: Index(10),
            commit: Index(7),
        },
        Message::Conflict {
            term: Term(3),
            rejected: Index(8),
            hint: last,
        },
        Message::Stale { term: Term(9) },
        Message::TimeoutNow {
            term: Term(3),
            last: Index(9),
        },
    ];
    for message in messages {
        let blocks: &[&[u8]] = if matches!(message, Message::Append { .. }) {
            &[b"block", b"s"]
        } else {
            &[]
        };
        let mut frame = BytesMut::new();
        put_message(&mut frame, GroupId(7), &message, blocks.iter().copied());
        let blocks = &blocks.concat()[..];
        assert_eq!(
            decode_all(&frame.freeze()),
            vec![Ok(Record::Group {
                group: GroupId(7),
                message,
                blocks
            })]
        );
    }
}

#[test]
fn what_is_said_to_witnesses_comes_back() {
    let last = LogPosition {
        term: Term(3),
        index: Index(9),
    };
    let message = Message::Append {
        term: Term(4),
        prev: last,
        entries: EntryRange {
            term: Term(4),
            first: Index(10),
            end: Index(12),
        },
        commit: Index(8),
    };
    let members = Configuration::joint([1, 2, 3].map(NodeId), [3, 4].map(NodeId), [NodeId(5)], []);
    let members = members
        .with_witnesses([3, 5].map(NodeId))
        .with_preferred(Some(NodeId(1)));
    let mut frame = BytesMut::new();
    put_hollow_append(&mut frame, GroupId(7), &message, b"hollow");
    put_place(&mut frame, GroupId(8), Term(4), last, &members);
    let welcome = |leads| Welcome {
        term: Term(4),
        leads,
        is_witness: true,
        answers: 6,
        proof: Index(11),
        has_begun: !leads,
    };
    for leads in [false, true] {
        put_join(&mut frame, GroupId(9), welcome(leads), &members);
    }
    let join = |leads| {
        Ok(Record::Join {
            group: GroupId(9),
            welcome: welcome(leads),
            configuration: members.clone(),
        })
    };
    let expected = vec![
        Ok(Record::HollowAppend {
            group: GroupId(7),
            message,
            blocks: b"hollow",
        }),
        Ok(Record::Place {
            group: GroupId(8),
            term: Term(4),
            last,
            configuration: members.clone(),
        }),
        join(false),
        join(true),
    ];
    assert_eq!(decode_all(&frame.freeze()), expected);
    for last in [
        LogPosition::ZERO,
        LogPosition {
            term: Term(5),
            ..last
        },
    ] {
        let mut frame = BytesMut::new();
        put_place(&mut frame, GroupId(8), Term(4), last, &members);
        assert_eq!(
            decode_all(&frame.freeze()),
            vec![Err(WireError::Value("place"))]
        );
    }
}

#[test]
fn an_appends_fixed_part_has_its_stated_size() {
    let prev = LogPosition {
        term: Term(1),
        index: Index(1),
    };
    let entries = EntryRange {
        term: Term(1),
        first: Index(2),
        end: Index(2),
    };
    let mut frame = BytesMut::new();
    let message = Message::Append {
        term: Term(1),
        prev,
        entries,
        commit: Index(1),
    };
    put_message(&mut frame, GroupId(1), &message, std::iter::empty());
    assert_eq!(frame.len(), APPEND_BYTES);
}

/// The first error, or the one behind another. An error that has no place here does not compile: say below how it travels.
fn error_behind(error: Option<&Error>) -> Option<Error> {
    let (group, why) = (GroupId(4), || "it was so".to_owned());
    let Some(error) = error else {
        return Some(Error::NotLeader { hint: None });
    };
    Some(match error {
        Error::NotLeader { hint: None } => Error::NotLeader {
            hint: Some(NodeId(3)),
        },
        Error::NotLeader { hint: Some(_) } => Error::Busy {
            what: "the leader's queue",
            limit: 64,
        },
        Error::Busy { .. } => Error::Unknown {
            why: "the leader lost track of the forwarded proposal",
        },
        Error::Unknown { .. } => Error::Fault { reason: why() },
        Error::Fault { .. } => Error::NoSuchGroup { group },
        Error::NoSuchGroup { .. } => Error::GroupExists {
            group,
            members: vec![NodeId(1), NodeId(2)],
        },
        Error::GroupExists { .. } => Error::TooLarge { bytes: 9, limit: 8 },
        Error::TooLarge { .. } => Error::Merging { into: GroupId(5) },
        Error::Merging { .. } => Error::Unconfirmed,
        Error::Unconfirmed => Error::SessionExpired {
            session: SessionId(6),
        },
        Error::SessionExpired { .. } => Error::ReplyNotKept,
        Error::ReplyNotKept => Error::ProposalNumber {
            sequence: 7,
            lowest: 9,
        },
        Error::ProposalNumber { .. } => Error::Closed,
        Error::Closed => Error::BadMembers { why: why() },
        Error::BadMembers { .. } => Error::CreateTimeout { missing: vec![] },
        Error::CreateTimeout { .. } => Error::CreationUnderWay { group },
        Error::CreationUnderWay { .. } => Error::DestroyTimeout { missing: vec![] },
        Error::DestroyTimeout { .. } => Error::Ending { group },
        Error::Ending { .. } => Error::Needed {
            group,
            by: GroupId(5),
            why: "needs it",
        },
        Error::Needed { .. } => Error::Transfer {
            to: NodeId(3),
            why: "it is silent",
        },
        Error::Transfer { .. } => Error::Peer {
            node: NodeId(3),
            why: why(),
        },
        Error::Peer { .. } => Error::Members { why: why() },
        Error::Members { .. } => Error::ChangeUnderWay { group },
        Error::ChangeUnderWay { .. } => Error::Split { why: why() },
        Error::Split { .. } => Error::Merge { why: why() },
        Error::Merge { .. } => Error::Witness { hint: None },
        Error::Witness { .. } => Error::Query(why()),
        Error::Query(_) => Error::Restoring { group },
        Error::Restoring { .. } => Error::Snapshot { why: why() },
        Error::Snapshot { .. } => return None,
    })
}

#[test]
fn every_error_comes_across_the_wire_without_hiding_that_a_proposal_may_be_committed() {
    let errors = std::iter::successors(error_behind(None), |error| error_behind(Some(error)));
    let (mut whole, mut others) = (0, 0);
    for error in errors {
        let mut frame = BytesMut::new();
        put_forward_reply(&mut frame, GroupId(4), 12, &Err(error.clone()));
        let frame = frame.freeze();
        let [
            Ok(Record::ForwardReply {
                group: GroupId(4),
                request: 12,
                outcome: Err(came),
            }),
        ] = &decode_all(&frame)[..]
        else {
            panic!("one reply");
        };
        if *came == error {
            whole += 1;
            continue;
        }
        others += 1;
        match came {
            // The leader may still have committed it.
            Error::Unknown { .. } => assert_eq!(error, Error::Closed),
            Error::Fault { reason } => assert_eq!(*reason, error.to_string()),
            came => panic!("{error} came as {came}"),
        }
        assert!(came.may_have_committed() && !came.is_retryable(), "{error}");
    }
    // Whatever a node may say about a proposal, a read or a creation that another one asked it for; and what it never says to one.
    assert_eq!((whole, others), (14, 16));
}

#[test]
fn node_level_records_come_back_as_they_were_sent() {
    let mut frame = BytesMut::new();
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
    put_beat(&mut frame, &beat);
    put_claims_delta(
        &mut frame,
        3,
        4,
        &[(GroupId(1), Some(reign(0, 2))), (GroupId(2), None)],
    );
    let claims = vec![
        (GroupId(1), reign(0, 2)),
        (GroupId(2), reign(3, 4)),
        (GroupId(3), reign(0, 5)),
    ];
    put_claims_table(&mut frame, 4, true, 7, &claims);
    put_claims_request(&mut frame);
    let lives = vec![(1..3, Life::FIRST), (3..6, Life::LAST)];
    put_create(
        &mut frame,
        5,
        Ticket::new(8),
        &lives,
        &[NodeId(1), NodeId(2)],
    );
    put_create_reply(&mut frame, 5, &Ok(lives.clone()));
    put_survey(&mut frame, 6, None, &vec![1..3, 5..6]);
    let hold = |ticket| {
        let creation = CreationId::MIN;
        Some(Hold { creation, ticket })
    };
    put_survey(&mut frame, 6, hold(None), &vec![1..3, 5..6]);
    put_survey(&mut frame, 6, hold(Ticket::new(8)), &vec![1..3, 5..6]);
    put_release(&mut frame, CreationId::MIN);
    let found = vec![Found {
        groups: 1..3,
        life: Life::LAST,
        fate: Fate::Here(Configuration::simple([NodeId(1), NodeId(2)])),
    }];
    let fates = [
        Fate::Over,
        Fate::Damaged,
        Fate::Elsewhere,
        Fate::Stays(Configuration::simple([NodeId(1)])),
    ];
    let found = fates.into_iter().fold(found, |mut found, fate| {
        let start = found[found.len() - 1].groups.end;
        found.push(Found {
            groups: start..start + 1,
            life: Life::FIRST,
            fate,
        });
        found
    });
    // What stands in the way of an end is said beside what became of a life.
    let asides = [Fate::Target(GroupId(70)), Fate::Parent(GroupId(80))].map(|fate| Found {
        groups: 1..2,
        life: Life::LAST,
        fate,
    });
    let found = [found, asides.to_vec()].concat();
    put_survey_reply(&mut frame, 6, Ticket::new(8), &found);
    put_destroy(&mut frame, 7, &lives);
    put_ends(&mut frame, 8, &lives);
    let expected = vec![
        Ok(Record::Beat(beat)),
        Ok(Record::ClaimsDelta {
            from_version: 3,
            version: 4,
            changes: vec![(GroupId(1), Some(reign(0, 2))), (GroupId(2), None)],
        }),
        Ok(Record::ClaimsTable {
            version: 4,
            is_first: true,
            total: 7,
            claims,
        }),
        Ok(Record::ClaimsRequest),
        Ok(Record::Create {
            request: 5,
            ticket: Ticket::new(8),
            groups: lives.clone(),
            members: Members::from_slice(&[NodeId(1), NodeId(2)]),
        }),
        Ok(Record::CreateReply {
            request: 5,
            result: Ok(lives.clone()),
        }),
        Ok(Record::Survey {
            request: 6,
            hold: None,
            groups: vec![1..3, 5..6],
        }),
        Ok(Record::Survey {
            request: 6,
            hold: hold(None),
            groups: vec![1..3, 5..6],
        }),
        Ok(Record::Survey {
            request: 6,
            hold: hold(Ticket::new(8)),
            groups: vec![1..3, 5..6],
        }),
        Ok(Record::Release {
            creation: CreationId::MIN,
        }),
        Ok(Record::SurveyReply {
            request: 6,
            ticket: Ticket::new(8),
            found,
        }),
        Ok(Record::Destroy {
            request: 7,
            groups: lives.clone(),
        }),
        Ok(Record::Ends {
            request: 8,
            groups: lives,
        }),
    ];
    assert_eq!(decode_all(&frame.freeze()), expected);
}

fn reign(life: u32, term: u64) -> Reign {
    Reign {
        life: Life::new(life).unwrap(),
        term: Term(term),
    }
}

#[test]
fn the_head_of_a_groups_record_names_the_life() {
    let mut frame = BytesMut::new();
    let group = GroupId(7);
    for life in [Life::FIRST, Life::new(0x01_02_03).unwrap(), Life::LAST] {
        put_life_over(&mut frame, (group, life));
    }
    put_claims_request(&mut frame);
    let frame = frame.freeze();
    let mut records = Records::new(&frame);
    for life in [0, 0x01_02_03, 0xFF_FF_FF] {
        assert_eq!(
            records.next_for(|_| true),
            Some(Ok(Record::LifeOver { group }))
        );
        let subject = records.subject().unwrap();
        assert_eq!((subject.group, subject.life.get()), (group, life));
    }
    assert_eq!(records.next_for(|_| true), Some(Ok(Record::ClaimsRequest)));
    assert_eq!(records.subject(), None);
}

#[test]
fn groups_out_of_order_and_lives_that_nobody_has_are_refused() {
    let refused = |put: &dyn Fn(&mut BytesMut)| {
        let mut frame = BytesMut::new();
        put(&mut frame);
        decode_all(&frame.freeze())[0].is_err()
    };
    let life = Life::FIRST;
    for groups in [
        vec![(5..6, life), (1..3, life)],
        vec![(1..4, life), (3..5, life)],
        vec![(3..3, life)],
        vec![(1..u64::MAX, life)],
        vec![
            (0..MAX_GROUPS_AT_ONCE, life),
            (1 << 40..(1 << 40) + 1, life),
        ],
    ] {
        assert!(refused(&|out| put_destroy(out, 1, &groups)), "{groups:?}");
    }
    assert!(!refused(&|out| put_destroy(
        out,
        1,
        &vec![(0..MAX_GROUPS_AT_ONCE, life)]
    )));
    // A life without a claim behind it, and one too large.
    assert!(refused(&|out| put_claims_table(
        out,
        1,
        true,
        1,
        &[(GroupId(u64::MAX), reign(0, 1))]
    )));
    let huge = (GroupId(u64::MAX), reign(0, 1 << 24));
    assert!(refused(&|out| put_claims_table(
        out,
        1,
        true,
        2,
        &[huge, (GroupId(1), reign(0, 1))]
    )));
}

#[test]
fn an_append_that_skips_an_index_is_refused() {
    let prev = LogPosition {
        term: Term(1),
        index: Index(4),
    };
    let entries = EntryRange {
        term: Term(1),
        first: Index(6),
        end: Index(7),
    };
    let mut frame = BytesMut::new();
    let message = Message::Append {
        term: Term(1),
        prev,
        entries,
        commit: Index(0),
    };
    put_message(&mut frame, GroupId(1), &message, std::iter::empty());
    assert_eq!(
        decode_all(&frame.freeze()),
        vec![Err(WireError::Value("append"))]
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let frame = Bytes::from(bytes);
        shards_in(&frame, |group| group.0 as usize % 4, |_| {});
        let mut records = Records::new(&frame);
        while records.next_for(|_| true).is_some() {}
    }

    #[test]
    fn damaged_records_never_panic(kind in 0u8..40, body in proptest::collection::vec(any::<u8>(), 0..90)) {
        let mut frame = BytesMut::new();
        frame.put_u8(kind);
        frame.put_bytes(0, 3);
        frame.put_u32_le(body.len() as u32);
        frame.put_u64_le(1);
        frame.put_slice(&body);
        decode_all(&frame.freeze());
    }
}

#[test]
fn what_is_said_about_snapshots_comes_back() {
    let last = LogPosition {
        term: Term(2),
        index: Index(8),
    };
    let nodes = |ids: &[u64]| ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
    let file = SnapshotFile {
        meta: SnapshotMeta {
            group: GroupId(7),
            incarnation: 3,
            last,
            configuration: Configuration::joint(
                nodes(&[1, 2, 3]),
                nodes(&[3, 4]),
                nodes(&[5]),
                nodes(&[4]),
            ),
        },
        bytes: 1 << 40,
        checksum: 77,
    };
    let id = SnapshotId::of(&file);
    let group = GroupId(7);
    let chunk = Chunk::new(9, Bytes::from_static(b"state"));
    assert!(chunk.is_whole());
    let mut frame = BytesMut::new();
    put_snapshot_offer(&mut frame, Term(4), &file);
    assert_eq!(frame.len(), offer_bytes(&file));
    put_snapshot_fetch(&mut frame, group, id, 9, 100);
    put_snapshot_chunk(&mut frame, group, id, &chunk);
    put_snapshot_refused(&mut frame, group, id, Refusal::Disk);
    assert_eq!(
        frame.len(),
        offer_bytes(&file) + FETCH_BYTES + CHUNK_BYTES + 5 + REFUSED_BYTES
    );
    let expected = vec![
        Ok(Record::SnapshotOffer {
            term: Term(4),
            file: file.clone(),
        }),
        Ok(Record::SnapshotFetch {
            group,
            id,
            offset: 9,
            bytes: 100,
        }),
        Ok(Record::SnapshotChunk { group, id, chunk }),
        Ok(Record::SnapshotRefused {
            group,
            id,
            why: Refusal::Disk,
        }),
    ];
    assert_eq!(decode_all(&frame.freeze()), expected);
    // A snapshot of a later term than its leader's can't be.
    let mut frame = BytesMut::new();
    put_snapshot_offer(&mut frame, Term(1), &file);
    assert_eq!(
        decode_all(&frame.freeze()),
        [Err(WireError::Value("snapshot offer"))]
    );
}

#[test]
fn a_part_of_a_snapshot_that_changed_on_its_way_is_not_whole() {
    let whole = Chunk::new(4096, Bytes::from_static(b"a part"));
    let moved = Chunk {
        offset: 0,
        ..whole.clone()
    };
    let changed = Chunk {
        bytes: Bytes::from_static(b"a pert"),
        ..whole.clone()
    };
    assert!(whole.is_whole() && !moved.is_whole() && !changed.is_whole());
}

#[test]
fn impossible_lengths_and_places_of_snapshots_are_refused() {
    let good = SnapshotId {
        last: LogPosition {
            term: Term(1),
            index: Index(1),
        },
        checksum: 0,
    };
    let nowhere = SnapshotId {
        last: LogPosition::ZERO,
        ..good
    };
    let refused = |fill: &dyn Fn(&mut BytesMut)| {
        let mut frame = BytesMut::new();
        fill(&mut frame);
        decode_all(&frame.freeze()).iter().all(Result::is_err)
    };
    let group = GroupId(7);
    assert!(refused(&|out| put_snapshot_fetch(
        out, group, nowhere, 0, 1
    )));
    assert!(refused(&|out| put_snapshot_fetch(out, group, good, 0, 0)));
    let chunk = |offset, bytes| Chunk::new(offset, Bytes::from_static(bytes));
    assert!(refused(&|out| put_snapshot_chunk(
        out,
        group,
        good,
        &chunk(0, b"")
    )));
    assert!(refused(&|out| put_snapshot_chunk(
        out,
        group,
        good,
        &chunk(u64::MAX, b"x")
    )));
    let file = |bytes, voters: &[u64]| SnapshotFile {
        meta: SnapshotMeta {
            group,
            incarnation: 0,
            last: good.last,
            configuration: Configuration::simple(voters.iter().map(|id| NodeId(*id))),
        },
        bytes,
        checksum: 0,
    };
    let long = (1..=16).collect::<Vec<u64>>();
    for file in [
        file(0, &[1]),
        file(u64::MAX, &[1]),
        file(9, &[]),
        file(9, &long),
    ] {
        assert!(refused(&|out| put_snapshot_offer(out, Term(1), &file)));
    }
}
