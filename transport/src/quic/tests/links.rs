//! Links come up, break, come up again, and end.

use super::proxy::Proxy;
use super::*;
use crate::NetworkStats;
use crate::quic::panics::reporting;

#[test]
fn pair_links_and_exchanges_frames_on_every_lane() {
    let (one, two, _dir) = linked_pair(|options| options.append_lanes = 3);
    let lanes = [
        Lane::Liveness,
        Lane::Snapshot,
        Lane::Append(0),
        Lane::Append(2),
    ];
    for lane in lanes {
        one.send(TWO, lane, format!("to two on {lane:?}"));
        two.send(ONE, lane, format!("to one on {lane:?}"));
    }
    for (node, from, to) in [(&two, ONE, "two"), (&one, TWO, "one")] {
        node.recorder
            .wait_until("four frames", |seen| seen.frames.len() == 4);
        let seen = node.recorder.seen.lock();
        for lane in lanes {
            let frames: Vec<_> = seen.on(lane).cloned().collect();
            assert_eq!(frames, [format!("to {to} on {lane:?}")]);
        }
        assert!(seen.frames.iter().all(|(sender, ..)| *sender == from));
    }
    assert!(one.network.round_trip(TWO).is_some());
    none(one.network.round_trip(THREE));
    let stats = one.network.stats();
    let frame_bytes = "to two on ".len() * 4 + "LivenessSnapshotAppend(0)Append(2)".len();
    assert_eq!(stats.frames_sent, 4);
    assert_eq!(stats.bytes_sent as usize, frame_bytes + 4 * 24);
    assert_eq!(stats.frames_received, 4);
    assert_eq!(stats.refused + stats.reconnects + stats.dropped, 0);
}

#[test]
fn hello_tells_store_and_incarnation() {
    let (one, _two, _dir) = linked_pair(|_| {});
    let hello = one.recorder.wait("hello", |seen| {
        seen.events.iter().find_map(|(_, event)| match event {
            LinkEvent::Up { hello, .. } => Some(hello.clone()),
            _ => None,
        })
    });
    assert_eq!(hello.identity, identity(TWO));
    assert_eq!(hello.version, crate::FORMAT_VERSION);
}

#[test]
fn the_network_s_thread_calls_what_it_is_asked_to() {
    let dir = TempDir::new().unwrap();
    let one = Node::start(options(ONE, Tls::dev(dir.path())));
    let (called, calls) = std::sync::mpsc::channel();
    let call = move || {
        let thread = std::thread::current().name().map(str::to_owned);
        called.send(thread).unwrap();
    };
    one.network.call_on_threads(Arc::new(call));
    let name = calls.recv_timeout(DEADLINE).unwrap();
    assert_eq!(name.as_deref(), Some("polyraft-net-1"));
    one.network.shutdown();
    assert!(calls.recv().is_err(), "it was asked once");
}

#[test]
fn send_says_why_it_cannot() {
    let dir = TempDir::new().unwrap();
    let one = Node::start(options(ONE, Tls::dev(dir.path())));
    let send = |to, lane| one.network.send(to, lane, Bytes::from_static(b"x"));
    assert_eq!(send(TWO, Lane::Liveness), Err(SendError::UnknownPeer));
    one.network.set_peer(TWO, any_port());
    assert_eq!(send(TWO, Lane::Liveness), Err(SendError::Disconnected));
    assert_eq!(send(TWO, Lane::Append(1)), Err(SendError::UnknownPeer));
    assert_eq!(send(TWO, Lane::Append(255)), Err(SendError::UnknownPeer));
    one.network.shutdown();
    assert_eq!(send(TWO, Lane::Liveness), Err(SendError::Closed));
    assert_eq!(one.network.stats(), NetworkStats::default());
}

