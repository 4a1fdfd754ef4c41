//! What a load shall do, as the command line says it: one JSON object (`docs/formats/bench.md`), checked once.

use serde::{Deserialize, Serialize};

use crate::stamp::STAMP;

/// Largest payload, so that a packet with it has a length that MQTT can say [MQTT-2.2.3].
const SIZE_MAX: u64 = 268_000_000;
/// Messages per second that a schedule is kept for.
const RATE_MAX: f64 = 1e7;
/// Pairs of a subscriber and a publisher that it hears: about 40 bytes each.
const PAIRS_MAX: usize = 50_000_000;
/// Longest text, so that it fits into a packet with what is put before and behind it.
const TEXT_MAX: usize = 65_000;

/// Which load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Publishers and subscribers at once.
    PubSub,
    /// Connections: how fast, and what an idle one costs.
    Connect,
    /// Retained messages: stored, then found by a wildcard.
    Retained,
    /// Many filters: how fast, what one costs, and what a publish costs then.
    Subscriptions,
    /// Messages for persistent sessions that are away, and their return.
    Offline,
    /// Traffic with clients that come and go, for long.
    Soak,
}

/// Parts of [`Work::Offline`]: each alone, so that a broker can be restarted between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// All three.
    #[default]
    All,
    /// Sessions subscribe and go away.
    Prepare,
    /// Messages are sent to them.
    Load,
    /// They come back and get everything.
    Drain,
}

/// A whole load. Counts are numbers of clients or messages, sizes are bytes, times are seconds unless the name says so.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::struct_excessive_bools)]
pub struct Plan {
    pub work: Work,
    pub host: String,
    pub port: u16,
    /// 4 is MQTT 3.1.1, 5 is MQTT 5.0.
    pub protocol: u8,
    pub qos: u8,
    /// Bytes of a payload.
    pub size: usize,
    pub publishers: usize,
    pub subscribers: usize,
    /// 0: one for each publisher.
    pub topics: usize,
    /// Every subscriber gets every topic.
    pub every: bool,
    /// Name of the shared group that all subscribers join.
    pub shared: String,
    /// Messages that a publisher may have under way.
    pub window: u32,
    /// Messages per second in total on a fixed schedule; 0: as fast as the windows allow.
    pub rate: f64,
    pub warmup_s: f64,
    pub seconds: f64,
    /// Messages in total for works that count them.
    pub messages: u64,
    /// Clients, sessions, retained topics or filters of works that have only one kind.
    pub count: usize,
    /// Connections that may be in the making at a time.
    pub concurrency: usize,
    /// Connection or subscription steps of works that grow.
    pub steps: Vec<usize>,
    /// With `%i` for the number of the filter.
    pub filter: String,
    /// Topics that are published to while subscriptions grow.
    pub published: usize,
    pub part: Part,
    /// File that carries what was sent from `load` to `drain`.
    pub state: String,
    /// Sessions outlive their connection.
    pub persistent: bool,
    /// Subscriptions of each idle client.
    pub subscriptions: usize,
    /// Seconds without progress after which what is missing is lost.
    pub patience_s: f64,
    pub threads: usize,
    /// Local addresses that connections begin at, in turn.
    pub sources: Vec<String>,
    pub username: String,
    pub password: String,
    pub tls: bool,
    pub cafile: String,
    pub cert: String,
    pub key: String,
    /// Name in the server's certificate; empty: the host.
    pub server_name: String,
    pub websocket: bool,
    pub path: String,
    /// Processes of the broker.
    pub pids: Vec<u32>,
    /// Distinguishes this load from others on the same broker; 0: random.
    pub run: u16,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            work: Work::PubSub,
            host: "127.0.0.1".to_owned(),
            port: 1883,
            protocol: 4,
            qos: 0,
            size: 64,
            publishers: 10,
            subscribers: 10,
            topics: 0,
            every: false,
            shared: String::new(),
            window: 20,
            rate: 0.0,
            warmup_s: 0.5,
            seconds: 5.0,
            messages: 0,
            count: 1000,
            concurrency: 100,
            steps: Vec::new(),
            filter: "a/+/x%i/#".to_owned(),
            published: 1000,
            part: Part::All,
            state: String::new(),
            persistent: false,
            subscriptions: 0,
            patience_s: 10.0,
            threads: 1,
            sources: Vec::new(),
            username: String::new(),
            password: String::new(),
            tls: false,
            cafile: String::new(),
            cert: String::new(),
            key: String::new(),
            server_name: String::new(),
            websocket: false,
            path: "/mqtt".to_owned(),
            pids: Vec::new(),
            run: 0,
        }
    }
}

