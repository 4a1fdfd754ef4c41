//! The way to NATS: addresses, who we are, TLS. A server that is away, or all of them, also at the start, is tried again
//! without end.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};

/// Longest time between two tries.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Who we are to NATS.
#[derive(Clone, Default)]
pub enum Auth {
    /// Nobody.
    #[default]
    Anybody,
    /// A user with a password.
    Password(String, String),
    /// A token.
    Token(String),
    /// The seed of an NKey.
    NKey(String),
    /// A file of credentials (JWT and seed).
    Credentials(PathBuf),
}

/// Who checks whom when TLS is used.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Certificates of the authority of the servers; the system's if there is none.
    pub authority: Option<PathBuf>,
    /// Certificate and key of ours.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How NATS is reached.
#[derive(Clone, Default)]
pub struct Access {
    /// Addresses: `nats://host:port`, or `tls://`.
    pub urls: Vec<String>,
    /// Who we are.
    pub auth: Auth,
    /// TLS is required, with this.
    pub tls: Option<Tls>,
    /// What the servers show this connection as.
    pub name: String,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let auth = match self.auth {
            Auth::Anybody => "anybody",
            Auth::Password(..) => "password",
            Auth::Token(_) => "token",
            Auth::NKey(_) => "nkey",
            Auth::Credentials(_) => "credentials",
        };
        f.debug_struct("Access").field("urls", &self.urls).field("auth", &auth).field("tls", &self.tls).finish()
    }
}

impl Access {
    /// Connects, now or as soon as a server is there; `event` hears what becomes of the connection.
    ///
    /// # Errors
    /// Addresses, credentials or certificates cannot be read or are no such thing: what, and which.
    pub async fn connect(&self, event: impl Fn(Event) + Send + Sync + Clone + 'static) -> Result<Client, String> {
        let mut options = self.identified().await?;
        if let Some(tls) = &self.tls {
            options = options.require_tls(true);
            if let Some(authority) = &tls.authority {
                options = options.add_root_certificates(authority.clone());
            }
            if let Some((certificate, key)) = &tls.identity {
                options = options.add_client_certificate(certificate.clone(), key.clone());
            }
        }
        let options = options
            .name(&self.name)
            .retry_on_initial_connect()
            .max_reconnects(None::<usize>)
            .reconnect_delay_callback(|n| RETRY_MAX.min(Duration::from_millis(50 << n.min(6))))
            .connection_timeout(Duration::from_secs(3))
            .ping_interval(Duration::from_secs(5))
            .event_callback(move |what| {
                event(what);
                std::future::ready(())
            });
        let urls = self.urls.iter().map(|url| url.parse::<async_nats::ServerAddr>());
        let urls = urls.collect::<Result<Vec<_>, _>>().map_err(|e| format!("{:?}: {e}", self.urls))?;
        options.connect(urls).await.map_err(|e| format!("{:?}: {e}", self.urls))
    }

    async fn identified(&self) -> Result<ConnectOptions, String> {
        let options = ConnectOptions::new();
        Ok(match &self.auth {
            Auth::Anybody => options,
            Auth::Password(user, password) => options.user_and_password(user.clone(), password.clone()),
            Auth::Token(token) => options.token(token.clone()),
            Auth::NKey(seed) => options.nkey(seed.clone()),
            Auth::Credentials(file) => {
                options.credentials_file(file).await.map_err(|e| format!("credentials {}: {e}", file.display()))?
            }
        })
    }
}
