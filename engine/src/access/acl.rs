//! Access control lists in mosquitto's format, compiled for one client when it connects.
//!
//! Rules of the client's user come first, then patterns; in each group a `deny` that matches wins, then the first kind
//! of access that matches allows; what nothing allows is denied. Lines before the first `user` are for anonymous
//! clients. A username or client id with `+`, `#` or `/` gets nothing from a pattern that would contain it.

use std::sync::Arc;

use super::{AccessError, read_file};
use crate::topic;

/// What a client wants to do with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send a message to it.
    Publish,
    /// Get a message from it.
    Deliver,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Right {
    Read,
    Write,
    ReadWrite,
    Deny,
}

impl Right {
    const fn allows(self, action: Action) -> bool {
        matches!(
            (self, action),
            (Self::ReadWrite, _) | (Self::Read, Action::Deliver) | (Self::Write, Action::Publish)
        )
    }
}

#[derive(Debug, Clone)]
struct Rule {
    right: Right,
    filter: Box<str>,
}

/// An ACL file.
#[derive(Debug, Default)]
pub(super) struct AclFile {
    anonymous: Vec<Rule>,
    users: Vec<(String, Vec<Rule>)>,
    patterns: Vec<Rule>,
}

impl AclFile {
    pub(super) fn load(path: &str) -> Result<Self, AccessError> {
        Self::parse(&read_file("ACL file", path)?).map_err(|(line, text)| {
            AccessError(format!("ACL file {path}, line {line}: {text}"))
        })
    }

    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut file = Self::default();
        let mut user: Option<usize> = None;
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |text: &str| (i + 1, text.to_owned());
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let rest = rest.trim();
            if rest.is_empty() {
                return Err(wrong(&format!("`{word}` needs a value")));
            }
            match word {
                "user" => {
                    let at = file.users.iter().position(|(name, _)| name == rest);
                    user = Some(at.unwrap_or_else(|| {
                        file.users.push((rest.to_owned(), Vec::new()));
                        file.users.len() - 1
                    }));
                }
                "topic" | "pattern" => {
                    let rule = rule(rest).map_err(|e| wrong(&e))?;
                    match (word, user.and_then(|at| file.users.get_mut(at))) {
                        ("pattern", _) => file.patterns.push(rule),
                        (_, Some((_, rules))) => rules.push(rule),
                        (_, None) => file.anonymous.push(rule),
                    }
                }
                _ => return Err(wrong(&format!("`{word}` is not one of topic, user, pattern"))),
            }
        }
        Ok(file)
    }

    /// The rules of one client: those of its user, and the patterns filled in.
    fn compile(&self, username: Option<&str>, client_id: &str) -> Layer {
        let own = match username {
            Some(name) => self.users.iter().find(|(n, _)| n == name).map_or(&[][..], |(_, rules)| rules),
            None => &self.anonymous,
        };
        let patterns = self.patterns.iter().filter_map(|r| fill(r, username, client_id)).collect();
        Layer { groups: [own.to_vec(), patterns] }
    }
}

fn rule(text: &str) -> Result<Rule, String> {
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let right = match word {
        "read" => Some(Right::Read),
        "write" => Some(Right::Write),
        "readwrite" => Some(Right::ReadWrite),
        "deny" => Some(Right::Deny),
        _ => None,
    };
    let (right, filter) = match right {
        Some(right) if !rest.trim().is_empty() => (right, rest.trim()),
        _ => (Right::ReadWrite, text),
    };
    if !topic::valid_filter(filter) {
        return Err(format!("`{filter}` is not a topic filter"));
    }
    Ok(Rule { right, filter: filter.into() })
}

fn fill(rule: &Rule, username: Option<&str>, client_id: &str) -> Option<Rule> {
    let dangerous = |value: &str| value.contains(['+', '#', '/']);
    let mut filter = rule.filter.to_string();
    if filter.contains("%c") {
        if dangerous(client_id) {
            return None;
        }
        filter = filter.replace("%c", client_id);
    }
    if filter.contains("%u") {
        let name = username.filter(|n| !dangerous(n))?;
        filter = filter.replace("%u", name);
    }
    Some(Rule { right: rule.right, filter: filter.into() })
}

/// Rules that must allow an action, in two groups of which the first that has something to say decides.
#[derive(Debug, Default)]
struct Layer {
    groups: [Vec<Rule>; 2],
}

impl Layer {
    fn may(&self, action: Action, name: &str) -> bool {
        for group in &self.groups {
            let mut matching = group.iter().filter(|r| topic::matches(&r.filter, name)).peekable();
            if matching.peek().is_none() {
                continue;
            }
            let rights: Vec<Right> = matching.map(|r| r.right).collect();
            if rights.contains(&Right::Deny) {
                return false;
            }
            if rights.iter().any(|r| r.allows(action)) {
                return true;
            }
        }
        false
    }

    /// Something that the filter matches could be delivered, and no `deny` covers all of it.
    fn may_subscribe(&self, filter: &str) -> bool {
        for group in &self.groups {
            if group.iter().any(|r| r.right == Right::Deny && covers(&r.filter, filter)) {
                return false;
            }
            if group.iter().any(|r| r.right.allows(Action::Deliver) && overlap(&r.filter, filter)) {
                return true;
            }
        }
        false
    }
}

/// What one client may do; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// All layers must allow; none: everything is allowed.
    layers: Option<Arc<[Layer]>>,
}

impl Rules {
    pub(super) fn of(acl: Option<&AclFile>, username: Option<&str>, client_id: &str) -> Self {
        Self { layers: acl.map(|a| Arc::from([a.compile(username, client_id)])) }
    }

