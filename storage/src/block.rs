//! Owns the entry block: the one encoding of log entries that the WAL, the wire and the readers share.
//! Must never interpret a payload, and never allocate by a length that it has not checked against the bytes at hand.

use bytes::{BufMut, BytesMut};
use polyraft_raft::{EntryRange, GroupId, Index, Term};

use crate::error::BlockError;

/// Bytes of the header, before the end-offset table and the payloads.
pub const BLOCK_HEADER_BYTES: usize = 48;

/// "PB", little endian.
pub(crate) const BLOCK_MAGIC: u16 = u16::from_le_bytes(*b"PB");
const VERSION: u8 = 1;
/// In the stride field: payloads differ in length, a table of end offsets follows the header.
const VARIABLE: u32 = u32::MAX;
/// A block's encoded size fits in 31 bits, so that no sum of two of its lengths overflows 32.
const MAX_ENCODED: u64 = 1 << 31;
/// The most entries of a block. Empty payloads take no bytes, so the number of entries needs a bound of its own.
pub(crate) const MAX_COUNT: u32 = 1 << 22;

/// What the entries of a block are for. A block never mixes kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Commands for the state machine.
    Normal = 0,
    /// A leader's first entry of its term: nothing to apply.
    Noop = 1,
    /// An encoded change of the group's configuration.
    Configuration = 2,
    /// Commands of client sessions: each has a header in front of what the state machine is given.
    Session = 3,
    /// Entries of any kind but configurations, without what they say: all that a witness keeps of them.
    Hollow = 4,
    /// A part of the group becomes a group of its own. The engine wrote it; it is alone in its block.
    Split = 5,
    /// A step of the merge of two groups, in the log of one of them. The engine wrote it; it is alone in its block.
    Merge = 6,
}

/// Where the header says the kind.
const KIND_AT: usize = 3;

impl EntryKind {
    /// Whether entries of this kind are applied one by one, each alone in its block.
    pub fn is_alone(self) -> bool {
        matches!(self, Self::Split | Self::Merge)
    }

    /// Whether entries of this kind change what is known of client sessions, or what is kept with that.
    pub(crate) fn concerns_sessions(self) -> bool {
        matches!(self, Self::Session | Self::Split | Self::Merge)
    }

    fn parse(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Normal),
            1 => Some(Self::Noop),
            2 => Some(Self::Configuration),
            3 => Some(Self::Session),
            4 => Some(Self::Hollow),
            5 => Some(Self::Split),
            6 => Some(Self::Merge),
            _ => None,
        }
    }
}

/// Consecutive entries of one group and one term, encoded once: a view of those bytes.
///
/// A value of this type has been checked: lengths are consistent and checksums match.
///
/// ```
/// use bytes::BytesMut;
/// use polyraft_raft::{EntryRange, GroupId, Index, Term};
/// use polyraft_storage::{EntryBlock, EntryKind, pack};
///
/// let range = EntryRange { term: Term(3), first: Index(7), end: Index(9) };
/// let mut buffer = BytesMut::new();
/// pack(&mut buffer, GroupId(1), range, EntryKind::Normal, ["put a", "delete b"])?;
/// let block = EntryBlock::parse(&buffer)?;
/// assert_eq!(block.range(), range);
/// assert_eq!(block.entry(Index(8)), b"delete b");
/// # Ok::<(), polyraft_storage::BlockError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryBlock<'a> {
    bytes: &'a [u8],
    head: Head,
}

/// The decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    kind: EntryKind,
    count: u32,
    group: GroupId,
    term: Term,
    first: Index,
    payload: u32,
    stride: u32,
    body_crc: u32,
}

impl Head {
    /// Reads and checks a header; the body is not looked at.
    fn parse(bytes: &[u8]) -> Result<Self, BlockError> {
        if bytes.len() < BLOCK_HEADER_BYTES {
            return Err(BlockError::Length {
                have: bytes.len(),
                need: BLOCK_HEADER_BYTES,
            });
        }
        if u16_at(bytes, 0) != BLOCK_MAGIC || bytes[2] != VERSION {
            return Err(BlockError::Format);
        }
        if crc32c::crc32c(&bytes[..40]) != u32_at(bytes, 40) {
            return Err(BlockError::Checksum("header"));
        }
        Self::read(bytes)
    }

