//! Why connections end.
//!
//! Owns the application close codes and the reading of quinn's connection errors. It must never
//! report a refusal as an accident or the reverse: a refusal is for people to mend.

use quinn::{Connection, ConnectionError, VarInt};

/// Application close codes, as they cross the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Close {
    /// The node shut down.
    Shutdown = 0,
    /// The node's policy does not admit the peer.
    NotAdmitted = 1,
    /// The peer's certificate is good, but the node is not among the peers.
    NotAPeer = 2,
    /// The hello does not fit the certificate, the cluster, or the node that was meant.
    WrongIdentity = 3,
    /// The hello is malformed or of another version.
    BadHello = 4,
    /// A frame over the limit.
    FrameTooLarge = 5,
    /// A frame that breaks the format, or carries another sender or destination.
    BadFrame = 6,
    /// A newer connection of the same pair took over.
    Replaced = 7,
    /// A bug on the side that closes.
    Internal = 8,
}

/// Longest close reason: it has to fit into one packet of the smallest size.
const REASON_BYTES: usize = 700;

impl Close {
    pub fn send(self, connection: &Connection, reason: &str) {
        let mut end = reason.len().min(REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        connection.close(VarInt::from_u32(self as u32), &reason.as_bytes()[..end]);
    }

    fn is_refusal(code: u64) -> bool {
        (Close::NotAdmitted as u64..=Close::BadFrame as u64).contains(&code)
    }
}

/// How an attempt to make a link failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// One side does not accept the other.
    Refused(String),
    /// The peer could not be reached, or went away.
    Unreachable(String),
}

/// TLS alerts are transport errors from here to 0x1ff (RFC 9001, 4.8).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;

impl Failure {
    /// What a connection's end means for a link that is not up yet. `verdict` is what this node's
    /// own verifier found.
    pub fn of(error: &ConnectionError, verdict: Option<String>) -> Failure {
        if let Some(reason) = verdict {
            return Failure::Refused(reason);
        }
        let text = describe(error);
        match error {
            ConnectionError::ApplicationClosed(close)
                if Close::is_refusal(close.error_code.into_inner()) =>
            {
                Failure::Refused(text)
            }
            ConnectionError::ConnectionClosed(close)
                if TLS_ALERTS.contains(&u64::from(close.error_code)) =>
            {
                Failure::Refused(text)
            }
            ConnectionError::TransportError(error)
                if TLS_ALERTS.contains(&u64::from(error.code)) =>
            {
                Failure::Refused(text)
            }
            ConnectionError::VersionMismatch => Failure::Refused(text),
            _ => Failure::Unreachable(text),
        }
    }
}

/// A connection's end in words.
pub(super) fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            format!("closed by the peer: {reason}")
        }
        ConnectionError::ConnectionClosed(close) if !close.reason.is_empty() => {
            let reason = String::from_utf8_lossy(&close.reason);
            format!("refused by the peer's TLS or QUIC: {reason}")
        }
        ConnectionError::Reset => "the peer restarted and does not know this connection".into(),
        ConnectionError::TimedOut => "no sign of life from the peer".into(),
        ConnectionError::LocallyClosed => "closed by this node".into(),
        other => other.to_string(),
    }
}
