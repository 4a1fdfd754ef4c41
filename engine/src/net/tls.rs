//! TLS by rustls: certificates, client certificates, revocation, and who the certificate says that the client is.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::stream::Secured;
use crate::settings::{CertificateIdentity, ClientCertificates, TlsSettings};

/// OpenSSL names of the suites that rustls has.
const OPENSSL_NAMES: [(&str, &str); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
    ("ECDHE-RSA-AES128-GCM-SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    ("ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
    ("ECDHE-RSA-CHACHA20-POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
];

/// Reads everything that a TLS listener needs.
pub(super) fn load(settings: &TlsSettings) -> Result<Arc<ServerConfig>, String> {
    let certs = with_issuers(certificates(&settings.cert_file)?, settings);
    let key = PrivateKeyDer::from_pem_file(&settings.key_file)
        .map_err(|e| format!("key {}: {e}; a PEM private key is needed", settings.key_file))?;
    let provider = Arc::new(provider(&settings.ciphers)?);
    let versions: &[&SupportedProtocolVersion] = match settings.version_min.as_deref() {
        None | Some("1.2" | "tlsv1.2") => rustls::ALL_VERSIONS,
        Some("1.3" | "tlsv1.3") => &[&rustls::version::TLS13],
        Some(other) => return Err(format!("TLS version {other}: only 1.2 and 1.3 are offered")),
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|e| format!("TLS: {e}; choose other ciphers"))?;
    let builder = match settings.client_certificates {
        ClientCertificates::None => builder.with_no_client_auth(),
        wanted => builder.with_client_cert_verifier(verifier(settings, wanted, &provider)?),
    };
    let mut config = builder
        .with_single_cert(certs, key)
        .map_err(|e| format!("certificate {} and key {}: {e}", settings.cert_file, settings.key_file))?;
    config.ticketer = ring::Ticketer::new().map_err(|e| format!("TLS tickets: {e}"))?;
    config.send_tls13_tickets = 1;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("certificate {file}: {e}; a PEM file is needed");
    let certs: Vec<_> =
        CertificateDer::pem_file_iter(file).map_err(|e| wrong(&e))?.collect::<Result<_, _>>().map_err(|e| wrong(&e))?;
    if certs.is_empty() { Err(wrong(&"it holds no certificate")) } else { Ok(certs) }
}

/// Appends the intermediate certificates that the authorities' file holds, as OpenSSL-based servers do.
fn with_issuers(mut chain: Vec<CertificateDer<'static>>, settings: &TlsSettings) -> Vec<CertificateDer<'static>> {
    let Some(known) = settings.ca_file.as_deref().and_then(|file| certificates(file).ok()) else { return chain };
    for _ in 0..known.len() {
        let issuer = chain.last().and_then(|last| {
            let (_, last) = X509Certificate::from_der(last).ok()?;
            known.iter().find(|c| {
                let parsed = X509Certificate::from_der(c).map(|(_, c)| c);
                parsed.is_ok_and(|c| c.subject() == last.issuer() && c.subject() != c.issuer())
            })
        });
        match issuer.cloned().filter(|c| !chain.contains(c)) {
            Some(issuer) => chain.push(issuer),
            None => break,
        }
    }
    chain
}

fn provider(ciphers: &[String]) -> Result<CryptoProvider, String> {
    let mut provider = ring::default_provider();
    if ciphers.is_empty() {
        return Ok(provider);
    }
    let wanted: Vec<&str> = ciphers
        .iter()
        .map(|c| OPENSSL_NAMES.iter().find(|(openssl, _)| openssl == c).map_or(c.as_str(), |(_, iana)| iana))
        .collect();
    provider.cipher_suites.retain(|s| {
        let name = format!("{:?}", s.suite());
        wanted.iter().any(|w| *w == name || w.replacen("TLS_", "TLS13_", 1) == name)
    });
    if provider.cipher_suites.is_empty() {
        return Err(format!("ciphers {}: none of them is offered", ciphers.join(":")));
    }
    Ok(provider)
}

fn verifier(
    settings: &TlsSettings,
    wanted: ClientCertificates,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    let mut files: Vec<String> = settings.ca_file.iter().cloned().collect();
    if let Some(folder) = &settings.ca_path {
        let entries = std::fs::read_dir(Path::new(folder)).map_err(|e| format!("ca_path {folder}: {e}"))?;
        files.extend(entries.filter_map(Result::ok).filter_map(|e| e.path().to_str().map(str::to_owned)));
    }
    for file in &files {
        let Ok(certs) = certificates(file) else {
            if Some(file) == settings.ca_file.as_ref() {
                return Err(format!("ca_file {file}: it holds no PEM certificate"));
            }
            continue;
        };
        for cert in certs {
            roots.add(cert).map_err(|e| format!("authority {file}: {e}"))?;
        }
    }
    if roots.is_empty() {
        return Err("client certificates need `ca_file` or `ca_path` with the authorities' certificates".to_owned());
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    if let Some(file) = &settings.crl_file {
        let lists = CertificateRevocationListDer::pem_file_iter(file).map_err(|e| format!("crl_file {file}: {e}"))?;
        let lists: Vec<_> = lists.collect::<Result<_, _>>().map_err(|e| format!("crl_file {file}: {e}"))?;
        builder = builder.with_crls(lists).allow_unknown_revocation_status();
    }
    if wanted == ClientCertificates::Optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|e| format!("client certificates: {e}"))
}

/// The username that the client's certificate gives, if the listener takes it from there.
pub(super) fn identity(secured: &Secured, wanted: CertificateIdentity) -> Option<String> {
    if wanted == CertificateIdentity::None {
        return None;
    }
    let cert = secured.tls.as_ref()?.peer_certificates()?.first()?;
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    if wanted == CertificateIdentity::CommonName {
        return cert.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned);
    }
    let registry = x509_parser::objects::oid_registry();
    let mut parts: Vec<String> = Vec::new();
    for rdn in cert.subject().iter() {
        let texts = rdn.iter().map(|a| {
            let name = x509_parser::objects::oid2abbrev(a.attr_type(), registry).unwrap_or("UNKNOWN");
            format!("{name}={}", escape(a.as_str().unwrap_or("")))
        });
        parts.push(texts.collect::<Vec<_>>().join("+"));
    }
    parts.reverse();
    Some(parts.join(","))
}

/// RFC 2253, section 2.4.
fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
