//! One thread of the generator: slots for operations under way, a pace that says when the next one is due, and answers
//! that are timed when they arrive. It must never send again what may have been committed, and never let a slow
//! answer put off an operation of an open loop.

use super::figures::nanos;
use super::port::{Answer, Answered, Elsewhere, Port};
use super::watch::Watch;
use super::{Counted, Shared, Timing};
use crate::control::Goal;
use crate::payloads::Payloads;
use crate::workload::{KeyPicker, Pace, ReadMode, Rng, Schedule, SizePicker, Workload};
use rustix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a refused operation waits before it is sent again.
const RETRY_DELAY: Duration = Duration::from_millis(1);

/// The longest wait for an answer. Only a change of goal or of the nodes is noticed this late.
const MAX_WAIT: Duration = Duration::from_millis(10);

/// The shortest wait of an open loop. What falls due meanwhile is sent together; the wait counts as latency.
const MIN_WAIT: Duration = Duration::from_micros(50);

/// So many operations of an open loop are sent before answers are looked at again.
const BURST: usize = 256;

/// An open loop holds at most this many operations under way; more are sent when there is room, and their latency
/// counts from when they were due.
const MAX_UNDER_WAY: usize = 1 << 20;

/// Operations that were due and never sent are counted one by one up to this number; of more, each stands for several,
/// or counting them would take longer than the load.
const UNSENT_ONE_BY_ONE: u64 = 1 << 16;

/// How often the thread's CPU time is read.
const CPU_INTERVAL: Duration = Duration::from_millis(50);

/// One operation under way.
#[derive(Clone, Copy)]
struct Slot {
    group: u32,
    bytes: u32,
    /// When it was due; in a closed loop, when it was first sent.
    due: Instant,
    /// Which sending the slot waits for. An answer to an earlier one is a bug of the engine.
    attempt: u32,
    state: SlotState,
    is_read: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Free,
    InFlight,
    WaitsForRetry,
}

/// When the next operation comes.
enum Pacer {
    /// At once, while there is a free slot.
    Closed,
    Open {
        schedule: Schedule,
        /// No slot was free until then: what was due before was held back by the nodes.
        blocked_until: Instant,
    },
}

/// What became of operations since the figures were last published.
#[derive(Default)]
struct News {
    /// Operations that ended.
    ended: Vec<Ended>,
    /// How late operations of the window were sent, or were not: nanoseconds, and how many operations.
    lags: Vec<(u64, u64)>,
    /// Refused and sent again: all, and those of the window.
    retried: (u64, u64),
    /// Open outcomes: all, and those of the window.
    open: (u64, u64),
}

/// Operations that ended.
struct Ended {
    is_read: bool,
    /// With success. Else they were given up.
    is_answered: bool,
    is_measured: bool,
    /// From when they were due until they ended, in nanoseconds.
    nanos: u64,
    count: u64,
}

/// A thread with its slots.
pub struct Worker {
    timing: Timing,
    pacer: Pacer,
    keys: KeyPicker,
    sizes: SizePicker,
    reads: f64,
    read_mode: ReadMode,
    rng: Rng,
    payloads: Payloads,
    port: Box<dyn Port>,
    slots: Vec<Slot>,
    max_slots: usize,
    free: Vec<u32>,
    in_flight: usize,
    /// Refused operations in the order in which they are due.
    retries: VecDeque<(Instant, u32)>,
    /// By group: where to propose, as far as is known.
    leads: Vec<u8>,
    next_read_node: usize,
    /// What this round adds to the shared figures.
    news: News,
    cpu_read: Instant,
    shared: Arc<Shared>,
    watch: Arc<Watch>,
}

