//! `polyraft demo`: the story in order. Each step is told on the screen, and the first one that fails ends the demo
//! with an explanation. Whatever happens, nodes are shut down and a temporary directory is removed.

mod acked;
mod args;
mod client;
mod directory;
mod load;
mod machine;
mod report;
mod runs;
mod verify;

pub use args::DemoArgs;
pub use load::{Figures, Load, LoadOptions};
pub use machine::Ledger;
pub use verify::{Verification, verify};

use crate::cluster::{Cluster, Site};
use crate::idle::Idle;
use crate::screen::Screen;
use crate::signal::interruption;
use crate::totals::Totals;
use crate::{failover, idle, preflight, process, screen};
use acked::{AckFile, Promises};
use anyhow::{Context, Result, bail};
use directory::DemoDir;
use report::{FailoverTimes, Latency, Report};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the nodes may take to hear one another.
const LINKED_LIMIT: Duration = Duration::from_secs(30);
/// How long all groups may take to be led.
const LED_LIMIT: Duration = Duration::from_secs(60);
/// How long replicas may take to apply what they have. Generous: a slow disk may have gigabytes to read.
const APPLIED_LIMIT: Duration = Duration::from_secs(300);
/// How long load goes on before and after a node is stopped.
const AROUND_FAILOVER: Duration = Duration::from_secs(1);

/// A node that runs the demo's state machine.
type DemoNode = polyraft::Node<Ledger>;

/// How a demo ends when nothing went wrong on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every promise was kept.
    Verified,
    /// At least one was not.
    Refuted,
    /// Ctrl-C, or a request to terminate.
    Interrupted,
}

/// Runs the demo from preflight to verdict.
pub fn run(args: &DemoArgs) -> Result<Ending> {
    let config = args.load_config()?;
    let dir = match &args.dir {
        Some(path) if args.verify_only => DemoDir::former(path)?,
        Some(path) => DemoDir::given(path, args.wanted())?,
        None => DemoDir::temporary(args.wanted())?,
    };
    args.check(&config, dir.manifest().groups)?;
    let screen = Screen::new();
    // Nodes have threads of their own; this runtime only waits for them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ending = runtime.block_on(async {
        let cluster = Cluster::new(site(&dir), config)?;
        let demo = Demo {
            args,
            dir: &dir,
            screen: &screen,
            cluster: &cluster,
        };
        let ending = tokio::select! {
            ending = demo.tell() => ending,
            signal = interruption() => signal.map(|()| Ending::Interrupted),
        };
        screen.clear();
        if matches!(ending, Ok(Ending::Interrupted)) {
            screen.line("interrupted: shutting the nodes down");
        }
        // The load, if any, has ended with `tell`; the nodes have not if it was cut short.
        let stopped = tokio::select! {
            stopped = cluster.stop_all() => stopped,
            // Whoever asks twice does not want to wait for a clean end.
            _ = interruption() => Ok(()),
        };
        ending.and_then(|ending| stopped.map(|()| ending))
    });
    // Nodes that were still opening when the story was cut short must be gone before their directory is.
    drop(runtime);
    ending
}

fn site(dir: &DemoDir) -> Site {
    let manifest = dir.manifest();
    Site {
        name: "demo",
        directories: (1..=manifest.nodes).map(|id| dir.node(id)).collect(),
        ca: dir.ca(),
        groups: manifest.groups,
    }
}

struct Demo<'a> {
    args: &'a DemoArgs,
    dir: &'a DemoDir,
    screen: &'a Screen,
    cluster: &'a Cluster<Ledger>,
}

