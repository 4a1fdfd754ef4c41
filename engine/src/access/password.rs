//! Password files: `user:hash` with argon2id, and mosquitto's `$6$` (salted SHA-512) and `$7$` (PBKDF2-HMAC-SHA512).

use std::collections::HashMap;

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha512};
use subtle::ConstantTimeEq;

use super::{AccessError, read_file};

/// Memory of our own hashes, KiB (as mosquitto 2.1).
const MEMORY_KIB: u32 = 47_104;
/// A file may not ask for more than this.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const ROUNDS_MAX: u32 = 10_000_000;

#[derive(Debug)]
enum Hash {
    Argon2(String),
    Sha512 { salt: Vec<u8>, hash: Vec<u8> },
    Pbkdf2 { rounds: u32, salt: Vec<u8>, hash: Vec<u8> },
}

impl Hash {
    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("$argon2") {
            let parsed = PasswordHash::new(text).map_err(|e| format!("broken argon2 hash: {e}"))?;
            let memory = parsed.params.get_decimal("m").unwrap_or(0);
            if memory > MEMORY_KIB_MAX {
                return Err(format!("argon2 hash asks for {memory} KiB, at most {MEMORY_KIB_MAX} are allowed"));
            }
            return Ok(Self::Argon2(text.to_owned()));
        }
        let parts: Vec<&str> = text.split('$').collect();
        let decode = |t: &str| STANDARD.decode(t).map_err(|_| "salt or hash is not base64".to_owned());
        match parts.as_slice() {
            ["", "6", salt, hash] => Ok(Self::Sha512 { salt: decode(salt)?, hash: decode(hash)? }),
            ["", "7", rounds, salt, hash] => {
                let rounds = rounds.parse().ok().filter(|r| (1..=ROUNDS_MAX).contains(r));
                let rounds = rounds.ok_or("the number of iterations is wrong")?;
                Ok(Self::Pbkdf2 { rounds, salt: decode(salt)?, hash: decode(hash)? })
            }
            _ => Err("not a known hash; write it with `roost passwd`".to_owned()),
        }
    }

    fn check(&self, password: &[u8]) -> bool {
        match self {
            Self::Argon2(text) => {
                PasswordHash::new(text).is_ok_and(|h| Argon2::default().verify_password(password, &h).is_ok())
            }
            Self::Sha512 { salt, hash } => {
                let got = Sha512::new().chain_update(password).chain_update(salt).finalize();
                got.as_slice().ct_eq(hash).into()
            }
            Self::Pbkdf2 { rounds, salt, hash } => {
                let mut got = vec![0; hash.len()];
                pbkdf2::pbkdf2_hmac::<Sha512>(password, salt, *rounds, &mut got);
                got.ct_eq(hash).into()
            }
        }
    }
}

/// A password file.
#[derive(Debug)]
pub(super) struct Passwords {
    users: HashMap<String, Hash>,
    /// Checked for unknown users, so that they cost as much as known ones.
    nobody: Hash,
}

impl Passwords {
    pub(super) fn load(path: &str) -> Result<Self, AccessError> {
        let mut users = HashMap::new();
        for (i, line) in read_file("password file", path)?.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |text: &str| AccessError(format!("password file {path}, line {}: {text}", i + 1));
            let (user, hash) = line.split_once(':').ok_or_else(|| wrong("`user:hash` is needed"))?;
            users.insert(user.to_owned(), Hash::parse(hash).map_err(|e| wrong(&e))?);
        }
        let nobody = match users.values().next() {
            Some(Hash::Sha512 { .. }) => Hash::Sha512 { salt: vec![0; 12], hash: vec![0; 64] },
            Some(Hash::Pbkdf2 { rounds, .. }) => Hash::Pbkdf2 { rounds: *rounds, salt: vec![0; 12], hash: vec![0; 64] },
            _ => Hash::Argon2(hash_password("nobody")?),
        };
        Ok(Self { users, nobody })
    }

    pub(super) fn check(&self, user: &str, password: &[u8]) -> bool {
        match self.users.get(user) {
            Some(hash) => hash.check(password),
            None => {
                self.nobody.check(password);
                false
            }
        }
    }
}

/// `$argon2id$...` of a password, with a new salt.
///
/// # Errors
/// No randomness is to be had.
pub fn hash_password(password: &str) -> Result<String, AccessError> {
    let wrong = |e: &dyn std::fmt::Display| AccessError(format!("hashing failed: {e}"));
    let mut salt = [0u8; 16];
    getrandom::fill(&mut salt).map_err(|e| wrong(&e))?;
    let salt = SaltString::encode_b64(&salt).map_err(|e| wrong(&e))?;
    let params = Params::new(MEMORY_KIB, 1, 1, Some(32)).map_err(|e| wrong(&e))?;
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon.hash_password(password.as_bytes(), &salt).map_err(|e| wrong(&e))?;
    Ok(hash.to_string())
}

/// Does the password belong to the hash?
///
/// # Errors
/// The hash has an unknown form.
pub fn check_password(password: &[u8], hash: &str) -> Result<bool, AccessError> {
    Hash::parse(hash).map(|h| h.check(password)).map_err(AccessError)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Our own hashes and those that mosquitto_passwd wrote for "secret".
    #[test]
    fn known_hashes() {
        let mut hashes = vec![hash_password("secret").unwrap()];
        let salt = STANDARD.encode(b"0123456789ab");
        let sha = Sha512::new().chain_update(b"secret").chain_update(b"0123456789ab").finalize();
        hashes.push(format!("$6${salt}${}", STANDARD.encode(sha)));
        let mut key = [0; 64];
        pbkdf2::pbkdf2_hmac::<Sha512>(b"secret", b"0123456789ab", 101, &mut key);
        hashes.push(format!("$7$101${salt}${}", STANDARD.encode(key)));
        for hash in hashes {
            assert!(check_password(b"secret", &hash).unwrap(), "{hash}");
            assert!(!check_password(b"Secret", &hash).unwrap(), "{hash}");
        }
    }

    /// What is not a hash is refused where it stands, with what to do.
    #[test]
    fn broken_hashes() {
        for bad in ["secret", "$7$0$AAAA$AAAA", "$6$?$AAAA", "$argon2id$x", "$9$a$b", "", "$7$99999999999$AA==$AA=="] {
            assert!(check_password(b"x", bad).is_err(), "{bad}");
        }
    }
}
