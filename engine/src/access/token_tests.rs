//! Tokens: the example of RFC 7515, tokens that openssl signed, claims, keys of the wrong kind, hostile texts.

use jsonwebtoken::{EncodingKey, Header};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::access::Action;

/// RFC 7515, A.1: key and token of `joe`, which ends at 1300819380.
const RFC_KEY: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
const RFC_TOKEN: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0\
dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

/// Made with openssl; the tokens say iss `fleet`, sub `car7`, aud `[roost, x]`, exp 1800000000.
const RSA_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEApdERRE2BJkcSIOo8vUsC
PysodfrCxV72Ot0rVq1Im5ZsC38aZvmLd9LDkmPSXbUo2S7Pt912SZgQcuuPfZo1
HRcVKyN6YKhD8Hz0gnX/sqwOOpa2K1N6lTB1AehvVHk8BAwwZU6aMSSCYzfWKQVj
R2m/o6WKga/D4LghUqjf/YQ4fK07WDhPKIkSDs1Fjq2R5tGA+0aGyMC8BnpbdHaL
+ptessz9zba3IhO9UZHgLm31W5Bp4lQs78OMW0Uehi61Oe9iJRze01ruqhsyWLE0
ohcPu4DT8REPuHpGDwFSx+KC4iH95H/zFNeNBlVtIL/Yj9kF2f3r16FSApyFfpGe
tQIDAQAB
-----END PUBLIC KEY-----
";
const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJmbGVldCIsInN1YiI6ImNhcjciLCJhdWQiOlsicm9vc3QiLCJ\
4Il0sImV4cCI6MTgwMDAwMDAwMH0.oH8P3UBVYxaMYihw6StFhRYsCYe90iWQBtMeslD2qXaWAx7nxUZc4OIVB5ZtkUkKyql\
CI6mx7n4ocxSbVr_5EJ3Mprc-Bg3xKHYbVqlzbFK_nA-5ctBmYUe_kE-5DFCfbKLTfrQ8jSScQWajZeElmIYuTtNRe92Qj6-\
LgWtnj0g3_5Mpim0SNhdEuOFPp0VQL7Woz8CMCLK2chg3X42I1h9QE9LdMJzIvhAUNGYAq9zWsWNOyqVA64-xlmrfHUczWho\
6O3Tp0aa-u66rsU0Mo6mFUYEuo89don5Ac7GSK55tptBpgH8izkwqVlU9dDkTTus-JboaXxolrgWBKdajyg";
const EC_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAElAzYjxMtbw3eIagFn5cm5zJGddU/
Vo+UTOpGkjtTFyiJ0VeyAMlm937itfwjQJCLBCMHQcKjK/xhC578XcCGaA==
-----END PUBLIC KEY-----
";
const EC_TOKEN: &str = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJmbGVldCIsInN1YiI6ImNhcjciLCJhdWQiOlsicm9vc3QiLCJ\
4Il0sImV4cCI6MTgwMDAwMDAwMH0.ryel4oZ-DW_8F2TwWBJJ5eFXbb3S8TRntKjyYFwo-wIc-7T5a2wixVw2uRgZ9xx-jrc\
uciKaEzrffLpzxGDIYg";
const SIGNED_EXP_S: u64 = 1_800_000_000;

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW_S: u64 = 1_700_000_000;

fn settings() -> JwtSettings {
    JwtSettings { algorithm: "HS256".into(), leeway_s: 5, ..Default::default() }
}

fn tokens_with(key_bytes: &[u8], s: &JwtSettings) -> Result<Tokens, AccessError> {
    let path = crate::access::tests::file("jwt", key_bytes);
    let tokens = Tokens::load(&JwtSettings { key_file: path.clone(), ..s.clone() });
    std::fs::remove_file(path).unwrap();
    tokens
}

fn tokens(s: &JwtSettings) -> Tokens {
    tokens_with(SECRET.as_bytes(), s).unwrap()
}

