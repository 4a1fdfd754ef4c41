//! The ACL format, its order of decisions, and the algebra of filters.

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

fn compiled(file: &str, user: Option<&str>, id: &str) -> Rules {
    Rules::of(Some(&AclFile::parse(file).unwrap()), None, user, id)
}

fn rules(user: Option<&str>, id: &str) -> Rules {
    compiled(FILE, user, id)
}

/// `(may publish, may get)`.
fn both(rules: &Rules, name: &str) -> (bool, bool) {
    (rules.may(Action::Publish, name), rules.may(Action::Deliver, name))
}

const ALL: (bool, bool) = (true, true);
const NONE: (bool, bool) = (false, false);

/// The format and its order of decisions.
#[test]
fn decides_as_documented() {
    let (ann, nobody) = (rules(Some("ann"), "c1"), rules(None, "c1"));
    assert_eq!((both(&ann, "ann/x"), both(&ann, "ann")), (ALL, ALL));
    assert_eq!(both(&ann, "ann/secret/x"), NONE);
    assert!(!ann.may_subscribe("ann/secret/+"));
    assert_eq!(both(&ann, "drop box"), (true, false));
    assert_eq!(both(&ann, "public/x"), NONE, "lines before the first user are for anonymous clients");
    assert_eq!(both(&nobody, "public/x"), (false, true));
    assert_eq!((both(&ann, "dev/c1/a"), both(&ann, "dev/c2/a")), (ALL, NONE));
    assert_eq!((both(&ann, "home/ann"), both(&nobody, "home/ann")), ((false, true), NONE));
    assert!(ann.may_subscribe("#"), "something below can be read; each delivery is checked");
    assert!(!nobody.may_subscribe("ann/#") && nobody.may_subscribe("+/x"));
    assert_eq!(both(&rules(Some("ANN"), "c1"), "ann/x"), NONE, "names are compared byte by byte");
}

/// What mosquitto's own tests of access variants expect of PUBLISH and delivery.
#[test]
fn variants_of_mosquitto() {
    let global = "topic readwrite topic/global/#\ntopic deny      topic/global/except\n";
    let user = "user username\ntopic readwrite topic/username/#\ntopic deny      topic/username/except\n";
    let pattern = "pattern readwrite pattern/%u/#\npattern deny      pattern/%u/except\n";
    for file in [[global, user, pattern].concat(), [pattern, global, user].concat()] {
        for (name, topic, expected) in [
            (None, "topic/global", ALL),
            (Some("username"), "topic/global", NONE),
            (None, "topic/global/except", NONE),
            (None, "topic/username", NONE),
            (Some("username"), "topic/username", ALL),
            (Some("username"), "topic/username/except", NONE),
            (None, "pattern/username", NONE),
            (Some("username"), "pattern/username", ALL),
            (Some("username"), "pattern/username/except", NONE),
        ] {
            assert_eq!(both(&compiled(&file, name, "acl-check"), topic), expected, "{name:?} {topic}");
        }
    }
}

/// `deny` beats what allows in the same list wherever it stands; a user's own rules stand before the patterns.
#[test]
fn deny_and_order() {
    let late = compiled("topic readwrite #\ntopic deny a/#", None, "c");
    let early = compiled("topic deny a/#\ntopic readwrite #", None, "c");
    for rules in [late, early] {
        assert_eq!((both(&rules, "a/b"), both(&rules, "b")), (NONE, ALL));
        assert!(!rules.may_subscribe("a/+") && rules.may_subscribe("+/b") && rules.may_subscribe("#"));
    }
    let own_first = compiled("user u\ntopic a/x\npattern deny a/#\npattern #", Some("u"), "c");
    assert_eq!((both(&own_first, "a/x"), both(&own_first, "a/y"), both(&own_first, "b")), (ALL, NONE, ALL));
    let split =
        compiled("topic read a\nuser u\ntopic read b\nuser v\ntopic read c\nuser u\ntopic write b", Some("u"), "c");
    assert_eq!(
        (both(&split, "b"), both(&split, "a"), both(&split, "c")),
        (ALL, NONE, NONE),
        "sections of a user add up"
    );
}

/// An ACL file allows what it says and nothing else; without one nothing is asked.
#[test]
fn default_is_deny() {
    for file in ["", "# nothing\n\n", "user ann\n"] {
        let rules = compiled(file, Some("ann"), "c");
        assert!(!rules.allow_all() && both(&rules, "a") == NONE && !rules.may_subscribe("#"));
    }
    let free = Rules::of(None, None, Some("ann"), "c");
    assert!(free.allow_all() && both(&free, "a") == ALL && free.may_subscribe("#"));
}