    /// Reads the fields of a header whose checksum is known to match, and checks that they make sense.
    fn read(bytes: &[u8]) -> Result<Self, BlockError> {
        // Its length is checked once, here.
        let bytes = &bytes[..BLOCK_HEADER_BYTES];
        let head = Self {
            kind: EntryKind::parse(bytes[KIND_AT]).ok_or(BlockError::Field("kind"))?,
            count: u32_at(bytes, 4),
            group: GroupId(u64_at(bytes, 8)),
            term: Term(u64_at(bytes, 16)),
            first: Index(u64_at(bytes, 24)),
            payload: u32_at(bytes, 32),
            stride: u32_at(bytes, 36),
            body_crc: u32_at(bytes, 44),
        };
        if head.count == 0
            || head.count > MAX_COUNT
            || head.first.0 == 0
            || head.first.0.checked_add(u64::from(head.count)).is_none()
        {
            return Err(BlockError::Field("range"));
        }
        if head.kind.is_alone() && head.count != 1 {
            return Err(BlockError::Field("range"));
        }
        if head.stride != VARIABLE
            && u64::from(head.stride) * u64::from(head.count) != u64::from(head.payload)
        {
            return Err(BlockError::Field("stride"));
        }
        if head.kind == EntryKind::Hollow && (head.stride != 0 || head.payload != 0) {
            return Err(BlockError::Field("hollow"));
        }
        if head.encoded() > MAX_ENCODED {
            return Err(BlockError::Field("length"));
        }
        Ok(head)
    }

    fn table(&self) -> usize {
        if self.stride == VARIABLE {
            4 * self.count as usize
        } else {
            0
        }
    }

    fn encoded(&self) -> u64 {
        encoded_len(self.table() as u64, u64::from(self.payload))
    }

    fn end(&self) -> Index {
        Index(self.first.0 + u64::from(self.count))
    }

    /// Where payload number `at` begins and ends, counted from the start of the block.
    fn span(&self, bytes: &[u8], at: u32) -> (usize, usize) {
        let base = BLOCK_HEADER_BYTES + self.table();
        if self.stride != VARIABLE {
            let start = base + at as usize * self.stride as usize;
            return (start, start + self.stride as usize);
        }
        let end_of = |n: u32| u32_at(bytes, BLOCK_HEADER_BYTES + 4 * n as usize) as usize;
        let start = if at == 0 { 0 } else { end_of(at - 1) };
        (base + start, base + end_of(at))
    }
}

