//! When a node beats. To peers with higher numbers at a pace of its own; to those with lower ones half an interval
//! behind their beats, so that a beat carries the transport's acknowledgement of the other one with it, and an idle link
//! has one packet a direction and interval in place of two.
//! It must never let a quarter more than an interval pass between two beats, whatever it hears, nor beat in lockstep.

use polyraft_raft::{NodeId, Tick};

/// What is sent within this part of an interval is sent together.
const TOGETHER: u64 = 32;

/// The beats of one node.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: u64,
    peers: Vec<Peer>,
}

#[derive(Debug)]
struct Peer {
    /// The peer has the lower number: this node's beats follow its beats.
    follows: bool,
    last: Tick,
    next: Tick,
    is_due: bool,
}

impl Pace {
    /// `peers` in ascending order; they are known by their place in it from now on.
    pub(crate) fn new(interval: u64, node: NodeId, peers: impl Iterator<Item = NodeId>) -> Self {
        let peer = |peer| Peer {
            follows: peer < node,
            last: Tick(0),
            next: Tick(0),
            is_due: false,
        };
        Pace {
            interval,
            peers: peers.map(peer).collect(),
        }
    }

    /// There is another peer at this place, and those behind it move on.
    pub(crate) fn insert(&mut self, place: usize, follows: bool) {
        let peer = Peer {
            follows,
            last: Tick(0),
            next: Tick(0),
            is_due: false,
        };
        self.peers.insert(place, peer);
    }

    /// When the next beat has to go; `None` without peers.
    pub(crate) fn next(&self) -> Option<Tick> {
        self.peers.iter().map(|peer| peer.next).min()
    }

    /// Decides who gets a beat now; [`is_due`](Self::is_due) tells.
    pub(crate) fn advance(&mut self, now: Tick) {
        let is_time = self.next().is_some_and(|next| next <= now);
        let soon = Tick(now.0 + self.interval / TOGETHER);
        for peer in &mut self.peers {
            peer.is_due = is_time && peer.next <= soon;
        }
        if !is_time {
            return;
        }
        // What this node sends at its own pace goes along with what follows its first peer, as long as that one beats.
        let leads_the_others = self.peers.first().is_some_and(|first| {
            first.follows && first.is_due && first.last.0 + 2 * self.interval > now.0
        });
        for peer in &mut self.peers {
            if leads_the_others && !peer.follows && !peer.is_due {
                peer.is_due = now.since(peer.last) >= self.interval / 2;
                peer.next = Tick(now.0 + self.interval).min(peer.latest(self.interval));
            }
            if peer.is_due {
                peer.last = now;
                peer.next = Tick(now.0 + self.interval);
            }
        }
    }

    /// Whether the peer at this place gets a beat now.
    pub(crate) fn is_due(&self, place: usize) -> bool {
        self.peers[place].is_due
    }

    /// A beat of the peer at this place arrived.
    pub(crate) fn heard(&mut self, place: usize, at: Tick) {
        let peer = &mut self.peers[place];
        if peer.follows && at > peer.last {
            peer.next = Tick(at.0 + self.interval / 2).min(peer.latest(self.interval));
        }
    }

    /// A beat of the peer at this place that arrives at this time or later changes nothing: the beat that follows it
    /// has its time already.
    pub(crate) fn quiet_from(&self, place: usize) -> Tick {
        let peer = &self.peers[place];
        if peer.follows {
            Tick(
                peer.next
                    .0
                    .saturating_sub(self.interval / 2 + self.interval / TOGETHER),
            )
        } else {
            Tick(0)
        }
    }
}

