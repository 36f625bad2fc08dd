//! The demo's state machine: a ledger, in memory, of the proposals it has applied. It makes three things checkable:
//! that an acknowledged proposal is there, that none was applied twice, and that replicas agree on content and order.
//! It never keeps a payload: 16 bytes name a proposal, the rest goes into the hash.

use super::runs::{Run, Runs};
use bytes::{BufMut, Bytes, BytesMut};
use polyraft::{Entry, FrozenState, MachineError, Replies, StateMachine};
use polyraft_raft::{GroupId, Index};
use std::io::Read;
use std::path::Path;

/// Names one proposal of a group. It is the first [`ProposalId::BYTES`] bytes of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProposalId {
    /// Who proposed: one thread of one run of the load generator.
    pub client: u64,
    /// Counts that client's proposals to the group, from 0.
    pub sequence: u64,
}

impl ProposalId {
    /// Size on the wire, and so the smallest payload.
    pub const BYTES: usize = 16;

    /// The id as it stands in a payload: two little-endian numbers.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.client.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    /// The id at the start of a payload; None if the payload is too short to have one.
    pub fn of(payload: &[u8]) -> Option<Self> {
        let (client, rest) = payload.split_first_chunk::<8>()?;
        let (sequence, _) = rest.split_first_chunk::<8>()?;
        Some(Self {
            client: u64::from_le_bytes(*client),
            sequence: u64::from_le_bytes(*sequence),
        })
    }
}

/// What a replica answers to [`digest_query`]. Equal digests mean equal entries in equal order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Index of the last entry applied.
    pub last: Index,
    /// Entries applied.
    pub applied: u64,
    /// Of these, entries whose id had been applied before. Anything but 0 is a bug in the engine.
    pub duplicates: u64,
    /// Chained over (index, term, payload) of every entry, so it depends on their order.
    pub hash: u64,
}

const DIGEST_BYTES: usize = 32;

impl Digest {
    fn to_bytes(self) -> [u8; DIGEST_BYTES] {
        let mut bytes = [0; DIGEST_BYTES];
        let numbers = [self.last.0, self.applied, self.duplicates, self.hash];
        for (at, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            at.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Reads a reply to [`digest_query`].
    pub fn parse(reply: &[u8]) -> Option<Self> {
        let mut numbers = numbers(reply, DIGEST_BYTES / 8)?;
        Some(Self {
            last: Index(numbers.next()?),
            applied: numbers.next()?,
            duplicates: numbers.next()?,
            hash: numbers.next()?,
        })
    }
}

/// Exactly `count` little-endian numbers, or None.
fn numbers(bytes: &[u8], count: usize) -> Option<impl Iterator<Item = u64> + '_> {
    let (chunks, rest) = bytes.as_chunks::<8>();
    (rest.is_empty() && chunks.len() == count)
        .then(|| chunks.iter().map(|chunk| u64::from_le_bytes(*chunk)))
}

const ASK_DIGEST: u8 = b'd';
const ASK_APPLIED: u8 = b'a';

/// The query whose reply [`Digest::parse`] reads.
pub fn digest_query() -> Bytes {
    Bytes::from_static(&[ASK_DIGEST])
}

/// The query for all sequences of one client; [`parse_applied`] reads the reply.
pub fn applied_query(client: u64) -> Bytes {
    let mut query = BytesMut::with_capacity(9);
    query.put_u8(ASK_APPLIED);
    query.put_u64_le(client);
    query.freeze()
}

/// Reads a reply to [`applied_query`].
pub fn parse_applied(reply: &[u8]) -> Option<Runs> {
    let mut numbers = numbers(reply, reply.len() / 8)?;
    let mut runs = Runs::default();
    while let Some(first) = numbers.next() {
        let end = numbers.next()?;
        if !runs.push(Run { first, end }) {
            return None;
        }
    }
    Some(runs)
}

fn put_runs(out: &mut BytesMut, runs: &Runs) {
    out.reserve(runs.as_slice().len() * 16);
    for run in runs.as_slice() {
        out.put_u64_le(run.first);
        out.put_u64_le(run.end);
    }
}

/// The state of one replica of one group: about 60 bytes, and about 50 for each client that ever wrote to it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    digest: Digest,
    /// What each client had applied, in the order of the clients' first entries. A handful: searched linearly.
    clients: Vec<(u64, Runs)>,
}

