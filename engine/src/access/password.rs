//! Password files: `user:hash` with argon2id, and mosquitto's `$6$` (salted SHA-512) and `$7$` (PBKDF2-HMAC-SHA512).
//!
//! Plain passwords are refused when the file is read, hashes that ask for too much memory or time too, and those too
//! short to prove anything. Errors never repeat what stands in the place of a hash.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;

use argon2::password_hash::{PasswordHash, PasswordHasher, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha512};
use subtle::ConstantTimeEq;

use super::{AccessError, read_text};

/// Memory of our own hashes, KiB (as mosquitto 2.1), in one pass on one lane.
const MEMORY_KIB: u32 = 47_104;
/// A file may not ask for more memory than this.
const MEMORY_KIB_MAX: u32 = 512 * 1024;
/// Nor for more work: memory times passes.
const WORK_KIB_MAX: u64 = 4 * 1024 * 1024;
/// Nor for more of these.
const LANES_MAX: u32 = 64;
/// PBKDF2 iterations.
const ROUNDS_MAX: u32 = 10_000_000;
const SHA512_BYTES: usize = 64;

enum Hash {
    Argon2 { argon: Argon2<'static>, salt: Vec<u8>, hash: Vec<u8> },
    Sha512 { salt: Vec<u8>, hash: Vec<u8> },
    Pbkdf2 { rounds: u32, salt: Vec<u8>, hash: Vec<u8> },
}

impl Hash {
    fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('$').collect();
        match parts.as_slice() {
            ["", kind, ..] if kind.starts_with("argon2") => Self::parse_argon2(text),
            ["", "6", salt, hash] => Ok(Self::Sha512 { salt: bytes(salt)?, hash: digest(hash)? }),
            ["", "7", rounds, salt, hash] => {
                let rounds = rounds.parse().ok().filter(|r| (1..=ROUNDS_MAX).contains(r));
                let rounds = rounds.ok_or_else(|| format!("iterations must be a number from 1 to {ROUNDS_MAX}"))?;
                Ok(Self::Pbkdf2 { rounds, salt: bytes(salt)?, hash: digest(hash)? })
            }
            ["", "6" | "7", ..] => Err("incomplete hash; write it anew with `roost passwd`".to_owned()),
            _ => Err("this is no hash that is known (passwords must not stand here); write it with `roost passwd`"
                .to_owned()),
        }
    }

    fn parse_argon2(text: &str) -> Result<Self, String> {
        let broken = |e: &dyn std::fmt::Display| format!("broken argon2 hash: {e}; write it anew with `roost passwd`");
        let parsed = PasswordHash::new(text).map_err(|e| broken(&e))?;
        if Algorithm::try_from(parsed.algorithm).ok() != Some(Algorithm::Argon2id) {
            return Err("of the argon2 family only argon2id is taken; write it anew with `roost passwd`".to_owned());
        }
        let params = Params::try_from(&parsed).map_err(|e| broken(&e))?;
        let work_kib = u64::from(params.m_cost()) * u64::from(params.t_cost());
        if params.m_cost() > MEMORY_KIB_MAX || work_kib > WORK_KIB_MAX || params.p_cost() > LANES_MAX {
            return Err(format!(
                "argon2 hash asks for m={},t={},p={}; at most m={MEMORY_KIB_MAX}, m*t={WORK_KIB_MAX}, p={LANES_MAX}",
                params.m_cost(),
                params.t_cost(),
                params.p_cost(),
            ));
        }
        let version = parsed.version.map_or(Ok(Version::V0x13), Version::try_from).map_err(|e| broken(&e))?;
        let (Some(salt), Some(hash)) = (parsed.salt, parsed.hash) else {
            return Err(broken(&"no salt or no hash in it"));
        };
        let mut room = [0; 64];
        let salt = salt.decode_b64(&mut room).map_err(|e| broken(&e))?.to_vec();
        if salt.len() < argon2::MIN_SALT_LEN {
            return Err(broken(&"the salt is shorter than 8 bytes"));
        }
        let argon = Argon2::new(Algorithm::Argon2id, version, params);
        Ok(Self::Argon2 { argon, salt, hash: hash.as_bytes().to_vec() })
    }

