//! Plans over directories that are written here record by record, and what is left of them after a power cut.

use bytes::Bytes;
use polyraft_raft::{
    Configuration, EntryRange, GroupId, HardState, Index, Life, LogPosition, Term,
};
use polyraft_storage::sim::{Keep, SimDisk};
use polyraft_storage::{
    AddressChange, Creation, DataDir, Ending, EntryKind, PeerSeen, SnapshotMeta, SnapshotStore,
    StoreId, Tombstone, WalOptions, inspect,
};

use super::*;
use crate::merge::MergeCommand;
use crate::split::SplitEntry;

const GROUP: GroupId = GroupId(7);

/// A replica to be written: its members, term and commit hint, and the terms of its entries, or members instead of one.
struct Written {
    group: GroupId,
    life: Life,
    joined: u64,
    is_witness: bool,
    members: Configuration,
    term: u64,
    commit: u64,
    entries: Vec<(u64, Option<Configuration>)>,
    /// What the first entry is instead.
    begins_with: Option<(EntryKind, Bytes)>,
}

fn voters<const N: usize>(nodes: [u64; N]) -> Configuration {
    Configuration::simple(nodes.map(NodeId))
}

/// A replica of [`GROUP`] with entries of these terms.
fn replica<const N: usize>(members: [u64; N], term: u64, commit: u64, terms: &[u64]) -> Written {
    Written {
        group: GROUP,
        life: Life::FIRST,
        joined: 0,
        is_witness: false,
        members: voters(members),
        term,
        commit,
        entries: terms.iter().map(|term| (*term, None)).collect(),
        begins_with: None,
    }
}

fn path(node: u64) -> PathBuf {
    PathBuf::from(format!("/{node}"))
}

fn open(disk: &SimDisk, node: u64) -> DataDir {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    DataDir::open(disk, path(node), "c", NodeId(node), 1).unwrap()
}

/// Writes the data directory of a node which has run.
fn write(disk: &SimDisk, node: u64, replicas: &[Written]) {
    let dir = open(disk, node);
    dir.show().unwrap();
    let mut opened = polyraft_storage::open(&dir, &options(), 1).unwrap();
    let log = &mut opened.logs[0];
    for one in replicas {
        let creation = Creation {
            life: one.life,
            joined: Index(one.joined),
            is_witness: one.is_witness,
            configuration: one.members.clone(),
        };
        log.begin(one.group, creation).unwrap();
        let state = HardState {
            term: Term(one.term),
            vote: None,
            commit: Index(one.commit),
        };
        log.hard_state(one.group, state).unwrap();
        for (at, (term, members)) in one.entries.iter().enumerate() {
            let first = Index(at as u64 + 1);
            let (term, end) = (Term(*term), first.next());
            let range = EntryRange { term, first, end };
            let payload = format!("entry {} on {node}", first.0);
            let appended = match (members, &one.begins_with) {
                (None, Some((kind, entry))) if at == 0 => {
                    log.append(one.group, range, *kind, [entry])
                }
                (Some(members), _) => log.append_configuration(one.group, range, members),
                (None, _) => log.append(one.group, range, EntryKind::Normal, [payload]),
            };
            appended.unwrap();
        }
    }
    log.submit().unwrap();
    opened.wals[0].close().unwrap();
}

fn options() -> WalOptions {
    crate::assembly::wal_options(&config())
}

fn config() -> Config {
    let text = r#"
        [wal]
        segment_bytes = "4MiB"
        max_batch_bytes = "1MiB"
        min_free_bytes = "0B"
        pool_segments = 1
        [batch]
        max_proposal_bytes = "256KiB"
    "#;
    Config::from_toml_str(text).unwrap()
}

fn plan(disk: &SimDisk, nodes: &[u64], lost: &[u64]) -> Result<RecoveryPlan, RecoveryError> {
    let paths: Vec<PathBuf> = nodes.iter().copied().map(path).collect();
    plan_on(&|_| Arc::new(disk.clone()), &paths, lost)
}