impl<'a> EntryBlock<'a> {
    /// Checks and takes exactly one block. Costs one checksum over the bytes and no copy.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BlockError> {
        let (block, rest) = Self::parse_first(bytes)?;
        match rest.is_empty() {
            true => Ok(block),
            false => Err(BlockError::Length {
                have: bytes.len(),
                need: block.len_bytes(),
            }),
        }
    }

    /// Checks and takes the first of concatenated blocks, and returns what follows it.
    pub fn parse_first(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), BlockError> {
        let head = Head::parse(bytes)?;
        let need = head.encoded() as usize;
        let have = bytes.len();
        let (bytes, rest) = bytes
            .split_at_checked(need)
            .ok_or(BlockError::Length { have, need })?;
        if crc32c::crc32c(&bytes[BLOCK_HEADER_BYTES..]) != head.body_crc {
            return Err(BlockError::Checksum("body"));
        }
        let mut before = 0;
        for at in 0..head.table() / 4 {
            let end = u32_at(bytes, BLOCK_HEADER_BYTES + 4 * at);
            if end < before {
                return Err(BlockError::Field("end offset"));
            }
            before = end;
        }
        if head.table() > 0 && before != head.payload {
            return Err(BlockError::Field("end offset"));
        }
        Ok((Self { bytes, head }, rest))
    }

    /// Takes bytes that this process encoded or checked before, without checksums.
    ///
    /// Panics when they are not a block: that would be a bug here, not damage outside.
    pub(crate) fn trusted(bytes: &'a [u8]) -> Self {
        debug_assert!(Head::parse(bytes).is_ok(), "{:?}", Head::parse(bytes));
        let head = match Head::read(bytes) {
            Ok(head) if head.encoded() == bytes.len() as u64 => head,
            other => panic!(
                "a cached block of {} bytes does not parse: {other:?}",
                bytes.len()
            ),
        };
        Self { bytes, head }
    }

    /// The kind of the block that starts here, which was checked before.
    pub(crate) fn kind_of(bytes: &[u8]) -> EntryKind {
        EntryKind::parse(bytes[KIND_AT]).expect("a cached block has a kind")
    }

    /// How many bytes the block that starts here takes, from its header alone: splits concatenated blocks.
    pub fn encoded_len(bytes: &[u8]) -> Result<usize, BlockError> {
        Head::parse(bytes).map(|head| head.encoded() as usize)
    }

    /// The group, kind and range in the header of the block that starts here, without a look at its body.
    pub fn peek(bytes: &[u8]) -> Result<(GroupId, EntryKind, EntryRange), BlockError> {
        let head = Head::parse(bytes)?;
        Ok((
            head.group,
            head.kind,
            EntryRange {
                term: head.term,
                first: head.first,
                end: head.end(),
            },
        ))
    }

    /// The group whose entries these are.
    pub fn group(&self) -> GroupId {
        self.head.group
    }

    /// The one term of all its entries.
    pub fn term(&self) -> Term {
        self.head.term
    }

    /// Index of the first entry.
    pub fn first(&self) -> Index {
        self.head.first
    }

    /// One past the index of the last entry.
    pub fn end(&self) -> Index {
        self.head.end()
    }

    /// What the entries are for.
    pub fn kind(&self) -> EntryKind {
        self.head.kind
    }

    /// Term and indexes together.
    pub fn range(&self) -> EntryRange {
        EntryRange {
            term: self.term(),
            first: self.first(),
            end: self.end(),
        }
    }

    /// The encoded block.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Its encoded size in bytes, header included.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Every entry with its index, in order.
    pub fn entries(self) -> impl Iterator<Item = (Index, &'a [u8])> {
        (0..self.head.count).map(move |at| {
            let (start, end) = self.head.span(self.bytes, at);
            (
                Index(self.head.first.0 + u64::from(at)),
                &self.bytes[start..end],
            )
        })
    }

    /// One payload.
    ///
    /// Panics when the index is not inside the block.
    pub fn entry(&self, index: Index) -> &'a [u8] {
        assert!(
            self.first() <= index && index < self.end(),
            "entry {index} is not in {:?}",
            self.range()
        );
        let at = (index.0 - self.head.first.0) as u32;
        let (start, end) = self.head.span(self.bytes, at);
        &self.bytes[start..end]
    }

    /// Appends entries `first..end` to `buffer` as a block of their own.
    ///
    /// # Errors
    /// [`BlockError::Range`] when the block does not hold them.
    pub fn cut(&self, first: Index, end: Index, buffer: &mut BytesMut) -> Result<(), BlockError> {
        if first < self.first() || end > self.end() || first >= end {
            return Err(BlockError::Range);
        }
        buffer.reserve(self.cut_bytes(first, end) as usize);
        let payloads = (first.0..end.0).map(|index| self.entry(Index(index)));
        let range = EntryRange {
            term: self.term(),
            first,
            end,
        };
        pack(buffer, self.group(), range, self.kind(), payloads).map(|_| ())
    }

    /// At most how many bytes `cut(first, end)` would take. The range must be inside the block and not empty.
    pub fn cut_bytes(&self, first: Index, end: Index) -> u64 {
        let (from, to) = (first.0 - self.first().0, end.0 - self.first().0 - 1);
        let payload =
            self.head.span(self.bytes, to as u32).1 - self.head.span(self.bytes, from as u32).0;
        let table = if self.head.stride == VARIABLE {
            4 * (end.0 - first.0)
        } else {
            0
        };
        encoded_len(table, payload as u64)
    }

    /// The longest prefix of `first..end` that a cut of at most `max_bytes` holds, but at least one entry; with its bytes.
    pub fn prefix_within(&self, first: Index, end: Index, max_bytes: u64) -> (Index, u64) {
        let (mut fits, mut over) = (first.0 + 1, end.0 + 1);
        // Sizes grow with the end, so the last end that fits is found by halving.
        while over - fits > 1 {
            let middle = fits + (over - fits) / 2;
            if self.cut_bytes(first, Index(middle)) <= max_bytes {
                fits = middle;
            } else {
                over = middle;
            }
        }
        (Index(fits), self.cut_bytes(first, Index(fits)))
    }
}