impl Worker {
    /// Thread `at` of `threads`.
    pub fn new(
        workload: &Workload,
        timing: Timing,
        (at, threads): (usize, usize),
        port: Box<dyn Port>,
        shared: Arc<Shared>,
        watch: Arc<Watch>,
    ) -> Self {
        let (pacer, slots, max_slots) = match workload.pace {
            Pace::Inflight(inflight) => {
                let window = (inflight as usize + at) / threads;
                (Pacer::Closed, window, window)
            }
            Pace::Rate {
                per_second,
                arrivals,
            } => {
                let schedule = Schedule::new(arrivals, per_second, (at, threads), workload.seed);
                let blocked_until = timing.origin;
                let pacer = Pacer::Open {
                    schedule,
                    blocked_until,
                };
                (pacer, 0, MAX_UNDER_WAY / threads)
            }
        };
        let slot = Slot {
            group: 0,
            bytes: 0,
            due: timing.origin,
            attempt: 0,
            state: SlotState::Free,
            is_read: false,
        };
        Self {
            pacer,
            keys: KeyPicker::new(workload.keys, workload.active_groups, (at, threads)),
            sizes: SizePicker::new(workload.payload),
            reads: workload.reads,
            read_mode: workload.read_mode,
            rng: Rng::new(workload.seed, at as u64),
            payloads: Payloads::new(workload.payload.max() as usize),
            slots: vec![slot; slots],
            max_slots,
            free: (0..slots as u32).rev().collect(),
            in_flight: 0,
            retries: VecDeque::new(),
            leads: vec![0; workload.active_groups as usize],
            next_read_node: at,
            news: News::default(),
            cpu_read: timing.origin,
            port,
            timing,
            shared,
            watch,
        }
    }

    /// Sends until the goal is to end.
    pub fn run(mut self) {
        // The default slack of 50 µs would be added to every wait. A kernel that refuses costs some lag, which shows.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
        let mut answers = Vec::new();
        loop {
            self.port.refresh();
            match self.shared.control.goal() {
                Goal::Run => self.send_due(),
                Goal::Rest => {
                    self.give_up_unsent();
                    if self.in_flight == 0 {
                        self.publish(Instant::now());
                        self.shared.control.rest();
                        continue;
                    }
                }
                Goal::End => break,
            }
            self.port.flush();
            let timeout = self.wait();
            self.port.drain(&mut answers, timeout);
            let now = Instant::now();
            self.note_blocked(now);
            for answered in answers.drain(..) {
                self.settle(answered, now);
            }
            self.publish(now);
        }
    }

    /// Until now no operation could be sent for want of a slot, if that is so.
    fn note_blocked(&mut self, now: Instant) {
        if let Pacer::Open { blocked_until, .. } = &mut self.pacer
            && self.free.is_empty()
            && self.slots.len() == self.max_slots
        {
            *blocked_until = now;
        }
    }