impl Ledger {
    fn apply_one<'a>(&mut self, entry: &Entry<'a>) -> Result<&'a [u8], MachineError> {
        let id = ProposalId::of(entry.payload).ok_or_else(|| {
            MachineError::from(format!(
                "entry {} has {} bytes, but the demo's proposals start with an id of {} bytes; was this data directory written by another program?",
                entry.index,
                entry.payload.len(),
                ProposalId::BYTES,
            ))
        })?;
        let is_new = self.runs_of(id.client).insert(id.sequence);
        let digest = &mut self.digest;
        assert!(
            entry.index > digest.last,
            "the engine applies entries in ascending order"
        );
        digest.last = entry.index;
        digest.applied += 1;
        digest.duplicates += u64::from(!is_new);
        digest.hash = chain(digest.hash, entry);
        // The id comes back as the reply, so that a caller sees a reply that was meant for another proposal.
        Ok(&entry.payload[..ProposalId::BYTES])
    }

    fn runs_of(&mut self, client: u64) -> &mut Runs {
        let at = match self.clients.iter().rposition(|(known, _)| *known == client) {
            Some(at) => at,
            None => {
                self.clients.reserve_exact(1);
                self.clients.push((client, Runs::default()));
                self.clients.len() - 1
            }
        };
        &mut self.clients[at].1
    }
}

impl StateMachine for Ledger {
    fn open(_group: GroupId, _dir: &Path) -> Result<(Self, Index), MachineError> {
        // Nothing is kept on disk: the log is the state, and is applied again at every opening.
        Ok((Self::default(), Index::ZERO))
    }