fn carry_out(
    disk: &SimDisk,
    nodes: &[u64],
    plan: &RecoveryPlan,
) -> Result<Recovered, RecoveryError> {
    let paths: Vec<PathBuf> = nodes.iter().copied().map(path).collect();
    apply_on(&|_| Arc::new(disk.clone()), &paths, plan, &config())
}

fn surveyed(disk: &SimDisk, node: u64) -> Survey {
    Survey::of(&(Arc::new(disk.clone()) as Arc<dyn Disk>), &path(node)).unwrap()
}

#[test]
fn the_log_with_the_newest_last_entry_is_chosen_and_the_survivors_go_on_alone() {
    let disk = SimDisk::new(1);
    let members = [1, 2, 3, 4, 5];
    write(&disk, 1, &[replica(members, 9, 2, &[1, 1, 1, 1])]);
    write(&disk, 2, &[replica(members, 3, 1, &[1, 1, 3])]);
    let before = disk.files().len();
    let plan = plan(&disk, &[2, 1], &[3, 4, 5]).unwrap();
    assert_eq!(disk.files().len(), before, "a plan leaves nothing behind");
    assert_eq!((plan.with_quorum, plan.refused.len()), (0, 0));
    let group = &plan.groups[0];
    assert_eq!((group.group, group.chosen), (7, 2));
    assert_eq!((group.term, group.index), (9 + TERM_STEP, 4));
    assert_eq!((&group.voters[..], group.learners.len()), (&[1, 2][..], 0));
    assert_eq!(group.voters_before, members);
    assert_eq!((group.known_committed, group.becoming_committed), (2, 1));
    assert!(group.may_have_lost && group.known_lost == 0);

    let outcome = carry_out(&disk, &[1, 2], &plan).unwrap();
    assert_eq!((outcome.written, outcome.found), (1, 0));
    let (first, second) = (surveyed(&disk, 1), surveyed(&disk, 2));
    let replica = &second.replicas[&GROUP];
    assert_eq!(*replica.configuration(), voters([1, 2]));
    assert_eq!(replica.last.term, Term(9 + TERM_STEP));
    assert_eq!(replica.hard_state.vote, Some(NodeId(2)));
    let other = &first.replicas[&GROUP];
    assert_eq!(*other.configuration(), voters(members));
    assert_eq!(other.last.index, Index(4));
    drop((first, second));
    for node in [1, 2] {
        inspect::verify_on(Arc::new(disk.clone()), &path(node)).unwrap();
        let peers = open(&disk, node).peers();
        let refused = |lost| peers[&NodeId(lost)].incarnation == crate::router::NEVER;
        assert!([3, 4, 5].into_iter().all(refused));
    }
    let again = carry_out(&disk, &[1, 2], &plan).unwrap();
    assert_eq!((again.written, again.found), (0, 1));
}

#[test]
fn groups_with_a_quorum_are_left_alone_and_half_of_the_members_lose_nothing() {
    let disk = SimDisk::new(1);
    for node in [1, 2] {
        let quorum = replica([1, 2, 3], 1, 0, &[1]);
        let half = Written {
            group: GroupId(8),
            ..replica([1, 2, 3, 4], 1, 0, &[1])
        };
        write(&disk, node, &[quorum, half]);
    }
    let plan = plan(&disk, &[1, 2], &[3, 4]).unwrap();
    assert_eq!((plan.with_quorum, plan.groups.len()), (1, 1));
    assert_eq!(plan.groups[0].group, 8);
    assert!(!plan.groups[0].may_have_lost, "three of four had to agree");
    assert_eq!(
        plan.groups[0].chosen, 1,
        "the lower one of two that are equal"
    );
}

/// An entry by which a group is split.
fn split() -> Option<(EntryKind, Bytes)> {
    let entry = SplitEntry {
        child: GroupId(70),
        life: Life::FIRST,
        members: voters([1, 2, 3, 4, 5]),
        argument: Bytes::new(),
    };
    Some((EntryKind::Split, entry.encode()))
}

