//! Payloads for the load generator, cut from large buffers that are used again once the engine has let go of them.
//! In the steady state a payload costs a copy and no allocation.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// A buffer holds at least this many bytes, so that its one allocation is shared by many payloads.
const BUFFER_BYTES: usize = 256 << 10;

/// At most this many buffers wait to be used again.
const USED_BUFFERS: usize = 64;

/// Makes payloads up to a largest size.
#[derive(Debug)]
pub struct Payloads {
    /// What follows the head: bytes that do not compress.
    filler: Vec<u8>,
    buffer_bytes: usize,
    /// The buffer that payloads are cut from.
    open: BytesMut,
    /// Buffers cut up, oldest first. Each is empty but keeps its allocation, which becomes free with the last payload.
    used: VecDeque<BytesMut>,
}

impl Payloads {
    /// Payloads of at most `max_bytes` each.
    pub fn new(max_bytes: usize) -> Self {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let filler = (0..max_bytes)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 56) as u8
            })
            .collect();
        let buffer_bytes = BUFFER_BYTES.max(max_bytes);
        Self {
            filler,
            buffer_bytes,
            open: BytesMut::with_capacity(buffer_bytes),
            used: VecDeque::new(),
        }
    }

    /// A payload of `bytes` that starts with `head`, or with as much of it as there is room for.
    pub fn make(&mut self, head: &[u8], bytes: usize) -> Bytes {
        if self.open.capacity() < bytes {
            let fresh = self.buffer();
            self.used
                .push_back(std::mem::replace(&mut self.open, fresh));
        }
        let head = &head[..head.len().min(bytes)];
        self.open.extend_from_slice(head);
        self.open
            .extend_from_slice(&self.filler[..bytes - head.len()]);
        self.open.split().freeze()
    }

    /// The oldest used buffer if none of its payloads lives any more, else a new one.
    fn buffer(&mut self) -> BytesMut {
        if self.used.len() >= USED_BUFFERS {
            // One stuck payload must not make every younger buffer wait with it: this one's memory frees itself.
            self.used.pop_front();
        }
        if let Some(oldest) = self.used.front_mut()
            && oldest.try_reclaim(self.buffer_bytes)
            && let Some(reclaimed) = self.used.pop_front()
        {
            return reclaimed;
        }
        BytesMut::with_capacity(self.buffer_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_their_size_and_head() {
        let mut payloads = Payloads::new(300_000);
        for bytes in [0, 3, 16, 17, 128, 300_000] {
            for number in 0..10_u64 {
                let head = number.to_le_bytes();
                let payload = payloads.make(&head, bytes);
                assert_eq!(payload.len(), bytes);
                let shared = bytes.min(head.len());
                assert_eq!(payload[..shared], head[..shared]);
            }
        }
    }

    #[test]
    fn buffers_are_used_again_when_their_payloads_are_gone() {
        let mut payloads = Payloads::new(1024);
        let per_buffer = BUFFER_BYTES / 1024;
        for number in 0..20 * per_buffer as u64 {
            drop(payloads.make(&number.to_le_bytes(), 1024));
        }
        assert!(
            payloads.used.len() <= 1,
            "{} buffers for no live payload",
            payloads.used.len()
        );
    }

    #[test]
    fn a_live_payload_is_never_overwritten() {
        let mut payloads = Payloads::new(4096);
        let kept: Vec<Bytes> = (0..500_u64)
            .map(|number| payloads.make(&number.to_le_bytes(), 4096))
            .collect();
        for (number, payload) in (0_u64..).zip(&kept) {
            assert_eq!(payload[..8], number.to_le_bytes());
        }
    }
}
