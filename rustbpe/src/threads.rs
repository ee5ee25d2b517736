//! Threads, as many as the machine gives.

use std::thread::{Builder, Scope};
use std::time::Duration;

use crate::Error;

/// How long a thread waits for others before it looks around.
pub const TICK: Duration = Duration::from_millis(50);

/// Start up to `n` threads, each with work that `make` makes; fewer where the machine refuses more.
///
/// Returns how many there are. None at all is an error, unless none were wanted.
pub fn spawn_some<'scope, W, R>(
    scope: &'scope Scope<'scope, '_>,
    n: usize,
    mut make: impl FnMut() -> W,
) -> Result<usize, Error>
where
    W: FnOnce() -> R + Send + 'scope,
    R: Send + 'scope,
{
    for started in 0..n {
        match Builder::new().spawn_scoped(scope, make()) {
            Ok(_) => {}
            Err(error) if started == 0 => return Err(Error::NoThread(error.to_string())),
            Err(_) => return Ok(started),
        }
    }
    Ok(n)
}
