//! How far one follower is, as its leader knows it. Exists only while leading. It knows no terms of entries
//! and sends nothing: it is told what was sent and answered, and says whether more may go.

use crate::inflight::Inflight;
use crate::{EntryRange, Index, NodeId, Settings, Tick};

/// How the leader sends to a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProgressState {
    /// The common prefix is not known: one append at a time, until the follower has one on its disk, or what comes before it.
    Probe,
    /// The follower accepts: appends are pipelined, as many as the window holds.
    Replicate,
    /// The follower needs entries that were purged: no entries are sent until it has a snapshot.
    Snapshot {
        /// The snapshot reaches at least this index.
        through: Index,
    },
}

/// A leader's knowledge of one follower.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// The follower.
    pub node: NodeId,
    /// How to send to it.
    pub state: ProgressState,
    /// Equal and durable there through this index; `matched < next`. Never goes back within a term.
    pub matched: Index,
    /// The next index to send.
    pub next: Index,
    /// Whether its node is alive. Nothing is sent to a dead one.
    pub alive: bool,
    /// It stores no payload. It is sent nothing newer than what enough full voters hold durably to commit it with all witnesses: so
    /// it keeps nobody from being elected for lack of what could not be committed.
    pub is_witness: bool,
    /// The highest commit index told to it since it was last known to listen.
    pub commit_sent: Index,
    /// The highest commit index that it answered with.
    pub commit_acked: Index,
    /// Appends on the way.
    pub inflight: Inflight,
    /// In [`ProgressState::Probe`]: the probe is out and not answered.
    pub(crate) probing: bool,
    /// Since when something is awaited from it without any progress.
    pub(crate) since: Tick,
}

impl Progress {
    /// A follower of which nothing is known but the leader's own log end.
    pub(crate) fn new(node: NodeId, next: Index, alive: bool, now: Tick) -> Progress {
        Progress {
            node,
            state: ProgressState::Probe,
            matched: Index::ZERO,
            next,
            alive,
            is_witness: false,
            commit_sent: Index::ZERO,
            commit_acked: Index::ZERO,
            inflight: Inflight::default(),
            probing: false,
            since: now,
        }
    }

    /// Whether an answer is awaited.
    pub(crate) fn is_waiting(&self) -> bool {
        match self.state {
            ProgressState::Probe => self.probing || self.commit_sent > self.commit_acked,
            ProgressState::Replicate => {
                !self.inflight.is_empty() || self.commit_sent > self.commit_acked
            }
            ProgressState::Snapshot { .. } => true,
        }
    }

    /// Whether it lacks entries through `last`, or the news that `committed` is.
    pub(crate) fn is_behind(&self, last: Index, committed: Index) -> bool {
        self.matched < last || self.commit_acked < committed
    }

    /// Whether it accepts appends and was not told of `committed` yet.
    pub(crate) fn wants_notice(&self, committed: Index) -> bool {
        self.state == ProgressState::Replicate && self.commit_sent < committed
    }

    /// Entries and bytes that the next append may have; `None` when it must wait.
    pub(crate) fn room(&mut self, settings: &Settings) -> Option<(u64, u64)> {
        if !self.alive {
            return None;
        }
        match self.state {
            ProgressState::Probe if self.probing => None,
            ProgressState::Probe => Some((u64::MAX, u64::MAX)),
            ProgressState::Replicate => self.inflight.room(settings),
            ProgressState::Snapshot { .. } => None,
        }
    }

    /// An append with the leader's commit index was sent.
    pub(crate) fn sent(&mut self, entries: EntryRange, bytes: u64, commit: Index, now: Tick) {
        if !self.is_waiting() {
            self.since = now;
        }
        match self.state {
            ProgressState::Replicate if !entries.is_empty() => {
                self.inflight.push(entries, bytes);
                self.next = entries.end;
            }
            ProgressState::Replicate | ProgressState::Snapshot { .. } => {}
            ProgressState::Probe => self.probing = true,
        }
        // The follower takes the commit index only as far as this append proves its log.
        self.commit_sent = self.commit_sent.max(commit.min(entries.last()));
    }