/// Appends one block to `buffer` and returns its size in bytes, always a multiple of eight.
///
/// Takes exactly `range.len()` payloads; panics otherwise. On an error the buffer is as it was.
pub fn pack<P>(
    buffer: &mut BytesMut,
    group: GroupId,
    range: EntryRange,
    kind: EntryKind,
    payloads: impl IntoIterator<Item = P>,
) -> Result<usize, BlockError>
where
    P: AsRef<[u8]>,
{
    let start = buffer.len();
    let count =
        u32::try_from(range.end.0 - range.first.0).map_err(|_| BlockError::TooLarge(u64::MAX))?;
    if count > MAX_COUNT {
        return Err(BlockError::TooLarge(u64::from(count)));
    }
    assert!(
        count > 0 && range.first.0 > 0,
        "a block holds at least one entry: {range:?}"
    );
    buffer.put_bytes(0, BLOCK_HEADER_BYTES);
    let (stride, payload) = match put_payloads(buffer, start + BLOCK_HEADER_BYTES, count, payloads)
    {
        Ok(sizes) => sizes,
        Err(error) => {
            buffer.truncate(start);
            return Err(error);
        }
    };
    buffer.put_bytes(0, (8 - (buffer.len() - start) % 8) % 8);

    let block = &mut buffer[start..];
    let body_crc = crc32c::crc32c(&block[BLOCK_HEADER_BYTES..]);
    block[0..2].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
    block[2] = VERSION;
    block[3] = kind as u8;
    block[4..8].copy_from_slice(&count.to_le_bytes());
    block[8..16].copy_from_slice(&group.0.to_le_bytes());
    block[16..24].copy_from_slice(&range.term.0.to_le_bytes());
    block[24..32].copy_from_slice(&range.first.0.to_le_bytes());
    block[32..36].copy_from_slice(&payload.to_le_bytes());
    block[36..40].copy_from_slice(&stride.to_le_bytes());
    let head_crc = crc32c::crc32c(&block[..40]);
    block[40..44].copy_from_slice(&head_crc.to_le_bytes());
    block[44..48].copy_from_slice(&body_crc.to_le_bytes());
    Ok(block.len())
}

/// Appends a block that has the places of entries and nothing of what they say; 48 bytes, however many they are. At most 2^22
/// entries; panics otherwise, and when there are none.
pub fn pack_hollow(buffer: &mut BytesMut, group: GroupId, range: EntryRange) {
    let count = range.end.0.saturating_sub(range.first.0) as usize;
    let nothing = std::iter::repeat_n(&[] as &[u8], count);
    pack(buffer, group, range, EntryKind::Hollow, nothing).expect("nothing is never too large");
}

