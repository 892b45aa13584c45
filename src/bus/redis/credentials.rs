//! The login and the certificates of connections. The files of certificates are read again before
//! each new connection, so that they are rotated without a restart.

use std::{fs, path::Path};

use redis::{Client, ClientTlsConfig, ConnectionInfo, RedisResult, TlsCertificates};

use super::logins::Logins;
use crate::{
    bus::StartError,
    config::{Password, Secret, Tls},
};

/// Where the secret and the certificates come from.
pub(super) struct Credentials {
    /// The password, if it is not that of the URL, and does not change.
    secret: Option<Secret>,
    /// The logins, if the password may change.
    pub logins: Option<Logins>,
    /// The files of certificates.
    tls: Tls,
}

/// The secret and the certificates as they were read.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Contents {
    secret: Option<String>,
    authorities: Option<Vec<u8>>,
    certificate: Option<(Vec<u8>, Vec<u8>)>,
}

impl Credentials {
    /// `key` is that of the password in the configuration.
    pub(super) fn new(
        key: &'static str,
        username: Option<&str>,
        password: Option<&Password>,
        tls: Tls,
    ) -> Credentials {
        let logins = password.and_then(|password| Logins::new(key, username, password));
        let secret = match password {
            Some(Password::Secret(secret)) if logins.is_none() => Some(secret.clone()),
            _ => None,
        };
        Credentials { secret, logins, tls }
    }

    /// True if there are certificates in files.
    pub(super) fn has_files(&self) -> bool {
        self.tls != Tls::default()
    }

    /// Reads the files. The error names the key of the configuration, and never a secret.
    pub(super) fn read(&self) -> Result<Contents, StartError> {
        let read = |key: &str, path: &Path| {
            fs::read(path).map_err(|error| {
                StartError(format!("coordinator.tls.{key}: {}: {error}", path.display()))
            })
        };
        let pair = self.tls.client_certificate.as_deref().zip(self.tls.client_key.as_deref());
        let pair = pair.map(|(certificate, key)| {
            Ok((read("clientCertificate", certificate)?, read("clientKey", key)?))
        });
        let secret = self.secret.as_ref().map(|secret| secret.expose().to_owned());
        let authorities = self.tls.ca_certificate.as_deref();
        Ok(Contents {
            secret,
            authorities: authorities.map(|path| read("caCertificate", path)).transpose()?,
            certificate: pair.transpose()?,
        })
    }
}

impl Contents {
    /// How a server is connected to with them.
    pub(super) fn apply(&self, info: ConnectionInfo) -> RedisResult<ConnectionInfo> {
        let info = match &self.secret {
            Some(secret) => {
                let redis = info.redis_settings().clone().set_password(secret);
                info.set_redis_settings(redis)
            }
            None => info,
        };
        if self.authorities.is_none() && self.certificate.is_none() {
            return Ok(info);
        }
        let client_tls = self.certificate.clone();
        let client_tls =
            client_tls.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        let certificates = TlsCertificates { client_tls, root_cert: self.authorities.clone() };
        let client = Client::build_with_tls(info, certificates)?;
        Ok(client.get_connection_info().clone())
    }
}
