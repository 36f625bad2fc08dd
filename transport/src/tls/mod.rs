//! Where certificates come from.
//!
//! Owns the choice between a development CA and files, and what a node needs of either: its trust
//! roots, its chain and its key. It must never offer a way to turn TLS or the check of the peer
//! off.

mod config;
pub(crate) mod dev;
mod files;
mod name;
mod verify;

use std::path::PathBuf;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Identity, TransportError};

pub(crate) use config::{Crypto, SERVER_NAME};
pub(crate) use name::PeerName;
pub(crate) use verify::Verdict;

/// The source of a node's certificate and of the CA it trusts.
///
/// A certificate names its node in a SAN URI of the form `polyraft://<cluster>/node/<id>`, carries
/// the DNS name `node.polyraft.internal`, and may be used for both TLS client and server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// A development CA: made in `dir` by the first node that finds none there. Each node issues
    /// its own certificate at its start. Whoever can read the directory can be any node.
    Dev {
        /// Directory shared by the nodes on this machine.
        dir: PathBuf,
    },
    /// PEM files.
    Files {
        /// The CA certificates to trust.
        ca: PathBuf,
        /// This node's certificate, followed by its intermediates if there are any.
        cert: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

impl Tls {
    /// A development CA in `dir`. See [`Tls::Dev`].
    pub fn dev(dir: impl Into<PathBuf>) -> Tls {
        Tls::Dev { dir: dir.into() }
    }

    /// Certificates from PEM files. See [`Tls::Files`].
    pub fn files(ca: impl Into<PathBuf>, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Tls {
        Tls::Files {
            ca: ca.into(),
            cert: cert.into(),
            key: key.into(),
        }
    }

    /// Reads or makes what this node needs.
    pub(crate) fn load(&self, identity: &Identity) -> Result<Material, TransportError> {
        match self {
            Tls::Dev { dir } => dev::load(dir, identity),
            Tls::Files { ca, cert, key } => files::load(ca, cert, key),
        }
    }
}

/// What a node needs to speak TLS.
pub(crate) struct Material {
    /// Where `chain` came from, for messages.
    pub path: PathBuf,
    pub roots: Vec<CertificateDer<'static>>,
    /// This node's certificate first.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// Secret that stays the same when the node restarts. Stateless resets are derived from it, so
    /// that a peer learns of a restart with the first packet it sends.
    pub lasting_secret: Vec<u8>,
}