impl Plan {
    /// Reads and checks.
    ///
    /// # Errors
    /// The text names the option and what it allows.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut plan: Self = serde_json::from_str(text).map_err(|e| format!("the plan: {e}"))?;
        plan.check()?;
        if plan.run == 0 {
            let mut bytes = [0; 2];
            getrandom::fill(&mut bytes).map_err(|e| format!("no random number: {e}"))?;
            plan.run = u16::from_le_bytes(bytes).max(1);
        }
        if plan.topics == 0 {
            plan.topics = plan.publishers;
        }
        Ok(plan)
    }

    fn check(&self) -> Result<(), String> {
        self.check_numbers()?;
        self.check_pairs()?;
        self.check_texts()
    }

    fn check_numbers(&self) -> Result<(), String> {
        let bounds = [
            ("--qos", u64::from(self.qos), 0, 2),
            ("--size", self.size as u64, STAMP as u64, SIZE_MAX),
            ("--publishers", self.publishers as u64, 0, 1_000_000),
            ("--subscribers", self.subscribers as u64, 0, 1_000_000),
            ("--topics", self.topics as u64, 0, 1_000_000),
            ("--window", u64::from(self.window), 1, 65_535),
            ("--count", self.count as u64, 1, 100_000_000),
            ("--published", self.published as u64, 1, 1_000_000),
            ("--concurrency", self.concurrency as u64, 1, 100_000),
            ("--threads", self.threads as u64, 1, 256),
            ("--subscriptions", self.subscriptions as u64, 0, 10_000),
        ];
        for (name, value, low, high) in bounds {
            if !(low..=high).contains(&value) {
                return Err(format!("{name}: {value} is not between {low} and {high}"));
            }
        }
        let times = [("--seconds", self.seconds), ("--warmup", self.warmup_s), ("--patience", self.patience_s)];
        for (name, value) in times {
            if !(value.is_finite() && (0.0..=1e7).contains(&value)) {
                return Err(format!("{name}: {value} is not a time in seconds"));
            }
        }
        if !(0.0..=RATE_MAX).contains(&self.rate) {
            return Err(format!("--rate: {} is not between 0 and {RATE_MAX} per second", self.rate));
        }
        if !matches!(self.protocol, 4 | 5) {
            return Err(format!("--protocol: {} is not 4 (MQTT 3.1.1) or 5", self.protocol));
        }
        Ok(())
    }

    fn check_pairs(&self) -> Result<(), String> {
        let topics = if self.topics > 0 { self.topics } else { self.publishers };
        let parts = if self.every || !self.shared.is_empty() { 1 } else { topics.min(self.subscribers).max(1) };
        let heard = self.publishers.div_ceil(parts);
        if matches!(self.work, Work::PubSub | Work::Soak) && heard.saturating_mul(self.subscribers) > PAIRS_MAX {
            let subscribers = self.subscribers;
            return Err(format!(
                "--subscribers: {subscribers} that hear {heard} publishers each are more than {PAIRS_MAX} pairs"
            ));
        }
        Ok(())
    }

    fn check_texts(&self) -> Result<(), String> {
        let texts = [("--username", &self.username), ("--password", &self.password), ("--filter", &self.filter)];
        for (name, text) in texts.into_iter().chain([("--shared", &self.shared)]) {
            if text.len() > TEXT_MAX {
                return Err(format!("{name}: {} bytes are more than {TEXT_MAX}", text.len()));
            }
        }
        if self.shared.contains(['/', '+', '#']) {
            return Err(format!("--shared: `{}` is not the name of a group: it has one of / + #", self.shared));
        }
        // [MQTT-3.1.2-22]
        if self.protocol == 4 && self.username.is_empty() && !self.password.is_empty() {
            return Err("--password: MQTT 3.1.1 has none without a --username".to_owned());
        }
        if self.cert.is_empty() != self.key.is_empty() {
            return Err("--cert and --key go together".to_owned());
        }
        Ok(())
    }
}