/// Wildcards do not open `$SYS`, neither in rules nor through subscriptions [MQTT-4.7.2-1].
#[test]
fn dollar_topics() {
    let rules = compiled("topic #\ntopic read $SYS/broker/+", None, "c");
    assert_eq!((both(&rules, "$SYS/broker/x"), both(&rules, "$SYS/x"), both(&rules, "x")), ((false, true), NONE, ALL));
    assert!(rules.may_subscribe("$SYS/#") && !rules.may_subscribe("$CONTROL/#"));
    for shape in ["pattern %c/#", "pattern %u/#"] {
        let rules = compiled(shape, Some("$SYS"), "$SYS");
        assert_eq!(both(&rules, "$SYS/broker"), NONE, "a client named $SYS must not become its reader");
        assert_eq!(both(&compiled(shape, Some("n"), "n"), "n/a"), ALL);
    }
}

/// A client cannot widen a pattern by its own name.
#[test]
fn names_with_wildcards_get_nothing_from_patterns() {
    for id in ["+", "#", "a/b", "a+", "a/#"] {
        assert_eq!(both(&rules(None, id), "dev/a/b"), NONE, "{id}");
        assert_eq!(both(&rules(Some(id), "c"), "home/x"), NONE, "{id}");
    }
    let rules = compiled("pattern dev/%c/%u", Some("ann"), "%u");
    assert_eq!((both(&rules, "dev/%u/ann"), both(&rules, "dev/ann/ann")), (ALL, NONE), "values are not filled again");
    assert_eq!(both(&compiled("pattern 100%/%c%", None, "x"), "100%/x%"), ALL);
}

/// Nor escape from a denial.
#[test]
fn denials_hold_for_odd_names() {
    let file = "pattern deny box/%c/#\npattern readwrite box/#";
    for (id, name) in [("a", "box/a/x"), ("a/b", "box/a/b/x"), ("+", "box/any/x"), ("#", "box/any/x")] {
        assert_eq!(both(&compiled(file, None, id), name), NONE, "{id}");
    }
    assert_eq!(both(&compiled(file, None, "a"), "box/b"), ALL);
}

/// A shared filter is judged by the filter in it.
#[test]
fn shared_filters() {
    let rules = compiled("topic read a/#", None, "c");
    assert!(rules.may_subscribe("$share/g/a/b") && rules.may_subscribe("$share/a/#"));
    for refused in ["$share/a/b", "$share/g/$SYS/#", "$share/g", "$share//a"] {
        assert!(!rules.may_subscribe(refused), "{refused}");
    }
}

/// File and token must both allow; a new file leaves the token's part alone.
#[test]
fn both_layers_must_allow() {
    let file = AclFile::parse("user u\ntopic readwrite a/#").unwrap();
    let token = TokenRights { publish: vec!["a/%c".into(), "b".into()], subscribe: vec!["+/x".into(), "#".into()] };
    let rules = Rules::of(Some(&file), Some(&token), Some("u"), "c");
    assert_eq!((both(&rules, "a/c"), both(&rules, "a/d"), both(&rules, "b")), (ALL, (false, true), NONE));
    let alone = Rules::of(None, Some(&token), Some("u"), "c");
    assert_eq!((both(&alone, "b"), both(&alone, "c")), (ALL, (false, true)));
    let renewed = rules.renewed(Some(&AclFile::parse("user u\ntopic write b").unwrap()), Some("u"), "c");
    assert_eq!((both(&renewed, "b"), both(&renewed, "a/c")), ((true, false), NONE));
    assert_eq!(both(&renewed.renewed(None, Some("u"), "c"), "a/c"), ALL);
    assert!(Rules::default().renewed(None, None, "c").allow_all());
    let nothing = Rules::of(None, Some(&TokenRights::default()), None, "c");
    assert!(!nothing.allow_all() && both(&nothing, "a") == NONE);
}

/// Spaces, tabs, quotes, carriage returns, comments, words that are also filters.
#[test]
fn spelling() {
    for (line, topic) in [
        ("topic read", "read"),
        ("topic deny", "deny"),
        ("topic readwrite   two words  ", "two words"),
        ("\ttopic\treadwrite\ta/b\r", "a/b"),
        ("topic \"two words\"", "two words"),
        ("topic readwrite \"two words\"", "two words"),
        ("  # a comment\ntopic a", "a"),
        ("topic é/ü", "é/ü"),
    ] {
        assert_eq!(both(&compiled(line, None, "c"), topic), ALL, "{line}");
    }
    assert_eq!(both(&compiled("user two words\ntopic a", Some("two words"), "c"), "a"), ALL);
}