    /// Rules from a token: filters to publish to and to subscribe to, besides the ACL file.
    pub(super) fn with_token(
        acl: Option<&AclFile>,
        username: Option<&str>,
        client_id: &str,
        publish: &[String],
        subscribe: &[String],
    ) -> Self {
        let rule = |filter: &String, right| Rule { right, filter: filter.as_str().into() };
        let all = publish.iter().map(|f| rule(f, Right::Write)).chain(subscribe.iter().map(|f| rule(f, Right::Read)));
        let filled = all.filter_map(|r| fill(&r, username, client_id)).filter(|r| topic::valid_filter(&r.filter));
        // read and write rules of one topic stand side by side, so they are joined in one group
        let token = Layer { groups: [filled.collect(), Vec::new()] };
        let file = acl.map(|a| a.compile(username, client_id));
        Self { layers: Some(file.into_iter().chain([token]).collect()) }
    }

    /// Nothing needs to be asked.
    #[must_use]
    pub const fn allow_all(&self) -> bool {
        self.layers.is_none()
    }

    /// May the client do this with this topic?
    #[must_use]
    pub fn may(&self, action: Action, name: &str) -> bool {
        self.layers.as_deref().is_none_or(|layers| layers.iter().all(|l| l.may(action, name)))
    }

    /// May the client subscribe? Each delivery is checked besides.
    #[must_use]
    pub fn may_subscribe(&self, filter: &str) -> bool {
        self.layers.as_deref().is_none_or(|layers| layers.iter().all(|l| l.may_subscribe(filter)))
    }
}

/// Wildcards do not reach first levels that begin with `$`.
fn hidden(a: &str, b: &str) -> bool {
    a.starts_with('$') && b.starts_with(['+', '#'])
}

/// Is there a name that both filters match?
fn overlap(a: &str, b: &str) -> bool {
    if hidden(a, b) || hidden(b, a) {
        return false;
    }
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            _ => return false,
        }
    }
}

/// Does `outer` match every name that `inner` matches?
fn covers(outer: &str, inner: &str) -> bool {
    if hidden(inner, outer) {
        return false;
    }
    let (mut outer, mut inner) = (outer.split('/'), inner.split('/'));
    loop {
        match (outer.next(), inner.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(y)) if y != "#" => {}
            (Some(x), Some(y)) if x == y => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &str = "
# anonymous
topic read public/#
user ann
topic readwrite ann/#
topic deny ann/secret/#
topic write drop box
pattern readwrite dev/%c/#
pattern read home/%u
";

    fn rules(user: Option<&str>, id: &str) -> Rules {
        Rules::of(Some(&AclFile::parse(FILE).unwrap()), user, id)
    }

    /// The format and its order of decisions.
    #[test]
    fn decides_as_documented() {
        let (ann, nobody) = (rules(Some("ann"), "c1"), rules(None, "c1"));
        assert!(ann.may(Action::Publish, "ann/x") && ann.may(Action::Deliver, "ann/x"));
        assert!(!ann.may(Action::Publish, "ann/secret/x") && !ann.may_subscribe("ann/secret/+"));
        assert!(ann.may(Action::Publish, "drop box") && !ann.may(Action::Deliver, "drop box"));
        assert!(!ann.may(Action::Deliver, "public/x"), "lines before the first user are for anonymous clients");
        assert!(nobody.may(Action::Deliver, "public/x") && !nobody.may(Action::Publish, "public/x"));
        assert!(ann.may(Action::Publish, "dev/c1/a") && !ann.may(Action::Publish, "dev/c2/a"));
        assert!(ann.may(Action::Deliver, "home/ann") && !nobody.may(Action::Deliver, "home/ann"));
        assert!(ann.may_subscribe("#"), "something below can be read; each delivery is checked");
        assert!(!nobody.may_subscribe("ann/#") && nobody.may_subscribe("+/x"));
    }

    /// A client cannot widen a pattern by its own name.
    #[test]
    fn names_with_wildcards_get_nothing_from_patterns() {
        for id in ["+", "#", "a/b", "a+"] {
            assert!(!rules(None, id).may(Action::Publish, "dev/a/b"), "{id}");
            assert!(!rules(Some(id), "c").may(Action::Deliver, "home/x"), "{id}");
        }
    }

    /// Errors name the line.
    #[test]
    fn broken_lines() {
        for (text, line) in [("topic\n", 1), ("user a\n\nfoo bar", 3), ("topic read a/#/b", 1)] {
            assert_eq!(AclFile::parse(text).unwrap_err().0, line, "{text}");
        }
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![Just("a"), Just("b"), Just("+"), Just("$x")];
        (prop::collection::vec(level, 0..3), any::<bool>()).prop_filter_map("empty", |(mut l, hash)| {
            if hash {
                l.push("#");
            }
            (!l.is_empty()).then(|| l.join("/"))
        })
    }

    fn names() -> Vec<String> {
        let levels = ["a", "b", "$x", "c"];
        let mut all: Vec<String> = levels.iter().map(|l| (*l).to_owned()).collect();
        for _ in 0..3 {
            let longer: Vec<String> = all.iter().flat_map(|n| levels.iter().map(move |l| format!("{n}/{l}"))).collect();
            all.extend(longer);
            all.sort();
            all.dedup();
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// `overlap` and `covers` agree with trying every name of a small alphabet.
        #[test]
        fn overlap_and_cover(a in filter(), b in filter()) {
            let names = names();
            let any = names.iter().any(|n| topic::matches(&a, n) && topic::matches(&b, n));
            prop_assert_eq!(overlap(&a, &b), any, "{} {}", a, b);
            let every = names.iter().filter(|n| topic::matches(&b, n)).all(|n| topic::matches(&a, n));
            if covers(&a, &b) {
                prop_assert!(every, "{} covers {}", a, b);
            }
        }
    }
}
