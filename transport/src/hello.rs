//! Who a node says it is.
//!
//! Owns the identity that both sides exchange before the first frame, its bytes, and the rule for
//! cluster names. It must never trust a length that came from the wire.

use std::fmt;

use bytes::{Buf, BufMut};
use polyraft_raft::NodeId;

use crate::TransportError;
use crate::options::{
    MAX_APPEND_LANES, MAX_FRAME_LIMIT, MAX_RECEIVE_WINDOW, MIN_FRAME_LIMIT, MIN_RECEIVE_WINDOW,
};

/// Version of all that crosses a connection: hello, frame header and group messages.
pub const FORMAT_VERSION: u16 = 6;

/// Earlier incarnations in a hello, at most. With all of them, a hello still fits what a link may buffer before it is up.
pub const MAX_PAST: usize = 1024;

/// The identity of a node and of the data it holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster's name: 1 to 64 characters out of `a-z`, `0-9`, `.` and `-`.
    pub cluster: String,
    /// The node's number in the cluster.
    pub node: NodeId,
    /// Random number of the node's data directory: a wiped node comes back with another one.
    pub store: u128,
    /// Names this start of the node on that data directory; grows with each.
    pub incarnation: u64,
    /// What earlier starts showed in its place, oldest first. A peer that remembers one that is not in here looks at a
    /// data directory that was put back to an earlier state. Only the last [`MAX_PAST`] cross the wire.
    pub past: Vec<u64>,
}

impl Identity {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// When the cluster's name breaks the rule above.
    pub fn validate(&self) -> Result<(), TransportError> {
        if is_cluster_name(&self.cluster) {
            Ok(())
        } else {
            Err(TransportError::ClusterName {
                name: self.cluster.clone(),
            })
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {:?}", self.node.0, self.cluster)
    }
}

/// What a node says of itself when a link is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// Who it is.
    pub identity: Identity,
    /// The format version it speaks.
    pub version: u16,
}

/// Whether `name` is 1 to 64 characters out of `a-z`, `0-9`, `.` and `-`.
///
/// The name becomes part of a URI in certificates, so it needs no escaping by construction.
pub(crate) fn is_cluster_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
}

/// A hello as it crosses the wire: who speaks, to whom, and the limits of the speaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WireHello {
    pub hello: Hello,
    /// The node that the speaker believes to be talking to.
    pub to: NodeId,
    /// The longest frame that the speaker takes.
    pub max_frame_bytes: u32,
    /// Unread bytes that the speaker takes on each lane.
    pub receive_window: u32,
    /// Append lanes on which the speaker will send.
    pub append_lanes: u8,
}

/// First bytes of a hello.
const MAGIC: u32 = u32::from_le_bytes(*b"PRFT");
/// Bytes from which the length of the rest is known.
pub(crate) const HELLO_PREFIX_BYTES: usize = 8;
/// A hello without its cluster name and earlier incarnations.
const FIXED_BYTES: usize = 60;
/// No hello is longer, whatever its version.
const MAX_HELLO_BYTES: usize = 9 * 1024;
const _: () = assert!(FIXED_BYTES + 64 + 8 * MAX_PAST <= MAX_HELLO_BYTES);

/// Why the bytes are no hello, or not one that this node can accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HelloError {
    #[error("the other end does not speak polyraft")]
    Magic,
    #[error("format version {0} is not supported here: this node speaks {FORMAT_VERSION}")]
    Version(u16),
    #[error("the hello is malformed: {0}")]
    Malformed(&'static str),
}

impl WireHello {
    pub fn encode(&self) -> Vec<u8> {
        let Identity {
            cluster,
            node,
            store,
            incarnation,
            past,
        } = &self.hello.identity;
        let past = &past[past.len().saturating_sub(MAX_PAST)..];
        let length = FIXED_BYTES + cluster.len() + 8 * past.len();
        let mut out = Vec::with_capacity(length);
        out.put_u32_le(MAGIC);
        out.put_u16_le(self.hello.version);
        out.put_u16_le(length as u16);
        out.put_u64_le(node.0);
        out.put_u64_le(self.to.0);
        out.put_u128_le(*store);
        out.put_u64_le(*incarnation);
        out.put_u32_le(self.max_frame_bytes);
        out.put_u32_le(self.receive_window);
        out.put_u8(self.append_lanes);
        out.put_u8(cluster.len() as u8);
        out.put_u16_le(past.len() as u16);
        out.put_slice(cluster.as_bytes());
        past.iter().for_each(|number| out.put_u64_le(*number));
        out
    }

    /// How many bytes follow the prefix.
    ///
    /// # Errors
    /// When this is no hello, or one of a version that this node does not know.
    pub fn rest_of(prefix: &[u8; HELLO_PREFIX_BYTES]) -> Result<usize, HelloError> {
        let mut bytes = &prefix[..];
        if bytes.get_u32_le() != MAGIC {
            return Err(HelloError::Magic);
        }
        let version = bytes.get_u16_le();
        if version != FORMAT_VERSION {
            return Err(HelloError::Version(version));
        }
        let length = usize::from(bytes.get_u16_le());
        if !(FIXED_BYTES..=MAX_HELLO_BYTES).contains(&length) {
            return Err(HelloError::Malformed("its length is out of range"));
        }
        Ok(length - HELLO_PREFIX_BYTES)
    }

