//! Harm done to the nodes under load, as the command line asks for it: what, when and for how long.

use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// One incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What happens.
    pub harm: Harm,
    /// When, counted from the end of the warm-up.
    pub at: Duration,
}

/// What can happen to the node that leads the most groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// It ends, and stays down: SIGKILL to its process; a shutdown where all nodes share one process.
    KillLeader,
    /// Its process stands still for a time (SIGSTOP, SIGCONT).
    Pause(Duration),
    /// The syncs of its log take at least so long.
    StallDisk(Duration),
}

impl Fault {
    /// When it is over, counted from the end of the warm-up. A kill is done at once.
    pub fn end(&self) -> Duration {
        match self.harm {
            Harm::KillLeader => self.at,
            Harm::Pause(lasts) | Harm::StallDisk(lasts) => self.at.saturating_add(lasts),
        }
    }
}

/// The first fault that comes before an earlier one is over, with that one. Each is measured until the next one comes, and
/// a node that stands still cannot be harmed otherwise.
pub fn overlap(faults: &[Fault]) -> Option<(Fault, Fault)> {
    let mut faults = faults.to_vec();
    faults.sort_by_key(|fault| (fault.at, fault.end()));
    let mut pairs = faults.windows(2).map(|pair| (pair[0], pair[1]));
    pairs.find(|(earlier, later)| later.at < earlier.end() || later.at == earlier.at)
}

const FORMS: &str =
    "kill-leader@TIME, pause@TIME:DURATION, stall-disk@TIME:DURATION (such as pause@5s:2s)";

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no fault; known are {FORMS}");
        let (name, rest) = text.split_once('@').ok_or_else(wrong)?;
        let (at, lasts) = match rest.split_once(':') {
            Some((at, lasts)) => (at, Some(lasts)),
            None => (rest, None),
        };
        let time = |text: &str| humantime::parse_duration(text).map_err(|_| wrong());
        let lasting = |lasts: Option<&str>| match lasts.map(time) {
            Some(Ok(Duration::ZERO)) | None => Err(format!(
                "`{text}` does not say how long; write {name}@{at}:2s"
            )),
            Some(lasts) => lasts,
        };
        let harm = match name {
            "kill-leader" if lasts.is_none() => Harm::KillLeader,
            "kill-leader" => {
                return Err(format!(
                    "`{text}`: a killed node stays down; write {name}@{at}"
                ));
            }
            "pause" => Harm::Pause(lasting(lasts)?),
            "stall-disk" => Harm::StallDisk(lasting(lasts)?),
            _ => return Err(wrong()),
        };
        Ok(Self {
            harm,
            at: time(at)?,
        })
    }
}

/// Reads back as the same fault.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = humantime::format_duration(self.at);
        let (name, lasts) = match self.harm {
            Harm::KillLeader => return write!(f, "kill-leader@{at}"),
            Harm::Pause(lasts) => ("pause", lasts),
            Harm::StallDisk(lasts) => ("stall-disk", lasts),
        };
        write!(f, "{name}@{at}:{}", humantime::format_duration(lasts))
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_written() {
        for text in ["kill-leader@5s", "pause@5s:2s", "stall-disk@1s 500ms:250ms"] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        let fault: Fault = "pause@500ms:2s".parse().unwrap();
        assert_eq!(fault.at, Duration::from_millis(500));
        assert_eq!(fault.harm, Harm::Pause(Duration::from_secs(2)));
    }

    #[test]
    fn faults_that_overlap_are_found() {
        let found = |texts: &[&str]| {
            let faults: Vec<Fault> = texts.iter().map(|text| text.parse().unwrap()).collect();
            overlap(&faults).map(|(earlier, later)| format!("{earlier} {later}"))
        };
        assert_eq!(found(&["pause@5s:2s"]), None);
        let one_after_the_other = ["kill-leader@7s", "pause@5s:2s", "stall-disk@8s:1s"];
        assert_eq!(found(&one_after_the_other), None);
        for (texts, pair) in [
            (
                ["pause@5s:2s", "stall-disk@6s:1s"],
                "pause@5s:2s stall-disk@6s:1s",
            ),
            (
                ["kill-leader@6s", "pause@5s:2s"],
                "pause@5s:2s kill-leader@6s",
            ),
            (
                ["kill-leader@6s", "kill-leader@6s"],
                "kill-leader@6s kill-leader@6s",
            ),
        ] {
            assert_eq!(found(&texts).as_deref(), Some(pair));
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        for (text, hint) in [
            ("kill-leader", "known are"),
            ("meteor@5s", "stall-disk@TIME"),
            ("pause@5s", "how long"),
            ("pause@5s:0s", "how long"),
            ("kill-leader@5s:2s", "stays down"),
            ("pause@soon:2s", "known are"),
        ] {
            let error = text.parse::<Fault>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
