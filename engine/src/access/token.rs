//! JSON Web Tokens in the password field: HS256, RS256, ES256 (RFC 7519).

use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::acl::AclFile;
use super::{AccessError, Grant, Refusal, Rules};
use crate::settings::JwtSettings;

/// How tokens of a listener are checked.
pub(super) struct Tokens {
    key: DecodingKey,
    validation: Validation,
    username_claim: String,
    acl_claim: String,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").field("username_claim", &self.username_claim).finish_non_exhaustive()
    }
}

impl Tokens {
    pub(super) fn load(s: &JwtSettings) -> Result<Self, AccessError> {
        let path = &s.key_file;
        let bytes = std::fs::read(path)
            .map_err(|e| AccessError(format!("JWT key {path}: {e}; is the path right and readable?")))?;
        let wrong = |e: jsonwebtoken::errors::Error| AccessError(format!("JWT key {path}: {e}; a PEM public key is needed"));
        let (algorithm, key) = match s.algorithm.as_str() {
            "HS256" => (Algorithm::HS256, DecodingKey::from_secret(bytes.trim_ascii_end())),
            "RS256" => (Algorithm::RS256, DecodingKey::from_rsa_pem(&bytes).map_err(wrong)?),
            "ES256" => (Algorithm::ES256, DecodingKey::from_ec_pem(&bytes).map_err(wrong)?),
            other => return Err(AccessError(format!("JWT algorithm `{other}`: use HS256, RS256 or ES256"))),
        };
        let mut validation = Validation::new(algorithm);
        validation.leeway = s.leeway_s;
        validation.validate_nbf = true;
        validation.required_spec_claims.clear();
        match &s.issuer {
            Some(issuer) => {
                validation.set_issuer(&[issuer]);
                validation.required_spec_claims.insert("iss".to_owned());
            }
            None => validation.iss = None,
        }
        match &s.audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                validation.required_spec_claims.insert("aud".to_owned());
            }
            None => validation.validate_aud = false,
        }
        Ok(Self { key, validation, username_claim: s.username_claim.clone(), acl_claim: s.acl_claim.clone() })
    }

    pub(super) fn check(
        &self,
        token: &[u8],
        username: Option<Arc<str>>,
        client_id: &str,
        acl: Option<&AclFile>,
    ) -> Result<Grant, Refusal> {
        let token = std::str::from_utf8(token).map_err(|_| Refusal::BadCredentials)?;
        let data = jsonwebtoken::decode::<Map<String, Value>>(token, &self.key, &self.validation)
            .map_err(|_| Refusal::BadCredentials)?;
        let claims = data.claims;
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let username = if self.username_claim.is_empty() {
            text("sub").map(Arc::from).or(username)
        } else if text(&self.username_claim) == username.as_deref() {
            username
        } else {
            return Err(Refusal::BadCredentials);
        };
        let own = claims.get(&self.acl_claim).filter(|_| !self.acl_claim.is_empty());
        let rules = match own {
            Some(own) => {
                Rules::with_token(acl, username.as_deref(), client_id, &list(own, "publish"), &list(own, "subscribe"))
            }
            None => Rules::of(acl, username.as_deref(), client_id),
        };
        let leeway_s = self.validation.leeway;
        let expires_at_s = claims.get("exp").and_then(Value::as_u64).map(|e| e.saturating_add(leeway_s));
        Ok(Grant { username, rules, expires_at_s })
    }
}

fn list(claim: &Value, name: &str) -> Vec<String> {
    let items = claim.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;

    use super::*;
    use crate::access::Action;

    fn tokens() -> Tokens {
        let path = std::env::temp_dir().join(format!("roost-jwt-{}-{}", std::process::id(), crate::port::random_name()));
        std::fs::write(&path, "0123456789abcdef0123456789abcdef\n").unwrap();
        let settings = JwtSettings {
            algorithm: "HS256".into(),
            key_file: path.to_str().unwrap().into(),
            acl_claim: "acl".into(),
            issuer: Some("fleet".into()),
            ..Default::default()
        };
        let tokens = Tokens::load(&settings).unwrap();
        std::fs::remove_file(path).unwrap();
        tokens
    }

    fn sign(claims: &Value, key: &str) -> String {
        jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(key.as_bytes())).unwrap()
    }

    /// A good token names user, rights and end; a wrong key, issuer or time is refused.
    #[test]
    fn tokens_are_checked() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let key = "0123456789abcdef0123456789abcdef";
        let claims = json!({"iss": "fleet", "sub": "car7", "exp": now + 60, "acl": {"publish": ["car/%c/#"]}});
        let tokens = tokens();
        let grant = tokens.check(sign(&claims, key).as_bytes(), None, "id7", None).unwrap();
        assert_eq!((grant.username.as_deref(), grant.expires_at_s), (Some("car7"), Some(now + 60)));
        assert!(grant.rules.may(Action::Publish, "car/id7/x") && !grant.rules.may(Action::Publish, "car/id8/x"));
        assert!(!grant.rules.may_subscribe("car/#"));
        for (claims, key) in [
            (json!({"iss": "fleet", "exp": now - 60}), key),
            (json!({"iss": "fleet", "nbf": now + 600}), key),
            (json!({"iss": "other"}), key),
            (json!({}), key),
            (claims, "another-key-another-key-another-"),
        ] {
            let bad = sign(&claims, key);
            assert_eq!(tokens.check(bad.as_bytes(), None, "id7", None).unwrap_err(), Refusal::BadCredentials, "{claims}");
        }
        assert!(tokens.check(b"a.b.c", None, "id7", None).is_err());
    }
}
