//! Who may connect, and what they may do: passwords, tokens, certificates, ACL (section 5.4).
//!
//! Files are read once and compiled; a lane asks without I/O and without hashing. What costs time (password hashes,
//! signatures) becomes a [`Job`] for the [`Workers`]. Formats of passwords and ACL are mosquitto's own.

mod acl;
mod password;
mod throttle;
mod token;
mod worker;

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use acl::{Action, Rules};
pub use password::{check_password, hash_password};
pub use throttle::Throttle;
pub use worker::{Busy, Job, Workers};

use acl::AclFile;
use base64::Engine as _;
use password::Passwords;
use token::Tokens;

use crate::settings::AccessSettings;

/// No password, ACL or key file is larger.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A file that cannot be used: which, where in it, what is wrong, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessError(pub String);

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for AccessError {}

/// What a client shows of itself in its CONNECT.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// Client id, given or assigned.
    pub client_id: &'a str,
    /// Username.
    pub username: Option<&'a str>,
    /// Password or token.
    pub password: Option<&'a [u8]>,
    /// Username from the client certificate.
    pub certificate_identity: Option<&'a str>,
}

/// Why a client may not connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Wrong password, unknown user, broken or expired token.
    BadCredentials,
    /// No credentials, or not for this client.
    NotAuthorized,
}

impl Refusal {
    /// The CONNACK code. Bad credentials and missing rights are not told apart, as in mosquitto: who guesses learns less.
    #[must_use]
    pub const fn reason_code(self) -> u8 {
        0x87
    }
}

/// A client that may connect.
#[derive(Debug, Clone, Default)]
pub struct Grant {
    /// Its username, for logs and ACL.
    pub username: Option<Arc<str>>,
    /// What it may do.
    pub rules: Rules,
    /// When its credentials end, Unix time in seconds.
    pub expires_at_s: Option<u64>,
}

/// The answer to a login.
#[derive(Debug)]
pub enum Verdict {
    /// Come in.
    Grant(Grant),
    /// Stay out.
    Refuse(Refusal),
    /// It takes work that a lane must not do.
    Work(Job),
}

/// The access rules of one or more listeners.
#[derive(Debug, Default)]
pub struct Access {
    allow_anonymous: bool,
    prefixes: Vec<String>,
    passwords: Option<Arc<Passwords>>,
    tokens: Option<Arc<Tokens>>,
    acl: Option<Arc<AclFile>>,
}

impl Access {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// File, line, what is wrong, what to do.
    pub fn load(settings: &AccessSettings) -> Result<Self, AccessError> {
        Ok(Self {
            allow_anonymous: settings.allow_anonymous,
            prefixes: settings.client_id_prefixes.clone(),
            passwords: settings.password_file.as_deref().map(Passwords::load).transpose()?.map(Arc::new),
            tokens: settings.jwt.as_ref().map(Tokens::load).transpose()?.map(Arc::new),
            acl: settings.acl_file.as_deref().map(AclFile::load).transpose()?.map(Arc::new),
        })
    }

    /// Decides what can be decided at once: no file, no hash, no signature is looked at here.
    ///
    /// Credentials that are shown must be right, even where none are needed. Only where neither passwords nor tokens
    /// are configured does any username do for `allow_anonymous`, as in mosquitto.
    #[must_use]
    pub fn begin(&self, login: &Login<'_>) -> Verdict {
        if !self.prefixes.is_empty() && !self.prefixes.iter().any(|p| login.client_id.starts_with(p.as_str())) {
            return Verdict::Refuse(Refusal::NotAuthorized);
        }
        if let Some(identity) = login.certificate_identity {
            return Verdict::Grant(self.grant(login.client_id, Some(identity)));
        }
        let checks = self.passwords.is_some() || self.tokens.is_some();
        let shows = login.username.is_some() || login.password.is_some();
        if checks && shows {
            return self.work(login);
        }
        if self.allow_anonymous {
            return Verdict::Grant(self.grant(login.client_id, login.username));
        }
        Verdict::Refuse(Refusal::NotAuthorized)
    }

    /// The rules of a client that is there, after a reload: those of this ACL file, and what its token said.
    #[must_use]
    pub fn renew(&self, rules: &Rules, username: Option<&str>, client_id: &str) -> Rules {
        rules.renewed(self.acl.as_deref(), username, client_id)
    }

    fn work(&self, login: &Login<'_>) -> Verdict {
        // an empty password is none
        let Some(secret) = login.password.filter(|p| !p.is_empty()).map(<[u8]>::to_vec) else {
            return Verdict::Refuse(Refusal::BadCredentials);
        };
        let username: Option<Arc<str>> = login.username.map(Arc::from);
        let client_id: Arc<str> = login.client_id.into();
        let (tokens, passwords, acl) = (self.tokens.clone(), self.passwords.clone(), self.acl.clone());
        Verdict::Work(Job::new(move || {
            if let Some(tokens) = tokens.filter(|_| passwords.is_none() || Tokens::looks_like_one(&secret)) {
                return tokens.check(&secret, username, &client_id, acl.as_deref(), now_s());
            }
            match (passwords, &username) {
                (Some(passwords), Some(name)) if passwords.check(name, &secret) => {
                    let rules = Rules::of(acl.as_deref(), None, Some(name), &client_id);
                    Ok(Grant { username, rules, expires_at_s: None })
                }
                _ => Err(Refusal::BadCredentials),
            }
        }))
    }

    fn grant(&self, client_id: &str, username: Option<&str>) -> Grant {
        let rules = Rules::of(self.acl.as_deref(), None, username, client_id);
        Grant { username: username.map(Arc::from), rules, expires_at_s: None }
    }
}

/// Unix time. With a clock that stands before 1970 every token that ends has ended.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |t| t.as_secs())
}

/// Standard base64, as the door uses it for payloads.
#[must_use]
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// A file of any bytes.
fn read_bytes(what: &str, path: &str) -> Result<Vec<u8>, AccessError> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|f| f.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Ok(n) if n as u64 <= FILE_BYTES_MAX => Ok(bytes),
        Ok(_) => Err(AccessError(format!("{what} {path}: larger than {FILE_BYTES_MAX} bytes; is it the right file?"))),
        Err(e) => Err(AccessError(format!("{what} {path}: {e}; is the path right and readable?"))),
    }
}

/// A file of UTF-8 text, without the mark that some editors put at its beginning.
fn read_text(what: &str, path: &str) -> Result<String, AccessError> {
    let text = String::from_utf8(read_bytes(what, path)?).map_err(|e| {
        let good = e.as_bytes().get(..e.utf8_error().valid_up_to()).unwrap_or_default();
        let line = good.iter().filter(|b| **b == b'\n').count() + 1;
        AccessError(format!("{what} {path}, line {line}: not UTF-8; save it in that encoding"))
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests;
