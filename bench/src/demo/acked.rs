//! What the engine has promised: the ids of all acknowledged proposals, and of those whose outcome is open. Also the
//! file of `--acked`, which outlives a killed process. It must never lose an id that was counted as acknowledged.

use super::machine::ProposalId;
use super::runs::Runs;
use anyhow::{Context, Result, bail, ensure};
use rustc_hash::FxHashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::Path;

/// The proposals of one client to one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// Acknowledged: each must be applied at every replica.
    pub acked: Runs,
    /// Answered with an open outcome: each may or may not be applied.
    pub open: Runs,
    /// Whether `open` is complete. Then nothing but `acked` and `open` may be applied. It is not after a kill, which
    /// leaves proposals without an answer.
    pub is_complete: bool,
}

/// All promises, by group; for each group by client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promises {
    by_group: FxHashMap<u64, Vec<(u64, Promise)>>,
}

impl Promises {
    /// Adds what `client` knows about `group`. A pair of client and group is added once.
    pub fn add(&mut self, group: u64, client: u64, promise: Promise) {
        self.by_group
            .entry(group)
            .or_default()
            .push((client, promise));
    }

    /// Moves all promises of `other` here.
    pub fn merge(&mut self, other: Self) {
        for (group, mut promises) in other.by_group {
            self.by_group
                .entry(group)
                .or_default()
                .append(&mut promises);
        }
    }

    /// The clients that proposed to `group`, with what they were promised.
    pub fn of(&self, group: u64) -> &[(u64, Promise)] {
        self.by_group.get(&group).map_or(&[], Vec::as_slice)
    }

    /// The highest group that anything was promised for.
    pub fn highest_group(&self) -> Option<u64> {
        self.by_group.keys().copied().max()
    }

    /// How many proposals were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.all().map(|promise| promise.acked.len()).sum()
    }

    /// How many proposals have an open outcome.
    pub fn open(&self) -> u64 {
        self.all().map(|promise| promise.open.len()).sum()
    }

    fn all(&self) -> impl Iterator<Item = &Promise> {
        self.by_group.values().flatten().map(|(_, promise)| promise)
    }
}

/// First bytes of an `--acked` file.
const HEADER: &[u8; 16] = b"polyraft acked 1";

/// A record: group, client, sequence; little-endian numbers of 8 bytes.
const RECORD_BYTES: usize = 24;

/// The file of `--acked`, open for appending. Threads may share it: one append is one `write`, which Linux serialises.
#[derive(Debug)]
pub struct AckFile {
    file: File,
}

impl AckFile {
    /// Opens the file or creates it. A last record that a killed process left unfinished is cut off.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_inner(path).with_context(|| format!("cannot use {} for --acked", path.display()))
    }

    fn open_inner(path: &Path) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        let length = file.metadata()?.len();
        if length < HEADER.len() as u64 {
            let mut start = Vec::new();
            file.read_to_end(&mut start)?;
            ensure!(
                HEADER.starts_with(&start),
                "it exists and is not a file of acknowledged ids"
            );
            file.set_len(0)?;
            file.write_all(HEADER)?;
        } else {
            read_header(&mut file)?;
            let records = length - HEADER.len() as u64;
            file.set_len(length - records % RECORD_BYTES as u64)?;
        }
        Ok(Self { file })
    }

    /// Appends the records of `batch` and empties it. When this returns, they survive the process (not the machine).
    pub fn append(&self, batch: &mut AckBatch) -> Result<()> {
        if !batch.bytes.is_empty() {
            (&self.file)
                .write_all(&batch.bytes)
                .context("cannot append to the file of --acked")?;
            batch.bytes.clear();
        }
        Ok(())
    }
}

/// Records on their way to the file.
#[derive(Debug, Default)]
pub struct AckBatch {
    bytes: Vec<u8>,
}

impl AckBatch {
    /// Adds one acknowledged proposal.
    pub fn push(&mut self, group: u64, id: ProposalId) {
        self.bytes.extend_from_slice(&group.to_le_bytes());
        self.bytes.extend_from_slice(&id.to_bytes());
    }
}

fn read_header(from: &mut impl Read) -> Result<()> {
    let mut header = [0; HEADER.len()];
    let read = from.read_exact(&mut header);
    if read.is_err() || &header != HEADER {
        bail!(
            "it is not a file of acknowledged ids (its first {} bytes are not the header)",
            HEADER.len()
        );
    }
    Ok(())
}

/// Reads a file of `--acked`. An unfinished last record was never counted, and is left out.
pub fn read_acked(path: &Path) -> Result<Promises> {
    read_acked_inner(path)
        .with_context(|| format!("cannot read the acknowledged ids in {}", path.display()))
}

fn read_acked_inner(path: &Path) -> Result<Promises> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    read_header(&mut file)?;
    let mut acked: FxHashMap<(u64, u64), Runs> = FxHashMap::default();
    let mut record = [0; RECORD_BYTES];
    while file.read_exact(&mut record).is_ok() {
        let (group, id) = record
            .split_first_chunk::<8>()
            .context("a record has a group")?;
        let id = ProposalId::of(id).context("a record has an id")?;
        let group = u64::from_le_bytes(*group);
        if !acked
            .entry((group, id.client))
            .or_default()
            .insert(id.sequence)
        {
            bail!(
                "proposal {} of client {} to group {group} stands in it twice",
                id.sequence,
                id.client
            );
        }
    }
    let mut promises = Promises::default();
    for ((group, client), acked) in acked {
        promises.add(
            group,
            client,
            Promise {
                acked,
                ..Promise::default()
            },
        );
    }
    Ok(promises)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(file: &AckFile, ids: &[(u64, u64, u64)]) {
        let mut batch = AckBatch::default();
        for &(group, client, sequence) in ids {
            batch.push(group, ProposalId { client, sequence });
        }
        file.append(&mut batch).unwrap();
    }

    #[test]
    fn acknowledged_ids_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acked");
        append(
            &AckFile::open(&path).unwrap(),
            &[(5, 1, 0), (5, 1, 1), (6, 1, 0)],
        );
        append(&AckFile::open(&path).unwrap(), &[(5, 2, 0)]);
        let promises = read_acked(&path).unwrap();
        assert_eq!(promises.acknowledged(), 4);
        assert_eq!(promises.of(5).len(), 2);
        assert_eq!(promises.of(6)[0].1.acked, [0].into_iter().collect());
        assert_eq!(promises.of(7), []);
        assert_eq!(promises.highest_group(), Some(6));
    }

    #[test]
    fn an_unfinished_last_record_is_left_out_and_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acked");
        append(&AckFile::open(&path).unwrap(), &[(5, 1, 0)]);
        OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(&[9; 7])
            .unwrap();
        assert_eq!(read_acked(&path).unwrap().acknowledged(), 1);
        append(&AckFile::open(&path).unwrap(), &[(5, 1, 1)]);
        assert_eq!(read_acked(&path).unwrap().acknowledged(), 2);
    }

    #[test]
    fn a_foreign_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["notes", "notes that are longer than a header"] {
            let path = dir.path().join("notes.txt");
            std::fs::write(&path, content).unwrap();
            assert!(AckFile::open(&path).is_err());
            assert!(read_acked(&path).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn an_id_acknowledged_twice_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acked");
        append(&AckFile::open(&path).unwrap(), &[(5, 1, 0), (5, 1, 0)]);
        let error = format!("{:#}", read_acked(&path).unwrap_err());
        assert!(error.contains("twice"), "{error}");
    }
}
