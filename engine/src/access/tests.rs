//! The doors together: anonymous clients, passwords, tokens, certificates, prefixes, files that cannot be used.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::settings::JwtSettings;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
/// Written by Debian's `mosquitto_passwd` for `secret`.
const ANN: &str = "ann:$7$101$HUDdzg9icD07kW7T$4D3rl7ky72SE2Nk4BE0PYbtxF7wErQbL0Wi5P6XFqxVRevQP/J5G1lzfSqOGoQGvQVQpL/aFVnxN3dPDfHzdTg==\n";

/// A file of its own for each test; the test removes it.
pub(super) fn file(name: &str, bytes: &[u8]) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("roost-access-{}-{n}-{name}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Access with these files; they are gone afterwards, as nothing reads them again.
fn access(passwords: Option<&str>, acl: Option<&str>, jwt: bool, allow_anonymous: bool) -> Access {
    let write = |name: &str, text: Option<&str>| text.map(|t| file(name, t.as_bytes()));
    let key_file = jwt.then(|| file("key", SECRET.as_bytes()));
    let settings = AccessSettings {
        allow_anonymous,
        password_file: write("pw", passwords),
        acl_file: write("acl", acl),
        jwt: key_file.clone().map(|key_file| JwtSettings { algorithm: "HS256".into(), key_file, ..Default::default() }),
        ..Default::default()
    };
    let access = Access::load(&settings).unwrap();
    for path in [settings.password_file, settings.acl_file, key_file].into_iter().flatten() {
        std::fs::remove_file(path).unwrap();
    }
    access
}

fn login<'a>(username: Option<&'a str>, password: Option<&'a str>) -> Login<'a> {
    Login { client_id: "c1", username, password: password.map(str::as_bytes), certificate_identity: None }
}

/// The answer after all work is done.
fn answer(access: &Access, login: &Login<'_>) -> Result<Grant, Refusal> {
    match access.begin(login) {
        Verdict::Grant(grant) => Ok(grant),
        Verdict::Refuse(refusal) => Err(refusal),
        Verdict::Work(job) => job.run(),
    }
}

fn token(claims: &serde_json::Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}

/// With a password file only who knows a password comes in, unless anonymous clients are allowed too; wrong
/// credentials never pass as anonymous. Hashing is never done at once.
#[test]
fn passwords_and_anonymous() {
    for allow_anonymous in [false, true] {
        let access = access(Some(ANN), None, false, allow_anonymous);
        assert!(matches!(access.begin(&login(Some("ann"), Some("secret"))), Verdict::Work(_)));
        assert!(matches!(access.begin(&login(Some("bob"), Some("secret"))), Verdict::Work(_)), "as for known users");
        let grant = answer(&access, &login(Some("ann"), Some("secret"))).unwrap();
        assert_eq!((grant.username.as_deref(), grant.expires_at_s), (Some("ann"), None));
        for (user, password) in [
            (Some("ann"), Some("wrong")),
            (Some("ann"), Some("")),
            (Some("ann"), None),
            (Some("bob"), Some("secret")),
            (Some(""), Some("secret")),
            (Some(""), None),
            (None, Some("secret")),
        ] {
            let refusal = answer(&access, &login(user, password)).unwrap_err();
            assert_eq!((refusal, refusal.reason_code()), (Refusal::BadCredentials, 0x87), "{user:?} {password:?}");
        }
        let anonymous = answer(&access, &login(None, None));
        assert_eq!(anonymous.map(|g| g.username).ok(), allow_anonymous.then_some(None));
    }
}

/// An empty password opens nothing, not even where somebody hashed one (as mosquitto has it).
#[test]
fn empty_passwords() {
    let hash =
        "$6$MDEyMzQ1Njc4OWFi$D1Wmwbo//Ju+TOxH6D+S+wXsEYYnYfPIcZXq2z8FSWAnek/S+F/spLYb2grR5FPUl7wZyHna669O5GZ4DjHmyw==";
    assert_eq!(check_password(b"", hash), Ok(true));
    let access = access(Some(&format!("empty:{hash}")), None, false, true);
    for password in [None, Some("")] {
        assert_eq!(answer(&access, &login(Some("empty"), password)).unwrap_err(), Refusal::BadCredentials);
    }
}

/// A file without end is not read to its end.
#[cfg(unix)]
#[test]
fn endless_files() {
    let settings = AccessSettings { password_file: Some("/dev/zero".to_owned()), ..Default::default() };
    assert!(Access::load(&settings).unwrap_err().0.contains("larger than"));
}

/// Without password file and tokens, `allow_anonymous` lets in any name, and its absence nobody.
#[test]
fn nothing_configured() {
    for (user, password) in [(None, None), (Some("x"), None), (Some("x"), Some("y"))] {
        let open = answer(&access(None, None, false, true), &login(user, password)).unwrap();
        assert_eq!(open.username.as_deref(), user);
        assert!(open.rules.allow_all());
        let closed = answer(&Access::default(), &login(user, password));
        assert_eq!(closed.unwrap_err(), Refusal::NotAuthorized);
    }
}

/// Prefixes bind everybody, certificates too.
#[test]
fn prefixes() {
    let client_id_prefixes = vec!["dev-".to_owned(), "x".to_owned()];
    let settings = AccessSettings { allow_anonymous: true, client_id_prefixes, ..Default::default() };
    let access = Access::load(&settings).unwrap();
    for (client_id, good) in [("dev-1", true), ("x", true), ("dev", false), ("", false), ("Dev-1", false)] {
        for certificate_identity in [None, Some("ann")] {
            let login = Login { client_id, certificate_identity, ..login(None, None) };
            assert_eq!(answer(&access, &login).is_ok(), good, "{client_id}");
        }
    }
}

/// A certificate that names a user is enough, and its name counts, not the one in CONNECT.
#[test]
fn certificates() {
    let access = access(Some(ANN), Some("user cn\ntopic a"), false, false);
    let login = Login { certificate_identity: Some("cn"), ..login(Some("ann"), Some("wrong")) };
    let Verdict::Grant(grant) = access.begin(&login) else { panic!("no grant at once") };
    assert_eq!(grant.username.as_deref(), Some("cn"));
    assert!(grant.rules.may(Action::Publish, "a") && !grant.rules.may(Action::Publish, "b"));
}

/// Tokens beside passwords: what has the form of a token is one, any other text is a password.
#[test]
fn tokens_beside_passwords() {
    let dots = hash_password("pass.with.dots").unwrap();
    let both = access(Some(&format!("{ANN}dot:{dots}\n")), Some("user car7\ntopic car/#"), true, false);
    let good = token(&serde_json::json!({"sub": "car7", "exp": 4_000_000_000_u64}));
    let grant = answer(&both, &login(Some("ann"), Some(&good))).unwrap();
    assert_eq!((grant.username.as_deref(), grant.expires_at_s), (Some("car7"), Some(4_000_000_000)));
    assert!(grant.rules.may(Action::Publish, "car/1") && !grant.rules.may(Action::Publish, "x"));
    assert!(answer(&both, &login(None, Some(&good))).is_ok(), "MQTT 5 sends a password without a name");
    assert!(answer(&both, &login(Some("ann"), Some("secret"))).is_ok());
    assert!(answer(&both, &login(Some("dot"), Some("pass.with.dots"))).is_ok());
    let old = token(&serde_json::json!({"sub": "car7", "exp": 1}));
    let only = access(None, None, true, true);
    for access in [&both, &only] {
        for bad in [&*old, "a.b.c", "secret2", &good[1..]] {
            assert_eq!(answer(access, &login(Some("ann"), Some(bad))).unwrap_err(), Refusal::BadCredentials, "{bad}");
        }
    }
    assert!(answer(&only, &login(Some("ann"), None)).is_err() && answer(&only, &login(None, None)).is_ok());
}

/// After a reload a client goes by the new file, and by what its token said.
#[test]
fn renewal() {
    let before = access(None, Some("topic a"), false, true);
    let rules = answer(&before, &login(None, None)).unwrap().rules;
    assert!(rules.may(Action::Publish, "a"));
    let renewed = access(None, Some("topic b"), false, true).renew(&rules, None, "c1");
    assert!(!renewed.may(Action::Publish, "a") && renewed.may(Action::Publish, "b"));
    assert!(access(None, None, false, true).renew(&rules, None, "c1").allow_all());
}

/// Files that cannot be used: which, where, what to do.
#[test]
fn files_that_cannot_be_used() {
    let error = |s: AccessSettings| Access::load(&s).unwrap_err().to_string();
    let missing = Some("/nonexistent/file".to_owned());
    for text in [
        error(AccessSettings { password_file: missing.clone(), ..Default::default() }),
        error(AccessSettings { acl_file: missing, ..Default::default() }),
        error(AccessSettings { jwt: Some(JwtSettings::default()), ..Default::default() }),
    ] {
        assert!(text.contains("is the path right"), "{text}");
    }
    let path = file("broken", b"# one\n\xff\n");
    let text = error(AccessSettings { password_file: Some(path.clone()), ..Default::default() });
    assert!(text.contains(&format!("{path}, line 2")) && text.contains("UTF-8"), "{text}");
    std::fs::write(&path, format!("\u{feff}{ANN}")).unwrap();
    assert!(Access::load(&AccessSettings { password_file: Some(path.clone()), ..Default::default() }).is_ok());
    std::fs::write(&path, "user a\ntopic a/#/b").unwrap();
    let text = error(AccessSettings { acl_file: Some(path.clone()), ..Default::default() });
    assert!(text.contains(&format!("{path}, line 2")), "{text}");
    std::fs::write(&path, "ann:plain").unwrap();
    let text = error(AccessSettings { password_file: Some(path.clone()), ..Default::default() });
    assert!(text.contains("line 1") && text.contains("roost passwd") && !text.contains("plain"), "{text}");
    std::fs::remove_file(path).unwrap();
}