#[test]
fn link_returns_after_either_side_restarts_on_its_port() {
    let (one, two, dir) = linked_pair(|_| {});
    let restart = |node: Node, peer: &Node| {
        let mut options = options(node.id, Tls::dev(dir.path()));
        options.listen = node.addr();
        options.peers = vec![(peer.id, peer.addr())];
        options.identity.incarnation += 1;
        let id = node.id;
        node.network.shutdown();
        drop(node);
        peer.recorder
            .wait_until("link down", |seen| seen.downs(id) > 0);
        let sent = peer.network.send(id, Lane::Append(0), Bytes::new());
        assert_eq!(sent, Err(SendError::Disconnected));
        let node = Node::start(options);
        node.wait_up(peer.id);
        peer.recorder
            .wait_until("second link", |seen| seen.ups(id) == 2);
        node
    };
    let two = restart(two, &one);
    assert_eq!(one.network.stats().reconnects, 1);
    assert_says(
        &one.recorder.seen.lock().down_reason(TWO).unwrap(),
        &["closed by the peer", "node 2 shut down"],
    );
    let one = restart(one, &two);
    one.send(TWO, Lane::Append(0), "again");
    two.recorder
        .wait_until("frame", |seen| seen.frames.len() == 1);
}

#[test]
fn peer_that_vanished_without_a_word_is_recognised_by_its_reset() {
    let dir = TempDir::new().unwrap();
    let node = |id| {
        let mut options = options(id, Tls::dev(dir.path()));
        // Far beyond the deadline: only the reset can end the old link.
        options.idle_timeout = Duration::from_secs(300);
        options.keep_alive = Duration::from_millis(50);
        Node::start(options)
    };
    let (one, two) = (node(ONE), node(TWO));
    let proxy = Proxy::to(two.addr());
    two.knows(&one);
    one.network.set_peer(TWO, proxy.addr());
    one.wait_up(TWO);

    // As a killed process: nothing that it sends arrives any more.
    proxy.mute();
    drop(two);
    let two = node(TWO);
    two.knows(&one);
    proxy.lead_to(two.addr());
    one.recorder
        .wait_until("second link", |seen| seen.ups(TWO) == 2);
    let reason = one.recorder.seen.lock().down_reason(TWO);
    assert_says(&reason.unwrap(), &["restarted"]);
    two.wait_up(ONE);
}

#[test]
fn newer_connection_replaces_the_one_that_has_not_timed_out() {
    let dir = TempDir::new().unwrap();
    let node = |id| {
        let mut options = options(id, Tls::dev(dir.path()));
        options.idle_timeout = Duration::from_secs(300);
        Node::start(options)
    };
    let (one, two) = (node(ONE), node(TWO));
    let proxy = Proxy::to(two.addr());
    two.knows(&one);
    one.network.set_peer(TWO, proxy.addr());
    two.wait_up(ONE);

    // The dialing side is gone without a word, and comes back.
    proxy.mute();
    drop(one);
    let one = node(ONE);
    proxy.lead_to(two.addr());
    one.network.set_peer(TWO, proxy.addr());
    two.recorder
        .wait_until("second link", |seen| seen.ups(ONE) == 2);
    {
        let seen = two.recorder.seen.lock();
        let order: Vec<_> = seen.events.iter().map(|(_, event)| event).collect();
        assert!(
            matches!(
                order[..],
                [
                    LinkEvent::Up { .. },
                    LinkEvent::Down { .. },
                    LinkEvent::Up { .. }
                ]
            ),
            "{order:?}"
        );
        assert_says(&seen.down_reason(ONE).unwrap(), &["newer connection"]);
    }
    one.wait_up(TWO);
    one.send(TWO, Lane::Append(0), "new");
    two.recorder
        .wait_until("frame", |seen| seen.frames.len() == 1);
}

