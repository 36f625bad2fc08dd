//! Certificates on disk: made, kept private, and refused with a reason when they are no good.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;

use super::*;
use crate::TransportError;

fn start(tls: Tls) -> Result<QuicNetwork, TransportError> {
    QuicListener::bind(options(ONE, tls))
        .and_then(|listener| listener.start(Arc::new(Recorder::default())))
}

#[track_caller]
fn assert_refused(tls: Tls, parts: &[&str]) {
    assert_says(&start(tls).unwrap_err(), parts);
}

fn files(tls: Tls) -> (PathBuf, PathBuf, PathBuf) {
    match tls {
        Tls::Files { ca, cert, key } => (ca, cert, key),
        Tls::Dev { .. } => unreachable!("it is made of files"),
    }
}

#[test]
fn nodes_that_start_together_agree_on_one_development_ca() {
    let dir = TempDir::new().unwrap();
    let ca = dir.path().join("not/yet/there");
    let barrier = Barrier::new(6);
    let nodes: Vec<Node> = std::thread::scope(|scope| {
        let handles: Vec<_> = (1..=6)
            .map(|id| {
                let options = options(NodeId(id), Tls::dev(&ca));
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    Node::start(options)
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap())
            .collect()
    });
    let (first, others) = nodes.split_first().unwrap();
    for other in others {
        introduce(first, other);
        first.wait_up(other.id);
    }
}

#[test]
fn development_key_is_private_and_must_stay_so() {
    let dir = TempDir::new().unwrap();
    drop(start(Tls::dev(dir.path())).unwrap());
    let key = dir.path().join("ca-key.pem");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&key), 0o600);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_refused(Tls::dev(dir.path()), &["ca-key.pem", "644", "chmod 600"]);
}

#[test]
fn incomplete_development_ca_is_finished_or_explained() {
    let dir = TempDir::new().unwrap();
    drop(start(Tls::dev(dir.path())).unwrap());
    let (cert, key) = (dir.path().join("ca.pem"), dir.path().join("ca-key.pem"));
    // A crash between the two files leaves the key alone: nobody can have used it.
    fs::remove_file(&cert).unwrap();
    drop(start(Tls::dev(dir.path())).unwrap());
    assert!(cert.exists());
    fs::remove_file(&key).unwrap();
    assert_refused(Tls::dev(dir.path()), &["ca-key.pem", "restore it"]);
    write(&key, "nonsense");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert_refused(Tls::dev(dir.path()), &["ca-key.pem", "private key"]);
}

#[test]
fn missing_and_garbage_files_are_named() {
    let ca = TestCa::new();
    let (ca_path, cert, key) = files(ca.good(ONE));
    let dir = ca.dir.path();
    let missing = dir.join("missing.pem");
    let garbage = dir.join("garbage.pem");
    fs::write(&garbage, [0, 159, 146, 150]).unwrap();
    let broken = dir.join("broken.pem");
    write(
        &broken,
        "-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n",
    );
    let not_der = dir.join("not-der.pem");
    write(
        &not_der,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );

    for (ca, cert, key) in [
        (&missing, &cert, &key),
        (&ca_path, &missing, &key),
        (&ca_path, &cert, &missing),
    ] {
        assert_refused(Tls::files(ca, cert, key), &["cannot read", "missing.pem"]);
    }
    assert_refused(
        Tls::files(&garbage, &cert, &key),
        &["garbage.pem", "no PEM certificate"],
    );
    assert_refused(
        Tls::files(&ca_path, &cert, &garbage),
        &["garbage.pem", "no PEM private key"],
    );
    assert_refused(
        Tls::files(&ca_path, &broken, &key),
        &["broken.pem", "not a PEM file"],
    );
    assert_refused(
        Tls::files(&ca_path, &not_der, &key),
        &["not-der.pem", "cannot be read"],
    );
    assert_refused(Tls::files(&not_der, &cert, &key), &["a CA certificate"]);
    // A certificate where the key should be.
    assert_refused(
        Tls::files(&ca_path, &cert, &cert),
        &["1-cert.pem", "no PEM private key"],
    );
}

#[test]
fn certificate_must_be_this_nodes_own() {
    let ca = TestCa::new();
    assert_refused(
        ca.good(TWO),
        &["polyraft://test/node/2", r#"node 1 of cluster "test""#],
    );
    assert_refused(
        ca.issue("prod", ONE, |_| {}),
        &["polyraft://prod/node/1", r#"node 1 of cluster "test""#],
    );
    let nameless = ca.issue("test", ONE, |params| {
        params.subject_alt_names.remove(0);
    });
    assert_refused(nameless, &["1-cert.pem", "no SAN of the form"]);
    let (_, _, other_key) = files(ca.good(TWO));
    let (ca_path, cert, _) = files(ca.good(ONE));
    assert_refused(Tls::files(ca_path, cert, other_key), &["tls:"]);
}

#[test]
fn cluster_names_and_options_are_checked_at_the_start() {
    let dir = TempDir::new().unwrap();
    let refuse = |change: &dyn Fn(&mut Options), parts: &[&str]| {
        let mut options = options(ONE, Tls::dev(dir.path()));
        change(&mut options);
        let started = QuicListener::bind(options)
            .and_then(|listener| listener.start(Arc::new(Recorder::default())));
        assert_says(&started.unwrap_err(), parts);
    };
    refuse(
        &|o| o.identity.cluster = "No Good".into(),
        &["No Good", "a-z"],
    );
    refuse(&|o| o.max_mtu = 6600, &["max_mtu", "6600", "6550"]);
    refuse(&|o| o.append_lanes = 0, &["append_lanes"]);
    refuse(&|o| o.queue_bytes = 1 << 20, &["queue_bytes", "4194304"]);
    refuse(&|o| o.keep_alive = o.idle_timeout, &["keep_alive"]);
    let taken = std::net::UdpSocket::bind(any_port()).unwrap();
    let addr = taken.local_addr().unwrap();
    refuse(&|o| o.listen = addr, &["cannot listen on udp", "127.0.0.1"]);
}
