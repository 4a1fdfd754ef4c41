//! What Python tells the engine at start and on reload: plain data, read from JSON.
//!
//! Invariants: every field has a safe default, unknown fields are refused, units stand last in each name.
//! Nothing here opens a file; paths are read by `net::tls` and `access`, which report file and line.

use serde::Deserialize;

use crate::limits::Limits;

/// Everything that an engine needs to start. One JSON object; see `docs/formats/door.md`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Number of lanes (OS threads); 0 means one per core.
    pub lanes: usize,
    /// Number of partitions, a power of two; 0 means 64.
    pub partitions: usize,
    /// SipHash key as 32 hexadecimal digits; made at random when absent.
    pub key: Option<String>,
    /// Listeners in the order in which they are bound and reported.
    pub listeners: Vec<ListenerSettings>,
    /// Access rules; a listener refers to one by position.
    pub access: Vec<AccessSettings>,
    /// Bounds.
    pub limits: Limits,
    /// Behaviour within the freedom that the standard leaves.
    pub mqtt: MqttSettings,
    /// Where everything durable is kept; in memory when absent.
    pub data: Option<DataSettings>,
    /// Least ack classes of topics.
    pub ack_filters: Vec<AckFilter>,
    /// No event tells of connections that come, go or are refused.
    pub quiet_connections: bool,
    /// This node among others; alone when absent.
    pub cluster: Option<ClusterSettings>,
    /// Connections stay in the lane that accepted them, apart from their sessions: as between nodes, slower than together.
    pub apart: bool,
}

/// This node of a cluster. Who the others are and who owns what is told by orders (`members`, `table`).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSettings {
    /// Number of this node, 0 to 15: nobody else has it.
    pub slot: u16,
    /// Another one with each start.
    pub incarnation: u64,
    /// Where it listens for links.
    pub links: std::net::SocketAddr,
    /// 64 hexadecimal digits that the nodes of a cluster share: links to other machines are encrypted with it.
    #[serde(default)]
    pub secret: Option<String>,
    /// Links on loopback are encrypted too.
    #[serde(default)]
    pub encrypt_loopback: bool,
    /// Where the log is; without it everything is in memory and goes with its node.
    #[serde(default)]
    pub nats: Option<NatsSettings>,
}

/// The cluster's log on NATS.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the table is in docs/formats/door.md")]
pub struct NatsSettings {
    pub cluster: String,
    pub urls: Vec<String>,
    pub streams: u16,
    pub replicas: Option<u64>,
    pub max_bytes: u64,
    /// `always`, `asserted` or `any`.
    pub sync: String,
    pub user: Option<String>,
    pub password: Option<String>,
    pub token: Option<String>,
    pub nkey: Option<String>,
    pub credentials: Option<String>,
    pub authority: Option<String>,
    pub certificate: Option<String>,
    pub key: Option<String>,
    pub system_user: Option<String>,
    pub system_password: Option<String>,
    /// Directory in which the node keeps what it has stored once more.
    pub cache_dir: Option<String>,
    pub cache_bytes_max: u64,
    /// What its files begin with.
    pub cache_head: String,
}

/// The data directory and how it is used.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// Its path.
    pub dir: String,
    /// 0: synced before every acknowledgement. Otherwise a sync at most so much later, milliseconds.
    pub sync_every_ms: u64,
    /// Message bodies in memory that the disk has too, bytes.
    pub cache_bytes_max: usize,
    /// QoS 1 leaves only when it is safe.
    pub deliver_after_safe: bool,
    /// A checkpoint is not begun before so many bytes were written.
    pub checkpoint_bytes_min: u64,
}

impl Default for DataSettings {
    fn default() -> Self {
        let (cache_bytes_max, checkpoint_bytes_min) = (64 * 1024 * 1024, 64 * 1024 * 1024);
        Self { dir: String::new(), sync_every_ms: 0, cache_bytes_max, deliver_after_safe: false, checkpoint_bytes_min }
    }
}

/// What an acknowledgement of QoS 1 means. QoS 2 into a persistent session is always safe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckClass {
    /// In the queues of this process.
    Memory,
    /// Held by a majority of replicas; on one machine the same as `durable`.
    Replicated,
    /// Synced to disk.
    #[default]
    Durable,
}

/// The least ack class of the topics that a filter matches.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AckFilter {
    /// Topic filter.
    pub filter: String,
    /// Class.
    pub ack: AckClass,
}

