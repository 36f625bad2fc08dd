//! Which goals and keys a run takes, and what it says of what it found.

use super::said::verdict;
use super::search::{Method, Stop};
use super::stats::Runs;
use super::*;
use clap::Parser;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    tune: TuneArgs,
}

fn parse(line: &str) -> Result<TuneArgs, String> {
    Line::try_parse_from(std::iter::once("tune").chain(line.split_whitespace()))
        .map(|line| line.tune)
        .map_err(|error| error.to_string())
}

#[test]
fn goals_come_with_what_they_need() {
    let args = parse("--param wal.lanes=1,2 --p99 5ms --inflight 64").unwrap();
    let (goal, pace) = args.goal().unwrap();
    assert_eq!(goal, Goal::Throughput { p99_us: 5_000.0 });
    assert_eq!(pace, Pace::Inflight(64));
    let args = parse("--param wal.lanes=1,2 --goal latency --rate 2000").unwrap();
    let (goal, pace) = args.goal().unwrap();
    assert_eq!(goal, Goal::Latency { rate: 2000.0 });
    assert!(matches!(
        pace,
        Pace::Rate {
            per_second: 2000.0,
            ..
        }
    ));
    assert!(parse("--p99 5ms").unwrap_err().contains("--param"));
    assert!(
        parse("--param wal.lanes=1,2 --goal throughput")
            .unwrap_err()
            .contains("--p99")
    );
    assert!(
        parse("--param wal.lanes=1,2 --goal latency")
            .unwrap_err()
            .contains("--rate")
    );
    let args = parse("--param wal.lanes=1,2 --p99 5ms").unwrap();
    assert_eq!(args.goal().unwrap().1, Pace::Inflight(1024));
    let closed = parse("--param wal.lanes=1,2 --goal latency --rate 100 --inflight 8").unwrap();
    let error = closed.goal().unwrap_err().to_string();
    assert!(error.contains("--inflight"), "{error}");
    for precision in ["0", "-1", "NaN", "inf", "101", "much"] {
        let line = format!("--param wal.lanes=1,2 --p99 5ms --precision={precision}");
        assert!(parse(&line).unwrap_err().contains("above 0"), "{precision}");
    }
    let both = parse("--param wal.lanes=1,2 --p99 5ms --rate 100").unwrap();
    assert!(
        both.goal()
            .unwrap_err()
            .to_string()
            .contains("--goal latency")
    );
}

fn runs(goal: Goal, all: &[(f64, f64)]) -> Runs {
    let mut runs = Runs::default();
    for (rate, p99_us) in all {
        let seen = Seen {
            rate: *rate,
            p99_us: *p99_us,
            answered: 1000,
            due: 1000,
            elections: 0,
            void: None,
        };
        runs.add(goal, &seen);
    }
    runs
}

#[test]
fn a_percentage_is_said_only_of_what_keeps_the_bound() {
    let goal = Goal::Throughput { p99_us: 5_000.0 };
    let said = |before: &[(f64, f64)], after: &[(f64, f64)]| {
        let pairs = Pairs {
            before: runs(goal, before),
            after: runs(goal, after),
        };
        verdict(goal, &pairs.after, Some(&pairs))
    };
    let fast = [(1050.0, 4e3), (1051.0, 4e3)];
    let text = said(&[(1000.0, 4e3), (1001.0, 4e3)], &fast);
    assert!(text.contains("+5.0 %"), "{text}");
    assert!(text.contains("more than equal runs"), "{text}");
    // By its penalty the first is worth a quarter.
    let text = said(&[(1000.0, 1e4), (1000.0, 1e4)], &fast);
    assert!(!text.contains('%'), "{text}");
    assert!(text.contains("1,000 op/s at p99 10.0 ms"), "{text}");
    assert!(text.contains("does: 1,050 op/s"), "{text}");
    let text = said(&fast, &[(1000.0, 4e3), (1001.0, 4e3)]);
    assert!(text.contains("worse"), "{text}");
    let text = said(&fast, &[(1200.0, 1e4), (1201.0, 1e4)]);
    assert!(text.contains("What was found does not keep"), "{text}");
    let text = said(&[], &[]);
    assert!(text.contains("does not keep"), "{text}");
}

fn advised(base: &str, param: &str, value: usize, p999: f64) -> Result<Advised> {
    let base = Config::from_toml_str(base)?;
    let space = Space::new(&base, &[param.to_owned()])?;
    let goal = Goal::Throughput { p99_us: 5_000.0 };
    let trial = |point| search::Trial {
        point,
        tried: Runs::default(),
        raced: runs(goal, &[(1000.0, 1e3)]),
    };
    let outcome = Outcome {
        trials: vec![trial(vec![None]), trial(vec![Some(value)])],
        best: 1,
        chosen: vec![Some(value)],
        checks: Vec::new(),
        method: Method::Grid,
        stop: Stop::Decided,
        untried: 0,
        skipped: Vec::new(),
    };
    let times = Times {
        p999,
        ..Times::default()
    };
    let tails = Tails {
        fsync: times,
        round_trip: times,
    };
    advise(&space, goal, &outcome, Some(&tails))
}