/// A group that forgets a merge or a split may serve the keys of another one.
#[test]
fn a_plan_says_where_a_merge_or_a_split_may_be_forgotten() {
    let group = |id, begins_with| Written {
        group: GroupId(id),
        begins_with,
        ..replica([1, 2, 3, 4, 5], 1, 0, &[1, 1])
    };
    let freeze = |target| {
        let command = MergeCommand::Freeze {
            target: GroupId(target),
            life: Life::FIRST,
            attempt: Index(1),
        };
        Some((EntryKind::Merge, command.encode()))
    };
    let disk = SimDisk::new(1);
    // Half of the last one's members are left: nothing of it is lost.
    let safe = |begins_with| Written {
        group: GroupId(12),
        begins_with,
        ..replica([1, 2, 3, 4], 1, 0, &[1])
    };
    let first = [
        group(8, freeze(9)),
        group(9, None),
        group(10, split()),
        group(11, None),
    ];
    let first = first.into_iter().chain([safe(freeze(13))]);
    write(&disk, 1, &first.collect::<Vec<_>>());
    write(&disk, 2, &[group(10, split()), safe(freeze(13))]);
    let plan = plan(&disk, &[1, 2], &[3, 4, 5]).unwrap();
    let flags = |one: &SurvivingGroup| {
        (
            one.group,
            one.may_have_lost,
            one.may_forget_merge,
            one.may_forget_split,
        )
    };
    assert_eq!(
        plan.groups.iter().map(flags).collect::<Vec<_>>(),
        [
            (8, true, true, false),
            (9, true, true, false),
            (10, true, false, true),
            (11, true, false, false),
            (12, false, false, false),
        ]
    );
}

#[test]
fn a_witness_that_is_left_is_no_source_and_says_what_is_lost() {
    let members = || voters([1, 2, 3]).with_witnesses([NodeId(3)]);
    let with = |disk: &SimDisk, full: &[u64], witness: &[u64]| {
        let is_witness = |is_witness, terms| Written {
            is_witness,
            members: members(),
            ..replica([1, 2, 3], 1, 0, terms)
        };
        write(disk, 2, &[is_witness(false, full)]);
        write(disk, 3, &[is_witness(true, witness)]);
    };
    // The witness elects the one that is left, which has all that it knows of.
    let disk = SimDisk::new(1);
    with(&disk, &[1, 1], &[1, 1]);
    assert_eq!(plan(&disk, &[2, 3], &[1]).unwrap().with_quorum, 1);

    // It does not, for there were entries that only the lost node has.
    let disk = SimDisk::new(1);
    with(&disk, &[1, 1], &[1, 1, 1]);
    let found = plan(&disk, &[2, 3], &[1]).unwrap();
    let group = &found.groups[0];
    assert_eq!(
        (group.chosen, group.index, group.may_have_lost),
        (2, 3, true)
    );
    assert_eq!((&group.voters[..], group.learners.len()), (&[2][..], 0));
    carry_out(&disk, &[2, 3], &found).unwrap();
    let survey = surveyed(&disk, 2);
    assert_eq!(*survey.replicas[&GROUP].configuration(), voters([2]));
    drop(survey);

    // Alone it is of no use.
    let found = plan(&disk, &[3], &[1, 2]).unwrap();
    assert!(found.groups.is_empty() && found.refused[0].why.contains("it is a witness"));
}

#[test]
fn members_that_an_open_change_names_count_too() {
    let disk = SimDisk::new(1);
    let learner = Configuration::joint([1, 2, 3].map(NodeId), [], [NodeId(6)], []);
    let joint = Configuration::joint([1, 5].map(NodeId), [1, 2, 3].map(NodeId), [NodeId(6)], []);
    let mut one = replica([1, 2, 3], 2, 2, &[1]);
    one.entries.push((2, Some(learner)));
    one.entries.push((2, Some(joint)));
    write(&disk, 1, &[one]);
    let mut learning = replica([1, 2, 3], 2, 0, &[1]);
    learning.members = voters([1, 2, 3]);
    write(&disk, 6, &[learning]);
    for (lost, missing) in [(&[2, 3][..], 5), (&[2, 5], 3), (&[3, 5], 2)] {
        let error = plan(&disk, &[1, 6], lost).unwrap_err();
        let RecoveryError::Missing { nodes, groups } = &error else {
            panic!("{error}");
        };
        assert_eq!((&nodes[..], *groups), (&[NodeId(missing)][..], 1));
        assert!(
            error
                .to_string()
                .contains(&format!("node {missing} is neither"))
        );
    }
    let plan = plan(&disk, &[1, 6], &[2, 3, 5]).unwrap();
    let group = &plan.groups[0];
    assert_eq!(
        (&group.voters[..], &group.learners[..]),
        (&[1][..], &[6][..])
    );
    assert_eq!(group.voters_before, [1, 2, 3, 5]);
    assert_eq!(group.learners_before, [6]);
    assert!(
        group.may_have_lost,
        "2 and 3 were a quorum before the change"
    );
}

