//! Payloads, cut from large buffers that are used again once an engine has let go of them: no engine is charged for
//! allocations of the client.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// A buffer's one allocation is shared by many payloads.
const BUFFER_BYTES: usize = 256 << 10;

/// At most this many buffers wait to be used again.
const USED_BUFFERS: usize = 64;

/// The smallest payload: the slot's number and its sequence make each payload different.
pub const MIN_BYTES: usize = 16;

/// Makes payloads of one size.
pub struct Payloads {
    filler: Vec<u8>,
    open: BytesMut,
    /// Buffers cut up, oldest first.
    used: VecDeque<BytesMut>,
}

impl Payloads {
    /// Payloads of `bytes` each, at least [`MIN_BYTES`].
    pub fn new(bytes: usize) -> Self {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let filler = (MIN_BYTES..bytes).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 56) as u8
        });
        Self {
            filler: filler.collect(),
            open: BytesMut::with_capacity(BUFFER_BYTES),
            used: VecDeque::new(),
        }
    }

    /// The payload for one sending of one slot.
    pub fn make(&mut self, slot: u32, sequence: u64) -> Bytes {
        if self.open.capacity() < MIN_BYTES + self.filler.len() {
            let fresh = self.buffer();
            self.used
                .push_back(std::mem::replace(&mut self.open, fresh));
        }
        self.open.extend_from_slice(&u64::from(slot).to_le_bytes());
        self.open.extend_from_slice(&sequence.to_le_bytes());
        self.open.extend_from_slice(&self.filler);
        self.open.split().freeze()
    }

    fn buffer(&mut self) -> BytesMut {
        if self.used.len() >= USED_BUFFERS {
            self.used.pop_front();
        }
        if let Some(oldest) = self.used.front_mut()
            && oldest.try_reclaim(BUFFER_BYTES)
            && let Some(reclaimed) = self.used.pop_front()
        {
            return reclaimed;
        }
        BytesMut::with_capacity(BUFFER_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_their_size_and_differ() {
        for bytes in [16, 128] {
            let mut payloads = Payloads::new(bytes);
            let (one, other) = (payloads.make(1, 7), payloads.make(1, 8));
            assert_eq!((one.len(), other.len()), (bytes, bytes));
            assert_ne!(one, other);
        }
    }
}
