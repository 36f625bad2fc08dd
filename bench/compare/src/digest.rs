//! What a state machine keeps of the entries that it has applied: the same for every engine, and all of it.
//! It must stay so cheap that no engine is measured by it.

use serde::{Deserialize, Serialize};

/// Equal digests mean equal entries in equal order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Proposals applied.
    pub applied: u64,
    /// Chained over their payloads.
    pub hash: u64,
}

impl Digest {
    /// Bytes of [`Digest::to_bytes`].
    pub const BYTES: usize = 16;

    /// Adds one proposal.
    pub fn apply(&mut self, payload: &[u8]) {
        self.applied += 1;
        let (words, rest) = payload.as_chunks::<8>();
        for word in words {
            self.hash = fold(self.hash, u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.hash = fold(self.hash, u64::from_le_bytes(last));
    }

    /// Two little-endian numbers.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.applied.to_le_bytes());
        bytes[8..].copy_from_slice(&self.hash.to_le_bytes());
        bytes
    }

    /// Reads [`Digest::to_bytes`].
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (applied, rest) = bytes.split_first_chunk::<8>()?;
        let hash = rest.try_into().ok()?;
        Some(Self {
            applied: u64::from_le_bytes(*applied),
            hash: u64::from_le_bytes(hash),
        })
    }
}

/// Mixes a word into a hash: the two halves of a 128-bit product, folded.
fn fold(hash: u64, word: u64) -> u64 {
    let product =
        u128::from(hash ^ 0x9e37_79b9_7f4a_7c15) * u128::from(word ^ 0xd6e8_feb8_6659_fd93);
    (product as u64) ^ ((product >> 64) as u64) ^ hash.rotate_left(23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_counts_and_bytes_keep_everything() {
        let (mut one, mut other) = (Digest::default(), Digest::default());
        one.apply(b"first payload 16");
        one.apply(b"other payload");
        other.apply(b"other payload");
        other.apply(b"first payload 16");
        assert_eq!(one.applied, 2);
        assert_ne!(one, other);
        assert_eq!(Digest::parse(&one.to_bytes()), Some(one));
        assert_eq!(Digest::parse(b"short"), None);
    }
}