/// Before, only members counted that a survivor's log names: who is lost had left the joint configuration, and committed alone.
#[test]
fn a_joint_configuration_at_the_end_of_the_log_may_have_been_left() {
    /// Who has the joint entry, who has all before it, and the lost.
    type Nodes<'a> = (&'a [u64], &'a [u64], &'a [u64]);
    let cases: [(&[u64], &[u64], Nodes<'_>, bool); 6] = [
        // With 3 and 4 all that the others had acknowledged is lost.
        (&[1, 2, 3], &[2, 3, 4], (&[1, 2], &[], &[3, 4]), true),
        (&[1, 2], &[2, 3], (&[1], &[], &[2, 3]), true),
        (&[1, 2, 3], &[2, 3, 4], (&[1], &[2], &[3, 4]), true),
        // Both of the members before would have to have it.
        (&[1, 2], &[1, 3, 4], (&[1], &[2], &[3, 4]), false),
        (&[1, 2], &[1, 3, 4], (&[1, 2], &[], &[3, 4]), true),
        // Nobody commits without 1 or 2 afterwards.
        (&[1, 2, 3], &[1, 2, 3, 4], (&[1, 2], &[], &[3, 4]), false),
    ];
    for (before, after, (have, behind, lost), is_lost) in cases {
        let disk = SimDisk::new(1);
        let nodes = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<Vec<_>>();
        let joint = Configuration::joint(nodes(after), nodes(before), [], []);
        for node in have.iter().chain(behind) {
            let mut one = replica([1], 1, 0, &[1]);
            one.members = Configuration::simple(nodes(before));
            one.begins_with = split();
            if have.contains(node) {
                one.entries.push((1, Some(joint.clone())));
            }
            write(&disk, *node, &[one]);
        }
        let plan = plan(&disk, &[have, behind].concat(), lost).unwrap();
        let group = &plan.groups[0];
        assert_eq!(group.index, 3);
        let told = (group.may_have_lost, group.may_forget_split);
        assert_eq!(told, (is_lost, is_lost), "{before:?} to {after:?}");
    }
}

#[test]
fn a_learner_with_the_newest_log_votes_from_then_on() {
    let disk = SimDisk::new(1);
    let members = Configuration::joint([1, 2, 3].map(NodeId), [], [NodeId(4)], []);
    for (node, terms) in [(1, &[1][..]), (4, &[1, 1])] {
        let mut one = replica([1], 1, 0, terms);
        one.members = members.clone();
        write(&disk, node, &[one]);
    }
    let plan = plan(&disk, &[1, 4], &[2, 3]).unwrap();
    let group = &plan.groups[0];
    assert_eq!((group.chosen, &group.voters[..]), (4, &[1, 4][..]));
    assert!(group.learners.is_empty());
}