/// Errors name the line, and say what would be right.
#[test]
fn broken_lines() {
    for (text, line, hint) in [
        ("topic\n", 1, "value"),
        ("user a\n\nfoo bar", 3, "topic, user, pattern"),
        ("topic read a/#/b", 1, "`a/#/b`"),
        ("topic a\ntopic dney a/#", 2, "`dney`"),
        ("user ", 1, "value"),
        ("pattern read a+", 1, "`a+`"),
        ("topic read \"\"", 1, "filter"),
        ("topic two words", 1, "access type"),
    ] {
        let (at, what) = AclFile::parse(text).unwrap_err();
        assert!(at == line && what.contains(hint), "{text}: {at} {what}");
    }
}

fn filter() -> impl Strategy<Value = String> {
    let level = prop_oneof![Just("a"), Just("b"), Just("+"), Just("$x"), Just("")];
    (prop::collection::vec(level, 0..3), any::<bool>()).prop_filter_map("empty", |(mut levels, hash)| {
        if hash {
            levels.push("#");
        }
        Some(levels.join("/")).filter(|f| !f.is_empty())
    })
}

/// All names of up to four levels over an alphabet with one word (`c`) that no filter above has. The empty one is
/// among them: no message bears it, but `/#` and `+` meet there.
fn names() -> Vec<String> {
    let levels = ["a", "b", "$x", "c", ""];
    let (mut all, mut last): (Vec<String>, Vec<String>) = (Vec::new(), levels.map(str::to_owned).to_vec());
    for _ in 0..3 {
        let longer = last.iter().flat_map(|n| levels.map(|l| format!("{n}/{l}"))).collect();
        all.append(&mut std::mem::replace(&mut last, longer));
    }
    all.append(&mut last);
    all
}

fn file_rule() -> impl Strategy<Value = String> {
    let kind = prop_oneof![Just("topic"), Just("pattern")];
    let right = prop_oneof![Just("read"), Just("write"), Just("readwrite"), Just("deny")];
    (kind, right, filter()).prop_map(|(kind, right, filter)| format!("{kind} {right} {filter}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// `overlap` and `covers` agree with trying every name of a small alphabet.
    #[test]
    fn overlap_and_cover(a in filter(), b in filter()) {
        let names = names();
        let any = names.iter().any(|n| topic::matches(&a, n) && topic::matches(&b, n));
        prop_assert_eq!(overlap(&a, &b), any, "{} {}", a, b);
        let every = names.iter().filter(|n| topic::matches(&b, n)).all(|n| topic::matches(&a, n));
        prop_assert_eq!(covers(&a, &b), every, "{} covers {}", a, b);
    }

    /// A subscription is refused only if none of its messages could be delivered anyway.
    #[test]
    fn refused_subscriptions_lose_nothing(file in prop::collection::vec(file_rule(), 0..6), wanted in filter()) {
        let rules = compiled(&file.join("\n"), None, "c");
        if !rules.may_subscribe(&wanted) {
            let lost = names().into_iter().find(|n| topic::matches(&wanted, n) && rules.may(Action::Deliver, n));
            prop_assert_eq!(lost, None);
        }
    }

    /// Decisions are those of the definition, written naively: per list, denials first, then what allows.
    #[test]
    fn decisions_match_the_definition(file in prop::collection::vec(file_rule(), 0..6)) {
        let rules = compiled(&file.join("\n"), None, "c");
        let has = |kind: &str, rights: &[&str], name: &str| file.iter().any(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words[0] == kind && rights.contains(&words[1]) && topic::matches(words[2], name)
        });
        for (action, right) in [(Action::Publish, "write"), (Action::Deliver, "read")] {
            for name in names() {
                let mut expected = false;
                for kind in ["topic", "pattern"] {
                    if has(kind, &["deny"], &name) {
                        break;
                    }
                    if has(kind, &[right, "readwrite"], &name) {
                        expected = true;
                        break;
                    }
                }
                prop_assert_eq!(rules.may(action, &name), expected, "{:?} {}", action, name);
            }
        }
    }

    /// No text makes the parser or the rules panic, and no name gives rights on another client's place.
    #[test]
    fn hostile_texts(text in "(topic |user |pattern |deny |[%cu#+/$\" \n\\PC]){0,40}", id in "\\PC{0,8}", name in "\\PC{0,8}") {
        if let Ok(file) = AclFile::parse(&text) {
            let rules = Rules::of(Some(&file), None, Some(&name), &id);
            let _ = (rules.may(Action::Publish, &name), rules.may_subscribe(&id));
        }
        let rules = compiled("pattern readwrite dev/%c/#\npattern readwrite home/%u/#", Some(&name), &id);
        prop_assert_eq!(both(&rules, "dev/somebody-else/x"), NONE);
        prop_assert_eq!(both(&rules, "home/somebody-else/x"), NONE);
    }
}
