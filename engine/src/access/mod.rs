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
use std::sync::Arc;

pub use acl::{Action, Rules};
pub use password::{check_password, hash_password};
pub use throttle::Throttle;
pub use worker::{Busy, Job, Workers};

use acl::AclFile;
use base64::Engine as _;
use password::Passwords;
use token::Tokens;

use crate::settings::AccessSettings;

/// A file that cannot be used: which, where in it, what is wrong, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessError(pub String);

impl fmt::Display for AccessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

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

    /// Decides what can be decided at once.
    #[must_use]
    pub fn begin(&self, login: &Login<'_>) -> Verdict {
        if !self.prefixes.is_empty() && !self.prefixes.iter().any(|p| login.client_id.starts_with(p.as_str())) {
            return Verdict::Refuse(Refusal::NotAuthorized);
        }
        if let Some(identity) = login.certificate_identity {
            return Verdict::Grant(self.grant(login.client_id, Some(identity)));
        }
        let checked = self.passwords.is_some() || self.tokens.is_some();
        if !checked {
            return if self.allow_anonymous {
                Verdict::Grant(self.grant(login.client_id, login.username))
            } else {
                Verdict::Refuse(Refusal::NotAuthorized)
            };
        }
        if login.username.is_none() && login.password.is_none() {
            return if self.allow_anonymous {
                Verdict::Grant(self.grant(login.client_id, None))
            } else {
                Verdict::Refuse(Refusal::NotAuthorized)
            };
        }
        self.work(login)
    }

    fn work(&self, login: &Login<'_>) -> Verdict {
        let secret = login.password.unwrap_or(&[]).to_vec();
        let username: Option<Arc<str>> = login.username.map(Arc::from);
        let client_id: Arc<str> = login.client_id.into();
        let acl = self.acl.clone();
        let token = secret.iter().filter(|b| **b == b'.').count() == 2;
        if let Some(tokens) = self.tokens.clone().filter(|_| token || self.passwords.is_none()) {
            return Verdict::Work(Job::new(move || tokens.check(&secret, username, &client_id, acl.as_deref())));
        }
        let (Some(passwords), Some(username)) = (self.passwords.clone(), username) else {
            return Verdict::Refuse(Refusal::BadCredentials);
        };
        Verdict::Work(Job::new(move || {
            if passwords.check(&username, &secret) {
                let rules = Rules::of(acl.as_deref(), Some(&username), &client_id);
                Ok(Grant { username: Some(username), rules, expires_at_s: None })
            } else {
                Err(Refusal::BadCredentials)
            }
        }))
    }

    fn grant(&self, client_id: &str, username: Option<&str>) -> Grant {
        let rules = Rules::of(self.acl.as_deref(), username, client_id);
        Grant { username: username.map(Arc::from), rules, expires_at_s: None }
    }
}

/// Standard base64, as the door uses it for payloads.
#[must_use]
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

fn read_file(what: &str, path: &str) -> Result<String, AccessError> {
    std::fs::read_to_string(path).map_err(|e| AccessError(format!("{what} {path}: {e}; is the path right and readable?")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> String {
        let path = std::env::temp_dir().join(format!("roost-access-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn login<'a>(user: Option<&'a str>, password: Option<&'a [u8]>) -> Login<'a> {
        Login { client_id: "c1", username: user, password, certificate_identity: None }
    }

    /// With a password file only who knows a password comes in, unless anonymous clients are allowed too; wrong
    /// credentials never pass as anonymous.
    #[test]
    fn passwords_and_anonymous() {
        let hash = hash_password("secret").unwrap();
        let path = file("pw", &format!("# users\nann:{hash}\n"));
        for allow_anonymous in [false, true] {
            let settings = AccessSettings { allow_anonymous, password_file: Some(path.clone()), ..Default::default() };
            let access = Access::load(&settings).unwrap();
            let Verdict::Work(job) = access.begin(&login(Some("ann"), Some(b"secret"))) else { panic!("no work") };
            assert_eq!(job.run().unwrap().username.as_deref(), Some("ann"));
            for bad in [login(Some("ann"), Some(b"wrong")), login(Some("bob"), Some(b"secret"))] {
                let Verdict::Work(job) = access.begin(&bad) else { panic!("no work") };
                assert_eq!(job.run().unwrap_err(), Refusal::BadCredentials);
            }
            let anonymous = matches!(access.begin(&login(None, None)), Verdict::Grant(_));
            assert_eq!(anonymous, allow_anonymous);
        }
        std::fs::remove_file(path).unwrap();
    }

    /// Nothing configured and nothing allowed: nobody comes in. Prefixes bind everybody.
    #[test]
    fn closed_by_default() {
        let access = Access::default();
        assert!(matches!(access.begin(&login(Some("x"), None)), Verdict::Refuse(Refusal::NotAuthorized)));
        let settings =
            AccessSettings { allow_anonymous: true, client_id_prefixes: vec!["dev-".into()], ..Default::default() };
        let access = Access::load(&settings).unwrap();
        assert!(matches!(access.begin(&login(None, None)), Verdict::Refuse(Refusal::NotAuthorized)));
    }
}