impl Peer {
    /// How long a beat may be put off.
    fn latest(&self, interval: u64) -> Tick {
        Tick(self.last.0 + interval + interval / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: u64 = 45_000;
    /// What a timer or a packet is late at most.
    const LATE: u64 = 400;

    /// A few numbers that look like chance.
    fn chance(state: &mut u64, below: u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (*state >> 33) % below
    }

    /// Nodes that beat to each other for `intervals`, from phases of their own: the beats, by sender and receiver.
    fn beats(nodes: usize, intervals: u64, mut seed: u64) -> Vec<(u64, usize, usize)> {
        let others = |node: usize| (0..nodes).filter(move |other| *other != node);
        let place_of = |node, peer| others(node).position(|other| other == peer).unwrap();
        let mut paces: Vec<_> = (0..nodes)
            .map(|node| {
                let peers = others(node).map(|peer| NodeId(peer as u64 + 1));
                Pace::new(INTERVAL, NodeId(node as u64 + 1), peers)
            })
            .collect();
        let mut wakes: Vec<u64> = (0..nodes)
            .map(|_| 1 + chance(&mut seed, INTERVAL))
            .collect();
        let mut under_way: Vec<(u64, usize, usize)> = Vec::new();
        let mut kept: Vec<(u64, usize, usize)> = Vec::new();
        let mut sent = Vec::new();
        loop {
            let first = under_way.iter().min().copied();
            let (wake, node) = (0..nodes).map(|node| (wakes[node], node)).min().unwrap();
            if let Some((at, from, to)) = first.filter(|first| first.0 <= wake) {
                under_way.retain(|beat| *beat != (at, from, to));
                kept.push((at, from, to));
                if Tick(at) < paces[to].quiet_from(place_of(to, from)) {
                    wakes[to] = at + 1;
                }
                continue;
            }
            if wake >= intervals * INTERVAL {
                return sent;
            }
            for (at, from, _) in kept.extract_if(.., |beat| beat.2 == node) {
                paces[node].heard(place_of(node, from), Tick(at));
            }
            paces[node].advance(Tick(wake));
            for to in others(node) {
                if paces[node].is_due(place_of(node, to)) {
                    sent.push((wake, node, to));
                    under_way.push((wake + 100 + chance(&mut seed, LATE), node, to));
                }
            }
            let next = paces[node].next().unwrap().0;
            wakes[node] = next.max(wake) + 1 + chance(&mut seed, LATE);
        }
    }

    fn times(beats: &[(u64, usize, usize)], from: usize, to: usize) -> Vec<u64> {
        let of_pair = beats.iter().filter(|beat| (beat.1, beat.2) == (from, to));
        of_pair.map(|(at, _, _)| *at).collect()
    }

    fn pairs(nodes: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..nodes).flat_map(move |from| (0..nodes).map(move |to| (from, to)))
    }

    #[test]
    fn no_beat_is_late_and_there_is_about_one_an_interval() {
        for (nodes, seed) in (2..7).flat_map(|nodes| (0..20).map(move |seed| (nodes, seed))) {
            let beats = beats(nodes, 100, seed);
            for (from, to) in pairs(nodes).filter(|(from, to)| from != to) {
                let times = times(&beats, from, to);
                let gap = times.windows(2).map(|pair| pair[1] - pair[0]).max();
                assert!(gap.unwrap() <= INTERVAL * 5 / 4 + LATE, "{gap:?}");
                assert!((94..=106).contains(&times.len()), "{}", times.len());
            }
        }
    }

    #[test]
    fn every_beat_is_answered_before_its_acknowledgement_is_due() {
        for (nodes, seed) in (2..7).flat_map(|nodes| (0..20).map(move |seed| (nodes, seed))) {
            let beats = beats(nodes, 100, seed);
            for (from, to) in pairs(nodes).filter(|(from, to)| from != to) {
                let answers = times(&beats, to, from);
                let settled = times(&beats, from, to).split_off(20);
                for at in &settled[..settled.len() - 2] {
                    let answer = answers.iter().find(|answer| *answer > at).unwrap();
                    assert!(answer - at < 25_000, "{} us", answer - at);
                }
            }
        }
    }

    #[test]
    fn a_node_beats_to_many_at_few_moments() {
        for seed in 0..20 {
            let beats = beats(6, 100, seed);
            for node in 0..6 {
                let mut moments: Vec<u64> = beats[beats.len() / 2..]
                    .iter()
                    .filter(|beat| beat.1 == node)
                    .map(|beat| beat.0)
                    .collect();
                moments.dedup();
                assert!(moments.len() <= 3 * 50, "{} moments", moments.len());
            }
        }
    }

    #[test]
    fn a_beat_that_is_expected_is_quiet() {
        let mut pace = Pace::new(INTERVAL, NodeId(2), [NodeId(1), NodeId(3)].into_iter());
        pace.advance(Tick(INTERVAL / 2));
        assert!(pace.quiet_from(0) <= Tick(INTERVAL));
        assert!(
            pace.quiet_from(0) > Tick(30_000),
            "the next beat would be late"
        );
        assert_eq!(pace.quiet_from(1), Tick(0), "it follows this node's beats");
    }
}