impl Demo<'_> {
    async fn tell(&self) -> Result<Ending> {
        if self.args.verify_only {
            return self.verify_only().await;
        }
        let manifest = self.dir.manifest();
        let active_groups = self.args.active_groups.unwrap_or(manifest.groups);
        let mut report = Report {
            nodes: manifest.nodes,
            groups: manifest.groups,
            active_groups,
            payload_bytes: self.args.payload,
            inflight: self.args.inflight,
            ..Report::default()
        };
        self.check_machine(&mut report)?;
        self.start(&mut report).await?;
        let promises = if self.args.seconds == 0 {
            self.idle(&mut report).await?;
            self.idle_without_a_node(&mut report).await?;
            Promises::default()
        } else {
            self.load(&mut report).await?
        };
        let verification = self.reopen_and_verify(&promises, &mut report).await?;
        report.verified = verification.holds();
        report.verification = verification;
        self.conclude(&report)
    }

    /// `--verify-only`: no load, only the end of the story.
    async fn verify_only(&self) -> Result<Ending> {
        let promises = match &self.args.acked {
            Some(path) => acked::read_acked(path)?,
            None => Promises::default(),
        };
        if promises
            .highest_group()
            .is_some_and(|group| group >= self.cluster.groups())
        {
            bail!(
                "the file of --acked names group {}, but {} holds {} groups: they do not belong together",
                promises.highest_group().unwrap_or_default(),
                self.dir.path().display(),
                self.cluster.groups()
            );
        }
        let mut report = Report {
            nodes: self.dir.manifest().nodes,
            groups: self.dir.manifest().groups,
            ..Report::default()
        };
        self.screen
            .done("directory", &self.dir.path().display().to_string());
        let verification = self.open_and_verify(&promises, &mut report).await?;
        self.cluster.stop_all().await?;
        let resident = process::resident();
        (report.rss_bytes, report.rss_file_bytes) = (resident.total, resident.files);
        report.verified = verification.holds();
        report.verification = verification;
        self.conclude(&report)
    }

    fn check_machine(&self, report: &mut Report) -> Result<()> {
        let kept = if self.dir.is_temporary() {
            "removed at the end"
        } else {
            "kept"
        };
        self.screen.done(
            "directory",
            &format!("{} ({kept})", self.dir.path().display()),
        );
        self.screen.live("measuring fsync ...".into(), false);
        let preflight = preflight::run(self.dir.path())?;
        self.screen.done(
            "machine",
            &format!(
                "{} cores, Linux {}, {} with {} free",
                preflight.cores,
                preflight.kernel,
                preflight.filesystem,
                screen::bytes(preflight.free_bytes)
            ),
        );
        self.screen.done(
            "fsync of 4 KiB",
            &format!(
                "p50 {}, p99 {}",
                screen::micros(preflight.fsync_us.p50),
                screen::micros(preflight.fsync_us.p99)
            ),
        );
        for warning in preflight.warnings() {
            self.screen.line(&format!("warning: {warning}"));
        }
        report.preflight = Some(preflight);
        Ok(())
    }

    /// Starts the nodes, creates the groups, and waits until all are led.
    async fn start(&self, report: &mut Report) -> Result<()> {
        self.screen.live("starting nodes ...".into(), false);
        let started = Instant::now();
        self.cluster.start_all().await?;
        self.cluster.until_linked(LINKED_LIMIT).await?;
        let nodes = self.cluster.running();
        self.screen.done(
            "nodes",
            &format!(
                "{} started and linked in {}",
                nodes.len(),
                screen::time(started.elapsed())
            ),
        );
        // Before the groups come: later it would measure the nodes' work instead of the way.
        self.screen
            .live("measuring the QUIC round trip ...".into(), false);
        if let Some(round_trip) = self.cluster.lowest_round_trip().await {
            self.screen
                .done("QUIC round trip", &screen::time(round_trip));
            if let Some(preflight) = &mut report.preflight {
                preflight.quic_round_trip_us = Some(round_trip.as_micros() as u64);
            }
        }

        report.empty_bytes = process::resident().anonymous();
        let count = screen::count(self.cluster.groups());
        self.screen
            .live(format!("creating {count} groups ..."), false);
        let started = Instant::now();
        let creator = nodes.first().context("a demo has at least one node")?;
        creator
            .create_groups(0..self.cluster.groups(), &self.cluster.members())
            .await
            .context("the groups cannot be created")?;
        report.create_seconds = started.elapsed().as_secs_f64();
        let created = if self.dir.is_new() {
            "created"
        } else {
            "created or found"
        };
        self.screen.done(
            "groups",
            &format!("{count} {created} in {}", screen::time(started.elapsed())),
        );

        self.screen.live("waiting for leaders ...".into(), false);
        let started = Instant::now();
        self.cluster.until_led(LED_LIMIT).await?;
        report.led_seconds = started.elapsed().as_secs_f64();
        let led: Vec<_> = nodes
            .iter()
            .map(|node| screen::count(node.status().led))
            .collect();
        self.screen.done(
            "leaders",
            &format!(
                "all groups led in {} ({} by node)",
                screen::time(started.elapsed()),
                led.join(" + ")
            ),
        );
        Ok(())
    }

    /// Everything that happens under load: measuring, resting, losing a node, getting it back. Returns the promises.
    async fn load(&self, report: &mut Report) -> Result<Promises> {
        let acked = match &self.args.acked {
            Some(path) => Some(Arc::new(AckFile::open(path)?)),
            None => None,
        };
        let options = LoadOptions {
            groups: 0..report.active_groups,
            payload_bytes: usize::try_from(self.args.payload)?,
            inflight: usize::try_from(self.args.inflight)?,
            drain_limit: self.cluster.proposal_timeout() + Duration::from_secs(10),
            acked,
        };
        let mut load = Load::start(&options, self.cluster.roster())?;
        self.measure(&mut load, report).await?;
        if self.args.idle > 0 {
            load.rest().await?;
            self.idle(report).await?;
            load.resume();
        }
        if report.nodes >= 3 {
            self.lose_a_node(&mut load, report).await?;
        } else {
            self.screen
                .done("failover", "left out: it takes 3 nodes to lose one");
        }
        self.screen
            .live("letting proposals in flight end ...".into(), false);
        let mut rest = Figures::new();
        load.rest().await?;
        load.take_figures(&mut rest)?;
        report.retried += rest.retried;
        let promises = load.end().await?;
        self.screen.done(
            "promises",
            &format!(
                "{} writes acknowledged, {} with an open outcome",
                screen::count(promises.acknowledged()),
                screen::count(promises.open())
            ),
        );
        Ok(promises)
    }

    /// The load phase that the table is about.
    async fn measure(&self, load: &mut Load, report: &mut Report) -> Result<()> {
        let nodes = self.cluster.running();
        let (mut all, mut second) = (Figures::new(), Figures::new());
        let (cpu_before, totals_before) = (process::cpu_time(), Totals::of(&nodes));
        let mut totals_last = totals_before;
        let started = Instant::now();
        let mut last = started;
        for tick in 1..=self.args.seconds {
            tokio::time::sleep_until((started + Duration::from_secs(tick)).into()).await;
            load.take_figures(&mut second)?;
            self.cluster.check_health()?;
            all.add(&second);
            let (now, totals) = (Instant::now(), Totals::of(&nodes));
            let line = live_line(&second, now - last, &(totals - totals_last));
            self.screen
                .live(format!("{tick:>3}/{} s {line}", self.args.seconds), true);
            (last, totals_last) = (now, totals);
        }
        let passed = last - started;
        let totals = totals_last - totals_before;
        let cpu = process::cpu_time() - cpu_before;
        report.seconds = passed.as_secs_f64();
        report.committed = all.committed();
        report.commits_per_second = all.committed() as f64 / passed.as_secs_f64();
        report.latency_us = Latency::of(&all.latency_us);
        report.fsyncs = totals.barriers;
        report.entries_per_barrier = totals.entries_per_barrier();
        report.wal_bytes = totals.wal_bytes;
        report.bytes_per_frame = totals.bytes_per_frame();
        report.cpu_seconds = cpu.as_secs_f64();
        report.retried += all.retried;
        let resident = process::resident();
        (report.rss_bytes, report.rss_file_bytes) = (resident.total, resident.files);
        if all.committed() == 0 {
            bail!("nothing was committed in {} s of load", self.args.seconds);
        }
        report.cpu_seconds_per_million = report.cpu_seconds / (all.committed() as f64 / 1e6);
        self.screen.done(
            "load",
            &format!(
                "{} commits in {:.1} s, {} commits/s",
                screen::count(report.committed),
                report.seconds,
                screen::count(report.commits_per_second as u64)
            ),
        );
        Ok(())
    }

    /// Waits for silence, then measures it.
    async fn idle(&self, report: &mut Report) -> Result<()> {
        let idle = self.rest(self.args.idle, report.empty_bytes).await?;
        let resident = process::resident();
        (report.rss_bytes, report.rss_file_bytes) = (resident.total, resident.files);
        if let Some(idle) = idle {
            report.idle = Some(idle);
            self.screen
                .done("idle", &idle.told(report.groups, report.nodes));
        }
        Ok(())
    }

    /// Stops a node and measures what the others cost without it; then brings it back.
    async fn idle_without_a_node(&self, report: &mut Report) -> Result<()> {
        if self.args.idle_down == 0 || report.nodes < 3 {
            return Ok(());
        }
        let id = self.stop_the_busiest(report).await?;
        let idle = self.rest(self.args.idle_down, report.empty_bytes).await?;
        report.idle_down = idle;
        if let Some(idle) = idle {
            let told = idle.told(report.groups, report.nodes - 1);
            self.screen.done("idle, one down", &told);
        }
        self.bring_back(id, report).await
    }

    /// Waits for silence and measures it for so many seconds; nothing for none.
    async fn rest(&self, seconds: u64, empty_bytes: u64) -> Result<Option<Idle>> {
        idle::until_quiet(&self.cluster.running(), self.screen).await;
        if seconds == 0 {
            return Ok(None);
        }
        let groups = self.cluster.groups();
        idle::measure(self.cluster, groups, seconds, empty_bytes, self.screen)
            .await
            .map(Some)
    }

    /// Stops a node under load, brings it back, and waits until it has caught up.
    async fn lose_a_node(&self, load: &mut Load, report: &mut Report) -> Result<()> {
        let mut figures = Figures::new();
        self.screen
            .live("load goes on; a node will be stopped ...".into(), false);
        tokio::time::sleep(AROUND_FAILOVER).await;
        load.take_figures(&mut figures)?;
        report.retried += figures.retried;

        let id = self.stop_the_busiest(report).await?;

        let started = Instant::now();
        load.take_figures(&mut figures)?;
        report.retried += figures.retried;
        tokio::time::sleep(AROUND_FAILOVER).await;
        load.take_figures(&mut figures)?;
        report.retried += figures.retried;
        if figures.committed() == 0 {
            bail!(
                "nothing was committed in {:.1} s with node {id} down",
                started.elapsed().as_secs_f64()
            );
        }
        self.screen.done(
            "one node down",
            &format!(
                "{} commits/s without node {id}",
                screen::count(
                    (figures.committed() as f64 / started.elapsed().as_secs_f64()) as u64
                )
            ),
        );

        self.bring_back(id, report).await?;
        load.take_figures(&mut figures)?;
        report.retried += figures.retried;
        Ok(())
    }

    /// Stops the node that leads the most groups and measures how long they have no leader.
    async fn stop_the_busiest(&self, report: &mut Report) -> Result<u64> {
        let id = failover::busiest(self.cluster)?;
        self.screen.live(format!("stopping node {id} ..."), false);
        let failover = failover::stop_and_measure(self.cluster, id).await?;
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let times = FailoverTimes {
            p50: millis(failover.quantile(0.5)),
            max: millis(failover.max()),
            groups: failover.leaderless.len() as u64,
        };
        report.failover_ms = Some(times);
        self.screen.done(
            "failover",
            &format!(
                "node {} stopped; its {} groups were without a leader for p50 {:.0} ms, max {:.0} ms",
                failover.stopped,
                screen::count(times.groups),
                times.p50,
                times.max
            ),
        );
        Ok(id)
    }

    /// Starts a node that was stopped, and waits until it has caught up.
    async fn bring_back(&self, id: u64, report: &mut Report) -> Result<()> {
        self.screen
            .live(format!("starting node {id} again ..."), false);
        let started = Instant::now();
        self.cluster.start(id).await?;
        let open = started.elapsed();
        self.cluster.until_caught_up(id, APPLIED_LIMIT).await?;
        report.restart_seconds = Some(open.as_secs_f64());
        report.catch_up_seconds = Some(started.elapsed().as_secs_f64());
        self.screen.done(
            "back again",
            &format!(
                "node {id} reopened in {}, and had caught up after {}",
                screen::time(open),
                screen::time(started.elapsed())
            ),
        );
        Ok(())
    }

    /// Shuts everything down, opens it again, and verifies.
    async fn reopen_and_verify(
        &self,
        promises: &Promises,
        report: &mut Report,
    ) -> Result<Verification> {
        self.screen.live(
            "waiting until all replicas have applied everything ...".into(),
            false,
        );
        self.cluster.until_applied(APPLIED_LIMIT).await?;
        self.screen
            .live("shutting all nodes down ...".into(), false);
        let started = Instant::now();
        self.cluster.stop_all().await?;
        self.screen.done(
            "shutdown",
            &format!("all nodes down in {}", screen::time(started.elapsed())),
        );
        let verification = self.open_and_verify(promises, report).await?;
        self.cluster.stop_all().await?;
        Ok(verification)
    }

    /// Opens all nodes from their directories and verifies what they hold.
    async fn open_and_verify(
        &self,
        promises: &Promises,
        report: &mut Report,
    ) -> Result<Verification> {
        self.screen
            .live("opening all nodes from disk ...".into(), false);
        let started = Instant::now();
        self.cluster.start_all().await?;
        if self.args.verify_only {
            // A demo that was killed early may have created its groups on some nodes only.
            let nodes = self.cluster.running();
            let creator = nodes.first().context("a demo has at least one node")?;
            creator
                .create_groups(0..self.cluster.groups(), &self.cluster.members())
                .await
                .context("the groups of the former demo are not complete")?;
        }
        self.cluster.until_led(LED_LIMIT).await?;
        self.screen
            .live("waiting until the logs are applied ...".into(), false);
        self.cluster.until_applied(APPLIED_LIMIT).await?;
        report.reopen_seconds = started.elapsed().as_secs_f64();
        self.screen.done(
            "reopened",
            &format!(
                "from disk, led and applied in {}",
                screen::time(started.elapsed())
            ),
        );
        self.screen.live("verifying ...".into(), false);
        verify(&self.cluster.running(), self.cluster.groups(), promises).await
    }

    /// The table, the JSON, and what to do next.
    fn conclude(&self, report: &Report) -> Result<Ending> {
        self.screen.clear();
        self.screen.line("");
        self.screen.line(&report.table());
        for example in &report.verification.examples {
            self.screen.line(&format!("broken promise: {example}"));
        }
        if let Some(path) = &self.args.json {
            report.write_json(path)?;
            self.screen
                .line(&format!("results written to {}", path.display()));
        }
        if !report.verified {
            return Ok(Ending::Refuted);
        }
        if !self.args.verify_only {
            self.screen.line(&next_commands(
                (!self.dir.is_temporary()).then(|| self.dir.path()),
            ));
        }
        Ok(Ending::Verified)
    }
}

