//! Payloads for the load generator, cut from large buffers that are used again once the engine has let go of them.
//! In the steady state a payload costs a copy and no allocation.

use super::machine::ProposalId;
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// A buffer holds at least this many bytes, so that its one allocation is shared by many payloads.
const BUFFER_BYTES: usize = 256 << 10;

/// At most this many buffers wait to be used again.
const USED_BUFFERS: usize = 64;

/// Makes payloads of one size.
#[derive(Debug)]
pub struct Payloads {
    /// What follows the id: bytes that do not compress.
    filler: Vec<u8>,
    buffer_bytes: usize,
    /// The buffer that payloads are cut from.
    open: BytesMut,
    /// Buffers cut up, oldest first. Each is empty but keeps its allocation, which becomes free with the last payload.
    used: VecDeque<BytesMut>,
}

impl Payloads {
    /// Payloads of `payload_bytes` each, which must have room for the id.
    pub fn new(payload_bytes: usize) -> Self {
        assert!(
            payload_bytes >= ProposalId::BYTES,
            "a payload starts with its id"
        );
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let filler = (ProposalId::BYTES..payload_bytes)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 56) as u8
            })
            .collect();
        let buffer_bytes = BUFFER_BYTES.max(payload_bytes);
        Self {
            filler,
            buffer_bytes,
            open: BytesMut::with_capacity(buffer_bytes),
            used: VecDeque::new(),
        }
    }

    /// The payload that carries `id`.
    pub fn make(&mut self, id: ProposalId) -> Bytes {
        if self.open.capacity() < ProposalId::BYTES + self.filler.len() {
            let fresh = self.buffer();
            self.used
                .push_back(std::mem::replace(&mut self.open, fresh));
        }
        self.open.extend_from_slice(&id.to_bytes());
        self.open.extend_from_slice(&self.filler);
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
    fn payloads_have_their_size_and_id() {
        for size in [16, 17, 128, 300_000] {
            let mut payloads = Payloads::new(size);
            for sequence in 0..10 {
                let id = ProposalId {
                    client: 4,
                    sequence,
                };
                let payload = payloads.make(id);
                assert_eq!(payload.len(), size);
                assert_eq!(ProposalId::of(&payload), Some(id));
            }
        }
    }

    #[test]
    fn buffers_are_used_again_when_their_payloads_are_gone() {
        let mut payloads = Payloads::new(1024);
        let per_buffer = BUFFER_BYTES / 1024;
        for sequence in 0..20 * per_buffer as u64 {
            drop(payloads.make(ProposalId {
                client: 1,
                sequence,
            }));
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
        let kept: Vec<Bytes> = (0..500)
            .map(|sequence| {
                payloads.make(ProposalId {
                    client: 2,
                    sequence,
                })
            })
            .collect();
        for (sequence, payload) in (0..).zip(&kept) {
            assert_eq!(
                ProposalId::of(payload),
                Some(ProposalId {
                    client: 2,
                    sequence
                })
            );
        }
    }
}
