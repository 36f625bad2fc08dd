//! Certificates from PEM files.
//!
//! Owns reading them, with errors that name the file and what is wrong with it. It must never write
//! one, and never put key material into a message.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::Material;
use crate::TransportError;

pub(super) fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Material, TransportError> {
    let roots = certificates(ca)?;
    let chain = certificates(cert)?;
    let key_der = private_key(key)?;
    if mode(key)? & 0o077 != 0 {
        tracing::warn!(path = %key.display(), "the private key can be read by others: chmod 600");
    }
    let lasting_secret = key_der.secret_der().to_vec();
    Ok(Material {
        path: cert.to_owned(),
        roots,
        chain,
        key: key_der,
        lasting_secret,
    })
}

/// All certificates of a PEM file; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(wrong(path, "there is no PEM certificate in this file")),
        Err(error) => Err(wrong(path, &format!("this is not a PEM file: {error}"))),
    }
}

/// The private key of a PEM file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TransportError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| match error {
        pem::Error::NoItemsFound => wrong(path, "there is no PEM private key in this file"),
        error => wrong(path, &format!("this is not a PEM private key: {error}")),
    })
}

/// The permission bits of a file.
pub(super) fn mode(path: &Path) -> Result<u32, TransportError> {
    let metadata = fs::metadata(path).map_err(|error| io("read", path, error))?;
    Ok(metadata.permissions().mode() & 0o777)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, TransportError> {
    fs::read(path).map_err(|error| io("read", path, error))
}

pub(super) fn io(action: &'static str, path: &Path, source: std::io::Error) -> TransportError {
    TransportError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

pub(super) fn wrong(path: &Path, reason: &str) -> TransportError {
    TransportError::Certificate {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}