#[test]
fn a_damaged_replica_is_not_chosen_and_counts_as_lost() {
    let disk = SimDisk::new(1);
    write(&disk, 1, &[replica([1, 2, 3], 1, 0, &[1])]);
    write(&disk, 2, &[replica([1, 2, 3], 1, 3, &[1, 1, 1])]);
    let text = b"entry 3 on 2";
    let rot = |file: &PathBuf| {
        let bytes = disk.read(file).unwrap();
        let at = bytes.windows(text.len()).position(|found| found == text)?;
        disk.flip_bits(file, at as u64, 1);
        Some(())
    };
    let hit = disk.files().iter().filter_map(rot).count();
    assert_eq!(hit, 1, "the entry is in one file");
    let one = plan(&disk, &[1, 2], &[3]).unwrap();
    let group = &one.groups[0];
    assert_eq!((group.chosen, &group.voters[..]), (1, &[1][..]));
    assert_eq!((group.known_lost, group.known_committed), (2, 1));
    assert!(
        group.replicas[1]
            .fault
            .as_ref()
            .unwrap()
            .contains("checksum")
    );
    let alone = plan(&disk, &[2], &[1, 3]).unwrap();
    assert_eq!((alone.groups.len(), alone.refused.len()), (0, 1));
    assert!(
        alone.refused[0].why.contains("on node 2, segment"),
        "{}",
        alone.refused[0].why
    );
}

#[test]
fn only_the_newest_life_counts_and_only_replicas_that_may_vote() {
    let disk = SimDisk::new(1);
    let second = Life::FIRST.next();
    let group = |group, one: Written| Written {
        group: GroupId(group),
        ..one
    };
    let of_all = [1, 2, 3, 4, 5];
    let old = replica(of_all, 9, 9, &[9; 9]);
    let fresh = Written {
        life: second,
        ..replica(of_all, 1, 0, &[1])
    };
    let late = Written {
        joined: 3,
        ..replica(of_all, 1, 0, &[1, 1])
    };
    write(
        &disk,
        1,
        &[group(1, old), group(2, replica(of_all, 1, 0, &[1]))],
    );
    write(&disk, 2, &[group(1, fresh), group(3, late)]);
    {
        let dir = open(&disk, 2);
        let mut opened = polyraft_storage::open(&dir, &options(), 1).unwrap();
        let over = Tombstone::destroyed(Life::FIRST);
        opened.logs[0].tombstone(GroupId(2), over).unwrap();
        opened.logs[0].submit().unwrap();
        opened.wals[0].close().unwrap();
    }
    let plan = plan(&disk, &[1, 2], &[3, 4, 5]).unwrap();
    assert_eq!(plan.groups.len(), 1);
    let first = &plan.groups[0];
    assert_eq!((first.group, first.chosen, first.index), (1, 2, 2));
    assert_eq!((&first.voters[..], first.replicas.len()), (&[2][..], 1));
    let refused: Vec<_> = plan.refused.iter().map(|one| one.group).collect();
    assert_eq!(refused, [2, 3]);
    assert!(plan.refused[0].why.contains("destroyed, as node 2 knows"));
    assert!(
        plan.refused[1]
            .why
            .contains("on node 2, it has not caught up")
    );
    carry_out(&disk, &[1, 2], &plan).unwrap();
    assert_eq!(
        surveyed(&disk, 2).replicas[&GroupId(1)].last.index,
        Index(2)
    );
    assert_eq!(
        surveyed(&disk, 1).replicas[&GroupId(1)].last.index,
        Index(9)
    );
}

#[test]
fn directories_that_prove_nothing_together_are_refused() {
    let disk = SimDisk::new(1);
    for node in [1, 2, 3] {
        write(&disk, node, &[replica([1, 2, 3], 1, 0, &[1])]);
    }
    let other: Arc<dyn Disk> = Arc::new(disk.clone());
    drop(DataDir::open(Arc::clone(&other), "/other", "d", NodeId(4), 1).unwrap());
    drop(DataDir::open(Arc::clone(&other), "/copy", "c", NodeId(1), 1).unwrap());
    let refused = |paths: &[&str], lost: &[u64]| {
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        let disks = |_: &Path| Arc::clone(&other);
        plan_on(&disks, &paths, lost).unwrap_err().to_string()
    };
    for (paths, lost, why) in [
        (&["/1"][..], &[][..], "name the nodes that are lost"),
        (&[], &[2], "give the data directories"),
        (&["/1"], &[2], "node 3 is neither given nor named as lost"),
        (&["/1", "/2"], &[2, 3], "which is named as lost"),
        (&["/1", "/1"], &[2, 3], "given twice"),
        (&["/1", "/copy"], &[2, 3], "given twice"),
        (
            &["/1", "/other"],
            &[2, 3],
            "belongs to cluster \"d\", not to \"c\"",
        ),
        (&["/nowhere"], &[2, 3], "not a node's data directory"),
    ] {
        let said = refused(paths, lost);
        assert!(said.contains(why), "{paths:?} {lost:?}: {said}");
    }
    let running = open(&disk, 1);
    assert!(refused(&["/1"], &[2, 3]).contains("lock"));
    drop(running);
    assert_eq!(plan(&disk, &[1], &[2, 3]).unwrap().groups.len(), 1);
}