    fn apply(&mut self, entries: &[Entry<'_>], replies: &mut Replies) -> Result<(), MachineError> {
        for entry in entries {
            replies.push(self.apply_one(entry)?);
        }
        Ok(())
    }

    fn query(&self, query: &[u8]) -> Result<Bytes, MachineError> {
        match query.split_first() {
            Some((&ASK_DIGEST, [])) => Ok(Bytes::copy_from_slice(&self.digest.to_bytes())),
            Some((&ASK_APPLIED, client)) if client.len() == 8 => {
                let client = numbers(client, 1).and_then(|mut numbers| numbers.next());
                let mut reply = BytesMut::new();
                if let Some((_, runs)) = self
                    .clients
                    .iter()
                    .find(|(known, _)| Some(*known) == client)
                {
                    put_runs(&mut reply, runs);
                }
                Ok(reply.freeze())
            }
            _ => Err("unknown query; ask with digest_query or applied_query".into()),
        }
    }

    /// Layout: the digest, then for each client its id, the number of its runs, and the runs; numbers of 8 bytes.
    fn snapshot(&self) -> Result<FrozenState, MachineError> {
        let mut state = BytesMut::new();
        state.put_slice(&self.digest.to_bytes());
        for (client, runs) in &self.clients {
            state.put_u64_le(*client);
            state.put_u64_le(runs.as_slice().len() as u64);
            put_runs(&mut state, runs);
        }
        Ok(Box::new(move |out| Ok(out.write_all(&state)?)))
    }

    fn restore(&mut self, _last: Index, from: &mut dyn Read) -> Result<(), MachineError> {
        let mut state = Vec::new();
        from.read_to_end(&mut state)?;
        *self = parse_snapshot(&state).ok_or("the snapshot is not one of a demo ledger")?;
        Ok(())
    }
}

fn parse_snapshot(state: &[u8]) -> Option<Ledger> {
    let (digest, clients) = state.split_at_checked(DIGEST_BYTES)?;
    let mut ledger = Ledger {
        digest: Digest::parse(digest)?,
        clients: Vec::new(),
    };
    let mut numbers = numbers(clients, clients.len() / 8)?;
    while let Some(client) = numbers.next() {
        let mut runs = Runs::default();
        for _ in 0..numbers.next()? {
            let (first, end) = (numbers.next()?, numbers.next()?);
            runs.push(Run { first, end }).then_some(())?;
        }
        ledger.clients.push((client, runs));
    }
    Some(ledger)
}

/// Adds one entry to the hash of all entries before it.
fn chain(hash: u64, entry: &Entry<'_>) -> u64 {
    let mut hash = fold(fold(hash, entry.index.0), entry.term.0);
    let (words, rest) = entry.payload.as_chunks::<8>();
    for word in words {
        hash = fold(hash, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    fold(
        fold(hash, u64::from_le_bytes(last)),
        entry.payload.len() as u64,
    )
}

/// Mixes a word into a hash: the two halves of a 128-bit product, folded. Both factors are odd-constant offsets, so
/// that a zero word still changes the hash.
fn fold(hash: u64, word: u64) -> u64 {
    let product =
        u128::from(hash ^ 0x9e37_79b9_7f4a_7c15) * u128::from(word ^ 0xd6e8_feb8_6659_fd93);
    (product as u64) ^ ((product >> 64) as u64) ^ hash.rotate_left(23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyraft_raft::Term;

    fn entry(index: u64, client: u64, sequence: u64, tail: &[u8]) -> (Index, Bytes) {
        let mut payload = ProposalId { client, sequence }.to_bytes().to_vec();
        payload.extend_from_slice(tail);
        (Index(index), payload.into())
    }

    fn ledger(entries: &[(Index, Bytes)]) -> Ledger {
        let entries: Vec<_> = entries
            .iter()
            .map(|(index, payload)| Entry::new(*index, Term(1), payload))
            .collect();
        let (mut ledger, held) = Ledger::open(GroupId(1), Path::new("/nowhere")).unwrap();
        assert_eq!(held, Index::ZERO);
        let mut replies = Replies::default();
        ledger.apply(&entries, &mut replies).unwrap();
        assert_eq!(replies.len(), entries.len());
        ledger
    }

    fn digest(ledger: &Ledger) -> Digest {
        Digest::parse(&ledger.query(&digest_query()).unwrap()).unwrap()
    }

    fn applied(ledger: &Ledger, client: u64) -> Runs {
        parse_applied(&ledger.query(&applied_query(client)).unwrap()).unwrap()
    }

    #[test]
    fn applied_proposals_are_found_by_client() {
        let ledger = ledger(&[
            entry(2, 7, 0, b""),
            entry(3, 7, 1, b""),
            entry(5, 8, 0, b""),
            entry(6, 7, 4, b""),
        ]);
        assert_eq!(applied(&ledger, 7).iter().collect::<Vec<_>>(), [0, 1, 4]);
        assert_eq!(applied(&ledger, 8).iter().collect::<Vec<_>>(), [0]);
        assert_eq!(applied(&ledger, 9).len(), 0);
        let digest = digest(&ledger);
        assert_eq!(
            (digest.last, digest.applied, digest.duplicates),
            (Index(6), 4, 0)
        );
    }

    #[test]
    fn a_proposal_applied_twice_is_counted() {
        let ledger = ledger(&[
            entry(1, 7, 0, b"x"),
            entry(2, 7, 1, b"x"),
            entry(3, 7, 0, b"x"),
        ]);
        assert_eq!(digest(&ledger).duplicates, 1);
    }

    #[test]
    fn the_hash_depends_on_order_place_and_content() {
        let base = digest(&ledger(&[entry(1, 7, 0, b"x"), entry(2, 7, 1, b"y")])).hash;
        let others = [
            vec![entry(1, 7, 1, b"y"), entry(2, 7, 0, b"x")],
            vec![entry(1, 7, 0, b"x"), entry(3, 7, 1, b"y")],
            vec![entry(1, 7, 0, b"x"), entry(2, 7, 1, b"z")],
            vec![entry(1, 7, 0, b"x"), entry(2, 7, 1, b"y\0")],
            vec![entry(1, 7, 0, b"x")],
        ];
        for other in others {
            assert_ne!(digest(&ledger(&other)).hash, base);
        }
        // How entries are cut into batches must not matter.
        let mut in_two = ledger(&[entry(1, 7, 0, b"x")]);
        let (index, payload) = entry(2, 7, 1, b"y");
        in_two
            .apply(
                &[Entry::new(index, Term(1), &payload)],
                &mut Replies::default(),
            )
            .unwrap();
        assert_eq!(digest(&in_two).hash, base);
    }

    #[test]
    fn a_snapshot_restores_the_whole_state() {
        let ledger = ledger(&[
            entry(1, 7, 0, b"x"),
            entry(2, 8, 5, b"y"),
            entry(3, 7, 9, b""),
        ]);
        let mut snapshot = Vec::new();
        ledger.snapshot().unwrap()(&mut snapshot).unwrap();
        let mut other = Ledger::default();
        other.restore(Index(3), &mut &snapshot[..]).unwrap();
        assert_eq!(other, ledger);
        assert!(
            other
                .restore(Index(3), &mut &snapshot[..snapshot.len() - 1])
                .is_err()
        );
        assert!(other.restore(Index(3), &mut &snapshot[..8]).is_err());
    }

    #[test]
    fn a_foreign_payload_is_an_error_and_not_a_panic() {
        let mut short = entry(1, 7, 0, b"");
        short.1.truncate(15);
        let error = Ledger::default()
            .apply(
                &[Entry::new(short.0, Term(1), &short.1)],
                &mut Replies::default(),
            )
            .unwrap_err();
        assert!(error.to_string().contains("15 bytes"), "{error}");
        assert!(Ledger::default().query(b"").is_err());
        assert!(Ledger::default().query(b"a123").is_err());
    }

    #[test]
    fn ids_survive_the_wire() {
        let id = ProposalId {
            client: u64::MAX,
            sequence: 3,
        };
        assert_eq!(ProposalId::of(&id.to_bytes()), Some(id));
        assert_eq!(ProposalId::of(&[0; 15]), None);
    }
}
