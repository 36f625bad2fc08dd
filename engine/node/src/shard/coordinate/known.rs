//! What all nodes together know of the lives of a group.
//! A life that somebody may still have must never count as one that may begin, and one that another group needs must never be
//! taken for one that may end.

use std::collections::BTreeMap;

use polyraft_raft::{Configuration, GroupId, Life, NodeId};

use crate::error::Error;
use crate::wire::{Fate, Found};

/// What is known of a group on all nodes together.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Known {
    /// The newest life that anybody has, or had.
    pub(super) life: Life,
    /// The members of it, as anybody knows them.
    pub(super) members: Vec<Configuration>,
    /// The first life that may begin, or has begun and may go on.
    pub(super) possible: Life,
    /// The members of that one, as anybody knows them.
    pub(super) serving: Vec<Configuration>,
    /// The newest life that somebody was removed from.
    pub(super) elsewhere: Option<Life>,
    /// The newest life of which somebody has a damaged log that does not say who the members are.
    pub(super) damaged: Option<Life>,
    /// The members of every life that somebody has, and would end with once it hears that it is over.
    here: Vec<Configuration>,
}

impl Known {
    pub(super) fn possible(&self) -> Life {
        self.possible
    }

    /// Takes in what one node knows.
    pub(super) fn add(&mut self, life: Life, fate: &Fate) {
        let possible = match fate {
            Fate::Over => life.next(),
            Fate::Here(_) | Fate::Stays(_) | Fate::Elsewhere => life,
            // A damaged log may have lost which life it was.
            Fate::Damaged => Life::FIRST,
            Fate::Target(_) | Fate::Parent(_) => return,
        };
        if life > self.life {
            (self.life, self.members) = (life, Vec::new());
        }
        if possible > self.possible {
            (self.possible, self.serving) = (possible, Vec::new());
        }
        match fate {
            Fate::Target(_) | Fate::Parent(_) | Fate::Over => {}
            Fate::Here(members) | Fate::Stays(members) => {
                // Whoever should lead them.
                let members = &members.clone().with_preferred(None);
                let is_sound = matches!(fate, Fate::Here(_));
                if is_sound && !self.here.contains(members) {
                    self.here.push(members.clone());
                }
                let lists = [
                    (self.life, &mut self.members),
                    (self.possible, &mut self.serving),
                ];
                for (of, list) in lists {
                    if life == of && !list.contains(members) {
                        list.push(members.clone());
                    }
                }
            }
            Fate::Elsewhere => self.elsewhere = self.elsewhere.max(Some(life)),
            Fate::Damaged => self.damaged = self.damaged.max(Some(life)),
        }
    }

    /// Whether the newest life goes on with members of whom nobody that was asked is one.
    pub(super) fn is_astray(&self) -> bool {
        self.members.is_empty() && self.elsewhere == Some(self.life) && self.life >= self.possible
    }

    /// Whether the life that is there with exactly these members is over, as somebody else says. Whoever creates the group may have
    /// been told before that it is there, and must not end it so.
    pub(super) fn is_ending(&self, members: &Configuration) -> bool {
        self.serving.is_empty() && self.here.contains(members)
    }

    /// The members of a life that may go on, if they are others than these: none, if nobody knows who they are.
    pub(super) fn other_than(&self, members: &Configuration) -> Option<Vec<NodeId>> {
        let mut serving = self.serving.iter();
        if let Some(other) = serving.find(|other| *other != members) {
            return Some(other.nodes().collect());
        }
        let unknown = self.elsewhere.max(self.damaged);
        let lives_on = unknown.is_some_and(|life| life >= self.possible);
        (self.serving.is_empty() && lives_on).then(Vec::new)
    }
}

pub(super) fn lives_found(found: &[Found]) -> BTreeMap<u64, Known> {
    let mut lives: BTreeMap<u64, Known> = BTreeMap::new();
    for Found { groups, life, fate } in found {
        if matches!(fate, Fate::Target(_) | Fate::Parent(_)) {
            continue;
        }
        for group in groups.clone() {
            lives.entry(group).or_default().add(*life, fate);
        }
    }
    lives
}

/// Why groups may not end yet, as somebody knows: another one, which does not end with them, would be lost or never come to an
/// end of its own.
pub(super) fn first_needed(
    found: &[Found],
    lives: &BTreeMap<u64, Known>,
    ends: impl Fn(GroupId) -> bool,
) -> Option<Error> {
    found.iter().find_map(|Found { groups, life, fate }| {
        let (by, why) = match fate {
            Fate::Target(source) => (*source, FROZEN),
            Fate::Parent(child) => (*child, UNBORN),
            _ => return None,
        };
        if ends(by) {
            return None;
        }
        let is_needed = |group: &u64| {
            let goes_on = |known: &Known| known.life >= known.possible && *life >= known.life;
            ends(GroupId(*group)) && lives.get(group).is_some_and(goes_on)
        };
        let group = groups.clone().find(is_needed).map(GroupId)?;
        Some(Error::Needed { group, by, why })
    })
}

/// Why groups may not begin a new life yet: another one waits for what became of its merge into an earlier life, and would take
/// the answers of this one for those.
pub(super) fn first_awaited(
    found: &[Found],
    lives: &BTreeMap<u64, Known>,
    begins: impl Fn(GroupId) -> bool,
) -> Option<Error> {
    found.iter().find_map(|Found { groups, fate, .. }| {
        let Fate::Target(source) = fate else {
            return None;
        };
        let is_awaited = |group: &u64| {
            let begins_anew = lives
                .get(group)
                .is_none_or(|known| known.possible > known.life);
            begins(GroupId(*group)) && begins_anew
        };
        let group = groups.clone().find(is_awaited).map(GroupId)?;
        let (by, why) = (*source, AWAITED);
        Some(Error::Needed { group, by, why })
    })
}

const AWAITED: &str =
    "was to be merged into the one that had this id, and is frozen; destroy that group first";

const FROZEN: &str = "is being merged into it, and would stay frozen for ever; wait for the end of the merge, or destroy that \
                      group first";

const UNBORN: &str = "was split off it, and a part of it could be lost; wait until that has a leader, or destroy both in one call";