    /// The follower is equal and durable through `matched`, and knows `commit`. Returns whether `matched` is news.
    pub(crate) fn acknowledge(&mut self, matched: Index, commit: Index, now: Tick) -> bool {
        let advanced = matched > self.matched;
        if advanced || commit > self.commit_acked {
            self.since = now;
        }
        self.commit_acked = self.commit_acked.max(commit);
        self.commit_sent = self.commit_sent.max(commit);
        if advanced {
            self.matched = matched;
            self.inflight.acknowledge(matched);
        }
        let accepts = match self.state {
            // Who has what was asked about, but not yet on its disk, answers again once it is there. Asked at once, it could
            // only say the same, and the two would not rest until that disk has written.
            ProgressState::Probe => advanced || matched == self.next.prev(),
            ProgressState::Replicate => false,
            ProgressState::Snapshot { through } => matched >= through,
        };
        if accepts {
            self.state = ProgressState::Replicate;
            self.probing = false;
            self.inflight.clear();
            self.next = self.matched.next();
        }
        self.next = self.next.max(self.matched.next());
        self.check();
        advanced
    }

    /// The follower refused an append after `rejected`; the logs may agree through `hint`. Returns whether
    /// this was news: of many refused appends of a pipeline only the first one is, or each would be answered
    /// by another resend.
    pub(crate) fn refuse(&mut self, rejected: Index, hint: Index, now: Tick) -> bool {
        let is_news = match self.state {
            ProgressState::Probe => {
                self.probing && rejected == self.next.prev() && rejected > self.matched
            }
            ProgressState::Replicate => rejected > self.matched && rejected < self.next,
            ProgressState::Snapshot { .. } => false,
        };
        if is_news {
            if self.state == ProgressState::Replicate {
                self.inflight.shrink();
            }
            self.since = now;
            self.probe_from(rejected.min(hint.next()));
        }
        is_news
    }

    /// Nothing came back for too long: take everything on the way for lost.
    pub(crate) fn give_up_waiting(&mut self, now: Tick) {
        self.since = now;
        if !matches!(self.state, ProgressState::Snapshot { .. }) {
            self.inflight.shrink();
            self.probe_again();
        }
    }

    /// The node went silent: send nothing until it is back.
    pub(crate) fn down(&mut self) {
        self.alive = false;
        self.probe_again();
    }

    /// The node is back, perhaps restarted: it may have forgotten what was committed, and appends may be lost.
    pub(crate) fn up(&mut self, now: Tick) {
        self.alive = true;
        self.since = now;
        self.commit_acked = Index::ZERO;
        self.probe_again();
    }

    /// What comes before `base` is purged: ask whether the follower has the log's base before it is given a
    /// snapshot.
    pub(crate) fn probe_base(&mut self, base: Index) {
        self.probe_from(base.next());
    }

    /// What it needs is purged.
    pub(crate) fn need_snapshot(&mut self, through: Index, now: Tick) {
        self.state = ProgressState::Snapshot { through };
        self.probing = false;
        self.inflight.clear();
        self.since = now;
    }

    /// Asks again. A pipeline starts over after what matched; a probe stands where it was, because nothing is
    /// known yet that would make another place better.
    fn probe_again(&mut self) {
        let next = if self.state == ProgressState::Probe {
            self.next
        } else {
            self.matched.next()
        };
        self.probe_from(next);
    }

    fn probe_from(&mut self, next: Index) {
        self.state = ProgressState::Probe;
        self.probing = false;
        self.inflight.clear();
        self.commit_sent = self.commit_acked;
        self.next = next.max(self.matched.next());
        self.check();
    }