/// One listening socket.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenerSettings {
    /// Name used in logs and events, for example `tcp` or `mqtts-2`.
    pub name: String,
    /// IP address to bind (v4 or v6); ignored when `path` is set.
    pub host: String,
    /// Port; 0 picks a free one, which the `listening` event reports.
    pub port: u16,
    /// Path of a Unix socket instead of host and port.
    pub path: Option<String>,
    /// MQTT inside WebSocket.
    pub websocket: bool,
    /// WebSocket request path that is accepted; empty accepts every path.
    pub websocket_path: String,
    /// TLS, when present.
    pub tls: Option<TlsSettings>,
    /// Networks (CIDR) whose PROXY protocol header is required and believed; empty: no PROXY protocol.
    pub proxy_from: Vec<String>,
    /// Position in `Settings::access`.
    pub access: usize,
    /// Connections on this listener; 0 means no bound of its own.
    pub connections_max: usize,
    /// Highest QoS offered here.
    pub qos_max: Option<u8>,
    /// Topic aliases that a client may use here.
    pub topic_alias_max: Option<u16>,
    /// Ack class of its clients' messages.
    pub ack: AckClass,
    /// A message may ask for a lower class.
    pub ack_lower: bool,
    /// Prefix put before every topic of this listener's clients, taken off again on delivery.
    pub mount_point: String,
}

/// Certificates of one listener. All paths are PEM files.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsSettings {
    /// Server certificate chain.
    pub cert_file: String,
    /// Private key of the certificate.
    pub key_file: String,
    /// Authorities that client certificates are checked against.
    pub ca_file: Option<String>,
    /// Directory of authority certificates (every PEM file in it).
    pub ca_path: Option<String>,
    /// Revocation list in PEM.
    pub crl_file: Option<String>,
    /// `none`, `optional` or `required`.
    pub client_certificates: ClientCertificates,
    /// `1.2` or `1.3`; both are offered when absent.
    pub version_min: Option<String>,
    /// Where the username comes from when the client shows a certificate.
    pub identity: CertificateIdentity,
    /// Cipher suites by IANA or OpenSSL name; empty means the library's own choice.
    pub ciphers: Vec<String>,
}

/// Whether a client must show a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificates {
    /// Never asked for.
    #[default]
    None,
    /// Asked for, checked if shown.
    Optional,
    /// The handshake fails without one.
    Required,
}

/// Which part of a client certificate becomes the username.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateIdentity {
    /// The certificate only opens the door.
    #[default]
    None,
    /// The common name.
    CommonName,
    /// The whole subject, in RFC 2253 order as mosquitto prints it.
    Subject,
}

/// Who may do what, for the listeners that refer to it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessSettings {
    /// Clients without credentials may connect.
    pub allow_anonymous: bool,
    /// Password file, `user:hash` lines.
    pub password_file: Option<String>,
    /// ACL file in mosquitto's format.
    pub acl_file: Option<String>,
    /// JSON Web Tokens as passwords.
    pub jwt: Option<JwtSettings>,
    /// Client ids must start with one of these; empty allows all.
    pub client_id_prefixes: Vec<String>,
}

/// How tokens are checked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JwtSettings {
    /// `HS256`, `RS256` or `ES256`.
    pub algorithm: String,
    /// File with the shared secret (raw bytes) or the public key (PEM).
    pub key_file: String,
    /// Required `iss`.
    pub issuer: Option<String>,
    /// Required `aud`.
    pub audience: Option<String>,
    /// Claim that must equal the username; empty: the claim `sub` becomes the username.
    pub username_claim: String,
    /// Claim with the client's rules: `{"publish": [filters], "subscribe": [filters]}`.
    pub acl_claim: String,
    /// Tolerated clock difference, seconds.
    pub leeway_s: u64,
}

/// Choices that the standard leaves to a server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MqttSettings {
    /// Highest QoS offered.
    pub qos_max: u8,
    /// Retained messages offered.
    pub retain_available: bool,
    /// An empty client id gets an assigned one (always with MQTT 5, with Clean Session in 3.1.1).
    pub allow_empty_client_id: bool,
    /// Prefix of assigned client ids.
    pub assigned_id_prefix: String,
    /// QoS 0 messages are queued for persistent sessions that are away.
    pub queue_qos0: bool,
    /// Deliver at the subscription's QoS even when the message was published at a lower one.
    pub upgrade_qos: bool,
    /// 3.1.1 sessions without a connection end after this time, seconds; 0 keeps them.
    pub persistent_client_expiration_s: u64,
    /// Retained messages end after this time, seconds; 0 keeps them.
    pub retain_expiry_s: u64,
    /// Response Information given to clients that ask; `%c` is the client id. Empty: none.
    pub response_information: String,
    /// TCP_NODELAY on accepted sockets.
    pub tcp_nodelay: bool,
    /// Topic aliases that the engine assigns towards a client, at most (and at most what the client allows).
    pub outbound_alias_max: u16,
}

impl Default for MqttSettings {
    fn default() -> Self {
        Self {
            qos_max: 2,
            retain_available: true,
            allow_empty_client_id: true,
            assigned_id_prefix: "auto-".to_owned(),
            queue_qos0: false,
            upgrade_qos: false,
            persistent_client_expiration_s: 0,
            retain_expiry_s: 0,
            response_information: String::new(),
            tcp_nodelay: true,
            outbound_alias_max: 16,
        }
    }
}