    /// Sends retries whose time has come, then whatever the pace asks for.
    fn send_due(&mut self) {
        let now = Instant::now();
        while self.retries.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, slot)) = self.retries.pop_front() {
                self.send(slot);
            }
        }
        match &self.pacer {
            Pacer::Closed => {
                if now < self.timing.origin {
                    return;
                }
                // A slot that is refused at once waits for its retry, so each free slot is filled at most once here.
                while let Some(slot) = self.free.pop() {
                    self.begin(slot, Instant::now());
                }
            }
            Pacer::Open { .. } => self.send_scheduled(),
        }
    }

    fn send_scheduled(&mut self) {
        let mut now = Instant::now();
        for _ in 0..BURST {
            let Pacer::Open {
                schedule,
                blocked_until,
            } = &mut self.pacer
            else {
                return;
            };
            let due = self.timing.origin + schedule.peek();
            if due > now {
                now = Instant::now();
                if due > now {
                    return;
                }
            }
            let slot = match self.free.pop() {
                Some(slot) => slot,
                None if self.slots.len() < self.max_slots => {
                    self.slots.push(Slot {
                        group: 0,
                        bytes: 0,
                        due,
                        attempt: 0,
                        state: SlotState::Free,
                        is_read: false,
                    });
                    self.slots.len() as u32 - 1
                }
                None => return,
            };
            schedule.advance();
            let held_up = now.saturating_duration_since(due.max(*blocked_until));
            if self.is_measured(due) {
                self.news.lags.push((nanos(held_up), 1));
            }
            self.begin(slot, due);
        }
    }

    /// Fills a slot with a new operation and sends it.
    fn begin(&mut self, slot: u32, due: Instant) {
        let is_read = self.reads > 0.0 && self.rng.unit() < self.reads;
        let group = self.keys.pick(&mut self.rng) as u32;
        let bytes = if is_read {
            0
        } else {
            self.sizes.pick(&mut self.rng) as u32
        };
        let current = &mut self.slots[slot as usize];
        (current.group, current.bytes) = (group, bytes);
        (current.due, current.is_read) = (due, is_read);
        self.send(slot);
    }

    fn send(&mut self, at: u32) {
        let slot = &mut self.slots[at as usize];
        slot.attempt = slot.attempt.wrapping_add(1);
        let (slot, tag) = (*slot, tag(at, slot.attempt));
        let group = u64::from(slot.group);
        if slot.is_read {
            let node = match self.read_mode {
                ReadMode::Stale => self.next_read_node(),
                ReadMode::Linearizable | ReadMode::Lease => self.choose_node(slot.group),
            };
            let Some(node) = node else {
                return self.retry_later(at);
            };
            self.slots[at as usize].state = SlotState::InFlight;
            self.in_flight += 1;
            return self.port.read(node, group, tag, self.read_mode);
        }
        let Some(node) = self.choose_node(slot.group) else {
            return self.retry_later(at);
        };
        let payload = self.payloads.make(&tag.to_le_bytes(), slot.bytes as usize);
        match self.port.propose(node, group, payload, tag) {
            Ok(()) => {
                self.slots[at as usize].state = SlotState::InFlight;
                self.in_flight += 1;
            }
            Err(Answer::Refused(elsewhere)) => {
                self.turn_to(slot.group, elsewhere);
                self.retry_later(at);
            }
            Err(other) => {
                self.shared
                    .control
                    .fail(format!("group {group}: {other:?} when it was sent"));
                self.retry_later(at);
            }
        }
    }

    /// The node to propose to: the leader's if it is known and runs, else the last one, else any that runs.
    fn choose_node(&mut self, group: u32) -> Option<usize> {
        let mut node = usize::from(self.leads[group as usize]);
        if !self.port.runs(node) {
            node = (0..self.port.nodes()).find(|node| self.port.runs(*node))?;
        }
        if let Some(leader) = self.port.leader(node, u64::from(group))
            && self.port.runs(leader)
        {
            node = leader;
        }
        self.leads[group as usize] = node as u8;
        Some(node)
    }

    /// All nodes that run, in turn.
    fn next_read_node(&mut self) -> Option<usize> {
        let nodes = self.port.nodes();
        let node = (1..=nodes)
            .map(|step| (self.next_read_node + step) % nodes)
            .find(|node| self.port.runs(*node))?;
        self.next_read_node = node;
        Some(node)
    }

    fn turn_to(&mut self, group: u32, elsewhere: Elsewhere) {
        self.port.hint(u64::from(group), elsewhere);
        let leads = &mut self.leads[group as usize];
        *leads = match elsewhere {
            Elsewhere::Here => return,
            Elsewhere::At(node) => node as u8,
            Elsewhere::Anywhere => (*leads + 1) % self.port.nodes() as u8,
        };
    }

    fn retry_later(&mut self, slot: u32) {
        self.slots[slot as usize].state = SlotState::WaitsForRetry;
        self.retries.push_back((Instant::now() + RETRY_DELAY, slot));
        let is_measured = self.is_measured(self.slots[slot as usize].due);
        self.news.retried.0 += 1;
        self.news.retried.1 += u64::from(is_measured);
    }

    fn release(&mut self, slot: u32) {
        self.slots[slot as usize].state = SlotState::Free;
        self.free.push(slot);
    }

    /// The load ends: refused operations are in no log, and what is due but was not sent never will be. Both have
    /// waited, and that counts.
    fn give_up_unsent(&mut self) {
        let now = Instant::now();
        for (_, at) in std::mem::take(&mut self.retries) {
            self.end(self.slots[at as usize], false, now);
            self.release(at);
        }
        let Pacer::Open {
            schedule,
            blocked_until,
        } = &mut self.pacer
        else {
            return;
        };
        let Timing { origin, window } = &self.timing;
        let passed = now.saturating_duration_since(*origin);
        let until = passed.min(window.end);
        // What was due before the window counts nowhere.
        schedule.skip(schedule.expected_until(until.min(window.start)));
        let count = (schedule.expected_until(until) / UNSENT_ONE_BY_ONE).max(1);
        while schedule.peek() < until {
            let due = schedule.advance();
            schedule.skip(count - 1);
            if window.contains(&due) {
                let free_since = blocked_until.saturating_duration_since(*origin);
                let held_up = passed.saturating_sub(due.max(free_since));
                self.news.lags.push((nanos(held_up), count));
                self.news.ended.push(Ended {
                    is_read: self.reads > 0.0 && self.rng.unit() < self.reads,
                    is_answered: false,
                    is_measured: true,
                    nanos: nanos(passed - due),
                    count,
                });
            }
        }
    }

    /// An operation ended, with an answer or without.
    fn end(&mut self, slot: Slot, is_answered: bool, now: Instant) {
        self.news.ended.push(Ended {
            is_read: slot.is_read,
            is_answered,
            is_measured: self.is_measured(slot.due),
            nanos: nanos(now.saturating_duration_since(slot.due)),
            count: 1,
        });
    }

    fn is_measured(&self, due: Instant) -> bool {
        let at = due.saturating_duration_since(self.timing.origin);
        self.timing.window.contains(&at)
    }

    /// How long to wait for answers: until something is due.
    fn wait(&self) -> Duration {
        let now = Instant::now();
        let retry = self.retries.front().map(|(due, _)| *due);
        let next = match &self.pacer {
            Pacer::Closed if now < self.timing.origin => Some(self.timing.origin),
            Pacer::Open { schedule, .. }
                if self.shared.control.goal() == Goal::Run
                    && (!self.free.is_empty() || self.slots.len() < self.max_slots) =>
            {
                Some(self.timing.origin + schedule.peek())
            }
            _ => None,
        };
        let Some(next) = retry.into_iter().chain(next).min() else {
            return MAX_WAIT;
        };
        match next.saturating_duration_since(now) {
            // Late already: take what is there, and go on sending.
            Duration::ZERO => Duration::ZERO,
            wait => wait.clamp(MIN_WAIT, MAX_WAIT),
        }
    }

    fn settle(&mut self, answered: Answered, now: Instant) {
        let (at, attempt) = untag(answered.tag);
        let slot = self.slots[at as usize];
        if slot.attempt != attempt || slot.state != SlotState::InFlight {
            // A refusal may come twice when the engine shuts down around it. A success may not.
            if answered.answer == Answer::Done {
                let fault = "an operation was acknowledged after it had been answered";
                self.shared.control.fail(fault.into());
            }
            return;
        }
        self.in_flight -= 1;
        match answered.answer {
            Answer::Done => {
                // Stale reads go on without a leader.
                if !slot.is_read || self.read_mode != ReadMode::Stale {
                    self.watch.success(u64::from(slot.group), now);
                }
                self.end(slot, true, now);
                self.release(at);
            }
            Answer::Refused(elsewhere) => {
                if !slot.is_read {
                    self.turn_to(slot.group, elsewhere);
                }
                self.retry_later(at);
            }
            Answer::Open => {
                self.news.open.0 += 1;
                self.news.open.1 += u64::from(self.is_measured(slot.due));
                self.turn_to(slot.group, Elsewhere::Anywhere);
                // Nobody will ever know: its time without an answer counts like an unfinished one's.
                self.end(slot, false, now);
                self.release(at);
            }
            Answer::Fault(text) => {
                self.shared
                    .control
                    .fail(format!("group {}: {text}", slot.group));
                self.release(at);
            }
        }
    }

    fn publish(&mut self, now: Instant) {
        if now.saturating_duration_since(self.cpu_read) >= CPU_INTERVAL {
            self.cpu_read = now;
            let used = clock_gettime(ClockId::ThreadCPUTime);
            let used = used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64;
            self.shared.cpu.store(used, Ordering::Relaxed);
        }
        let mut counted = self.shared.counted();
        let Counted { since, window } = &mut *counted;
        for ended in self.news.ended.drain(..) {
            let Ended { nanos, count, .. } = ended;
            since.add_ended(ended.is_read, ended.is_answered, nanos, count);
            if ended.is_measured {
                window.add_ended(ended.is_read, ended.is_answered, nanos, count);
            }
        }
        for (nanos, count) in self.news.lags.drain(..) {
            since.lag.saturating_record_n(nanos, count);
            window.lag.saturating_record_n(nanos, count);
        }
        let (all, measured) = std::mem::take(&mut self.news.retried);
        since.retried += all;
        window.retried += measured;
        let (all, measured) = std::mem::take(&mut self.news.open);
        since.open += all;
        window.open += measured;
    }
}

