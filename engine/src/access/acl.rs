//! Access control lists in mosquitto's format, compiled for one client when it connects.
//!
//! ```text
//! topic   [read|write|readwrite|deny] FILTER     for the user above; before the first user: for anonymous clients
//! user    NAME
//! pattern [read|write|readwrite|deny] FILTER     for all; %c is the client id, %u the username
//! ```
//! Decision: the rules of the client's user come first, then the patterns; in each of the two a `deny` that matches
//! refuses, else a rule with the wanted right allows; what nothing allows is refused. (So a user's own rule beats a
//! `pattern deny`, as in mosquitto.) A username or client id that would change the meaning of a pattern (`+`, `#`, `/`,
//! a leading `$`) is allowed nothing by it, but still denied by it.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

use super::{AccessError, read_text};
use crate::topic;

/// What a client wants to do with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send a message to it.
    Publish,
    /// Get a message from it.
    Deliver,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Right {
    Read,
    Write,
    ReadWrite,
    Deny,
}

impl Right {
    fn parse(word: &str) -> Option<Self> {
        match word {
            "read" => Some(Self::Read),
            "write" => Some(Self::Write),
            "readwrite" => Some(Self::ReadWrite),
            "deny" => Some(Self::Deny),
            _ => None,
        }
    }

    const fn allows(self, action: Action) -> bool {
        matches!((self, action), (Self::ReadWrite, _) | (Self::Read, Action::Deliver) | (Self::Write, Action::Publish))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Rule {
    right: Right,
    filter: Box<str>,
}

impl Rule {
    /// What stands behind `topic` or `pattern`.
    fn parse(text: &str) -> Result<Self, String> {
        let quoted = text.starts_with('"').then_some(("", text));
        let split = quoted.or_else(|| text.split_once(char::is_whitespace));
        let (right, filter) = match split.map(|(word, rest)| (word, rest.trim())) {
            None => (Right::ReadWrite, text),
            Some(("", rest)) => (Right::ReadWrite, rest),
            Some((word, rest)) => {
                let what = "is not an access type; one of read, write, readwrite, deny stands before the filter";
                (Right::parse(word).ok_or_else(|| format!("`{word}` {what}"))?, rest)
            }
        };
        let bare = filter.strip_prefix('"').and_then(|f| f.strip_suffix('"')).unwrap_or(filter);
        if !topic::valid_filter(bare) {
            return Err(format!("`{bare}` is not a topic filter: + and # stand alone in a level, # only in the last"));
        }
        Ok(Self { right, filter: bare.into() })
    }

    /// With its placeholders filled in; `None` if it does not concern this client, or must not.
    fn fill(&self, username: Option<&str>, client_id: &str) -> Option<Self> {
        let (mut filled, mut rest, mut dangerous) = (String::new(), &*self.filter, false);
        while let Some((before, after)) = rest.split_once('%') {
            filled.push_str(before);
            let value = match after.chars().next() {
                Some('c') => client_id,
                Some('u') => username?,
                _ => {
                    filled.push('%');
                    rest = after;
                    continue;
                }
            };
            dangerous |= value.contains(['+', '#', '/']) || (filled.is_empty() && value.starts_with('$'));
            filled.push_str(value);
            rest = after.get(1..).unwrap_or("");
        }
        filled.push_str(rest);
        let wanted = !dangerous || self.right == Right::Deny;
        wanted.then(|| Self { right: self.right, filter: filled.into() })
    }

    fn has_placeholder(&self) -> bool {
        self.filter.contains("%c") || self.filter.contains("%u")
    }
}

/// In the order in which they are asked: the first that matches and has something to say decides.
fn in_order(mut rules: Vec<Rule>) -> Arc<[Rule]> {
    rules.sort_by_key(|r| r.right != Right::Deny);
    rules.into()
}

/// An ACL file.
#[derive(Debug, Default)]
pub(super) struct AclFile {
    anonymous: Arc<[Rule]>,
    users: HashMap<Box<str>, Arc<[Rule]>>,
    patterns: Arc<[Rule]>,
    /// No pattern needs filling in: all clients share them.
    fixed: bool,
}

impl AclFile {
    pub(super) fn load(path: &str) -> Result<Self, AccessError> {
        Self::parse(&read_text("ACL file", path)?)
            .map_err(|(line, text)| AccessError(format!("ACL file {path}, line {line}: {text}")))
    }

    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let (mut anonymous, mut patterns) = (Vec::new(), Vec::new());
        let mut users: HashMap<Box<str>, Vec<Rule>> = HashMap::new();
        let mut user: Option<&str> = None;
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |text: String| (i + 1, text);
            let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let rest = rest.trim();
            let rule = match word {
                _ if rest.is_empty() => return Err(wrong(format!("`{word}` needs a value"))),
                "user" => {
                    users.entry(rest.into()).or_default();
                    user = Some(rest);
                    continue;
                }
                "topic" | "pattern" => Rule::parse(rest).map_err(wrong)?,
                _ => return Err(wrong(format!("`{word}` is not one of topic, user, pattern"))),
            };
            match (word, user.and_then(|name| users.get_mut(name))) {
                ("pattern", _) => patterns.push(rule),
                (_, Some(rules)) => rules.push(rule),
                (_, None) => anonymous.push(rule),
            }
        }
        let fixed = !patterns.iter().any(Rule::has_placeholder);
        let users = users.into_iter().map(|(name, rules)| (name, in_order(rules))).collect();
        Ok(Self { anonymous: in_order(anonymous), users, patterns: in_order(patterns), fixed })
    }