/// Appends the payloads, with a table in front of them only when their lengths differ. Returns stride and payload bytes.
fn put_payloads<P>(
    buffer: &mut BytesMut,
    body: usize,
    count: u32,
    payloads: impl IntoIterator<Item = P>,
) -> Result<(u32, u32), BlockError>
where
    P: AsRef<[u8]>,
{
    let table = 4 * u64::from(count);
    let mut stride = None;
    // Offset of the payloads: moves behind the table as soon as one length differs.
    let mut base = body;
    let mut taken = 0;
    for payload in payloads {
        let payload = payload.as_ref();
        let bytes = (buffer.len() - base) as u64 + payload.len() as u64;
        if encoded_len(table, bytes) > MAX_ENCODED {
            return Err(BlockError::TooLarge(bytes));
        }
        assert!(taken < count, "more payloads than the range has entries");
        let stride = *stride.get_or_insert(payload.len());
        if base == body && payload.len() != stride {
            base = open_table(buffer, body, count, taken, stride);
        }
        buffer.extend_from_slice(payload);
        if base != body {
            let at = body + 4 * taken as usize;
            buffer[at..at + 4].copy_from_slice(&(bytes as u32).to_le_bytes());
        }
        taken += 1;
    }
    assert!(
        taken == count,
        "the range has {count} entries, {taken} payloads were given"
    );
    let payload = (buffer.len() - base) as u32;
    let stride = if base == body {
        stride.unwrap_or(0) as u32
    } else {
        VARIABLE
    };
    Ok((stride, payload))
}

/// Makes room for the end-offset table in front of `taken` payloads of one length and fills in their ends.
fn open_table(buffer: &mut BytesMut, body: usize, count: u32, taken: u32, stride: usize) -> usize {
    let end = buffer.len();
    let base = body + 4 * count as usize;
    buffer.put_bytes(0, 4 * count as usize);
    buffer.copy_within(body..end, base);
    for at in 0..taken as usize {
        let value = (stride * (at + 1)) as u32;
        buffer[body + 4 * at..body + 4 * at + 4].copy_from_slice(&value.to_le_bytes());
    }
    base
}

/// Whether `bytes` hold exactly one block whose checksums match.
pub(crate) fn is_intact(bytes: &[u8]) -> bool {
    Head::parse(bytes).is_ok_and(|head| {
        head.encoded() == bytes.len() as u64
            && crc32c::crc32c(&bytes[BLOCK_HEADER_BYTES..]) == head.body_crc
    })
}

fn encoded_len(table: u64, payload: u64) -> u64 {
    (BLOCK_HEADER_BYTES as u64 + table + payload).next_multiple_of(8)
}

// One load each: byte by byte, with a check for each, these were among the hottest functions of a shard.

