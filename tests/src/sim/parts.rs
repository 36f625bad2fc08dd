//! The parts of a node: shards, lanes of the log, apply workers; when each of them has its turn, and what keeps it from it.
//! A part must never run twice for one reason, nor while its machine is paused.

use super::plan::MILLI;
use super::world::{Event, Host, World, unlocal};

/// Parts that one node can have at most: shards, lanes twice, workers.
const MOST_PARTS: usize = 12;

/// By how much syncs of a slow disk take longer.
const SLOWER: u64 = 30;

impl World {
    /// A part of a node has its turn, unless it was meant for an earlier life or a pause holds it.
    pub(super) fn run_part(&mut self, id: u8, life: u32, event: Event) {
        let id = u64::from(id);
        if !self.is_due(id, life, event) {
            return;
        }
        self.set_clock(id);
        self.count(event);
        let again = match event {
            Event::Turn { shard, .. } => {
                self.node_of(id).turn(shard.into());
                None
            }
            Event::Pump { lane, .. } => self.pump(id, lane.into()),
            Event::Tend { lane, .. } => self.tend(id, lane.into()),
            Event::Work { worker, .. } => {
                self.node_of(id).work(worker.into());
                None
            }
            _ => None,
        };
        if let Some(wait) = again {
            self.plan_part(id, self.now + wait, event);
        }
        self.after_step(id);
    }

    /// Writes a batch. Returns how long to wait for the next attempt, if this one could do nothing.
    fn pump(&mut self, id: u64, lane: usize) -> Option<u64> {
        let wal = self.node_of(id).wal(lane);
        let is_stuck = matches!(wal.pump(), Ok(false)) && wal.pending_bytes() > 0;
        // The disk is full; the flusher looks again after a while.
        is_stuck.then_some(50 * MILLI)
    }

    /// How long a sync of a node's disk takes now.
    fn sync_us(&self, id: u64) -> (u64, u64) {
        let (low, high) = self.plan.sync_us;
        match self.now < self.hosts[id as usize].drags_until {
            true => (SLOWER * low, SLOWER * high),
            false => (low, high),
        }
    }

    /// Does a step of background work. Returns how long to wait for the next one.
    fn tend(&mut self, id: u64, lane: usize) -> Option<u64> {
        let wal = self.node_of(id).wal(lane);
        match wal.tend() {
            Ok(true) => {
                let (low, high) = self.sync_us(id);
                Some(self.rng.within(low, high))
            }
            Ok(false) => wal.must_tend_again().then_some(50 * MILLI),
            Err(_) => None,
        }
    }

    /// Whether a part's event is the one that is planned and nothing holds it; takes it off the plan, or puts it off.
    fn is_due(&mut self, id: u64, life: u32, event: Event) -> bool {
        let now = self.now;
        let host = &mut self.hosts[id as usize];
        if host.life != life || host.node.is_none() || *host.planned(event) != now {
            return false;
        }
        let held = host.held_until(event);
        if now < held {
            self.plan_part(id, held, event);
            return false;
        }
        *host.planned(event) = u64::MAX;
        true
    }

    fn plan_part(&mut self, id: u64, at: u64, event: Event) {
        *self.hosts[id as usize].planned(event) = at;
        self.push(at, event);
    }

    /// Puts the parts of a node that have something to do into the queue.
    pub(super) fn schedule(&mut self, id: u64) {
        let sync = self.sync_us(id);
        let host = &mut self.hosts[id as usize];
        let Some(node) = &host.node else { return };
        let (now, life, number) = (self.now, host.life, id as u8);
        let rng = &mut self.rng;
        let mut planned: [Option<(u64, Event)>; MOST_PARTS] = [None; MOST_PARTS];
        let mut count = 0;
        let mut plan = |at: u64, event: Event| {
            planned[count] = Some((at, event));
            count += 1;
        };
        for shard in 0..node.shards() {
            let at = match node.inbox_len(shard) {
                0 => node
                    .next_deadline(shard)
                    .map(|deadline| host.started_at + unlocal(deadline.0, host.ppm)),
                _ if host.turns[shard] <= now + self.plan.turn_us => None,
                _ => Some(now + rng.within(1, self.plan.turn_us)),
            };
            let at = at.map(|at| at.max(now + 1));
            if let Some(at) = at.filter(|at| *at < host.turns[shard]) {
                let (host, shard) = (number, shard as u8);
                plan(at, Event::Turn { host, shard, life });
            }
        }
        for lane in 0..node.lanes() {
            let (wal, host_lane) = (node.wal(lane), lane as u8);
            if host.pumps[lane] == u64::MAX && wal.pending_bytes() > 0 {
                if self.plan.has_slow_writes {
                    // A log that could not has closed itself; the node hears of that.
                    let _ = wal.begin_batch();
                }
                let (host, lane) = (number, host_lane);
                plan(
                    now + rng.within(sync.0, sync.1),
                    Event::Pump { host, lane, life },
                );
            }
            if wal.take_tending_wish() && host.tends[lane] == u64::MAX {
                let (host, lane) = (number, host_lane);
                plan(
                    now + rng.within(sync.0, sync.1),
                    Event::Tend { host, lane, life },
                );
            }
        }
        for worker in 0..node.workers() {
            if host.works[worker] == u64::MAX && node.tasks_len(worker) > 0 {
                let (host, worker) = (number, worker as u8);
                plan(
                    now + rng.within(1, self.plan.apply_us),
                    Event::Work { host, worker, life },
                );
            }
        }
        for (at, event) in planned.into_iter().flatten() {
            self.plan_part(id, at, event);
        }
    }
}

impl Host {
    /// When a part runs next; `u64::MAX` when nothing is planned.
    fn planned(&mut self, event: Event) -> &mut u64 {
        match event {
            Event::Turn { shard, .. } => &mut self.turns[shard as usize],
            Event::Pump { lane, .. } => &mut self.pumps[lane as usize],
            Event::Tend { lane, .. } => &mut self.tends[lane as usize],
            Event::Work { worker, .. } => &mut self.works[worker as usize],
            _ => unreachable!("{event:?} is not for a part of a node"),
        }
    }

    /// Until when a part of this machine can do nothing.
    fn held_until(&self, event: Event) -> u64 {
        match event {
            Event::Pump { .. } | Event::Tend { .. } => self.paused_until.max(self.stalled_until),
            _ => self.paused_until,
        }
    }
}