fn sign(claims: &Value) -> String {
    jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

fn check(tokens: &Tokens, token: &str, username: Option<&str>) -> Result<Grant, Refusal> {
    tokens.check(token.as_bytes(), username.map(Arc::from), "id7", None, NOW_S)
}

fn granted(s: &JwtSettings, claims: &Value, username: Option<&str>) -> Option<Grant> {
    check(&tokens(s), &sign(claims), username).ok()
}

/// The example of the standard.
#[test]
fn example_of_rfc_7515() {
    let key = URL_SAFE_NO_PAD.decode(RFC_KEY).unwrap();
    let s = JwtSettings { issuer: Some("joe".into()), ..settings() };
    let tokens = tokens_with(&key, &s).unwrap();
    let at = |now_s| tokens.check(RFC_TOKEN.as_bytes(), None, "c", None, now_s);
    assert_eq!(at(1_300_819_379).unwrap().expires_at_s, Some(1_300_819_385));
    assert_eq!(at(1_300_819_385).unwrap_err(), Refusal::BadCredentials);
}

/// RS256 and ES256 with keys and signatures of openssl; the algorithm is ours to choose, not the token's.
#[test]
fn public_keys() {
    for (algorithm, key, token, other) in
        [("RS256", RSA_PUBLIC, RSA_TOKEN, EC_TOKEN), ("ES256", EC_PUBLIC, EC_TOKEN, RSA_TOKEN)]
    {
        let (issuer, audience) = (Some("fleet".into()), Some("roost".into()));
        let s = JwtSettings { algorithm: algorithm.into(), issuer, audience, ..settings() };
        let tokens = tokens_with(key.as_bytes(), &s).unwrap();
        let grant = check(&tokens, token, None).unwrap();
        assert_eq!((grant.username.as_deref(), grant.expires_at_s), (Some("car7"), Some(SIGNED_EXP_S + 5)));
        assert!(grant.rules.allow_all());
        let late = tokens.check(token.as_bytes(), None, "id7", None, SIGNED_EXP_S + 5);
        assert_eq!(late.unwrap_err(), Refusal::BadCredentials);
        let (body, signature) = token.rsplit_once('.').unwrap();
        let mut parts = token.split('.');
        let (head, claims) = (parts.next().unwrap(), parts.next().unwrap());
        let changed = URL_SAFE_NO_PAD.encode(r#"{"sub":"boss"}"#);
        // signed with the public key as if it were a shared secret
        let confused = EncodingKey::from_secret(key.as_bytes());
        let confused =
            jsonwebtoken::encode(&Header::default(), &json!({"iss": "fleet", "aud": "roost"}), &confused).unwrap();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for bad in [
            other.to_owned(),
            confused,
            format!("{head}.{changed}.{signature}"),
            format!("{body}."),
            format!("{body}.{}", &signature[1..]),
            format!("{none}.{claims}."),
            format!("{none}.{claims}.{signature}"),
            format!("{token}.{signature}"),
            format!("{token}="),
            format!(" {token}"),
            String::new(),
        ] {
            assert_eq!(check(&tokens, &bad, None).unwrap_err(), Refusal::BadCredentials, "{algorithm} {bad}");
        }
    }
}

/// A good token names user, rights and end.
#[test]
fn grants() {
    let s = JwtSettings { acl_claim: "acl".into(), issuer: Some("fleet".into()), ..settings() };
    let acl = json!({"publish": ["car/%c/#"], "subscribe": "to/%u"});
    let claims = json!({"iss": "fleet", "sub": "car7", "exp": NOW_S + 60, "acl": acl});
    let grant = granted(&s, &claims, Some("somebody")).unwrap();
    assert_eq!((grant.username.as_deref(), grant.expires_at_s), (Some("car7"), Some(NOW_S + 65)));
    let rules = grant.rules;
    assert!(rules.may(Action::Publish, "car/id7/x") && !rules.may(Action::Publish, "car/id8/x"));
    assert!(rules.may(Action::Deliver, "to/car7") && !rules.may(Action::Deliver, "car/id7/x"));
    assert!(rules.may_subscribe("to/+") && !rules.may_subscribe("car/#"));
    let signed = sign(&claims);
    let wrong_key = tokens_with(b"another-key-another-key-another-", &s).unwrap();
    assert_eq!(check(&wrong_key, &signed, None).unwrap_err(), Refusal::BadCredentials);
}

/// `exp` and `nbf` with leeway; as broken numbers; of the wrong type they refuse rather than count as absent.
#[test]
fn times() {
    let ok = |claims: Value| granted(&settings(), &claims, None).is_some();
    assert!(ok(json!({})) && ok(json!({"exp": NOW_S - 4})) && !ok(json!({"exp": NOW_S - 5})) && !ok(json!({"exp": 0})));
    assert!(ok(json!({"nbf": NOW_S + 5})) && !ok(json!({"nbf": NOW_S + 6})));
    assert!(ok(json!({"exp": 1.9e9, "nbf": 1.6e9 + 0.5})) && !ok(json!({"exp": 1.6e9})));
    for wrong in [json!("1900000000"), json!(null), json!(true), json!([1]), json!({}), json!(-1), json!(-1.5)] {
        assert!(!ok(json!({"exp": wrong})) && !ok(json!({"nbf": wrong})), "{wrong}");
    }
    let end = granted(&settings(), &json!({"exp": 1_900_000_000.7}), None).unwrap().expires_at_s;
    assert_eq!(end, Some(1_900_000_005), "a broken number ends the connection too");
    let patient = JwtSettings { leeway_s: u64::MAX, ..settings() };
    assert!(granted(&patient, &json!({"exp": u64::MAX, "nbf": u64::MAX}), None).is_some());
}

/// What is asked for must be there, and right.
#[test]
fn issuer_and_audience() {
    let s = JwtSettings { issuer: Some("fleet".into()), audience: Some("roost".into()), ..settings() };
    let ok = |iss: Value, aud: Value| granted(&s, &json!({"iss": iss, "aud": aud}), None).is_some();
    assert!(ok(json!("fleet"), json!("roost")) && ok(json!("fleet"), json!(["a", "roost"])));
    for (iss, aud) in [
        (json!("other"), json!("roost")),
        (json!("fleet"), json!("other")),
        (json!("fleet"), json!([])),
        (json!("fleet"), json!(["roost2", 1])),
        (json!(["fleet"]), json!("roost")),
        (json!(null), json!("roost")),
        (json!("fleet"), json!({"roost": 1})),
    ] {
        assert!(!ok(iss.clone(), aud.clone()), "{iss} {aud}");
    }
    assert!(
        granted(&s, &json!({"aud": "roost"}), None).is_none() && granted(&s, &json!({"iss": "fleet"}), None).is_none()
    );
}

/// The name comes from the token, never from what CONNECT claims alone.
#[test]
fn usernames() {
    let name =
        |s: &JwtSettings, claims: Value, given| granted(s, &claims, given).map(|g| g.username.map(|n| n.to_string()));
    let sub = settings();
    assert_eq!(name(&sub, json!({"sub": "car7"}), Some("boss")), Some(Some("car7".into())));
    assert_eq!(name(&sub, json!({}), Some("boss")), Some(None));
    assert_eq!(name(&sub, json!({"sub": 7}), Some("7")), None);
    let claim = JwtSettings { username_claim: "user".into(), ..settings() };
    assert_eq!(name(&claim, json!({"user": "ann"}), Some("ann")), Some(Some("ann".into())));
    for (claims, given) in [
        (json!({"user": "ann"}), Some("bob")),
        (json!({"user": "ann"}), None),
        (json!({"sub": "ann"}), Some("ann")),
        (json!({}), None),
        (json!({"user": null}), None),
    ] {
        assert_eq!(name(&claim, claims.clone(), given), None, "{claims} {given:?}");
    }
}

/// Rights that are waited for and missing open nothing; broken ones refuse the token.
#[test]
fn rights_in_claims() {
    let s = JwtSettings { acl_claim: "acl".into(), ..settings() };
    for claims in [json!({}), json!({"acl": {}}), json!({"acl": {"publish": [], "other": ["#"]}})] {
        let rules = granted(&s, &claims, None).unwrap().rules;
        assert!(!rules.allow_all() && !rules.may(Action::Publish, "a") && !rules.may_subscribe("#"), "{claims}");
    }
    for acl in [
        json!(null),
        json!("#"),
        json!(["#"]),
        json!({"publish": 1}),
        json!({"publish": ["a", 1]}),
        json!({"subscribe": ["a/#/b"]}),
    ] {
        assert!(granted(&s, &json!({"acl": acl}), None).is_none(), "{acl}");
    }
    let rules = granted(&s, &json!({"acl": {"publish": ["a/%u", "%c/#"]}, "sub": "x/#"}), None).unwrap().rules;
    assert!(!rules.may(Action::Publish, "a/x") && rules.may(Action::Publish, "id7/y"), "no name widens a filter");
}

/// Secrets are text with or without a line end, or any bytes; keys of the wrong kind are refused when read.
#[test]
fn keys() {
    let token = sign(&json!({}));
    for file in [SECRET.to_owned(), format!("{SECRET}\n"), format!("{SECRET}\r\n")] {
        assert!(check(&tokens_with(file.as_bytes(), &settings()).unwrap(), &token, None).is_ok(), "{file:?}");
    }
    assert_eq!(
        (secret(b"\xff\x00\n"), secret(b"ab \n\n"), secret(b"\n")),
        (&b"\xff\x00\n"[..], &b"ab \n\n"[..], &b""[..])
    );
    let private = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    for (algorithm, key, hint) in [
        ("HS256", "", "openssl rand"),
        ("HS256", "\n", "openssl rand"),
        ("HS256", RSA_PUBLIC, "shared secret"),
        ("RS256", private, "private"),
        ("ES256", private, "private"),
        ("RS256", EC_PUBLIC, "public key"),
        ("ES256", RSA_PUBLIC, "public key"),
        ("RS256", "garbage", "public key"),
        ("ES256", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "public key"),
        ("HS512", SECRET, "HS256, RS256 or ES256"),
        ("none", SECRET, "HS256, RS256 or ES256"),
        ("", SECRET, "HS256, RS256 or ES256"),
    ] {
        let s = JwtSettings { algorithm: algorithm.into(), ..settings() };
        let error = tokens_with(key.as_bytes(), &s).unwrap_err().0;
        assert!(error.contains(hint) && error.contains("JWT key"), "{algorithm}: {error}");
    }
    let missing = Tokens::load(&JwtSettings { key_file: "/nonexistent/key".into(), ..settings() }).unwrap_err();
    assert!(missing.0.contains("/nonexistent/key"), "{missing}");
}

/// A token with extensions that must be understood is refused [RFC 7515, 4.1.11].
#[test]
fn critical_extensions() {
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","crit":["exp"]}"#);
    let body = format!("{head}.{}", URL_SAFE_NO_PAD.encode("{}"));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(body.as_bytes(), &key, Algorithm::HS256).unwrap();
    assert!(check(&tokens(&settings()), &format!("{body}.{signature}"), None).is_err());
}

/// Passwords with dots in them are not tokens.
#[test]
fn looks() {
    for (text, expected) in
        [(RFC_TOKEN, true), (RSA_TOKEN, true), ("a.b.c", false), ("pass.word.1", false), ("e30.e30.", false)]
    {
        assert_eq!(Tokens::looks_like_one(text.as_bytes()), expected, "{text}");
    }
}

proptest! {
    /// Bytes that are no token never pass and never panic; nor do signed claims of any shape.
    #[test]
    fn hostile_bytes(bytes in prop::collection::vec(any::<u8>(), 0..60), text in "[A-Za-z0-9_.-]{0,60}") {
        let tokens = tokens(&settings());
        prop_assert!(tokens.check(&bytes, None, "c", None, NOW_S).is_err());
        prop_assert!(tokens.check(text.as_bytes(), None, "c", None, NOW_S).is_err());
        let _ = check(&tokens, &sign(&json!(bytes)), None);
        let _ = check(&tokens, &sign(&json!({"exp": bytes, "sub": text})), None);
    }
}