/// The group left nodes 1, 2 and 3 for 4, 5 and 6 while node 1 was down, and 2 and 3 were scrapped.
#[test]
fn a_group_may_live_on_any_node_that_a_given_one_knows() {
    let disk = SimDisk::new(1);
    write(&disk, 1, &[replica([1, 2, 3], 1, 0, &[1])]);
    let met = |by, node, incarnation| {
        let store = StoreId(7);
        let seen = PeerSeen { store, incarnation };
        open(&disk, by).note_peer(NodeId(node), seen).unwrap();
    };
    let address = |by, node, [given, now]: [u16; 2]| {
        let at = |port| (port > 0).then(|| ([127, 0, 0, 1], port).into());
        let (given, now) = (at(given), at(now));
        let change = AddressChange { given, now };
        open(&disk, by).note_address(NodeId(node), change).unwrap();
    };
    let unaccounted = |nodes: &[u64], lost: &[u64]| {
        let numbers = |nodes: &[NodeId]| nodes.iter().map(|node| node.0).collect::<Vec<_>>();
        match plan(&disk, nodes, lost) {
            Ok(plan) => {
                assert_eq!(plan.groups.len(), 1);
                (Vec::new(), Vec::new())
            }
            Err(RecoveryError::Unaccounted { nodes, by }) => (numbers(&nodes), numbers(&by)),
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(unaccounted(&[1], &[2, 3]).0, [0; 0], "it met nobody");
    met(1, 2, 3);
    met(1, 4, 3);
    // 5 was added at run time and never came, 6 moved before it did.
    address(1, 5, [0, 5]);
    address(1, 6, [6, 7]);
    assert_eq!(unaccounted(&[1], &[2, 3]), (vec![4, 5, 6], vec![1]));
    address(1, 6, [6, 0]);
    assert_eq!(unaccounted(&[1], &[2, 3]), (vec![4, 5], vec![1]));
    let said = plan(&disk, &[1], &[2, 3]).unwrap_err().to_string();
    for words in [
        "nodes 4, 5 are neither given nor named as lost",
        "by what node 1 knows of the cluster",
        "Give their directories too, or name them as lost",
    ] {
        assert!(said.contains(words), "{said}");
    }
    // Each is accounted for by itself: given, lost, or taken out of the peers for good.
    assert_eq!(unaccounted(&[1], &[2, 3, 4]).0, [5]);
    write(&disk, 5, &[]);
    assert_eq!(unaccounted(&[1, 5], &[2, 3, 4]).0, [0; 0]);
    address(1, 4, [4, 0]);
    assert_eq!(unaccounted(&[1, 5], &[2, 3]).0, [0; 0]);
    // Another node has not taken it out.
    met(5, 4, 3);
    met(5, 1, 3);
    assert_eq!(unaccounted(&[1, 5], &[2, 3]), (vec![4], vec![5]));
    // Who was given up once has to be named again: a copy that was put back is refused in the same way.
    met(5, 4, crate::router::NEVER);
    assert_eq!(unaccounted(&[1, 5], &[2, 3]), (vec![4], vec![5]));
    assert_eq!(unaccounted(&[1, 5], &[2, 3, 4]).0, [0; 0]);
}

#[test]
fn a_plan_fits_only_what_it_was_made_of() {
    let disk = SimDisk::new(1);
    for node in [1, 2, 3] {
        write(&disk, node, &[replica([1, 2, 3], 1, 0, &[1])]);
    }
    let made = plan(&disk, &[1], &[2, 3]).unwrap();
    let differs = |disk: &SimDisk, nodes: &[u64], plan: &RecoveryPlan| {
        carry_out(disk, nodes, plan).unwrap_err().to_string()
    };
    let mut changed = made.clone();
    changed.groups[0].voters.push(9);
    assert!(differs(&disk, &[1], &changed).contains("fails its checksum"));
    changed.format += 1;
    assert!(differs(&disk, &[1], &changed).contains("version 2"));
    let others = plan(&disk, &[2], &[1, 3]).unwrap();
    assert!(differs(&disk, &[1], &others).contains("named as lost"));
    write(&disk, 4, &[]);
    assert!(differs(&disk, &[1, 4], &made).contains("it was made of the nodes {1}"));

    let ran = disk.after_power_cut(Keep::Everything);
    open(&ran, 1).show().unwrap();
    assert!(differs(&ran, &[1], &made).contains("node 1 ran on /1"));
    let grown = disk.after_power_cut(Keep::Everything);
    {
        let dir = open(&grown, 1);
        let mut opened = polyraft_storage::open(&dir, &options(), 1).unwrap();
        let state = HardState {
            term: Term(2),
            ..HardState::default()
        };
        opened.logs[0].hard_state(GROUP, state).unwrap();
        opened.logs[0].submit().unwrap();
        opened.wals[0].close().unwrap();
    }
    assert!(differs(&grown, &[1], &made).contains("group 7 has changed"));
    // Nothing of that has touched the directory itself.
    assert_eq!(carry_out(&disk, &[1], &made).unwrap().written, 1);
}

#[test]
fn an_installed_snapshot_is_what_the_entry_follows() {
    let disk = SimDisk::new(1);
    write(&disk, 1, &[replica([1, 2, 3], 2, 0, &[1, 2])]);
    let last = LogPosition {
        term: Term(4),
        index: Index(90),
    };
    {
        let (store, _) = SnapshotStore::open(&open(&disk, 1), 0).unwrap();
        let meta = SnapshotMeta {
            group: GROUP,
            incarnation: 0,
            last,
            configuration: voters([1, 2, 3, 4, 5]),
        };
        store.write(&meta, |_| Ok(())).unwrap();
    }
    let plan = plan(&disk, &[1], &[2, 3, 4, 5]).unwrap();
    let group = &plan.groups[0];
    assert_eq!((group.index, group.term), (91, 4 + TERM_STEP));
    assert_eq!((group.known_committed, group.becoming_committed), (90, 0));
    assert_eq!(carry_out(&disk, &[1], &plan).unwrap().written, 1);
    let survey = surveyed(&disk, 1);
    let replica = &survey.replicas[&GROUP];
    assert_eq!((replica.base, replica.last.index), (last, Index(91)));
    assert_eq!((replica.installed, &replica.fault), (None, &None));
    assert_eq!(*replica.configuration(), voters([1]));
}

#[test]
fn an_apply_that_the_power_interrupts_is_completed_by_the_next_one() {
    let disk = SimDisk::new(1);
    let some = |node: u64| {
        let one = |group| Written {
            group: GroupId(group),
            ..replica(
                [1, 2, 3, 4, 5],
                1,
                0,
                &[1; 3][..(2 + group + node) as usize % 3],
            )
        };
        (1..40).map(one).collect::<Vec<_>>()
    };
    for node in [1, 2] {
        write(&disk, node, &some(node));
    }
    let made = plan(&disk, &[1, 2], &[3, 4, 5]).unwrap();
    assert_eq!(made.groups.len(), 39);
    let by = |node| made.groups.iter().filter(|one| one.chosen == node).count();
    assert!(by(1) > 5 && by(2) > 5);
    disk.record_images();
    carry_out(&disk, &[1, 2], &made).unwrap();
    let images = disk.take_images();
    let (mut begun, mut half) = (0, 0);
    for image in &images {
        for keep in [Keep::Nothing, Keep::Everything, Keep::EvenPages] {
            let disk = image.after_power_cut(keep);
            let outcome = carry_out(&disk, &[1, 2], &made).unwrap();
            assert_eq!(outcome.written + outcome.found, 39);
            begun += usize::from(outcome.written == 39);
            half += usize::from(outcome.written < 39 && outcome.found < 39);
            for node in [1, 2] {
                let survey = surveyed(&disk, node);
                for group in made.groups.iter().filter(|one| one.chosen == node) {
                    let replica = &survey.replicas[&GroupId(group.group)];
                    let last = (replica.last.term.0, replica.last.index.0);
                    assert_eq!(last, (group.term, group.index));
                    assert_eq!(*replica.configuration(), voters([1, 2]));
                    assert!(replica.fault.is_none());
                }
            }
        }
    }
    assert!(begun > 0 && half > 0, "{begun} {half} of {}", images.len());
}

#[test]
fn a_repaired_replica_may_be_chosen_once_it_has_an_entry_of_a_later_term() {
    for (term, is_back) in [(2, false), (3, true)] {
        let disk = SimDisk::new(1);
        {
            let dir = open(&disk, 1);
            let mut opened = polyraft_storage::open(&dir, &options(), 1).unwrap();
            let lost = Tombstone {
                ending: Ending::Removed,
                term: Term(2),
                at: Index(9),
                ..Tombstone::destroyed(Life::FIRST)
            };
            opened.logs[0].tombstone(GROUP, lost).unwrap();
            opened.logs[0].submit().unwrap();
            opened.wals[0].close().unwrap();
        }
        write(&disk, 1, &[replica([1, 2, 3], 3, 0, &[term])]);
        let plan = plan(&disk, &[1], &[2, 3]).unwrap();
        let chosen: Vec<_> = plan.groups.iter().map(|group| group.chosen).collect();
        assert_eq!(chosen, if is_back { vec![1] } else { vec![] }, "{term}");
    }
}

#[test]
fn survivors_that_can_elect_without_the_newest_entry_are_left_alone() {
    let disk = SimDisk::new(1);
    // An entry that nobody else has: with it all of the others would be needed.
    let mut newest = replica([1, 2, 3], 1, 1, &[1]);
    let joint = Configuration::joint([4, 5, 6].map(NodeId), [1, 2, 3].map(NodeId), [], []);
    newest.entries.push((1, Some(joint)));
    for node in [1, 2] {
        write(&disk, node, &[replica([1, 2, 3], 1, 1, &[1])]);
    }
    write(&disk, 3, &[newest]);
    let all = plan(&disk, &[1, 2, 3], &[4, 5, 6]).unwrap();
    assert_eq!((all.with_quorum, all.groups.len()), (1, 0));
    // Where one of the two is lost too, nobody can be elected.
    let rest = plan(&disk, &[1, 3], &[2, 4, 5, 6]).unwrap();
    assert_eq!((rest.with_quorum, rest.groups.len()), (0, 1));
    assert_eq!(rest.groups[0].chosen, 3);
}

#[test]
fn who_was_removed_from_a_later_life_knows_that_an_earlier_one_is_over() {
    for (life, is_refused) in [(Life::FIRST, false), (Life::FIRST.next(), true)] {
        let disk = SimDisk::new(1);
        write(&disk, 1, &[replica([1, 2, 3], 1, 1, &[1])]);
        write(&disk, 2, &[]);
        {
            let dir = open(&disk, 2);
            let mut opened = polyraft_storage::open(&dir, &options(), 1).unwrap();
            let removed = Tombstone {
                life,
                ending: Ending::Removed,
                at: Index(1),
                ..Tombstone::destroyed(life)
            };
            opened.logs[0].tombstone(GROUP, removed).unwrap();
            opened.logs[0].submit().unwrap();
            opened.wals[0].close().unwrap();
        }
        let plan = plan(&disk, &[1, 2], &[3]).unwrap();
        assert_eq!(plan.refused.len(), usize::from(is_refused), "{life:?}");
    }
}
