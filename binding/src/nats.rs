//! The log of a cluster on NATS, opened from the settings of an engine.

use std::path::PathBuf;
use std::sync::Arc;

use roostmq_engine::log::{ClusterLog, ClusterLogNotify};
use roostmq_engine::settings::NatsSettings;
use roostmq_engine_nats::cache::CacheOptions;
use roostmq_engine_nats::connect::{Access, Auth, Tls};
use roostmq_engine_nats::log::{NatsLog, Options};
use roostmq_engine_nats::stream::SyncNeed;

/// See [`roostmq_engine::port::OpenLog`].
pub fn open(nats: &NatsSettings, notify: ClusterLogNotify) -> Result<Arc<dyn ClusterLog>, String> {
    let path = |p: &Option<String>| p.as_ref().map(PathBuf::from);
    let tls =
        nats.urls.iter().any(|u| u.starts_with("tls://")) || nats.authority.is_some() || nats.certificate.is_some();
    let auth = match (&nats.user, &nats.token, &nats.nkey, path(&nats.credentials)) {
        (Some(user), ..) => Auth::Password(user.clone(), nats.password.clone().unwrap_or_default()),
        (_, Some(token), ..) => Auth::Token(token.clone()),
        (_, _, Some(seed), _) => Auth::NKey(seed.clone()),
        (_, _, _, Some(file)) => Auth::Credentials(file),
        _ => Auth::Anybody,
    };
    let access = Access {
        urls: nats.urls.clone(),
        auth,
        tls: tls
            .then(|| Tls { authority: path(&nats.authority), identity: path(&nats.certificate).zip(path(&nats.key)) }),
        name: format!("roost {}", nats.cluster),
    };
    let mut options = Options::new(access.clone(), &nats.cluster, notify);
    options.system = nats.system_user.as_ref().map(|user| Access {
        auth: Auth::Password(user.clone(), nats.system_password.clone().unwrap_or_default()),
        ..access
    });
    if nats.streams > 0 {
        options.names.streams = nats.streams;
    }
    if nats.max_bytes > 0 {
        options.needs.max_bytes = nats.max_bytes;
    }
    options.needs.replicas = nats.replicas;
    options.needs.sync = match nats.sync.as_str() {
        "asserted" => SyncNeed::Asserted,
        "any" => SyncNeed::Any,
        _ => SyncNeed::Always,
    };
    options.cache = path(&nats.cache_dir).map(|dir| CacheOptions {
        dir,
        bytes_max: nats.cache_bytes_max,
        head: nats.cache_head.clone(),
    });
    let log = NatsLog::start(options).map_err(|e| format!("no thread for the log on NATS: {e}"))?;
    Ok(Arc::new(log))
}
