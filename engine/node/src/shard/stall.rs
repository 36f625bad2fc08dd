//! What a shard does while its disk stalls: a write has been under way for so long that whoever waits for it is better served
//! by another node. It must never take a pause of this process for one of the disk, nor give a group up otherwise than by a
//! handover, which fails without harm.

use polyraft_storage::Lsn;

use polyraft_raft::Tick;

use super::Shard;
use super::room::Leaving;

/// What is known of a write that takes long.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// The write, and when it counts as stalled if it is not done by then.
    suspect: Option<(Lsn, Tick)>,
    leaving: Option<Leaving>,
}

impl Shard {
    /// The oldest write under way, and when it has taken too long.
    fn oldest_write(&self) -> Option<(Lsn, Tick)> {
        let timeout = self.limits.stall_timeout;
        let (lsn, since) = self.submissions.front().filter(|_| timeout > 0)?;
        Some((*lsn, since.after(timeout)))
    }

    /// When the disk has to be judged again.
    pub(super) fn stall_deadline(&self) -> Option<Tick> {
        let (lsn, late_at) = self.oldest_write()?;
        let leave_at = self.stall.leaving.as_ref().map(Leaving::deadline);
        let suspect = self.stall.suspect.filter(|(suspect, _)| *suspect == lsn);
        Some(suspect.map_or(late_at, |(_, at)| leave_at.unwrap_or(at)))
    }

    /// Judges the disk by its oldest write, once everything that has come is known. While that one is stalled, the groups that
    /// are led here are handed to others: they write where they are.
    pub(super) fn judge_disk(&mut self, is_drained: bool) {
        let late = self.oldest_write().filter(|(_, at)| *at <= self.now);
        let Some((lsn, _)) = late else {
            self.stall = Stall::default();
            return;
        };
        if !is_drained {
            return;
        }
        match self.stall.suspect {
            Some((suspect, at)) if suspect == lsn && at > self.now => return,
            Some((suspect, _)) if suspect == lsn => {}
            _ => {
                // This process may have stood still until now, and the disk with it. Let it show what it does.
                let at = self.now.after(self.limits.stall_timeout / 4);
                self.stall = Stall {
                    suspect: Some((lsn, at)),
                    leaving: None,
                };
                return;
            }
        }
        let leaving = self.stall.leaving.get_or_insert_with(|| {
            tracing::error!(node = %self.shared.node, "the disk stalls; groups are handed to other nodes");
            Leaving::new(self.now, self.settings.election_timeout_max)
        });
        if let Some(attempt) = leaving.attempt(self.now) {
            self.hand_all_over(attempt, "the disk stalls");
        }
    }
}
