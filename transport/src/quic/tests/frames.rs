//! Frames: their order, their bounds, and what happens to a peer that breaks the rules.

use bytes::BytesMut;
use quinn::{Connection, Endpoint};

use super::*;
use crate::frame::Header;
use crate::hello::WireHello;
use crate::tls::{Crypto, SERVER_NAME, Verdict};

fn numbered(range: std::ops::Range<u32>, bytes: usize) -> impl Iterator<Item = Bytes> {
    range.map(move |number| {
        let mut frame = number.to_le_bytes().to_vec();
        frame.resize(bytes, number as u8);
        frame.into()
    })
}

fn number(frame: &Bytes) -> u32 {
    u32::from_le_bytes(frame[..4].try_into().unwrap())
}

#[test]
fn frames_of_a_lane_arrive_in_order_under_load() {
    let (one, two, _dir) = linked_pair(|options| {
        options.append_lanes = 2;
        options.queue_bytes = 4 << 20;
        options.receive_window = 256 << 10;
    });
    // Sizes below and above what a packet and a copied frame hold.
    let lanes = [
        (Lane::Append(0), 3000, 100),
        (Lane::Append(1), 300, 70_000),
        (Lane::Snapshot, 200, 200_000),
        (Lane::Liveness, 1000, 40),
    ];
    std::thread::scope(|scope| {
        for (lane, count, bytes) in lanes {
            let one = &one;
            scope.spawn(move || one.send_all(TWO, lane, numbered(0..count, bytes)));
        }
    });
    let total: u32 = lanes.iter().map(|(_, count, _)| count).sum();
    two.recorder
        .wait_until("all frames", |seen| seen.frames.len() == total as usize);
    let seen = two.recorder.seen.lock();
    for (lane, count, bytes) in lanes {
        let frames: Vec<&Bytes> = seen.on(lane).collect();
        assert!(
            frames.iter().map(|frame| number(frame)).eq(0..count),
            "{lane:?}"
        );
        let whole =
            |frame: &&Bytes| frame.len() == bytes && frame[4..].iter().all(|b| *b == frame[0]);
        assert!(frames.iter().all(whole), "{lane:?}");
    }
}

#[test]
fn bulk_transfer_does_not_hold_up_liveness() {
    let (one, two, _dir) = linked_pair(|options| {
        options.receive_window = 128 << 10;
        options.queue_bytes = 64 << 20;
    });
    let chunks = 800;
    one.send_all(TWO, Lane::Snapshot, numbered(0..chunks, 64 << 10));
    // Each beat is sent once the last one has arrived; the transfer must still be under way.
    for beat in 0..20 {
        one.send_all(TWO, Lane::Liveness, numbered(beat..beat + 1, 40));
        two.recorder.wait_until("beat", |seen| {
            seen.on(Lane::Liveness).count() == beat as usize + 1
        });
    }
    let done = two.recorder.seen.lock().on(Lane::Snapshot).count();
    assert!(done < chunks as usize, "the beats waited for the transfer");
    two.recorder.wait_until("the transfer", |seen| {
        seen.on(Lane::Snapshot).count() == chunks as usize
    });
}

