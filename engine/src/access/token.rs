//! JSON Web Tokens in the password field: HS256, RS256, ES256 (RFC 7519, signatures by RFC 7515).
//!
//! The library checks algorithm and signature; the claims are checked here, so that each is read once: a claim of the
//! wrong type refuses the token rather than counting as absent. The algorithm is the configured one, whatever the token
//! says, and a key of the wrong kind is refused when it is read.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::acl::{AclFile, TokenRights};
use super::{AccessError, Grant, Refusal, Rules, read_bytes};
use crate::settings::JwtSettings;

type Claims = Map<String, Value>;

/// How tokens are checked.
pub(super) struct Tokens {
    key: DecodingKey,
    validation: Validation,
    issuer: Option<String>,
    audience: Option<String>,
    username_claim: String,
    acl_claim: String,
    leeway_s: u64,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("username_claim", &self.username_claim).finish_non_exhaustive()
    }
}

impl Tokens {
    pub(super) fn load(s: &JwtSettings) -> Result<Self, AccessError> {
        let bytes = read_bytes("JWT key", &s.key_file)?;
        let (algorithm, key) =
            key(&s.algorithm, &bytes).map_err(|e| AccessError(format!("JWT key {}: {e}", s.key_file)))?;
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        Ok(Self {
            key,
            validation,
            issuer: s.issuer.clone(),
            audience: s.audience.clone(),
            username_claim: s.username_claim.clone(),
            acl_claim: s.acl_claim.clone(),
            leeway_s: s.leeway_s,
        })
    }

    /// A password that has the form of a token; only then is it one, where passwords are checked too.
    pub(super) fn looks_like_one(secret: &[u8]) -> bool {
        header(secret).is_some_and(|h| h.contains_key("alg"))
    }

    /// Checks a token at Unix time `now_s`.
    pub(super) fn check(
        &self,
        token: &[u8],
        username: Option<Arc<str>>,
        client_id: &str,
        acl: Option<&AclFile>,
        now_s: u64,
    ) -> Result<Grant, Refusal> {
        let claims = self.signed_claims(token).ok_or(Refusal::BadCredentials)?;
        let expires_at_s = self.check_claims(&claims, now_s).ok_or(Refusal::BadCredentials)?;
        let username = self.username(&claims, username).ok_or(Refusal::BadCredentials)?;
        let rights = match claims.get(&self.acl_claim).filter(|_| !self.acl_claim.is_empty()) {
            Some(claim) => Some(rights(claim).ok_or(Refusal::BadCredentials)?),
            // a claim that is waited for but does not come must not open everything
            None => (!self.acl_claim.is_empty() && acl.is_none()).then(TokenRights::default),
        };
        let rules = Rules::of(acl, rights.as_ref(), username.as_deref(), client_id);
        Ok(Grant { username, rules, expires_at_s })
    }

    fn signed_claims(&self, token: &[u8]) -> Option<Claims> {
        if header(token)?.contains_key("crit") {
            return None; // extensions that must be understood: we know none [RFC 7515, 4.1.11]
        }
        let token = std::str::from_utf8(token).ok()?;
        jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation).ok().map(|data| data.claims)
    }

    /// The end of the token if it has one; the outer `None` refuses it.
    fn check_claims(&self, claims: &Claims, now_s: u64) -> Option<Option<u64>> {
        let expires_at_s = seconds(claims, "exp")?.map(|exp| exp.saturating_add(self.leeway_s));
        let begins_at_s = seconds(claims, "nbf")?.unwrap_or(0);
        let in_time = expires_at_s.is_none_or(|end| now_s < end) && now_s.saturating_add(self.leeway_s) >= begins_at_s;
        let is = |name: &str, wanted: &str| match claims.get(name) {
            Some(Value::String(one)) => one == wanted,
            Some(Value::Array(several)) => name == "aud" && several.iter().any(|v| v == wanted),
            _ => false,
        };
        let issued = self.issuer.as_deref().is_none_or(|wanted| is("iss", wanted));
        let meant = self.audience.as_deref().is_none_or(|wanted| is("aud", wanted));
        (in_time && issued && meant).then_some(expires_at_s)
    }

    /// The name to go by, if any; the outer `None` refuses the token.
    fn username(&self, claims: &Claims, given: Option<Arc<str>>) -> Option<Option<Arc<str>>> {
        if !self.username_claim.is_empty() {
            let claimed = claims.get(&self.username_claim)?.as_str()?;
            return (given.as_deref() == Some(claimed)).then_some(given);
        }
        match claims.get("sub") {
            Some(sub) => sub.as_str().map(|name| Some(name.into())),
            None => Some(None), // what CONNECT says of itself is not vouched for
        }
    }
}

