//! Where a test lets this process die: `ROOST_DIE_AT` names a step of a planned move (`lane/moving.rs`). Unset: nowhere.

use std::sync::OnceLock;

static STEP: OnceLock<Option<String>> = OnceLock::new();

/// The process ends here, as by `kill -9`, if this is the step that was named.
pub(crate) fn die_at(step: &str) {
    if STEP.get_or_init(|| std::env::var("ROOST_DIE_AT").ok()).as_deref() == Some(step) {
        std::process::abort();
    }
}
