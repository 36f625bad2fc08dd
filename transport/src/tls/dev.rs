//! A development CA: certificates without ceremony on one machine.
//!
//! Owns the CA's two files in a directory and the certificate issued to each node at its start. It
//! must never replace a CA that exists, nor leave its key readable by others.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use super::files::{certificates, io, mode, read, wrong};
use super::{Material, PeerName, SERVER_NAME};
use crate::{Identity, TransportError};

const CA_CERT: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
const LOCK: &str = "ca.lock";

pub(super) fn load(dir: &Path, identity: &Identity) -> Result<Material, TransportError> {
    let cert_path = dir.join(CA_CERT);
    let key_path = dir.join(CA_KEY);
    ensure_ca(dir, &cert_path, &key_path)?;

    let bits = mode(&key_path)?;
    if bits & 0o077 != 0 {
        let reason = format!("others can read this CA key (mode {bits:03o}): chmod 600");
        return Err(wrong(&key_path, &reason));
    }
    let roots = certificates(&cert_path)?;
    let key_pem = String::from_utf8(read(&key_path)?)
        .map_err(|_| wrong(&key_path, "this is not a PEM private key"))?;
    let ca_key = KeyPair::from_pem(&key_pem).map_err(|error| {
        wrong(
            &key_path,
            &format!("this is not a PEM private key: {error}"),
        )
    })?;
    let lasting_secret = ca_key.serialize_der();
    let issuer = Issuer::from_ca_cert_der(&roots[0], ca_key).map_err(|error| {
        wrong(
            &cert_path,
            &format!("this is not a CA certificate: {error}"),
        )
    })?;

    let failed = |error: rcgen::Error| wrong(&cert_path, &format!("cannot issue: {error}"));
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = node_params(&PeerName::of(identity))
        .and_then(|params| params.signed_by(&key, &issuer))
        .map_err(failed)?;
    Ok(Material {
        path: cert_path.clone(),
        roots,
        chain: vec![certificate.der().clone()],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        lasting_secret,
    })
}

/// What a node's certificate says, valid from yesterday for two years.
pub(crate) fn node_params(name: &PeerName) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("polyraft node {}", name.node.0));
    params.subject_alt_names = vec![
        SanType::URI(name.to_string().try_into()?),
        SanType::DnsName(SERVER_NAME.try_into()?),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    valid_for(&mut params, Duration::days(2 * 365));
    Ok(params)
}

/// What the CA's own certificate says.
pub(crate) fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "polyraft development CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, Duration::days(10 * 365));
    params
}

fn valid_for(params: &mut CertificateParams, time: Duration) {
    // A day of slack for clocks that differ.
    params.not_before = OffsetDateTime::now_utc() - Duration::days(1);
    params.not_after = OffsetDateTime::now_utc() + time;
}

/// Makes the CA unless it exists. Nodes of one or several processes may do this at the same time:
/// a lock file lets one of them make it and the others wait.
fn ensure_ca(dir: &Path, cert: &Path, key: &Path) -> Result<(), TransportError> {
    fs::create_dir_all(dir).map_err(|error| io("create", dir, error))?;
    let lock_path = dir.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(|error| io("open", &lock_path, error))?;
    // Released when the file is closed, also by a crash.
    lock.lock().map_err(|error| io("lock", &lock_path, error))?;
    if exists(cert)? {
        if exists(key)? {
            return Ok(());
        }
        let reason = "this CA key is missing while its certificate is there: restore it, or delete \
                      the directory for a new CA and restart all nodes";
        return Err(wrong(key, reason));
    }
    let pair = KeyPair::generate().map_err(|error| wrong(key, &error.to_string()))?;
    let certificate = ca_params()
        .self_signed(&pair)
        .map_err(|error| wrong(cert, &error.to_string()))?;
    // The certificate comes last: a CA that has one is complete.
    write_new(key, pair.serialize_pem().as_bytes(), 0o600)?;
    write_new(cert, certificate.pem().as_bytes(), 0o644)?;
    let opened = File::open(dir).and_then(|dir| dir.sync_all());
    opened.map_err(|error| io("sync", dir, error))?;
    tracing::info!(path = %cert.display(), "made a development CA");
    Ok(())
}

fn exists(path: &Path) -> Result<bool, TransportError> {
    path.try_exists().map_err(|error| io("read", path, error))
}

/// Writes a file in one step: a reader sees all of it or nothing.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TransportError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let write = || {
        // What a crash may have left could have other permissions.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| io("write", path, error))
}