#[test]
fn paused_lane_fills_its_queue_and_leaves_liveness_alone() {
    let (one, two, _dir) = linked_pair(|options| {
        options.max_frame_bytes = 64 << 10;
        options.queue_bytes = 256 << 10;
        options.receive_window = 64 << 10;
        options.append_lanes = 3;
    });
    two.recorder.paused.store(true, Ordering::Relaxed);
    let mut sent = 0;
    // Each lane fills up: the peer's window, then the queue.
    let lanes = [
        Lane::Append(0),
        Lane::Append(1),
        Lane::Append(2),
        Lane::Snapshot,
    ];
    for lane in lanes {
        loop {
            match one.network.send(TWO, lane, vec![1; 16 << 10].into()) {
                Ok(()) => sent += 1,
                Err(SendError::Full { queued, limit }) => {
                    assert!(queued <= limit);
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    // More beats than any credit that the other lanes might have left over.
    let beats = 200;
    for beat in 0..beats {
        one.send_all(TWO, Lane::Liveness, numbered(beat..beat + 1, 4096));
        two.recorder.wait_until("beat", |seen| {
            seen.on(Lane::Liveness).count() == beat as usize + 1
        });
    }
    assert!(one.network.queued_bytes(TWO) > 0);
    two.recorder.paused.store(false, Ordering::Relaxed);
    two.recorder.wait_until("the rest", |seen| {
        seen.frames.len() == sent + beats as usize
    });
    // The writers count a frame as gone once it is written, and all of them have arrived.
    let deadline = Instant::now() + DEADLINE;
    while one.network.queued_bytes(TWO) > 0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn frame_over_the_limit_is_refused_by_the_sender() {
    let (one, two, _dir) = linked_pair(|options| options.max_frame_bytes = 2048);
    assert_eq!(one.network.max_frame_bytes(TWO), 2048);
    let too_large = SendError::TooLarge {
        bytes: 2049,
        limit: 2048,
    };
    let sent = one.network.send(TWO, Lane::Append(0), vec![0; 2049].into());
    assert_eq!(sent, Err(too_large));
    one.send(TWO, Lane::Append(0), vec![0; 2048]);
    two.recorder
        .wait_until("frame", |seen| seen.frames.len() == 1);
    assert_eq!(two.recorder.seen.lock().downs(ONE), 0);
}

#[test]
fn link_uses_the_smaller_limit_of_its_nodes() {
    let dir = TempDir::new().unwrap();
    let one = Node::start(options(ONE, Tls::dev(dir.path())));
    let mut small = options(TWO, Tls::dev(dir.path()));
    small.max_frame_bytes = 1024;
    let two = Node::start(small);
    introduce(&one, &two);
    one.wait_up(TWO);
    assert_eq!(one.network.max_frame_bytes(TWO), 1024);
    // What one peer takes says nothing of another.
    assert_eq!(one.network.max_frame_bytes(THREE), 4 << 20);
    two.network.shutdown();
    one.recorder.wait_until("down", |seen| seen.downs(TWO) == 1);
    assert_eq!(one.network.max_frame_bytes(TWO), 4 << 20);
}

/// Node 1 as an attacker would build it: a good certificate, and full control of the bytes.
struct Rogue {
    runtime: tokio::runtime::Runtime,
    _endpoint: Endpoint,
    connection: Connection,
}

impl Rogue {
    fn connect(dir: &Path, to: &Node) -> Rogue {
        let identity = identity(ONE);
        let crypto = Crypto::new(Tls::dev(dir).load(&identity).unwrap(), &identity).unwrap();
        let config = crypto.client_config(to.id, &Verdict::default()).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(config));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (endpoint, connection) = runtime.block_on(async {
            let endpoint = Endpoint::client(any_port()).unwrap();
            let connecting = endpoint.connect_with(config, to.addr(), SERVER_NAME);
            let connection = connecting.unwrap().await.unwrap();
            (endpoint, connection)
        });
        Rogue {
            runtime,
            _endpoint: endpoint,
            connection,
        }
    }

    fn hello() -> WireHello {
        WireHello {
            hello: Hello {
                identity: identity(ONE),
                version: crate::FORMAT_VERSION,
            },
            to: TWO,
            max_frame_bytes: 4 << 20,
            receive_window: 1 << 20,
            append_lanes: 2,
        }
    }

    /// Sends a hello's bytes, and the confirmation that follows one.
    fn greet(&self, hello: &[u8]) {
        self.runtime.block_on(async {
            let (mut send, mut receive) = self.connection.open_bi().await.unwrap();
            // A refusal may come before everything is written.
            let _ = send.write_all(hello).await;
            let _ = send.write_all(&[1]).await;
            let _ = send.finish();
            // Nothing moves outside of this block: wait for the acknowledgement.
            let _ = send.stopped().await;
            // A peer that does not read the answer would look like one that is gone.
            let _ = receive.read_to_end(usize::MAX).await;
        });
    }

    fn send(&self, bytes: &[u8]) {
        self.runtime.block_on(async {
            let mut stream = self.connection.open_uni().await.unwrap();
            let _ = stream.write_all(bytes).await;
            let _ = stream.finish();
            let _ = stream.stopped().await;
        });
    }

    fn close_reason(&self) -> String {
        let closed = async { tokio::time::timeout(DEADLINE, self.connection.closed()).await };
        self.runtime.block_on(closed).unwrap().to_string()
    }
}

fn header(length: u32) -> Header {
    Header {
        length,
        lane: Lane::Append(0),
        from: ONE,
        to: TWO,
    }
}

fn encoded(headers: &[Header]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    headers.iter().for_each(|header| header.encode(&mut bytes));
    bytes.to_vec()
}

#[test]
fn bad_frames_close_the_connection_with_a_reason_on_both_sides() {
    let dir = TempDir::new().unwrap();
    let two = Node::start(options(TWO, Tls::dev(dir.path())));
    two.network.set_peer(ONE, any_port());
    let forged = Header {
        from: THREE,
        ..header(0)
    };
    let misled = Header {
        to: THREE,
        ..header(0)
    };
    let cases = [
        (
            encoded(&[header((4 << 20) + 1)]),
            "a frame of 4194305 bytes on the Append(0) lane is over the limit of 4194304",
        ),
        (
            encoded(&[forged]),
            "a frame from node 3, but the certificate is node 1's",
        ),
        (encoded(&[misled]), "a frame to node 3, but this is node 2"),
        (encoded(&[header(9)]), "a stream that ends inside a frame"),
        (vec![0xff; 24], "a frame header of version 255"),
    ];
    for (count, (bytes, reason)) in cases.iter().enumerate() {
        let rogue = Rogue::connect(dir.path(), &two);
        rogue.greet(&Rogue::hello().encode());
        two.recorder
            .wait_until("up", |seen| seen.ups(ONE) == count + 1);
        rogue.send(bytes);
        assert_says(&rogue.close_reason(), &[reason]);
        two.recorder
            .wait_until("down", |seen| seen.downs(ONE) == count + 1);
        let events = two.recorder.seen.lock();
        let Some((_, LinkEvent::Down { reason: said })) = events.events.last() else {
            panic!("the last event is not the end of the link");
        };
        assert_says(said, &[reason]);
    }
    assert!(two.recorder.seen.lock().frames.is_empty());
    assert_eq!(two.network.stats().refused, cases.len() as u64);
}

#[test]
fn second_stream_of_a_lane_closes_the_connection() {
    let dir = TempDir::new().unwrap();
    let two = Node::start(options(TWO, Tls::dev(dir.path())));
    two.network.set_peer(ONE, any_port());
    let rogue = Rogue::connect(dir.path(), &two);
    rogue.greet(&Rogue::hello().encode());
    rogue.send(&encoded(&[header(0)]));
    rogue.send(&encoded(&[header(0)]));
    assert_says(
        &rogue.close_reason(),
        &["a second stream for the Append(0) lane"],
    );
}

#[test]
fn hello_that_does_not_fit_the_certificate_is_refused() {
    let dir = TempDir::new().unwrap();
    let two = Node::start(options(TWO, Tls::dev(dir.path())));
    two.network.set_peer(ONE, any_port());
    two.network.set_peer(THREE, any_port());
    let change = |f: &dyn Fn(&mut WireHello)| {
        let mut hello = Rogue::hello();
        f(&mut hello);
        hello.encode()
    };
    let cases = [
        (
            change(&|hello| hello.hello.identity.node = THREE),
            "the hello is from node 3, but the certificate is node 1's",
        ),
        (
            change(&|hello| hello.to = THREE),
            "the hello is meant for node 3, but this is node 2",
        ),
        (
            change(&|hello| hello.hello.identity.cluster = "prod".into()),
            "cannot link with node 2",
        ),
        (
            change(&|hello| hello.hello.version = 7),
            "format version 7 is not supported",
        ),
        (
            change(&|hello| hello.append_lanes = 65),
            "its number of lanes is out of range",
        ),
        (vec![b'G'; 64], "does not speak polyraft"),
    ];
    for (count, (bytes, reason)) in cases.iter().enumerate() {
        let rogue = Rogue::connect(dir.path(), &two);
        rogue.greet(bytes);
        assert_says(&rogue.close_reason(), &[reason]);
        two.recorder.wait_until("refusal", |seen| {
            seen.count(ONE, |event| matches!(event, LinkEvent::Refused { .. })) == count + 1
        });
    }
    let seen = two.recorder.seen.lock();
    assert_eq!(seen.ups(ONE) + seen.ups(THREE), 0);
}

#[test]
fn receiver_that_panics_ends_the_link_and_not_the_network() {
    let (one, two, _dir) = linked_pair(|_| {});
    two.recorder.panics.store(true, Ordering::Relaxed);
    one.send(TWO, Lane::Append(0), "boom");
    let reason = two.recorder.wait("down", |seen| seen.down_reason(ONE));
    assert_says(&reason, &["the receiver panicked"]);
    let reason = one.recorder.wait("down", |seen| seen.down_reason(TWO));
    assert_says(&reason, &["the receiver panicked"]);
    two.recorder.panics.store(false, Ordering::Relaxed);
    one.wait_up(TWO);
    one.send(TWO, Lane::Append(0), "after");
    two.recorder
        .wait_until("frame", |seen| seen.frames.len() == 1);
}

#[test]
fn stream_of_a_peer_that_is_not_admitted_yet_is_impossible() {
    let dir = TempDir::new().unwrap();
    let two = Node::start(options(TWO, Tls::dev(dir.path())));
    two.network.set_peer(ONE, any_port());
    let rogue = Rogue::connect(dir.path(), &two);
    rogue.runtime.block_on(async {
        // The stream can only open once the hello is through.
        let mut opening = std::pin::pin!(rogue.connection.open_uni());
        let first = std::future::poll_fn(|context| {
            std::task::Poll::Ready(opening.as_mut().poll(context).is_ready())
        });
        assert!(!first.await);
    });
    rogue.greet(&Rogue::hello().encode());
    rogue.send(&encoded(&[header(0)]));
    two.recorder
        .wait_until("frame", |seen| seen.frames.len() == 1);
}
