//! The check of a peer's certificate during the handshake.
//!
//! Owns the two rustls verifiers: rustls' own WebPKI verifiers check chain, dates and purpose, then
//! the SAN must name the expected cluster and, when dialing, the expected node. It must never
//! accept what either of the two refuses.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use polyraft_raft::NodeId;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::PeerName;

/// What one handshake's verifier found wrong, in words; empty while it found nothing.
///
/// rustls turns errors into alerts, which say little. This carries the sentence around them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict(Arc<Mutex<Option<String>>>);

impl Verdict {
    pub fn refusal(&self) -> Option<String> {
        self.0.lock().clone()
    }

    fn note(&self, error: Error) -> Error {
        // A CA of the same name with another key shows as a bad signature.
        let error = match error {
            Error::InvalidCertificate(CertificateError::BadSignature) => {
                Error::InvalidCertificate(CertificateError::UnknownIssuer)
            }
            other => other,
        };
        let reason = match &error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                "it is not signed by a CA that this node trusts (UnknownIssuer)".to_owned()
            }
            Error::InvalidCertificate(CertificateError::Other(OtherError(refusal))) => {
                refusal.to_string()
            }
            Error::InvalidCertificate(inner) => inner.to_string(),
            other => other.to_string(),
        };
        *self.0.lock() = Some(format!("the peer's certificate: {reason}"));
        error
    }
}

/// Whom a handshake expects at the other end.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    pub cluster: String,
    /// `None` when accepting: membership is checked once the handshake is through, where the
    /// refusal can carry its reason.
    pub node: Option<NodeId>,
}

impl Expected {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let name = PeerName::from_certificate(certificate).map_err(refusal)?;
        if name.cluster != self.cluster {
            return Err(refusal(format!(
                "it is for cluster {:?}, but this is cluster {:?}",
                name.cluster, self.cluster
            )));
        }
        match self.node {
            Some(node) if node != name.node => Err(refusal(format!(
                "it is for node {}, but node {} was expected at this address",
                name.node.0, node.0
            ))),
            _ => Ok(()),
        }
    }
}

fn refusal(reason: String) -> Error {
    let error = OtherError(Arc::new(Refusal(reason)));
    Error::InvalidCertificate(CertificateError::Other(error))
}

struct Refusal(String);

// rustls shows the debug form to the peer, so that one is for people too.
impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Checks the certificate of a node that this one dials.
#[derive(Debug)]
pub(super) struct DialVerifier {
    pub chain: Arc<WebPkiServerVerifier>,
    pub expected: Expected,
    pub verdict: Verdict,
}

impl ServerCertVerifier for DialVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.chain
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .and_then(|verified| self.expected.check(end_entity).map(|()| verified))
            .map_err(|error| self.verdict.note(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Checks the certificate of a node that dials this one.
#[derive(Debug)]
pub(super) struct AcceptVerifier {
    pub chain: Arc<dyn ClientCertVerifier>,
    pub expected: Expected,
    pub verdict: Verdict,
}

impl ClientCertVerifier for AcceptVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.chain
            .verify_client_cert(end_entity, intermediates, now)
            .and_then(|verified| self.expected.check(end_entity).map(|()| verified))
            .map_err(|error| self.verdict.note(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
