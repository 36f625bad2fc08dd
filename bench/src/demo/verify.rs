//! Compares what every replica holds with what was promised, and replicas with one another. It only asks; it never
//! repairs, and one broken promise is enough to fail.

use super::DemoNode;
use super::acked::Promises;
use super::machine::{Digest, applied_query, digest_query, parse_applied};
use anyhow::{Context, Result};
use polyraft::Read;
use serde::Serialize;

/// At most this many broken promises are spelled out.
const EXAMPLES: usize = 5;

/// What the verification found. Proposals are counted once for each replica they are wrong at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// Groups looked at.
    pub groups: u64,
    /// Replicas asked, all groups together.
    pub replicas: u64,
    /// Acknowledged proposals looked for at every replica.
    pub acknowledged: u64,
    /// Proposals whose outcome stayed open: allowed at the replicas, but not required.
    pub open: u64,
    /// Acknowledged proposals that a replica does not have.
    pub missing: u64,
    /// Proposals that a replica applied more than once.
    pub duplicated: u64,
    /// Proposals that a replica has although the engine had said that they were not accepted, or that were never made.
    pub unexpected: u64,
    /// Groups whose replicas hold different states.
    pub differing_groups: u64,
    /// The first broken promises in words.
    pub examples: Vec<String>,
}

impl Verification {
    /// True if every promise was kept.
    pub fn holds(&self) -> bool {
        self.missing == 0
            && self.duplicated == 0
            && self.unexpected == 0
            && self.differing_groups == 0
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(text());
        }
    }
}

/// Asks every node about groups `0..groups`. They must be applied: what a replica has not applied yet is missing.
pub async fn verify(nodes: &[DemoNode], groups: u64, promises: &Promises) -> Result<Verification> {
    let mut found = Verification {
        acknowledged: promises.acknowledged(),
        open: promises.open(),
        groups,
        ..Verification::default()
    };
    for group in 0..groups {
        verify_group(nodes, group, promises, &mut found)
            .await
            .with_context(|| format!("group {group} cannot be verified"))?;
    }
    Ok(found)
}

async fn verify_group(
    nodes: &[DemoNode],
    group: u64,
    promises: &Promises,
    found: &mut Verification,
) -> Result<()> {
    let mut digests = Vec::with_capacity(nodes.len());
    for node in nodes {
        let handle = node.group(group);
        let reply = handle.read(Read::LOCAL, digest_query()).await?;
        digests.push((
            node.id().0,
            Digest::parse(&reply).context("a digest has another form")?,
        ));
        for (client, promise) in promises.of(group) {
            let reply = handle.read(Read::LOCAL, applied_query(*client)).await?;
            let applied =
                parse_applied(&reply).context("a list of applied proposals has another form")?;
            let (missing, first) = promise.acked.missing_from(&applied);
            if let Some(first) = first {
                found.missing += missing;
                found.example(|| {
                    format!(
                        "node {} lacks {missing} acknowledged proposals of client {client} to group {group}; the first \
                         is number {first}",
                        node.id()
                    )
                });
            }
            if promise.is_complete {
                let known = promise.acked.union(&promise.open);
                let (unexpected, first) = applied.missing_from(&known);
                if let Some(first) = first {
                    found.unexpected += unexpected;
                    found.example(|| {
                        format!(
                            "node {} has {unexpected} proposals of client {client} to group {group} that were refused \
                             or never made; the first is number {first}",
                            node.id()
                        )
                    });
                }
            }
        }
    }
    found.replicas += digests.len() as u64;
    judge_digests(group, &digests, found);
    Ok(())
}

/// Compares the replicas of one group with one another.
fn judge_digests(group: u64, digests: &[(u64, Digest)], found: &mut Verification) {
    for (node, digest) in digests {
        if digest.duplicates > 0 {
            found.duplicated += digest.duplicates;
            found.example(|| {
                format!(
                    "node {node} applied {} proposals to group {group} twice",
                    digest.duplicates
                )
            });
        }
    }
    if digests.windows(2).any(|pair| pair[0].1 != pair[1].1) {
        found.differing_groups += 1;
        found.example(|| {
            let each: Vec<_> = digests
                .iter()
                .map(|(node, digest)| {
                    format!(
                        "node {node}: {} entries through {}, hash {:016x}",
                        digest.applied, digest.last, digest.hash
                    )
                })
                .collect();
            format!("the replicas of group {group} differ ({})", each.join("; "))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(digests: &[(u64, Digest)]) -> Verification {
        let mut found = Verification::default();
        judge_digests(9, digests, &mut found);
        found
    }

    fn digest(applied: u64, duplicates: u64, hash: u64) -> Digest {
        Digest {
            applied,
            duplicates,
            hash,
            ..Digest::default()
        }
    }

    #[test]
    fn equal_replicas_hold() {
        assert!(judged(&[(1, digest(3, 0, 5)), (2, digest(3, 0, 5))]).holds());
        assert!(judged(&[]).holds());
    }

    #[test]
    fn one_replica_that_differs_fails_the_group() {
        let found = judged(&[
            (1, digest(3, 0, 5)),
            (2, digest(3, 0, 5)),
            (3, digest(3, 0, 6)),
        ]);
        assert!(!found.holds());
        assert_eq!(found.differing_groups, 1);
        assert!(
            found.examples[0].contains("group 9 differ"),
            "{:?}",
            found.examples
        );
    }

    #[test]
    fn a_duplicate_fails_even_if_all_replicas_agree() {
        let found = judged(&[(1, digest(3, 1, 5)), (2, digest(3, 1, 5))]);
        assert!(!found.holds());
        assert_eq!((found.duplicated, found.differing_groups), (2, 0));
    }

    #[test]
    fn only_the_first_examples_are_kept() {
        let digests: Vec<_> = (0..20).map(|node| (node, digest(1, 1, 5))).collect();
        let found = judged(&digests);
        assert_eq!((found.examples.len(), found.duplicated), (EXAMPLES, 20));
    }
}
