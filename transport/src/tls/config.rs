//! TLS settings for one handshake at a time.
//!
//! Owns the crypto provider, the QUIC configurations of both sides and the key of stateless resets.
//! It must never allow an older TLS, a resumed session or early data: each of them would skip the
//! check of the peer.

use std::sync::Arc;

use polyraft_raft::NodeId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, tls13};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, version};
use rustls_pki_types::{PrivateKeyDer, ServerName, UnixTime};

use super::verify::{AcceptVerifier, DialVerifier, Expected};
use super::{Material, PeerName, Verdict};
use crate::{Identity, TransportError};

/// The DNS name in every node's certificate, and the SNI of every handshake. It identifies nobody:
/// the SAN URI does.
pub(crate) const SERVER_NAME: &str = "node.polyraft.internal";

/// Nodes that speak another protocol than this one do not get past the handshake.
const ALPN: &[u8] = b"polyraft/1";

/// Makes the TLS configuration of each handshake.
pub(crate) struct Crypto {
    provider: Arc<CryptoProvider>,
    dial_chain: Arc<WebPkiServerVerifier>,
    accept_chain: Arc<dyn ClientCertVerifier>,
    material: Material,
    cluster: String,
}

impl Crypto {
    /// Checks that the material belongs together and to `identity`.
    pub fn new(material: Material, identity: &Identity) -> Result<Crypto, TransportError> {
        let wrong = |reason: String| TransportError::Certificate {
            path: material.path.clone(),
            reason,
        };
        let name = PeerName::from_certificate(&material.chain[0]).map_err(wrong)?;
        if name != PeerName::of(identity) {
            return Err(TransportError::WrongCertificate {
                path: material.path.clone(),
                found: name.to_string(),
                node: identity.node,
                cluster: identity.cluster.clone(),
            });
        }
        let mut roots = RootCertStore::empty();
        for root in &material.roots {
            roots
                .add(root.clone())
                .map_err(|error| TransportError::Tls(format!("a CA certificate: {error}")))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(provider());
        let dial_chain =
            WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
                .build()
                .map_err(tls)?;
        let accept_chain = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(tls)?;
        warn_if_peers_will_refuse(&dial_chain, &material);
        let crypto = Crypto {
            provider,
            dial_chain,
            accept_chain,
            cluster: identity.cluster.clone(),
            material,
        };
        // Finds a key that does not fit the certificate now and not at the first handshake.
        crypto.server_config(&Verdict::default())?;
        Ok(crypto)
    }

    /// For one handshake that `node` is expected to answer.
    pub fn client_config(
        &self,
        node: NodeId,
        verdict: &Verdict,
    ) -> Result<QuicClientConfig, TransportError> {
        let verifier = DialVerifier {
            chain: self.dial_chain.clone(),
            expected: self.expected(Some(node)),
            verdict: verdict.clone(),
        };
        let mut config = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.material.chain.clone(), self.key())
            .map_err(tls)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        QuicClientConfig::try_from(config).map_err(tls)
    }

    /// For one handshake that some node began.
    pub fn server_config(&self, verdict: &Verdict) -> Result<QuicServerConfig, TransportError> {
        let verifier = AcceptVerifier {
            chain: self.accept_chain.clone(),
            expected: self.expected(None),
            verdict: verdict.clone(),
        };
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(self.material.chain.clone(), self.key())
            .map_err(tls)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        QuicServerConfig::try_from(config).map_err(tls)
    }

    /// The key of the stateless resets that this node sends.
    pub fn reset_key(&self, node: NodeId) -> Arc<dyn HmacKey> {
        let label = format!("polyraft stateless reset/{}/{}", self.cluster, node.0);
        let mut key = [0; 32];
        hkdf()
            .extract_from_secret(Some(label.as_bytes()), &self.material.lasting_secret)
            .expand_slice(&[b"key"], &mut key)
            .expect("a key is shorter than HKDF's limit");
        Arc::new(ResetKey(key))
    }

    fn expected(&self, node: Option<NodeId>) -> Expected {
        Expected {
            cluster: self.cluster.clone(),
            node,
        }
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        self.material.key.clone_key()
    }
}

/// The ring provider. AES-128 comes first: it is the cheapest of the strong suites, and frames are
/// encrypted by the gigabyte.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..default_provider()
    }
}

/// Says at once what every peer will say later. Not an error: the clock of this node may be the one
/// that is wrong, and while a CA is exchanged its own certificate may come from the next one.
fn warn_if_peers_will_refuse(chain: &WebPkiServerVerifier, material: &Material) {
    let Ok(server_name) = ServerName::try_from(SERVER_NAME) else {
        return;
    };
    let (own, intermediates) = (&material.chain[0], &material.chain[1..]);
    if let Err(error) =
        chain.verify_server_cert(own, intermediates, &server_name, &[], UnixTime::now())
    {
        let path = material.path.display();
        tracing::warn!(%path, %error, "this node's own certificate does not pass its CA");
    }
}

fn tls(error: impl std::fmt::Display) -> TransportError {
    TransportError::Tls(error.to_string())
}

fn hkdf() -> &'static dyn tls13::Hkdf {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13();
    suite.expect("the suite is one of TLS 1.3").hkdf_provider
}

/// A pseudorandom function for stateless resets that gives the same answers after a restart.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        hkdf()
            .extract_from_secret(Some(&self.0), data)
            .expand_slice(&[b"token"], signature_out)
            .expect("a signature is shorter than HKDF's limit");
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let mut ours = [0; 32];
        self.sign(data, &mut ours);
        if signature.len() != ours.len() {
            return Err(CryptoError);
        }
        // Looks at every byte, so that the time taken says nothing about the first wrong one.
        let differing = ours
            .iter()
            .zip(signature)
            .fold(0, |acc, (a, b)| acc | (a ^ b));
        if differing == 0 {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}
