//! Topic names and filters (section 4.7): validity, levels, matching of one against one, shared filters (4.8.2).
//!
//! Pure text; knows neither sessions nor trees. `matches` is the definition that the tree is tested against.

/// True if the name holds `+` or `#`.
#[must_use]
pub fn has_wildcard(name: &str) -> bool {
    memchr::memchr2(b'+', b'#', name.as_bytes()).is_some()
}

/// A topic name: not empty, no wildcard, no U+0000 [MQTT-4.7.3-1, MQTT-4.7.3-2].
#[must_use]
pub fn valid_name(name: &str) -> bool {
    !name.is_empty() && memchr::memchr3(b'+', b'#', 0, name.as_bytes()).is_none()
}

/// A topic filter: not empty, wildcards only as whole levels, `#` only last [MQTT-4.7.1-1, MQTT-4.7.1-2].
#[must_use]
pub fn valid_filter(filter: &str) -> bool {
    if filter.is_empty() || memchr::memchr(0, filter.as_bytes()).is_some() {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let wild = has_wildcard(level);
        if wild && level.len() > 1 || level == "#" && levels.peek().is_some() {
            return false;
        }
    }
    true
}

/// Number of levels.
#[must_use]
pub fn levels(topic: &str) -> usize {
    memchr::memchr_iter(b'/', topic.as_bytes()).count() + 1
}

/// Names that the broker keeps for what it says of itself; a bridge of another broker may say how it is. Names below
/// `$share` can never be asked for, as a filter of that form is a shared subscription (section 4.8.2).
#[must_use]
pub fn reserved(topic: &str) -> bool {
    if topic.starts_with("$share/") {
        return true;
    }
    let Some(rest) = topic.strip_prefix("$SYS") else { return false };
    let bridge = rest.strip_prefix("/broker/connection/").and_then(|r| r.strip_suffix("/state"));
    (rest.is_empty() || rest.starts_with('/')) && bridge.is_none_or(|name| name.is_empty() || name.contains('/'))
}

/// Does the filter match the name? Wildcards never match a first level that begins with `$` [MQTT-4.7.2-1].
#[must_use]
pub fn matches(filter: &str, name: &str) -> bool {
    if name.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#')) {
        return false;
    }
    let mut names = name.split('/');
    let mut filters = filter.split('/');
    loop {
        match (filters.next(), names.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(f), Some(n)) if f == n => {}
            _ => return false,
        }
    }
}

/// The parts of `$share/GROUP/FILTER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared<'a> {
    /// Share name.
    pub group: &'a str,
    /// Filter without the prefix.
    pub filter: &'a str,
}

/// `None` for an ordinary filter, `Some(Err)` for a malformed shared one [MQTT-4.8.2-1, MQTT-4.8.2-2].
#[must_use]
pub fn shared(filter: &str) -> Option<Result<Shared<'_>, ()>> {
    let rest = filter.strip_prefix("$share/").or((filter == "$share").then_some(""))?;
    let Some((group, inner)) = rest.split_once('/') else { return Some(Err(())) };
    if group.is_empty() || has_wildcard(group) || inner.is_empty() {
        return Some(Err(()));
    }
    Some(Ok(Shared { group, filter: inner }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of sections 4.7.1 and 4.7.2.
    #[test]
    fn examples_of_the_standard() {
        for (filter, name, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
            ("sport/#", "sport", true),
            ("#", "a", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/x", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/x", true),
            ("a/+/c/#", "a/b/c", true),
        ] {
            assert_eq!(matches(filter, name), expected, "{filter} {name}");
        }
    }

    /// [MQTT-4.7.1-1], [MQTT-4.7.1-2], [MQTT-4.8.2-1], [MQTT-4.8.2-2].
    #[test]
    fn validity() {
        for good in ["a", "/", "+", "#", "a/+/#", "//", "+/a/+"] {
            assert!(valid_filter(good), "{good}");
        }
        for bad in ["", "a#", "a/#/b", "+a", "a/b+", "#/", "\0"] {
            assert!(!valid_filter(bad), "{bad}");
        }
        assert_eq!(shared("$share/g/a/b"), Some(Ok(Shared { group: "g", filter: "a/b" })));
        for bad in ["$share//a", "$share/g+/a", "$share/g", "$share/g/", "$share/", "$share"] {
            assert_eq!(shared(bad), Some(Err(())), "{bad}");
        }
        assert_eq!(shared("$shared/x"), None);
        assert_eq!(levels("a/b//c"), 4);
    }
}