    /// Costs what the hash of one of our own passwords costs, and matches none.
    fn dummy() -> Self {
        Self::Argon2 {
            argon: Argon2::new(Algorithm::Argon2id, Version::V0x13, own_params()),
            salt: vec![0; 16],
            hash: vec![0; 32],
        }
    }

    fn check(&self, password: &[u8]) -> bool {
        match self {
            Self::Argon2 { argon, salt, hash } => {
                let mut got = vec![0; hash.len()];
                argon.hash_password_into(password, salt, &mut got).is_ok() && got.ct_eq(hash).into()
            }
            Self::Sha512 { salt, hash } => {
                let got = Sha512::new().chain_update(password).chain_update(salt).finalize();
                got.as_slice().ct_eq(hash).into()
            }
            Self::Pbkdf2 { rounds, salt, hash } => {
                let mut got = [0; SHA512_BYTES];
                pbkdf2::pbkdf2_hmac::<Sha512>(password, salt, *rounds, &mut got);
                got.ct_eq(hash).into()
            }
        }
    }
}

fn own_params() -> Params {
    Params::new(MEMORY_KIB, 1, 1, Some(32)).unwrap_or_default()
}

fn bytes(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text).map_err(|_| "salt or hash is not base64; write it anew with `roost passwd`".to_owned())
}

/// Nothing shorter: an empty hash would match every password.
fn digest(text: &str) -> Result<Vec<u8>, String> {
    let wrong =
        |n: usize| format!("the hash has {n} bytes, {SHA512_BYTES} are needed; write it anew with `roost passwd`");
    bytes(text).and_then(|b| if b.len() == SHA512_BYTES { Ok(b) } else { Err(wrong(b.len())) })
}

/// A password file.
pub(super) struct Passwords {
    /// Name to position in `hashes`.
    users: HashMap<String, usize>,
    /// Never empty.
    hashes: Vec<Hash>,
    /// Picks the hash that an unknown user is checked against.
    pick: RandomState,
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passwords").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

impl Passwords {
    pub(super) fn load(path: &str) -> Result<Self, AccessError> {
        Self::parse(&read_text("password file", path)?)
            .map_err(|(line, text)| AccessError(format!("password file {path}, line {line}: {text}")))
    }

    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let (mut users, mut hashes) = (HashMap::new(), Vec::new());
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |text: String| (i + 1, text);
            let (user, hash) = line.split_once(':').ok_or_else(|| wrong("`user:hash` is needed".to_owned()))?;
            let (user, hash) = (user.trim_end(), hash.trim_start());
            if user.is_empty() {
                return Err(wrong("the name before the colon is missing".to_owned()));
            }
            let hash = Hash::parse(hash).map_err(|e| wrong(format!("user `{user}`: {e}")))?;
            match users.entry(user.to_owned()) {
                Entry::Occupied(_) => {
                    return Err(wrong(format!("user `{user}` is there already; keep one of the lines")));
                }
                Entry::Vacant(free) => free.insert(hashes.len()),
            };
            hashes.push(hash);
        }
        if hashes.is_empty() {
            hashes.push(Hash::dummy());
        }
        Ok(Self { users, hashes, pick: RandomState::new() })
    }

    /// An unknown user costs what some known one costs, and always the same one: time does not tell who exists.
    pub(super) fn check(&self, user: &str, password: &[u8]) -> bool {
        let known = self.users.get(user).copied();
        let n = self.hashes.len().max(1) as u64;
        let at = known.unwrap_or_else(|| usize::try_from(self.pick.hash_one(user) % n).unwrap_or(0));
        let right = self.hashes.get(at).is_some_and(|h| h.check(password));
        right && known.is_some()
    }
}

