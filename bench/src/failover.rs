//! Stops a node under load and measures how long each group that it led has no leader. Never changes anything but
//! that one node.

use crate::cluster::{Cluster, place};
use anyhow::{Context, Result, bail};
use polyraft::StateMachine;
use std::time::{Duration, Instant};

/// How often leaders are looked at: the resolution of the measurement.
const POLL: Duration = Duration::from_millis(2);

/// Groups that have no leader by then will hardly get one.
const LIMIT: Duration = Duration::from_secs(30);

/// What the stop of one node did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// The node that was stopped.
    pub stopped: u64,
    /// For each group that it led, in ascending order: time from the call that stops the node until another node
    /// knows a new leader.
    pub leaderless: Vec<Duration>,
}

impl Failover {
    /// The leaderless time that `share` of the groups did not exceed; zero without groups.
    pub fn quantile(&self, share: f64) -> Duration {
        let Some(last) = self.leaderless.len().checked_sub(1) else {
            return Duration::ZERO;
        };
        let rank = (share * self.leaderless.len() as f64).ceil() as usize;
        self.leaderless[rank.saturating_sub(1).min(last)]
    }

    /// The longest leaderless time.
    pub fn max(&self) -> Duration {
        self.quantile(1.0)
    }
}

/// The running node that leads the most groups. Its stop is the hardest.
pub fn busiest<M: StateMachine>(cluster: &Cluster<M>) -> Result<u64> {
    cluster
        .running()
        .iter()
        .map(polyraft::Node::status)
        .max_by_key(|status| status.led)
        .map(|status| status.id.0)
        .context("a node runs")
}

/// Stops node `id` and waits until all groups that it led have another leader and the node is down.
pub async fn stop_and_measure<M: StateMachine>(cluster: &Cluster<M>, id: u64) -> Result<Failover> {
    let nodes = cluster.running();
    let stopped = nodes
        .iter()
        .find(|node| node.id().0 == id)
        .context("the node runs")?;
    let observer = nodes
        .iter()
        .find(|node| node.id().0 != id)
        .context("another node runs")?;
    let mut leaderless_groups: Vec<_> = (0..cluster.groups())
        .filter_map(|group| match stopped.group(group).leader() {
            Some((leader, term)) if place(leader.0) == place(id) => {
                Some((observer.group(group), term))
            }
            _ => None,
        })
        .collect();
    let mut leaderless = Vec::with_capacity(leaderless_groups.len());
    let started = Instant::now();
    let watch = async {
        while !leaderless_groups.is_empty() {
            tokio::time::sleep(POLL).await;
            let passed = started.elapsed();
            leaderless_groups.retain(|(handle, old_term)| {
                let is_led = handle
                    .leader()
                    .is_some_and(|(leader, term)| leader.0 != id && term > *old_term);
                if is_led {
                    leaderless.push(passed);
                }
                !is_led
            });
            if passed > LIMIT {
                bail!(
                    "{} groups have no new leader {} s after node {id} was stopped",
                    leaderless_groups.len(),
                    LIMIT.as_secs()
                );
            }
        }
        Ok(())
    };
    let (stop, watched) = tokio::join!(cluster.stop(id), watch);
    stop?;
    watched?;
    Ok(Failover {
        stopped: id,
        leaderless,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_taken_by_rank() {
        let millis = |of: &[u64]| Failover {
            stopped: 1,
            leaderless: of.iter().map(|ms| Duration::from_millis(*ms)).collect(),
        };
        assert_eq!(millis(&[]).quantile(0.5), Duration::ZERO);
        assert_eq!(millis(&[7]).quantile(0.5), Duration::from_millis(7));
        let four = millis(&[1, 2, 3, 40]);
        assert_eq!(four.quantile(0.5), Duration::from_millis(2));
        assert_eq!(four.quantile(0.99), Duration::from_millis(40));
        assert_eq!(four.max(), Duration::from_millis(40));
    }
}