#[test]
fn silent_link_goes_down_after_the_idle_timeout() {
    let dir = TempDir::new().unwrap();
    let node = |id| {
        let mut options = options(id, Tls::dev(dir.path()));
        options.idle_timeout = Duration::from_millis(300);
        options.keep_alive = Duration::from_millis(50);
        Node::start(options)
    };
    let (one, two) = (node(ONE), node(TWO));
    let proxy = Proxy::to(two.addr());
    two.knows(&one);
    one.network.set_peer(TWO, proxy.addr());
    one.wait_up(TWO);
    two.wait_up(ONE);
    proxy.mute();
    for (node, peer) in [(&one, TWO), (&two, ONE)] {
        let reason = node.recorder.wait("down", |seen| seen.down_reason(peer));
        assert_says(&reason, &["no sign of life"]);
    }
    proxy.lead_to(two.addr());
    one.wait_up(TWO);
    two.wait_up(ONE);
}

#[test]
fn nodes_that_restart_together_converge() {
    let dir = TempDir::new().unwrap();
    let start = |id, listen, peers| {
        let mut options = options(id, Tls::dev(dir.path()));
        options.listen = listen;
        options.peers = peers;
        Node::start(options)
    };
    let one = start(ONE, any_port(), vec![]);
    let two = start(TWO, any_port(), vec![]);
    let three = start(THREE, any_port(), vec![]);
    let peers = vec![(ONE, one.addr()), (TWO, two.addr()), (THREE, three.addr())];
    drop((one, two, three));
    for _ in 0..3 {
        let nodes: Vec<Node> = peers
            .iter()
            .map(|(id, addr)| start(*id, *addr, peers.clone()))
            .collect();
        for node in &nodes {
            for (peer, _) in peers.iter().filter(|(peer, _)| *peer != node.id) {
                node.wait_up(*peer);
            }
        }
    }
}

#[test]
fn shutdown_sends_what_is_queued() {
    let (one, two, _dir) = linked_pair(|_| {});
    let frames = 400;
    for _ in 0..frames {
        one.send(TWO, Lane::Append(0), vec![9; 16 << 10]);
    }
    one.network.shutdown();
    two.recorder
        .wait_until("link down", |seen| seen.downs(ONE) == 1);
    assert_eq!(two.recorder.seen.lock().frames.len(), frames);
    assert_eq!(one.network.stats().dropped, 0);
}

#[test]
fn address_change_is_followed_while_dialing() {
    let dir = TempDir::new().unwrap();
    let one = Node::start(options(ONE, Tls::dev(dir.path())));
    let two = Node::start(options(TWO, Tls::dev(dir.path())));
    two.knows(&one);
    // Nobody listens on this socket's port in QUIC.
    let silent = std::net::UdpSocket::bind(any_port()).unwrap();
    one.network.set_peer(TWO, silent.local_addr().unwrap());
    silent.recv_from(&mut [0; 2000]).unwrap();
    one.knows(&two);
    one.wait_up(TWO);
}

#[test]
fn receiver_may_drop_the_network_on_its_own_thread() {
    struct Owner {
        network: Mutex<Option<QuicNetwork>>,
        recorder: Recorder,
    }
    impl Receiver for Owner {
        fn admit(&self, peer: &Hello) -> Result<(), String> {
            self.recorder.admit(peer)
        }
        fn frame(&self, from: NodeId, lane: Lane, frame: Bytes) {
            self.network.lock().take();
            self.recorder.frame(from, lane, frame);
        }
        fn ready(&self, lane: Lane) -> bool {
            self.recorder.ready(lane)
        }
        fn link(&self, peer: NodeId, event: LinkEvent) {
            self.recorder.link(peer, event);
        }
    }
    let dir = TempDir::new().unwrap();
    let owner = Arc::new(Owner {
        network: Mutex::default(),
        recorder: Recorder::default(),
    });
    let two = QuicListener::bind(options(TWO, Tls::dev(dir.path())))
        .and_then(|listener| listener.start(owner.clone()))
        .unwrap();
    let one = Node::start(options(ONE, Tls::dev(dir.path())));
    two.set_peer(ONE, one.addr());
    one.network.set_peer(TWO, two.local_addr().unwrap());
    *owner.network.lock() = Some(two);
    one.wait_up(TWO);
    one.send(TWO, Lane::Append(0), "drop it");
    owner
        .recorder
        .wait_until("frame", |seen| seen.frames.len() == 1);
    one.recorder
        .wait_until("link down", |seen| seen.downs(TWO) == 1);
}