    #[inline]
    fn check(&self) {
        assert!(
            self.matched < self.next,
            "sends again what matched: {self:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Term;

    fn range(first: u64, end: u64) -> EntryRange {
        EntryRange {
            term: Term(1),
            first: Index(first),
            end: Index(end),
        }
    }

    fn replicating(matched: u64) -> Progress {
        let mut progress = Progress::new(NodeId(2), Index(matched + 1), true, Tick(0));
        progress.acknowledge(Index(matched), Index::ZERO, Tick(0));
        assert_eq!(progress.state, ProgressState::Replicate);
        progress
    }

    #[test]
    fn one_probe_at_a_time() {
        let mut progress = Progress::new(NodeId(2), Index(5), true, Tick(0));
        let settings = Settings::default();
        assert!(progress.room(&settings).is_some());
        progress.sent(range(5, 6), 10, Index(0), Tick(1));
        assert_eq!(progress.room(&settings), None);
        progress.give_up_waiting(Tick(2));
        assert!(progress.room(&settings).is_some());
    }

    #[test]
    fn of_many_conflicts_only_the_first_is_news() {
        let mut progress = replicating(10);
        for first in [11, 21, 31] {
            progress.sent(range(first, first + 10), 10, Index(0), Tick(1));
        }
        assert!(progress.refuse(Index(20), Index(10), Tick(2)));
        assert_eq!(
            (progress.state, progress.next),
            (ProgressState::Probe, Index(11))
        );
        assert!(!progress.refuse(Index(30), Index(10), Tick(2)));
        progress.sent(range(11, 41), 30, Index(0), Tick(2));
        assert!(!progress.refuse(Index(30), Index(10), Tick(3)));
        assert_eq!(progress.next, Index(11));
    }

    #[test]
    fn a_conflict_never_goes_below_what_matched() {
        let mut progress = replicating(10);
        progress.sent(range(11, 21), 10, Index(0), Tick(1));
        assert!(!progress.refuse(Index(9), Index(3), Tick(2)));
        progress.sent(range(21, 22), 10, Index(0), Tick(1));
        assert!(progress.refuse(Index(20), Index(3), Tick(2)));
        assert_eq!(progress.next, Index(11));
        // Who refuses what it has acknowledged is not asked again at once, or the two would never rest.
        progress.sent(range(11, 21), 10, Index(0), Tick(2));
        assert!(!progress.refuse(Index(10), Index(3), Tick(3)));
    }

    #[test]
    fn a_late_acknowledgement_ends_a_probe() {
        let mut progress = replicating(10);
        progress.sent(range(11, 21), 10, Index(0), Tick(1));
        progress.give_up_waiting(Tick(9));
        assert!(progress.acknowledge(Index(20), Index(0), Tick(10)));
        assert_eq!(
            (progress.state, progress.next),
            (ProgressState::Replicate, Index(21))
        );
    }

    #[test]
    fn a_node_that_comes_back_is_told_the_commit_again() {
        let mut progress = replicating(10);
        progress.acknowledge(Index(10), Index(10), Tick(1));
        assert!(!progress.is_behind(Index(10), Index(10)));
        progress.down();
        progress.up(Tick(2));
        assert!(progress.is_behind(Index(10), Index(10)));
        assert_eq!(progress.state, ProgressState::Probe);
    }

    #[test]
    fn a_snapshot_ends_when_the_follower_has_reached_it() {
        let mut progress = Progress::new(NodeId(2), Index(5), true, Tick(0));
        progress.need_snapshot(Index(20), Tick(1));
        assert!(!progress.refuse(Index(4), Index(0), Tick(1)));
        progress.acknowledge(Index(7), Index(0), Tick(2));
        assert_eq!(
            progress.state,
            ProgressState::Snapshot { through: Index(20) }
        );
        progress.acknowledge(Index(20), Index(0), Tick(2));
        assert_eq!(
            (progress.state, progress.next),
            (ProgressState::Replicate, Index(21))
        );
    }

    #[test]
    fn whatever_moves_a_follower_on_is_no_silence() {
        let mut progress = replicating(10);
        progress.sent(range(11, 21), 10, Index(10), Tick(5));
        assert_eq!(progress.since, Tick(5));
        // Nothing new, the commit alone, entries alone.
        progress.acknowledge(Index(10), Index(0), Tick(6));
        assert_eq!(progress.since, Tick(5));
        progress.acknowledge(Index(10), Index(10), Tick(7));
        assert_eq!(progress.since, Tick(7));
        progress.acknowledge(Index(15), Index(10), Tick(8));
        assert_eq!(progress.since, Tick(8));
        assert!(progress.refuse(Index(20), Index(15), Tick(9)));
        assert_eq!(progress.since, Tick(9));
        progress.need_snapshot(Index(18), Tick(10));
        assert_eq!(progress.since, Tick(10));
        progress.up(Tick(11));
        assert_eq!(progress.since, Tick(11));
        // What is taken for lost is sent again, and awaited from then on.
        progress.give_up_waiting(Tick(12));
        assert_eq!(progress.since, Tick(12));
    }

    #[test]
    fn what_a_probe_found_and_is_not_durable_there_is_sent_again() {
        let mut progress = Progress::new(NodeId(2), Index(11), true, Tick(0));
        progress.sent(range(11, 21), 10, Index(0), Tick(1));
        // The logs agree through 10, but the follower's disk is at 5. If its next answer is lost, nobody else would ask.
        assert!(progress.acknowledge(Index(5), Index(0), Tick(2)));
        assert_eq!(
            (progress.state, progress.next),
            (ProgressState::Replicate, Index(6))
        );
        assert!(progress.inflight.is_empty());
    }

    #[test]
    fn who_has_it_but_not_on_its_disk_is_not_asked_again_at_once() {
        let settings = Settings::default();
        let mut progress = replicating(5);
        // What it needs next is purged, and the log's base is on its way to its disk.
        progress.probe_base(Index(8));
        progress.sent(range(9, 12), 10, Index(0), Tick(2));
        for _ in 0..2 {
            assert!(!progress.acknowledge(Index(5), Index(0), Tick(3)));
            assert_eq!(
                (progress.state, progress.next),
                (ProgressState::Probe, Index(9))
            );
            assert_eq!(progress.room(&settings), None);
        }
        // The answer that it gives from then on may be lost.
        assert!(progress.is_waiting());
        assert!(progress.acknowledge(Index(11), Index(0), Tick(4)));
        assert_eq!(
            (progress.state, progress.next),
            (ProgressState::Replicate, Index(12))
        );
    }

    #[test]
    fn an_equal_answer_ends_a_probe_that_asked_about_it() {
        let mut progress = replicating(5);
        progress.up(Tick(1));
        progress.sent(range(6, 6), 0, Index(0), Tick(1));
        assert!(!progress.acknowledge(Index(5), Index(0), Tick(2)));
        assert_eq!(
            (progress.state, progress.next),
            (ProgressState::Replicate, Index(6))
        );
    }

    #[test]
    fn a_node_that_restarted_unseen_is_probed() {
        let mut progress = replicating(10);
        progress.sent(range(11, 21), 10, Index(0), Tick(1));
        progress.up(Tick(2));
        assert_eq!(
            (progress.state, progress.next),
            (ProgressState::Probe, Index(11))
        );
        assert!(progress.inflight.is_empty() && !progress.is_waiting());
    }

    /// A follower that holds a prefix of the leader's log, some of it not yet on its disk, and everything on the way between the two.
    struct Naive {
        progress: Progress,
        settings: Settings,
        last: u64,
        /// The follower holds the log through here, and durably through there.
        held: u64,
        durable: u64,
        /// The leader has purged its log through here.
        base: u64,
        /// Appends on the way, as `first..end`.
        appends: Vec<(u64, u64)>,
        /// Answers on the way: what is matched, or what was refused with a hint.
        answers: Vec<Result<u64, (u64, u64)>>,
        now: u64,
    }

    impl Naive {
        fn new(last: u64, held: u64, messages: u32, entries: u64) -> Naive {
            let settings = Settings {
                inflight_messages: messages,
                inflight_entries: entries,
                ..Settings::default()
            };
            Naive {
                progress: Progress::new(NodeId(2), Index(last + 1), true, Tick(0)),
                settings,
                last,
                held: held.min(last),
                durable: held.min(last),
                base: 0,
                appends: Vec::new(),
                answers: Vec::new(),
                now: 0,
            }
        }

        /// Sends what there is room for, as a leader's flush does.
        fn flush(&mut self, most: u64) {
            let committed = Index(self.last);
            for sent in 0.. {
                let wants = self.progress.next.0 <= self.last
                    || (self.progress.state == ProgressState::Probe
                        && self.progress.is_behind(Index(self.last), committed));
                if wants && self.progress.next.0 <= self.base {
                    self.progress.probe_base(Index(self.base));
                }
                let Some((room, _)) = self.progress.room(&self.settings).filter(|_| wants) else {
                    break;
                };
                assert!(sent <= self.last + 1, "it never stops sending");
                let first = self.progress.next.0;
                let end = (first + most.min(room)).min(self.last + 1);
                self.progress
                    .sent(range(first, end), 1, committed, Tick(self.now));
                self.appends.push((first, end));
            }
        }

        /// The follower takes the append, or refuses it for the hole before it.
        fn take(&mut self, at: usize) {
            let (first, end) = self.appends.remove(at);
            if first > self.held + 1 {
                self.answers.push(Err((first - 1, self.held)));
            } else if end > self.held + 1 {
                self.held = end - 1; // It answers once that is durable.
            } else {
                self.answers.push(Ok(self.durable));
            }
        }

        /// The follower's disk has written everything.
        fn sync(&mut self) {
            if self.durable < self.held {
                self.durable = self.held;
                self.answers.push(Ok(self.durable));
            }
        }

        /// Everything on the way arrives and is answered, again and again, while neither time passes nor a disk writes. Returns
        /// whether the two come to rest.
        fn rests(&mut self) -> bool {
            for _ in 0..4 * (self.last + 4) {
                self.flush(4);
                if self.appends.is_empty() && self.answers.is_empty() {
                    return true;
                }
                while !self.appends.is_empty() {
                    self.take(0);
                }
                while !self.answers.is_empty() {
                    self.answer(0);
                    self.check();
                }
            }
            false
        }

        fn answer(&mut self, at: usize) {
            match self.answers.remove(at) {
                Ok(matched) => {
                    let known = self.progress.matched.0;
                    let commit = Index(matched);
                    let is_news = self
                        .progress
                        .acknowledge(Index(matched), commit, Tick(self.now));
                    assert_eq!(is_news, matched > known);
                    assert_eq!(self.progress.matched.0, matched.max(known));
                }
                Err((rejected, hint)) => {
                    let now = Tick(self.now);
                    self.progress.refuse(Index(rejected), Index(hint), now);
                }
            }
        }

        fn check(&self) {
            let (progress, window) = (&self.progress, &self.progress.inflight);
            assert!(progress.matched < progress.next);
            assert!(
                progress.matched.0 <= self.durable,
                "it counts what is not durable"
            );
            assert!(progress.next.0 <= self.last + 1);
            assert!(window.messages() <= self.settings.inflight_messages as usize);
            assert!(window.entries() <= self.settings.inflight_entries);
            match progress.state {
                ProgressState::Replicate if !window.is_empty() => {
                    let newest = progress.next.0 - 1;
                    assert!(newest - window.entries() >= progress.matched.0);
                }
                _ => assert!(window.is_empty()),
            }
        }
    }

    proptest! {
        #[test]
        fn a_follower_is_never_overrated_and_always_caught_up(
            last in 1..40_u64, held in 0..40_u64, messages in 1..5_u32, entries in 1..9_u64,
            steps in prop::collection::vec((0..15_u8, 0..64_usize), 0..120),
        ) {
            let mut naive = Naive::new(last, held, messages, entries);
            for (kind, n) in steps {
                naive.now += 1;
                let now = Tick(naive.now);
                match kind {
                    0..=2 => naive.flush(1 + n as u64 % 4),
                    3..=5 if !naive.appends.is_empty() => naive.take(n % naive.appends.len()),
                    6..=8 if !naive.answers.is_empty() => naive.answer(n % naive.answers.len()),
                    9 if !naive.appends.is_empty() => drop(naive.appends.remove(n % naive.appends.len())),
                    10 if naive.progress.is_waiting() => naive.progress.give_up_waiting(now),
                    11 if naive.progress.alive => naive.progress.down(),
                    11 => naive.progress.up(now),
                    12..=13 => naive.sync(),
                    // What the follower does not hold it would get with a snapshot, which is not played here.
                    14 => naive.base = naive.base.max((naive.held).saturating_sub(n as u64 % 3)),
                    _ => naive.last += n as u64 % 3,
                }
                naive.check();
            }
            // Nothing is lost from now on, and silence is noticed.
            if !naive.progress.alive {
                naive.progress.up(Tick(naive.now));
            }
            prop_assert!(naive.rests(), "they never rest: {:?}", naive.progress);
            let rounds = 4 * (naive.last + 4);
            for _ in 0..rounds {
                naive.sync();
                prop_assert!(naive.rests(), "they never rest: {:?}", naive.progress);
                if naive.progress.is_waiting() {
                    naive.progress.give_up_waiting(Tick(naive.now));
                }
            }
            prop_assert_eq!(naive.progress.matched.0, naive.last);
            prop_assert_eq!(naive.held, naive.last);
            prop_assert!(!naive.progress.is_waiting());
        }
    }
}