/// The key for an algorithm; a public key where a secret is due would let everybody sign.
fn key(algorithm: &str, bytes: &[u8]) -> Result<(Algorithm, DecodingKey), String> {
    let has = |mark: &str| bytes.windows(mark.len()).any(|w| w == mark.as_bytes());
    let pem = has("-----BEGIN ");
    let public = |e: jsonwebtoken::errors::Error| format!("{e}; a PEM public key for {algorithm} is needed");
    match algorithm {
        "HS256" if pem => Err("HS256 needs a shared secret, this is a PEM file; is RS256 or ES256 meant?".to_owned()),
        "HS256" => match secret(bytes) {
            [] => Err("the secret is empty; write one, for example with `openssl rand -hex 32`".to_owned()),
            secret => Ok((Algorithm::HS256, DecodingKey::from_secret(secret))),
        },
        "RS256" | "ES256" if has("PRIVATE KEY-----") => {
            Err("this is a private key, which belongs to the issuer; `openssl pkey -pubout` writes the public one"
                .to_owned())
        }
        "RS256" => Ok((Algorithm::RS256, DecodingKey::from_rsa_pem(bytes).map_err(public)?)),
        "ES256" => Ok((Algorithm::ES256, DecodingKey::from_ec_pem(bytes).map_err(public)?)),
        other => Err(format!("algorithm `{other}` is unknown; use HS256, RS256 or ES256")),
    }
}

/// A secret that is text loses the line end that editors put behind it; others are taken byte by byte.
fn secret(bytes: &[u8]) -> &[u8] {
    let line = bytes.strip_suffix(b"\n").map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    line.filter(|l| l.iter().all(|b| (b' '..=b'~').contains(b))).unwrap_or(bytes)
}

/// The header of what has the three parts of a token.
fn header(token: &[u8]) -> Option<Claims> {
    let mut parts = token.split(|b| *b == b'.');
    let (header, rest) = (parts.next()?, parts.count());
    let json = (rest == 2).then(|| URL_SAFE_NO_PAD.decode(header).ok()).flatten()?;
    serde_json::from_slice(&json).ok()
}

/// A time, whole or broken, if there is one; the outer `None` is for anything else.
fn seconds(claims: &Claims, name: &str) -> Option<Option<u64>> {
    let Some(value) = claims.get(name) else { return Some(None) };
    let broken = || value.as_f64().filter(|s| *s >= 0.0).map(|s| s as u64);
    value.as_u64().or_else(broken).map(Some)
}

/// `{"publish": [filters], "subscribe": [filters]}`; what is missing allows nothing.
fn rights(claim: &Value) -> Option<TokenRights> {
    let claim = claim.as_object()?;
    let list = |name: &str| match claim.get(name) {
        None => Some(Vec::new()),
        Some(Value::String(one)) => filter(one).map(|f| vec![f]),
        Some(Value::Array(several)) => several.iter().map(|v| v.as_str().and_then(filter)).collect(),
        Some(_) => None,
    };
    Some(TokenRights { publish: list("publish")?, subscribe: list("subscribe")? })
}

fn filter(text: &str) -> Option<String> {
    crate::topic::valid_filter(text).then(|| text.to_owned())
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