#[test]
fn frames_of_other_links_arrive_while_a_peer_waits_to_be_admitted() {
    let (one, two, dir) = linked_pair(|_| {});
    let admitting = two.recorder.admitting.lock();
    let mut options = options(THREE, Tls::dev(dir.path()));
    // The answer may take as long as the test does.
    options.handshake_timeout = Duration::from_secs(60);
    let three = Node::start(options);
    introduce(&two, &three);
    two.recorder
        .wait_until("question", |seen| seen.asked.contains(&THREE));
    one.send(TWO, Lane::Liveness, "meanwhile");
    two.recorder
        .wait_until("frame", |seen| seen.frames.len() == 1);
    assert_eq!(two.recorder.seen.lock().ups(THREE), 0);
    drop(admitting);
    two.wait_up(THREE);
    three.wait_up(TWO);
}

#[test]
fn peers_are_admitted_one_after_the_other_in_the_order_of_their_hellos() {
    let dir = TempDir::new().unwrap();
    let start = |id| {
        let mut options = options(id, Tls::dev(dir.path()));
        options.handshake_timeout = Duration::from_secs(60);
        Node::start(options)
    };
    let (one, two, three) = (start(ONE), start(TWO), start(THREE));
    let admitting = three.recorder.admitting.lock();
    introduce(&one, &three);
    three
        .recorder
        .wait_until("question", |seen| seen.asked == [ONE]);
    introduce(&two, &three);
    introduce(&one, &two);
    one.wait_up(TWO);
    assert_eq!(three.recorder.seen.lock().asked, [ONE]);
    drop(admitting);
    three.wait_up(ONE);
    three.wait_up(TWO);
    assert_eq!(three.recorder.seen.lock().asked, [ONE, TWO]);
}

#[test]
fn receiver_that_panics_while_a_link_is_made_gets_another_one() {
    let dir = TempDir::new().unwrap();
    // Once while it admits the peer, and once while it is told of the link; as the side that dials and as the other.
    for (is_dialer, is_admitting) in [(true, true), (true, false), (false, true), (false, false)] {
        let one = Node::start(options(ONE, Tls::dev(dir.path())));
        let two = Node::start(options(TWO, Tls::dev(dir.path())));
        let (panics, other) = if is_dialer {
            (&one, &two)
        } else {
            (&two, &one)
        };
        let recorder = &panics.recorder;
        recorder
            .next_admit_panics
            .store(is_admitting, Ordering::Relaxed);
        recorder
            .next_up_panics
            .store(!is_admitting, Ordering::Relaxed);
        introduce(&one, &two);
        let ups = if is_admitting { 1 } else { 2 };
        recorder.wait_until("link", |seen| seen.ups(other.id) == ups);
        assert_eq!(recorder.seen.lock().downs(other.id), ups - 1);
        assert_eq!(recorder.seen.lock().asked, [other.id; 2]);
        // The other side may still have to notice the end of the first link.
        let deadline = Instant::now() + DEADLINE;
        while recorder.seen.lock().frames.is_empty() {
            let frame = Bytes::from_static(b"after");
            let sent = other.network.send(panics.id, Lane::Append(0), frame);
            assert!(Instant::now() < deadline, "no frame arrives: {sent:?}");
            std::thread::yield_now();
        }
        assert!(recorder.seen.lock().failures.is_empty());
    }
}

#[test]
fn receiver_is_told_when_the_network_fails() {
    let recorder = Recorder::default();
    reporting(&recorder, || Ok(()));
    reporting(&recorder, || Err("as the test wants".to_owned()));
    reporting(&recorder, || panic!("as the test wants"));
    let seen = recorder.seen.lock();
    assert_eq!(seen.failures, ["as the test wants", "its thread panicked"]);
}
