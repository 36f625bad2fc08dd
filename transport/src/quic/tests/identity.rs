//! Who is let in, and what both sides learn when someone is not.

#[cfg(polyraft_mutants)]
use polyraft_raft::mutants;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration as Days, OffsetDateTime};

use super::*;
use crate::tls::SERVER_NAME;

/// Nodes 1 and 2 with these certificates, introduced to each other.
fn pair(one: Tls, two: Tls) -> (Node, Node) {
    let nodes = (
        Node::start(options(ONE, one)),
        Node::start(options(TWO, two)),
    );
    introduce(&nodes.0, &nodes.1);
    nodes
}

/// Neither side may have had a link, and neither may have panicked or stopped trying.
fn assert_never_up(one: &Node, two: &Node) {
    let attempts = |node: &Node| node.network.stats().refused;
    let before = attempts(one);
    let deadline = Instant::now() + DEADLINE;
    while attempts(one) < before + 2 {
        assert!(Instant::now() < deadline, "it does not try again");
        std::thread::yield_now();
    }
    assert_eq!(one.recorder.seen.lock().ups(TWO), 0);
    assert_eq!(two.recorder.seen.lock().ups(ONE), 0);
}

fn expired(params: &mut CertificateParams) {
    params.not_before = OffsetDateTime::now_utc() - Days::days(9);
    params.not_after = OffsetDateTime::now_utc() - Days::days(2);
}

#[test]
fn certificate_of_another_ca_is_refused_by_the_dialer() {
    let (ours, other) = (TestCa::new(), TestCa::new());
    let (one, two) = pair(ours.good(ONE), other.good(TWO));
    one.wait_refusal(TWO, "UnknownIssuer");
    two.wait_refusal(ONE, "UnknownIssuer");
    assert_never_up(&one, &two);
}

#[test]
fn certificate_of_another_ca_is_refused_by_the_acceptor() {
    let (ours, other) = (TestCa::new(), TestCa::new());
    // The dialer trusts both, so only the acceptor has a reason to refuse.
    let both = ours.dir.path().join("both.pem");
    let read = |ca: &TestCa| std::fs::read_to_string(ca.ca()).unwrap();
    write(&both, &(read(&ours) + &read(&other)));
    let Tls::Files { cert, key, .. } = other.good(ONE) else {
        unreachable!("it is made of files");
    };
    let (one, two) = pair(Tls::files(both, cert, key), ours.good(TWO));
    one.wait_refusal(TWO, "UnknownIssuer");
    two.wait_refusal(ONE, "UnknownIssuer");
    assert_never_up(&one, &two);
}

#[test]
fn expired_certificate_is_refused_by_either_side() {
    let ca = TestCa::new();
    let (one, two) = pair(ca.good(ONE), ca.issue("test", TWO, expired));
    one.wait_refusal(TWO, "expired");
    two.wait_refusal(ONE, "expired");
    assert_never_up(&one, &two);

    let (one, two) = pair(ca.issue("test", ONE, expired), ca.good(TWO));
    one.wait_refusal(TWO, "expired");
    two.wait_refusal(ONE, "expired");
    assert_never_up(&one, &two);
}

#[test]
fn other_cluster_is_refused_under_the_same_ca() {
    let ca = TestCa::new();
    let one = Node::start(options(ONE, ca.good(ONE)));
    let mut foreign = options(TWO, ca.issue("prod", TWO, |_| {}));
    foreign.identity.cluster = "prod".into();
    let two = Node::start(foreign);
    introduce(&one, &two);
    let reason = r#"it is for cluster "prod", but this is cluster "test""#;
    one.wait_refusal(TWO, reason);
    two.wait_refusal(ONE, reason);
    assert_never_up(&one, &two);
}

#[test]
fn wrong_node_at_the_address_is_refused() {
    let ca = TestCa::new();
    let one = Node::start(options(ONE, ca.good(ONE)));
    let three = Node::start(options(THREE, ca.good(THREE)));
    three.knows(&one);
    // Node 1 believes that node 2 lives where node 3 does.
    one.network.set_peer(TWO, three.addr());
    let reason = "it is for node 3, but node 2 was expected at this address";
    one.wait_refusal(TWO, reason);
    three.wait_refusal(ONE, reason);
    assert_eq!(one.recorder.seen.lock().ups(TWO), 0);
}