    /// Reads what follows the prefix.
    ///
    /// # Errors
    /// When a field is missing or out of its range.
    pub fn decode(mut rest: &[u8]) -> Result<WireHello, HelloError> {
        if rest.len() < FIXED_BYTES - HELLO_PREFIX_BYTES {
            return Err(HelloError::Malformed("it is too short"));
        }
        let node = NodeId(rest.get_u64_le());
        let to = NodeId(rest.get_u64_le());
        let store = rest.get_u128_le();
        let incarnation = rest.get_u64_le();
        let max_frame_bytes = rest.get_u32_le();
        let receive_window = rest.get_u32_le();
        let append_lanes = rest.get_u8();
        let cluster_length = usize::from(rest.get_u8());
        let past_length = usize::from(rest.get_u16_le());
        if past_length > MAX_PAST || cluster_length + 8 * past_length != rest.len() {
            return Err(HelloError::Malformed(
                "its cluster name or its past has another length",
            ));
        }
        let (name, mut past) = rest.split_at(cluster_length);
        let cluster = std::str::from_utf8(name)
            .ok()
            .filter(|name| is_cluster_name(name))
            .ok_or(HelloError::Malformed("its cluster name is not one"))?;
        if !(MIN_FRAME_LIMIT..=MAX_FRAME_LIMIT).contains(&(max_frame_bytes as usize)) {
            return Err(HelloError::Malformed("its frame limit is out of range"));
        }
        if !(MIN_RECEIVE_WINDOW..=MAX_RECEIVE_WINDOW).contains(&receive_window) {
            return Err(HelloError::Malformed("its receive window is out of range"));
        }
        if !(1..=MAX_APPEND_LANES).contains(&append_lanes) {
            return Err(HelloError::Malformed("its number of lanes is out of range"));
        }
        let identity = Identity {
            cluster: cluster.to_owned(),
            node,
            store,
            incarnation,
            past: (0..past_length).map(|_| past.get_u64_le()).collect(),
        };
        Ok(WireHello {
            hello: Hello {
                identity,
                version: FORMAT_VERSION,
            },
            to,
            max_frame_bytes,
            receive_window,
            append_lanes,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> WireHello {
        WireHello {
            hello: Hello {
                identity: Identity {
                    cluster: "c-1.x".into(),
                    node: NodeId(3),
                    store: u128::MAX - 5,
                    incarnation: 12,
                    past: vec![3, 11],
                },
                version: FORMAT_VERSION,
            },
            to: NodeId(4),
            max_frame_bytes: 4 << 20,
            receive_window: 1 << 20,
            append_lanes: 2,
        }
    }

    fn decode(bytes: &[u8]) -> Result<WireHello, HelloError> {
        let (prefix, rest) = bytes.split_at(HELLO_PREFIX_BYTES);
        let length = WireHello::rest_of(prefix.try_into().unwrap())?;
        let rest = rest.get(..length);
        WireHello::decode(rest.ok_or(HelloError::Malformed("bytes are missing"))?)
    }

    #[test]
    fn hello_reads_what_it_writes() {
        let bytes = sample().encode();
        assert_eq!(bytes.len(), 81);
        assert_eq!(decode(&bytes), Ok(sample()));
    }

    #[test]
    fn only_the_newest_of_a_long_past_are_told() {
        let mut hello = sample();
        hello.hello.identity.past = (0..MAX_PAST as u64 + 3).collect();
        let bytes = hello.encode();
        assert!(bytes.len() <= MAX_HELLO_BYTES);
        let told = decode(&bytes).unwrap().hello.identity.past;
        assert_eq!(told, (3..MAX_PAST as u64 + 3).collect::<Vec<u64>>());
    }

    #[test]
    fn other_version_is_named() {
        let mut bytes = sample().encode();
        bytes[4] = 9;
        assert_eq!(decode(&bytes), Err(HelloError::Version(9)));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = sample().encode();
        for length in HELLO_PREFIX_BYTES..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn cluster_names_are_restricted() {
        for good in ["a", "prod-1.eu", &"x".repeat(64)] {
            assert!(is_cluster_name(good), "{good}");
        }
        for bad in ["", "A", "a b", "a/b", "ü", "a_b", &"x".repeat(65)] {
            assert!(!is_cluster_name(bad), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 8..200)) {
            let _ = decode(&bytes);
            let _ = WireHello::decode(&bytes);
        }

        #[test]
        fn changed_bytes_never_break_a_rule(at in 0_usize..81, value: u8) {
            let mut bytes = sample().encode();
            bytes[at] = value;
            if let Ok(read) = decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes);
            }
        }
    }
}