#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[inline]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn packed(first: u64, payloads: &[Vec<u8>]) -> Bytes {
        let mut buffer = BytesMut::new();
        let range = EntryRange {
            term: Term(4),
            first: Index(first),
            end: Index(first + payloads.len() as u64),
        };
        let bytes = pack(&mut buffer, GroupId(9), range, EntryKind::Normal, payloads).unwrap();
        assert_eq!(bytes, buffer.len());
        buffer.freeze()
    }

    #[test]
    fn equal_lengths_need_no_table() {
        assert_eq!(
            packed(1, &[vec![1; 16], vec![2; 16]]).len(),
            BLOCK_HEADER_BYTES + 32
        );
        assert_eq!(
            packed(1, &[vec![1; 16], vec![2; 8]]).len(),
            BLOCK_HEADER_BYTES + 8 + 24
        );
        assert_eq!(packed(1, &[vec![], vec![]]).len(), BLOCK_HEADER_BYTES);
    }

    #[test]
    fn an_entry_that_splits_a_group_is_alone_in_its_block() {
        for count in [1, 2] {
            let mut buffer = BytesMut::new();
            let range = EntryRange {
                term: Term(4),
                first: Index(3),
                end: Index(3 + count),
            };
            let payloads = (0..count).map(|_| "part");
            pack(&mut buffer, GroupId(9), range, EntryKind::Split, payloads).unwrap();
            assert_eq!(EntryBlock::parse(&buffer).is_ok(), count == 1);
        }
    }

    #[test]
    fn a_prefix_holds_at_least_one_entry() {
        let packed = packed(1, &[vec![0; 100], vec![0; 100], vec![0; 10]]);
        let block = EntryBlock::parse(&packed).unwrap();
        assert_eq!(block.prefix_within(Index(1), Index(4), 1).0, Index(2));
        assert_eq!(block.prefix_within(Index(1), Index(4), 1 << 20).0, Index(4));
        assert_eq!(block.prefix_within(Index(1), Index(3), 1 << 20).0, Index(3));
        let (end, bytes) = block.prefix_within(Index(1), Index(4), 260);
        assert_eq!(
            (end, bytes),
            (Index(3), block.cut_bytes(Index(1), Index(3)))
        );
    }

    #[test]
    fn a_hollow_block_has_places_and_nothing_else() {
        let range = EntryRange {
            term: Term(4),
            first: Index(7),
            end: Index(1007),
        };
        let mut buffer = BytesMut::new();
        pack_hollow(&mut buffer, GroupId(9), range);
        assert_eq!(buffer.len(), BLOCK_HEADER_BYTES);
        let block = EntryBlock::parse(&buffer).unwrap();
        assert_eq!((block.range(), block.kind()), (range, EntryKind::Hollow));
        let mut cut = BytesMut::new();
        block.cut(Index(10), Index(12), &mut cut).unwrap();
        let cut = EntryBlock::parse(&cut).unwrap();
        assert_eq!(
            (cut.first(), cut.end(), cut.kind()),
            (Index(10), Index(12), EntryKind::Hollow)
        );

        let mut full = packed(7, &[vec![1; 8]]).to_vec();
        full[3] = EntryKind::Hollow as u8;
        let crc = crc32c::crc32c(&full[..40]);
        full[40..44].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(EntryBlock::parse(&full), Err(BlockError::Field("hollow")));
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let good = packed(5, &[vec![7; 3], vec![8; 9], vec![]]);
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(EntryBlock::parse(&bad).is_err(), "bit {bit} went unnoticed");
        }
    }

    proptest! {
        #[test]
        fn what_is_packed_is_parsed(payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20)) {
            let packed = packed(11, &payloads);
            let block = EntryBlock::parse(&packed).unwrap();
            let entries: Vec<_> = block.entries().map(|(index, bytes)| (index.0, bytes.to_vec())).collect();
            let expected: Vec<_> = (11..).zip(payloads.clone()).collect();
            prop_assert_eq!(entries, expected);
            prop_assert_eq!(EntryBlock::encoded_len(block.as_bytes()).unwrap(), block.len_bytes());
            let two = [&packed[..], &packed[..]].concat();
            prop_assert_eq!(EntryBlock::parse_first(&two), Ok((block, &packed[..])));
            prop_assert!(EntryBlock::parse(&two).is_err());
            prop_assert!(EntryBlock::parse_first(&packed[..packed.len() - 1]).is_err());
            for first in 11..block.end().0 {
                for end in first + 1..=block.end().0 {
                    let mut cut = BytesMut::new();
                    block.cut(Index(first), Index(end), &mut cut).unwrap();
                    let cut = EntryBlock::parse(&cut).unwrap();
                    prop_assert!(cut.len_bytes() as u64 <= block.cut_bytes(Index(first), Index(end)));
                    for index in first..end {
                        prop_assert_eq!(cut.entry(Index(index)), block.entry(Index(index)));
                    }
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(EntryBlock::parse(&bytes).is_err());
        }

        #[test]
        fn a_header_with_right_checksums_and_wrong_fields_never_panics(
            count in any::<u32>(), payload in any::<u32>(), stride in any::<u32>(), first in any::<u64>(), tail in 0usize..64,
        ) {
            let mut bytes = packed(1, &[vec![1, 2], vec![3]]).to_vec();
            bytes[4..8].copy_from_slice(&count.to_le_bytes());
            bytes[24..32].copy_from_slice(&first.to_le_bytes());
            bytes[32..36].copy_from_slice(&payload.to_le_bytes());
            bytes[36..40].copy_from_slice(&stride.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..40]);
            bytes[40..44].copy_from_slice(&crc.to_le_bytes());
            bytes.resize(bytes.len() + tail, 0);
            let crc = crc32c::crc32c(&bytes[BLOCK_HEADER_BYTES..]);
            bytes[44..48].copy_from_slice(&crc.to_le_bytes());
            if let Ok(block) = EntryBlock::parse(&bytes) {
                prop_assert_eq!(block.entries().count() as u64, block.range().end.0 - block.range().first.0);
            }
        }
    }
}
