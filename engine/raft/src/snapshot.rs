//! Taking a snapshot in place of the log. The core sees only the place that it reaches and the members as of there; its bytes
//! are durable before the core hears of it. A witness takes the place alone, and promises nothing before that is durable. Nothing here may drop an entry that could be committed behind that place.

use crate::group::{Group, Part};
use crate::mutants::{self, Mutant};
use crate::{Configuration, Env, LogPosition, NodeId, Outbox, Term, Write, WriteKind};

impl Group {
    /// A snapshot that reaches `last` came from `from`, which led `term`, and is durable.
    ///
    /// What it holds is committed, whoever sent it. Only a sender that leads the present term is answered: to it the snapshot
    /// stands for an equal log.
    pub(crate) fn install(
        &mut self,
        env: &Env<'_>,
        (from, term): (NodeId, Term),
        last: LogPosition,
        configuration: &Configuration,
        out: &mut Outbox,
    ) {
        if term >= self.term && from != self.node {
            self.catch_up(env, term, out);
            self.follow(env, from, out);
        }
        // An entry of that term exists, so the term does.
        self.catch_up(env, last.term, out);
        self.write_hard_state(out);
        if last.index > self.committed && !matches!(self.part, Part::Leader(_)) {
            self.take_snapshot(env, last, configuration, out);
        }
        if term == self.term && self.leader == Some(from) && last.index <= self.committed {
            self.verified = self.verified.max(last.index);
            self.owes_answer = true;
            self.send_matched(out);
        }
    }

    fn take_snapshot(
        &mut self,
        env: &Env<'_>,
        last: LogPosition,
        configuration: &Configuration,
        out: &mut Outbox,
    ) {
        self.committed = last.index;
        if self.log.term_at(last.index) == Some(last.term) {
            // The log has that entry, and so everything before it: it only had not heard that it is committed.
            return self.hand_out(out);
        }
        // Another entry is there, or none: nothing of the log is worth keeping, and what conflicts must go.
        if mutants::is_active(Mutant::ConflictKeptBesideSnapshot)
            && last.index <= self.log.last_index()
        {
            return self.hand_out(out);
        }
        self.log.reset(last);
        let has_snapshot = !self.is_witness();
        let id = self.durability.reset(last.index, has_snapshot);
        out.writes.push(Write {
            group: self.id,
            id,
            kind: WriteKind::Reset { to: last },
        });
        (self.applied, self.handed_out) = (last.index, last.index);
        self.reset_configuration(configuration);
        self.follow_members(env, out);
    }
}