/// `$argon2id$...` of a password, with a new salt.
///
/// # Errors
/// The password is empty, or no randomness is to be had.
pub fn hash_password(password: &str) -> Result<String, AccessError> {
    if password.is_empty() {
        return Err(AccessError("an empty password protects nothing; type one".to_owned()));
    }
    let wrong = |e: &dyn std::fmt::Display| AccessError(format!("hashing failed: {e}"));
    let mut salt = [0u8; 16];
    getrandom::fill(&mut salt).map_err(|e| wrong(&e))?;
    let salt = SaltString::encode_b64(&salt).map_err(|e| wrong(&e))?;
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, own_params());
    let hash = argon.hash_password(password.as_bytes(), &salt).map_err(|e| wrong(&e))?;
    Ok(hash.to_string())
}

/// Does the password belong to the hash?
///
/// # Errors
/// The hash has an unknown form, or asks for too much.
pub fn check_password(password: &[u8], hash: &str) -> Result<bool, AccessError> {
    Hash::parse(hash).map(|h| h.check(password)).map_err(AccessError)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Written by Debian's `mosquitto_passwd` for `secret`: the default and `-H sha512`.
    const SEVEN: &str = "$7$101$HUDdzg9icD07kW7T$4D3rl7ky72SE2Nk4BE0PYbtxF7wErQbL0Wi5P6XFqxVRevQP/J5G1lzfSqOGoQGvQVQpL/aFVnxN3dPDfHzdTg==";
    const SIX: &str =
        "$6$tbpv9XSfkhWUQdiz$jp63VHXm2PfboPgA3R0egQQWnZuT/ajflzNJiG+lDAbvDyObDakmbqi18nc+9Z5ESLt8PeQUVUt43dSPY+RS0g==";
    /// `-I 5000` and `pässword with : colon`.
    const SEVEN_LONG: &str = "$7$5000$IDaFHDr7ddS+6g4e$5G3+6v0Po10nSZO8cEgAdzQYDZsAw8dFQWhUOGnp6JLxXhi5XlYFKPy5Hpzutiauz2bVgftMxV7zIrFh/Ybkkg==";
    /// Made by the reference implementation (its Python binding) for `password` with the salt `somesalt`.
    const ARGON: &str = "$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$5cmjPIOJnS9cibudqE+DN3oCkFOfh2Mv";

    fn short_hash(kind: &str, bytes: usize) -> String {
        format!("{kind}AAAA${}", STANDARD.encode(vec![0; bytes]))
    }

    /// Hashes that other programs wrote, and our own.
    #[test]
    fn known_hashes() {
        let own = hash_password("secret").unwrap();
        assert!(own.starts_with("$argon2id$v=19$m=47104,t=1,p=1$"), "{own}");
        assert_ne!(own, hash_password("secret").unwrap(), "a salt of its own each time");
        let known = [
            (&*own, "secret"),
            (SEVEN, "secret"),
            (SIX, "secret"),
            (SEVEN_LONG, "pässword with : colon"),
            (ARGON, "password"),
        ];
        for (hash, password) in known {
            assert!(check_password(password.as_bytes(), hash).unwrap(), "{hash}");
            for wrong in ["", "Secret", "secre", "secret ", "\0secret", hash] {
                assert!(!check_password(wrong.as_bytes(), hash).unwrap(), "{wrong} {hash}");
            }
        }
    }

    /// Salts of any length, as other writers of `$6$` and `$7$` make them.
    #[test]
    fn salts_of_any_length() {
        for n in [0, 1, 11, 12, 16, 64, 300] {
            let salt = vec![7; n];
            let text = STANDARD.encode(&salt);
            let six = STANDARD.encode(Sha512::new().chain_update(b"pw").chain_update(&salt).finalize());
            let mut key = [0; 64];
            pbkdf2::pbkdf2_hmac::<Sha512>(b"pw", &salt, 3, &mut key);
            for hash in [format!("$6${text}${six}"), format!("$7$3${text}${}", STANDARD.encode(key))] {
                assert!(check_password(b"pw", &hash).unwrap() && !check_password(b"p", &hash).unwrap(), "{hash}");
            }
        }
    }

    /// What is not a hash is refused, and so is one that proves nothing or costs too much.
    #[test]
    fn broken_hashes() {
        for bad in [
            "secret",
            "$7$0$AAAA$AAAA",
            "$6$?$AAAA",
            "$argon2id$x",
            "$9$a$b",
            "",
            "$",
            "$6",
            "$6$",
            "$7$1$AAAA$",
            "$6$AAAA$",
        ] {
            assert!(check_password(b"x", bad).is_err(), "{bad}");
        }
        for n in [0, 1, 63, 65] {
            for kind in ["$6$", "$7$1$"] {
                let bad = short_hash(kind, n);
                assert!(check_password(b"x", &bad).is_err(), "{bad}");
            }
        }
        let argon = |params: &str| format!("$argon2id$v=19${params}$c29tZXNhbHQ$RdescudvJCsgt3ub+b7dWRWJTmaaJObG");
        assert_eq!(check_password(b"x", &argon("m=64,t=1,p=1")), Ok(false));
        for greedy in
            ["m=4194304,t=1,p=1", "m=524289,t=1,p=1", "m=65536,t=100,p=1", "m=8,t=4294967295,p=1", "m=1024,t=1,p=65"]
        {
            let error = check_password(b"x", &argon(greedy)).unwrap_err();
            assert!(error.0.contains("at most"), "{greedy}: {error}");
        }
        for bad in [
            "$argon2i$v=19$m=64,t=1,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b7dWRWJTmaaJObG",
            "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ",
            "$argon2id$v=19$m=64,t=1,p=1$c2FsdA$RdescudvJCsgt3ub+b7dWRWJTmaaJObG",
            "$argon2id$v=18$m=64,t=1,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b7dWRWJTmaaJObG",
            "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$AA",
        ] {
            assert!(check_password(b"x", bad).is_err(), "{bad}");
        }
        assert!(hash_password("").is_err());
    }

    /// Users of one file, of several kinds; who is not in it, or is in it twice.
    #[test]
    fn files() {
        let text = format!("\r\n# users\r\nann:{SEVEN}\r\n bob :{SIX} \r\n\r\nvår:{SEVEN_LONG}");
        let file = Passwords::parse(&text).unwrap();
        assert!(file.check("ann", b"secret") && file.check("bob", b"secret"));
        assert!(file.check("vår", "pässword with : colon".as_bytes()));
        for (user, password) in
            [("ann", "x"), ("ann", ""), ("", ""), ("", "secret"), ("eve", "secret"), ("ANN", "secret")]
        {
            assert!(!file.check(user, password.as_bytes()), "{user} {password}");
        }
        for (text, line, hint) in [
            ("# x\n\nann:secret", 3, "`roost passwd`"),
            ("ann:", 1, "`roost passwd`"),
            ("ann", 1, "user:hash"),
            (&format!(":{SIX}"), 1, "name"),
            (&format!("ann:{SIX}\nann:{SEVEN}"), 2, "already"),
            (&format!("ann:{SIX}:x"), 1, "base64"),
            ("ann:$7$1$AAAA$", 1, "64"),
        ] {
            let (at, what) = Passwords::parse(text).err().unwrap();
            assert!(at == line && what.contains(hint) && !what.contains("secret"), "{text}: {at} {what}");
        }
    }

    /// Unknown users are checked against the hash of a known one, always the same, so that cost does not tell.
    #[test]
    fn unknown_users_cost_as_much() {
        let file = Passwords::parse(&format!("ann:{SEVEN}\nbob:{SIX}")).unwrap();
        assert!((0..50).all(|i| !file.check(&format!("user{i}"), b"secret")), "although the password is a known one");
        let nobody = Passwords::parse("").unwrap();
        assert_eq!(nobody.hashes.len(), 1);
        let Some(Hash::Argon2 { argon, .. }) = nobody.hashes.first() else { panic!("a cheap dummy") };
        assert_eq!(argon.params().m_cost(), MEMORY_KIB);
    }

    proptest! {
        /// No text is taken for a hash that makes the check panic; no line for a file that does.
        #[test]
        fn hostile_texts(text in "[$]?(6|7|argon2id|[$a-z0-9=,+/:#\\PC]){0,30}") {
            let _ = check_password(b"x", &text);
            let _ = Passwords::parse(&format!("a:{text}"));
            let _ = Passwords::parse(&text);
        }
    }
}