#[test]
fn good_certificate_of_a_non_member_is_refused() {
    let ca = TestCa::new();
    let one = Node::start(options(ONE, ca.good(ONE)));
    let three = Node::start(options(THREE, ca.good(THREE)));
    // Node 3 never heard of node 1.
    one.knows(&three);
    one.wait_refusal(THREE, "node 1 is not a peer of node 3");
    three.network.set_peer(ONE, one.addr());
    one.wait_up(THREE);
}

#[cfg(polyraft_mutants)]
#[test]
fn every_fault_of_links_is_noticed() {
    for (fault, _) in mutants::LINKS {
        mutants::set(Some(*fault));
        let noticed = std::panic::catch_unwind(good_certificate_of_a_non_member_is_refused);
        mutants::set(None);
        assert!(noticed.is_err(), "{fault:?}");
    }
}

#[test]
fn certificate_without_the_client_purpose_is_refused() {
    let ca = TestCa::new();
    let server_only = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    };
    let (one, two) = pair(ca.issue("test", ONE, server_only), ca.good(TWO));
    two.wait_refusal(ONE, "the peer's certificate");
    one.wait_refusal(TWO, "refused by the peer's TLS");
    assert_never_up(&one, &two);
}

#[test]
fn caller_without_a_certificate_is_refused() {
    let ca = TestCa::new();
    let two = Node::start(options(TWO, ca.good(TWO)));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(ca.ca()).unwrap();
    roots
        .add(CertificateDer::from_pem_slice(&pem).unwrap())
        .unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"polyraft/1".to_vec()];
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let closed = runtime.block_on(async {
        let endpoint = quinn::Endpoint::client(any_port()).unwrap();
        let connecting = endpoint.connect_with(config, two.addr(), SERVER_NAME);
        match connecting.unwrap().await {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    });
    assert_says(&closed, &["peer sent no certificates"]);
}

#[test]
fn policy_of_either_side_refuses_with_its_reason_on_both() {
    let dir = TempDir::new().unwrap();
    let one = Node::start(options(ONE, Tls::dev(dir.path())));
    let two = Node::start(options(TWO, Tls::dev(dir.path())));
    *two.recorder.refusal.lock() = Some("node 1 lost its data".into());
    introduce(&one, &two);
    one.wait_refusal(TWO, "node 1 lost its data");
    two.wait_refusal(ONE, "node 1 lost its data");
    assert_never_up(&one, &two);

    *one.recorder.refusal.lock() = Some("node 2 went back in time".into());
    *two.recorder.refusal.lock() = None;
    for node in [&one, &two] {
        node.recorder.wait_until("new reason", |seen| {
            let is = |event: &LinkEvent| {
                matches!(event, LinkEvent::Refused { reason }
                    if reason.contains("node 2 went back in time"))
            };
            seen.count(ONE, is) + seen.count(TWO, is) > 0
        });
    }
    *one.recorder.refusal.lock() = None;
    one.wait_up(TWO);
    two.wait_up(ONE);
}

#[test]
fn refused_node_does_not_hammer_its_peer() {
    let ca = TestCa::new();
    let mut slow = options(ONE, ca.good(ONE));
    slow.backoff_min = Duration::from_millis(1);
    slow.backoff_max = Duration::from_secs(300);
    let one = Node::start(slow);
    let three = Node::start(options(THREE, ca.good(THREE)));
    let started = Instant::now();
    one.knows(&three);
    one.recorder.wait_until("six refusals", |seen| {
        seen.count(THREE, |event| matches!(event, LinkEvent::Refused { .. })) == 6
    });
    // Delays of at least half of 1, 2, 4, 8 and 16 ms lie between six attempts.
    assert!(started.elapsed() >= Duration::from_micros(15_500));
}