    /// The rules of one client: those of its user, and the patterns filled in.
    fn compile(&self, username: Option<&str>, client_id: &str) -> Layer {
        let own = match username {
            Some(name) => self.users.get(name).cloned().unwrap_or_default(),
            None => Arc::clone(&self.anonymous),
        };
        let patterns = if self.fixed {
            Arc::clone(&self.patterns)
        } else {
            self.patterns.iter().filter_map(|r| r.fill(username, client_id)).collect()
        };
        Layer { groups: [own, patterns] }
    }
}

/// Two lists of rules, each with its denials first: the first rule that matches and has something to say decides.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Layer {
    groups: [Arc<[Rule]>; 2],
}

impl Layer {
    fn decide(&self, speaks: impl Fn(&Rule) -> bool) -> bool {
        let decisive = self.groups.iter().flat_map(|g| g.iter()).find(|r| speaks(r));
        decisive.is_some_and(|r| r.right != Right::Deny)
    }

    fn may(&self, action: Action, name: &str) -> bool {
        self.decide(|r| (r.right == Right::Deny || r.right.allows(action)) && topic::matches(&r.filter, name))
    }

    /// Something that the filter matches could be delivered, and no `deny` covers all of it.
    fn may_subscribe(&self, filter: &str) -> bool {
        self.decide(|r| match r.right {
            Right::Deny => covers(&r.filter, filter),
            right => right.allows(Action::Deliver) && overlap(&r.filter, filter),
        })
    }
}

/// Filters that a token names.
#[derive(Debug, Default)]
pub(super) struct TokenRights {
    /// Topics to publish to.
    pub(super) publish: Vec<String>,
    /// Topics to get messages from.
    pub(super) subscribe: Vec<String>,
}

impl TokenRights {
    fn compile(&self, username: Option<&str>, client_id: &str) -> Layer {
        let rule = |right| move |filter: &String| Rule { right, filter: filter.as_str().into() };
        let (publish, subscribe) =
            (self.publish.iter().map(rule(Right::Write)), self.subscribe.iter().map(rule(Right::Read)));
        let rules = publish.chain(subscribe).filter_map(|r| r.fill(username, client_id)).collect();
        Layer { groups: [rules, Arc::default()] }
    }
}

/// All that are there must allow.
#[derive(Debug, Serialize, Deserialize)]
struct Layers {
    file: Option<Layer>,
    token: Option<Layer>,
}

/// What one client may do; cheap to clone. The default allows everything.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rules {
    layers: Option<Arc<Layers>>,
}

impl Rules {
    /// From the ACL file and the token, as far as there are any.
    pub(super) fn of(
        acl: Option<&AclFile>,
        token: Option<&TokenRights>,
        username: Option<&str>,
        client_id: &str,
    ) -> Self {
        let token = token.map(|t| t.compile(username, client_id));
        Self::joined(acl.map(|a| a.compile(username, client_id)), token)
    }

    /// The same client under a new ACL file; what its token said stays.
    pub(super) fn renewed(&self, acl: Option<&AclFile>, username: Option<&str>, client_id: &str) -> Self {
        let token = self.layers.as_ref().and_then(|l| l.token.clone());
        Self::joined(acl.map(|a| a.compile(username, client_id)), token)
    }

    fn joined(file: Option<Layer>, token: Option<Layer>) -> Self {
        let any = file.is_some() || token.is_some();
        Self { layers: any.then(|| Arc::new(Layers { file, token })) }
    }

    fn all(&self, allowed: impl Fn(&Layer) -> bool) -> bool {
        self.layers.as_ref().is_none_or(|l| l.file.iter().chain(&l.token).all(allowed))
    }

    /// Nothing needs to be asked.
    #[must_use]
    pub const fn allow_all(&self) -> bool {
        self.layers.is_none()
    }

    /// May the client do this with this topic?
    #[must_use]
    pub fn may(&self, action: Action, name: &str) -> bool {
        self.all(|l| l.may(action, name))
    }

    /// May the client subscribe? Each delivery is checked besides. A shared filter is judged without `$share/GROUP/`.
    #[must_use]
    pub fn may_subscribe(&self, filter: &str) -> bool {
        match topic::shared(filter) {
            Some(Err(())) => self.allow_all(),
            Some(Ok(shared)) => self.all(|l| l.may_subscribe(shared.filter)),
            None => self.all(|l| l.may_subscribe(filter)),
        }
    }
}

/// Wildcards do not reach first levels that begin with `$` [MQTT-4.7.2-1].
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
    if outer == "+/#" {
        return true; // the same as `#`: a name has a first level
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
#[path = "acl_tests.rs"]
mod tests;