/// One second of load in a line.
fn live_line(second: &Figures, passed: Duration, totals: &Totals) -> String {
    format!(
        "{:>9} commits/s  p50 {:>7}  p99 {:>7}  {:>5} entries/barrier",
        screen::count((second.committed() as f64 / passed.as_secs_f64()) as u64),
        screen::micros(second.latency_us.value_at_quantile(0.5)),
        screen::micros(second.latency_us.value_at_quantile(0.99)),
        screen::three_digits(totals.entries_per_barrier())
    )
}

/// Commands worth trying after this one.
fn next_commands(kept: Option<&Path>) -> String {
    // As the user has called it: it need not be on the path.
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "polyraft".to_owned());
    let mut lines = vec!["Next:".to_owned()];
    let mut command = |arguments: String, what: &str| {
        lines.push(format!("  {program} {arguments:<49}  # {what}"));
    };
    match kept {
        Some(dir) => {
            let dir = dir.display();
            command(
                format!("demo --dir {dir} --verify-only"),
                "open it again and verify",
            );
            command(format!("wal verify {dir}"), "check the logs offline");
            command(
                format!("wal dump {dir}/node-1 | head -50"),
                "see what is in one",
            );
        }
        None => command(
            "demo --dir data/kept".into(),
            "keep the data and look into it",
        ),
    }
    command(
        "demo --groups 4096 --payload 16 --inflight 4096".into(),
        "more groups, more load",
    );
    command(
        "demo --groups 10000 --seconds 0 --idle 20".into(),
        "what idle groups cost",
    );
    lines.join("\n")
}
