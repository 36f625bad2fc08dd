//! The metrics of real nodes, read as a Prometheus server reads them, and visitors that do not know how to ask.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use bytes::Bytes;
use polyraft::Config;
use polyraft_tests::{Cluster, DEADLINE, small_config, until};

const ALL: [u64; 3] = [1, 2, 3];

fn config() -> Config {
    let mut config = small_config();
    config.metrics.listen = Some(([127, 0, 0, 1], 0).into());
    config
}

/// Sends `request` and returns everything that comes back until the server closes.
fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    // A server that has heard enough may have closed already.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).expect("answers are text")
}

fn scrape(address: SocketAddr) -> String {
    let answer = ask(address, b"GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    body.to_owned()
}

/// Reads the text format strictly: each family once, with help and kind before its samples, and no sample twice.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let help = line.strip_prefix("# HELP ").expect("a family begins");
        let (name, help) = help.split_once(' ').expect("help has a text");
        assert!(help.ends_with('.'), "{line}");
        let is_name = |letter: char| letter.is_ascii_lowercase() || letter == '_';
        assert!(name.chars().all(is_name), "{name}");
        assert!(!families.contains(&name), "{name} comes twice");
        families.push(name);
        let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE "));
        let kind = kind
            .and_then(|kind| kind.strip_prefix(name))
            .unwrap()
            .trim();
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        let mut bucket = 0.0;
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let value: f64 = value.parse().expect("a number");
            let (sample, labels) = series.split_once('{').unwrap_or((series, "}"));
            assert!(
                labels.ends_with('}') && !labels.contains("group="),
                "{line}"
            );
            match (kind, sample.strip_prefix(name).expect("of this family")) {
                ("gauge" | "counter", "") | ("histogram", "_sum") => {}
                ("histogram", "_bucket") => {
                    assert!(value >= bucket, "buckets are cumulative: {line}");
                    bucket = value;
                }
                ("histogram", "_count") => {
                    assert_eq!(value, bucket, "the last bucket has all: {line}");
                    bucket = 0.0;
                }
                other => panic!("{line}: {other:?}"),
            }
            assert!(value >= 0.0, "{line}");
            assert!(samples.insert(series.to_owned(), value).is_none(), "{line}");
        }
    }
    samples
}

async fn propose(cluster: &Cluster, count: u64) {
    for number in 0..count {
        cluster
            .node(1)
            .group(number % 4)
            .propose(Bytes::from(format!("proposal {number}")))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn counters_move_with_the_load() {
    let mut cluster = Cluster::start(3, config()).await;
    cluster.node(1).create_groups(0..4, &ALL).await.unwrap();
    cluster.led(0..4).await;
    let addresses = ALL.map(|id| cluster.node(id).metrics_addr().expect("they are served"));
    let read = || addresses.map(|address| parse(&scrape(address)));
    let sum = |pages: &[BTreeMap<String, f64>], series: &str| -> f64 {
        let values = pages.iter().map(|page| {
            *page
                .get(series)
                .unwrap_or_else(|| panic!("{series} is missing"))
        });
        values.sum()
    };
    let before = read();
    propose(&cluster, 40).await;
    let after = read();
    let grown = |series: &str| sum(&after, series) - sum(&before, series);

    assert_eq!(sum(&after, "polyraft_groups"), 12.0);
    assert_eq!(sum(&after, "polyraft_groups_led"), 4.0);
    assert_eq!(sum(&after, "polyraft_groups_leaderless"), 0.0);
    assert_eq!(sum(&after, "polyraft_stopped"), 0.0);
    assert_eq!(grown("polyraft_proposals_total"), 40.0);
    assert!(grown("polyraft_committed_entries_total") >= 40.0);
    assert_eq!(grown("polyraft_block_entries_sum"), 40.0);
    let elections = ["silence", "retry", "creation", "handover"].map(|cause| {
        let series = format!("polyraft_elections_total{{cause=\"{cause}\"}}");
        sum(&after, &series)
    });
    assert!(elections.iter().sum::<f64>() >= 4.0, "{elections:?}");
    for series in [
        "polyraft_turns_total",
        "polyraft_turn_duration_seconds_count",
        "polyraft_applied_entries_total",
        "polyraft_group_messages_total",
        "polyraft_network_sent_bytes_total",
        "polyraft_wal_barrier_duration_seconds_count",
        "polyraft_wal_barrier_duration_seconds_sum",
        "polyraft_wal_written_bytes_total",
        "polyraft_wal_batch_bytes_sum",
        "polyraft_stage_duration_seconds_count{stage=\"inbox\"}",
        "polyraft_stage_duration_seconds_count{stage=\"append\"}",
        "polyraft_stage_duration_seconds_count{stage=\"commit\"}",
        "polyraft_stage_duration_seconds_count{stage=\"apply\"}",
    ] {
        assert!(grown(series) > 0.0, "{series} did not grow");
    }
    for peer in [2, 3] {
        let alive = &format!("polyraft_peer_alive{{peer=\"{peer}\"}}");
        assert_eq!(after[0][alive], 1.0);
    }
    // Each page is what the node says itself, and the same series whenever it is asked.
    let own = parse(&cluster.node(1).metrics());
    assert!(own.keys().eq(after[0].keys()));
    cluster.stop_all().await;
}

#[tokio::test]
async fn visitors_that_ask_badly_are_harmless() {
    let mut cluster = Cluster::start(1, config()).await;
    cluster.node(1).create_groups(0..4, &[1]).await.unwrap();
    cluster.led(0..4).await;
    let address = cluster.node(1).metrics_addr().unwrap();

    let answer = ask(address, b"GET / HTTP/1.1\r\nhost: test\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let answer = ask(
        address,
        b"POST /metrics HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nabc",
    );
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let answer = ask(address, b"\x16\x03\x01\x00\xff\xff\xff nonsense\r\n\r\n");
    assert!(!answer.contains("polyraft_"), "{answer}");
    let long = [&b"GET /metrics?"[..], &vec![b'x'; 1 << 20]].concat();
    assert!(!ask(address, &long).contains("polyraft_"));
    let mut many = b"GET /metrics HTTP/1.1\r\n".to_vec();
    (0..200).for_each(|at| many.extend_from_slice(format!("x-{at}: y\r\n").as_bytes()));
    many.extend_from_slice(b"\r\n");
    assert!(!ask(address, &many).contains("polyraft_"));

    // Visitors who never finish their question keep their places for a while, and nobody else's.
    let idle: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            let _ = stream.write_all(b"GET /met");
            stream
        })
        .collect();
    propose(&cluster, 8).await;
    drop(idle);
    until("another one is let in again", async || {
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n");
        answer.starts_with("HTTP/1.1 200 ")
    })
    .await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn nothing_is_served_unless_asked_for_and_a_taken_address_is_an_error() {
    let mut cluster = Cluster::start(1, small_config()).await;
    assert_eq!(cluster.node(1).metrics_addr(), None);
    assert!(cluster.node(1).metrics().contains("polyraft_groups 0"));
    cluster.stop_all().await;

    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut config = small_config();
    config.metrics.listen = Some(taken.local_addr().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let opened = polyraft::Node::<polyraft_tests::Ledger>::builder()
        .id(1)
        .data_dir(dir.path().join("node"))
        .listen(([127, 0, 0, 1], 0).into())
        .tls(polyraft::Tls::dev(dir.path().join("ca")))
        .config(config)
        .open()
        .await;
    let error = opened.expect_err("the address is taken").to_string();
    assert!(error.contains("metrics.listen"), "{error}");
}
