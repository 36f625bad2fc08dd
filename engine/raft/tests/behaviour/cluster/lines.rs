//! What scripts print of a cluster. It must never change anything.

use polyraft_raft::*;

use super::{Cluster, runs};
use crate::text::name;

impl Cluster {
    pub fn members_line(&self, id: NodeId) -> String {
        let Some(group) = self.nodes[&id].group.as_ref() else {
            return format!("{id} down");
        };
        let list = |nodes: &[NodeId]| {
            let names: Vec<String> = nodes.iter().map(ToString::to_string).collect();
            names.join(" ")
        };
        let members = group.configuration();
        let mut line = format!("{id} voters {}", list(members.voters()));
        for (what, nodes) in [
            ("outgoing", members.outgoing()),
            ("learners", members.learners()),
            ("learners next", members.learners_next()),
            ("witnesses", members.witnesses()),
        ] {
            if !nodes.is_empty() {
                line += &format!(", {what} {}", list(nodes));
            }
        }
        if let Some(node) = members.preferred() {
            line += &format!(", preferred {node}");
        }
        line
    }

    pub fn log_line(&self, id: NodeId) -> String {
        let node = &self.nodes[&id];
        let mut line = String::new();
        for run in runs(&node.log, Index::ZERO) {
            let of_term = node.log.iter().filter(|e| e.term == run.term);
            let values: Vec<String> = of_term.map(|e| e.value.to_string()).collect();
            line += &format!(" {}[{}]", run.term, values.join(" "));
        }
        let disk = node.disk_log.len();
        format!("{id} log{line} disk {disk}")
    }

    pub fn status_line(&self, id: NodeId) -> String {
        let Some(group) = self.nodes[&id].group.as_ref() else {
            return format!("{id} down");
        };
        let deadline = group.deadline().map_or("none".into(), |at| {
            format!("+{}ms", at.since(self.now) / 1000)
        });
        format!(
            "{id} {:?} {} leader {} last {} durable {} committed {} applied {} deadline {deadline}",
            group.role(),
            group.term(),
            name(group.leader()),
            group.last(),
            group.durable(),
            group.committed(),
            group.applied(),
        )
    }

    pub fn progress_lines(&self, id: NodeId) -> Vec<String> {
        let group = self.group(id);
        let line = |p: &Progress| {
            let window = &p.inflight;
            let (messages, entries, depth) = (window.messages(), window.entries(), window.depth());
            format!(
                "{} {:?} matched {} next {} commit {}/{} inflight {messages} messages {entries} entries depth {depth}",
                p.node, p.state, p.matched, p.next, p.commit_acked, p.commit_sent
            )
        };
        self.ids()
            .into_iter()
            .filter_map(|n| group.progress(n))
            .map(line)
            .collect()
    }
}