#[test]
fn what_is_advised_is_what_a_node_takes() {
    // The timeouts of the machine would be 150 and 300 ms.
    for value in [0, 1] {
        let advised = advised("", "election.timeout_min=200ms,290ms", value, 10.0).unwrap();
        let election = &advised.config.election;
        assert_eq!(election.timeout_min.as_millis(), [200, 290][value]);
        assert!(election.timeout_max > election.timeout_min);
        assert!(
            advised.toml.matches("timeout_min =").count() == 1,
            "{}",
            advised.toml
        );
        assert!(advised.note.is_none());
    }
    // What the base has counts, not only what the defaults are.
    let base = "[shards]\ncount = 4\n[wal]\nlanes = 2";
    let four = advised(base, "shards.count=2,6", 1, 10.0).unwrap();
    assert_eq!((four.config.shards.count, four.config.wal.lanes), (6, 2));
    assert!(advised(base, "shards.count=1,2", 0, 10.0).is_err());
}

#[test]
fn what_lost_in_the_last_runs_is_not_to_be_pasted() {
    let goal = Goal::Throughput { p99_us: 5_000.0 };
    let slow = 30_000.0;
    let found = advised("", "batch.turn_events=1024,2048", 0, slow).unwrap();
    let base = Config::default();
    assert!(found.config.batch != base.batch && found.config.election != base.election);
    let pairs = Pairs {
        before: runs(goal, &[(1050.0, 4e3), (1051.0, 4e3)]),
        after: runs(goal, &[(1000.0, 1e4), (1001.0, 1e4)]),
    };
    assert!(pairs.is_loss(goal));
    let advised = found.taken_back(goal, base.clone());
    assert_eq!(Config::from_toml_str(&advised.toml).unwrap(), base);
    assert!(
        advised.toml.contains("turn_events = 4096 # as it was"),
        "{}",
        advised.toml
    );
    assert!(
        advised.toml.contains("because what was found lost"),
        "{}",
        advised.toml
    );
    // What is to be pasted keeps the condition.
    let (is_met, text) = judge(goal, &pairs.after, &advised, Some(&pairs));
    assert!(
        is_met && text.contains("the configuration as it is"),
        "{text}"
    );
}

#[test]
fn the_documented_examples_are_taken() {
    let guide = include_str!("../../../docs/how-to/tune.md");
    let readme = include_str!("../../../README.md");
    let mut commands = 0;
    for text in [guide, readme] {
        let text = text.replace("\\\n", " ");
        let lines = text.lines().filter_map(|line| line.split_once("-- tune "));
        for (_, line) in lines {
            let line = line.split_once('#').map_or(line, |(line, _)| line);
            let args = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            args.goal().unwrap();
            let space = Space::new(&Config::default(), &args.params);
            space.unwrap_or_else(|error| panic!("{line}: {error:#}"));
            commands += 1;
        }
    }
    assert_eq!(commands, 2);
    let params = guide.split('`').filter(|text| {
        let key = text.split_once('=').map(|(key, _)| key);
        key.is_some_and(|key| key.contains('.') && !key.contains(' '))
    });
    let params: Vec<String> = params.map(str::to_owned).collect();
    assert!(params.len() >= 3, "{params:?}");
    for param in params {
        let space = Space::new(&Config::default(), std::slice::from_ref(&param));
        space.unwrap_or_else(|error| panic!("{param}: {error:#}"));
    }
}

#[test]
fn a_swept_timeout_must_outlast_the_tails() {
    let with = |millis: u64| {
        let mut config = Config::default();
        config.election.timeout_min = Duration::from_millis(millis);
        config
    };
    let least = Duration::from_millis(250);
    let error = outlasts_tails(&with(200), &with(150), least).unwrap_err();
    assert!(error.to_string().contains("250 ms"), "{error}");
    assert!(outlasts_tails(&with(250), &with(150), least).is_ok());
    // What is there anyway is what the others are compared with.
    assert!(outlasts_tails(&with(150), &with(150), least).is_ok());
}

#[test]
fn a_run_that_fails_at_the_end_leaves_the_rest_known() {
    let goal = Goal::Throughput { p99_us: 5_000.0 };
    let as_it_is = runs(goal, &[(1000.0, 4e3)]);
    let mut advised = advised("", "batch.turn_events=1024,2048", 0, 10.0).unwrap();
    assert!(judge(goal, &as_it_is, &advised, None).0);
    advised.failed = Some("the disk is full".to_owned());
    advised.note = Some("Something is left out.".to_owned());
    let (is_met, text) = judge(goal, &as_it_is, &advised, None);
    assert!(!is_met && text.contains("the disk is full"), "{text}");
    assert!(text.ends_with("Something is left out."), "{text}");
}
