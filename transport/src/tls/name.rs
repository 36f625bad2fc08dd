//! The name of a node inside a certificate.
//!
//! Owns the SAN URI: how it is written and how it is read. It must never accept two spellings of
//! one name.

use std::fmt;

use polyraft_raft::NodeId;
use rustls_pki_types::CertificateDer;

use crate::Identity;
use crate::hello::is_cluster_name;

const SCHEME: &str = "polyraft://";

/// The node that a certificate speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerName {
    pub cluster: String,
    pub node: NodeId,
}

impl PeerName {
    pub fn of(identity: &Identity) -> PeerName {
        PeerName {
            cluster: identity.cluster.clone(),
            node: identity.node,
        }
    }

    /// Reads `polyraft://<cluster>/node/<id>`.
    pub fn parse(uri: &str) -> Option<PeerName> {
        let (cluster, id) = uri.strip_prefix(SCHEME)?.split_once("/node/")?;
        let node = NodeId(id.parse().ok()?);
        let name = PeerName {
            cluster: cluster.to_owned(),
            node,
        };
        // Writing it again refuses "+7", "007" and the like.
        (is_cluster_name(cluster) && name.to_string() == uri).then_some(name)
    }

    /// Finds the one name in a certificate.
    ///
    /// # Errors
    /// Says in words why there is none.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Result<PeerName, String> {
        let parsed = webpki::EndEntityCert::try_from(certificate)
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        let mut uris = parsed
            .valid_uri_names()
            .filter(|uri| uri.starts_with(SCHEME));
        let Some(uri) = uris.next() else {
            return Err(
                "the certificate has no SAN of the form polyraft://<cluster>/node/<id>".into(),
            );
        };
        if uris.next().is_some() {
            return Err("the certificate names more than one node".into());
        }
        PeerName::parse(uri).ok_or_else(|| {
            format!(
                "the certificate's SAN {uri:?} is not of the form polyraft://<cluster>/node/<id>"
            )
        })
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/node/{}", self.cluster, self.node.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_reads_what_it_writes() {
        let name = PeerName {
            cluster: "eu-1.prod".into(),
            node: NodeId(u64::MAX),
        };
        assert_eq!(PeerName::parse(&name.to_string()), Some(name));
    }

    #[test]
    fn name_has_one_spelling() {
        for uri in [
            "polyraft://a/node/07",
            "polyraft://a/node/+7",
            "polyraft://a/node/",
            "polyraft://a/node/7/",
            "polyraft://a/node/18446744073709551616",
            "polyraft:///node/7",
            "polyraft://A/node/7",
            "polyraft://a/b/node/7",
            "https://a/node/7",
        ] {
            assert_eq!(PeerName::parse(uri), None, "{uri}");
        }
    }
}