/// The tag of one sending of one slot.
fn tag(slot: u32, attempt: u32) -> u64 {
    (u64::from(attempt) << 32) | u64::from(slot)
}

fn untag(tag: u64) -> (u32, u32) {
    (tag as u32, (tag >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Figures;
    use crate::workload::{Arrivals, Keys, Sizes};
    use std::ops::Range;

    /// Answers every operation at the next look, or holds all back until told otherwise.
    struct FakePort {
        sent: Vec<u64>,
        /// What becomes of the first operations, the last one first.
        first: Vec<Answer>,
        hold: Arc<std::sync::atomic::AtomicBool>,
    }

    impl Port for FakePort {
        fn refresh(&mut self) {}
        fn nodes(&self) -> usize {
            1
        }
        fn runs(&self, node: usize) -> bool {
            node == 0
        }
        fn leader(&self, _node: usize, _group: u64) -> Option<usize> {
            Some(0)
        }
        fn propose(
            &mut self,
            _: usize,
            _: u64,
            payload: bytes::Bytes,
            tag: u64,
        ) -> Result<(), Answer> {
            assert_eq!(payload.len(), 16);
            self.sent.push(tag);
            Ok(())
        }
        fn read(&mut self, _: usize, _: u64, tag: u64, _: ReadMode) {
            self.sent.push(tag);
        }
        fn flush(&mut self) {}
        fn drain(&mut self, into: &mut Vec<Answered>, timeout: Duration) {
            if self.hold.load(Ordering::Relaxed) || self.sent.is_empty() {
                std::thread::sleep(timeout.min(Duration::from_millis(1)));
            }
            if !self.hold.load(Ordering::Relaxed) {
                into.extend(self.sent.drain(..).map(|tag| Answered {
                    tag,
                    answer: self.first.pop().unwrap_or(Answer::Done),
                }));
            }
        }
    }

    fn run(pace: Pace, reads: f64, millis: u64, hold_first: u64) -> Figures {
        let window = Duration::ZERO..Duration::from_millis(millis);
        run_window(pace, reads, window, hold_first, Vec::new())
    }

    fn run_window(
        pace: Pace,
        reads: f64,
        window: Range<Duration>,
        hold_first: u64,
        first: Vec<Answer>,
    ) -> Figures {
        let workload = Workload {
            pace,
            payload: Sizes::Fixed(16),
            keys: Keys::Uniform,
            active_groups: 8,
            reads,
            read_mode: ReadMode::Stale,
            threads: 1,
            seed: 3,
        };
        let lasts = window.end;
        let timing = Timing {
            origin: Instant::now(),
            window,
        };
        let hold = Arc::new(std::sync::atomic::AtomicBool::new(hold_first > 0));
        let port = FakePort {
            sent: Vec::new(),
            first,
            hold: Arc::clone(&hold),
        };
        let mut load =
            super::super::Load::start(&workload, &timing, Duration::ZERO, vec![Box::new(port)])
                .unwrap();
        let hold_first = Duration::from_millis(hold_first);
        std::thread::sleep(hold_first);
        hold.store(false, Ordering::Relaxed);
        std::thread::sleep(lasts.saturating_sub(hold_first));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(load.rest()).unwrap();
        load.end().unwrap()
    }

    #[test]
    fn a_closed_loop_sends_and_splits_reads_from_proposals() {
        let figures = run(Pace::Inflight(64), 0.25, 100, 0);
        let share = figures.reads.len() as f64 / figures.all().len() as f64;
        assert!(figures.answered() > 1000, "{}", figures.answered());
        assert!((share - 0.25).abs() < 0.1, "{share}");
        assert_eq!(
            (figures.retried, figures.open, figures.unfinished()),
            (0, 0, 0)
        );
    }

    #[test]
    fn an_open_loop_counts_what_was_due_while_answers_were_held_back() {
        let pace = Pace::Rate {
            per_second: 2000.0,
            arrivals: Arrivals::Constant,
        };
        let figures = run(pace, 0.0, 400, 200);
        // All that was due in the window is there, whether answers came or not.
        assert_eq!(figures.all().len(), 800);
        // Those due in the first half waited for its end: their times are spread evenly up to 200 ms, whereas a loop that
        // waits for answers would have seen one slow operation.
        let slow = figures.proposals.count_between(20_000_000, u64::MAX);
        assert!(slow >= 340, "{slow}");
        assert!(
            figures.proposals.max() > 190_000_000,
            "{}",
            figures.proposals.max()
        );
        assert_eq!(figures.lag.len(), 800);
    }

    #[test]
    fn what_was_never_sent_counts_as_late_and_as_what_it_would_have_been() {
        // All that is sent before the load ends was due in the warm-up.
        let pace = Pace::Rate {
            per_second: 1e8,
            arrivals: Arrivals::Poisson,
        };
        let millis = Duration::from_millis;
        let window = millis(300)..millis(600);
        let figures = run_window(pace, 1.0, window, 0, Vec::new());
        let unfinished = figures.unfinished_reads as f64;
        assert!((unfinished / 3e7 - 1.0).abs() < 0.05, "{unfinished}");
        assert_eq!((figures.answered(), figures.proposals.len()), (0, 0));
        assert_eq!(figures.lag.len(), figures.reads.len());
        // The last of them was due when the load ended, the first 300 ms before.
        let lag = figures.lag.value_at_quantile(0.99);
        assert!(lag >= 290_000_000, "{lag}");
    }

    #[test]
    fn only_what_was_due_in_the_window_counts_as_trouble_of_the_window() {
        let pace = Pace::Rate {
            per_second: 1000.0,
            arrivals: Arrivals::Constant,
        };
        let trouble = || {
            let refused = Answer::Refused(Elsewhere::Here);
            [vec![refused; 20], vec![Answer::Open; 20]].concat()
        };
        let millis = Duration::from_millis;
        let count = |window| {
            let figures = run_window(pace, 0.0, window, 0, trouble());
            (figures.retried, figures.open)
        };
        assert_eq!(count(millis(0)..millis(400)), (20, 20));
        // The first forty were due in the first 40 ms.
        assert_eq!(count(millis(200)..millis(400)), (0, 0));
    }

    #[test]
    fn reads_that_need_a_leader_show_that_there_is_one() {
        let outage = |read_mode, answer: Answer| {
            let mut worker = worker_with_one_read(read_mode);
            worker.watch.begin(&[0]);
            let later = Instant::now() + Duration::from_secs(3600);
            let tag = tag(0, 1);
            worker.settle(Answered { tag, answer }, later);
            worker.watch.end().all
        };
        // As if the only answer had come after an hour: that gap is known only if it counts as a success.
        let hour = Duration::from_secs(3590);
        assert!(outage(ReadMode::Lease, Answer::Done) > hour);
        assert!(outage(ReadMode::Linearizable, Answer::Done) > hour);
        assert!(outage(ReadMode::Stale, Answer::Done) < hour);
        assert!(outage(ReadMode::Lease, Answer::Refused(Elsewhere::Here)) < hour);
    }

    /// A worker whose slot 0 waits for the first answer of a read of group 0.
    fn worker_with_one_read(read_mode: ReadMode) -> Worker {
        let workload = Workload {
            pace: Pace::Inflight(1),
            payload: Sizes::Fixed(16),
            keys: Keys::Uniform,
            active_groups: 1,
            reads: 1.0,
            read_mode,
            threads: 1,
            seed: 3,
        };
        let origin = Instant::now();
        let timing = Timing {
            origin,
            window: Duration::ZERO..Duration::from_secs(1),
        };
        let port = FakePort {
            sent: Vec::new(),
            first: Vec::new(),
            hold: Arc::default(),
        };
        let watch = Arc::new(Watch::new(1, origin));
        let shared = Arc::new(Shared::new());
        let mut worker = Worker::new(&workload, timing, (0, 1), Box::new(port), shared, watch);
        worker.send_due();
        worker
    }

    #[test]
    fn tags_name_slot_and_attempt() {
        for (slot, attempt) in [(0, 0), (7, 1), (1_048_575, u32::MAX)] {
            assert_eq!(untag(tag(slot, attempt)), (slot, attempt));
        }
    }
}
