//! What befalls nodes in a script beside power cuts, links that are cut, and rot; and who is whose peer. It must never leave
//! something behind that the script does not name.

use polyraft::Error;
use polyraft_storage::Disk as _;

use super::super::machine::{self, PoisonedEntry};
use super::super::plan::MILLI;
use super::Story;
use super::commands::{group_of, letter, number, numbers};

/// Something that happens to nodes.
pub(super) enum Deed {
    Stall {
        node: u64,
        micros: u64,
    },
    Break {
        node: u64,
        other: u64,
    },
    Mute {
        node: u64,
        others: Vec<u64>,
    },
    Poison(PoisonedEntry),
    Cure {
        node: u64,
    },
    Arriving {
        node: u64,
    },
    /// A node becomes a peer of others, or is taken out.
    Peer {
        node: u64,
        is_in: bool,
        others: Vec<u64>,
    },
}

impl Deed {
    pub(super) fn parse(words: &[&str]) -> Option<Deed> {
        let deed = match *words {
            ["stall", node, millis] => Deed::Stall {
                node: number(node)?,
                micros: number(millis)? * MILLI,
            },
            ["break", node, other] => Deed::Break {
                node: number(node)?,
                other: number(other)?,
            },
            ["mute", node, ref others @ ..] => Deed::Mute {
                node: number(node)?,
                others: numbers(others)?,
            },
            ["poison", key, value, "in", group, "at", node] => Deed::Poison(PoisonedEntry {
                node: number(node)?,
                group: group_of(group)?,
                key: letter(key)?,
                value: number(value)?,
            }),
            ["cure", node] => Deed::Cure {
                node: number(node)?,
            },
            ["arriving", node] => Deed::Arriving {
                node: number(node)?,
            },
            [word @ ("join" | "part"), node, "at", ref others @ ..] => Deed::Peer {
                node: number(node)?,
                is_in: word == "join",
                others: numbers(others)?,
            },
            _ => return None,
        };
        Some(deed)
    }
}

impl Story {
    pub(super) fn befall(&mut self, deed: Deed) {
        match deed {
            Deed::Stall { node, micros } => {
                self.world.hosts[node as usize].stalled_until = self.world.now + micros;
            }
            Deed::Break { node, other } => {
                let link = self.world.link_of(node, other);
                self.world.reset_link(link, 1);
            }
            Deed::Mute { node, others } => {
                for other in others {
                    self.world.block(node, other);
                }
            }
            Deed::Poison(poison) => machine::poison_entry(poison),
            Deed::Cure { node } => machine::cure(node),
            Deed::Arriving { node } => self.tell_what_arrives(node),
            Deed::Peer {
                node,
                is_in,
                others,
            } => {
                for other in others {
                    let told = self.change_peer(other, node, is_in);
                    let told = told.map_or_else(|error| error.to_string(), |()| "done".to_owned());
                    self.lines.push(format!("n{other}: {told}"));
                }
            }
        }
    }

    /// How much of snapshots from other nodes is on a node's disk, which is not all of them.
    fn tell_what_arrives(&mut self, node: u64) {
        let disk = &self.world.hosts[node as usize].disk;
        let files = disk.files().into_iter();
        let parts = files.filter(|path| path.extension().is_some_and(|end| end == "part"));
        let bytes = parts.map(|path| disk.read(&path).expect("a file that is there").len());
        self.lines.push(match bytes.sum() {
            0 => format!("n{node}: no snapshot is on its way"),
            bytes => format!("n{node}: {bytes} bytes of a snapshot have come"),
        });
    }

    /// Has a node take another one for a peer, or not any more, and waits until it does.
    fn change_peer(&mut self, node: u64, peer: u64, is_in: bool) -> Result<(), Error> {
        self.world.ask_for_peer(node, peer, is_in)?;
        self.wait_until(|story| !story.world.is_asked_for_peer(node));
        self.world.answer_about_peer(node)
    }
}
