//! Suspending the host: the only file that touches power. Never decides: it is called after everything was decided and checked.

use std::{future::Future, pin::Pin, time::Duration};

use thiserror::Error;
use zbus_systemd::login1::ManagerProxy;

/// Longest wait for an answer of the system bus (fault S7).
const BUS_DEADLINE: Duration = Duration::from_secs(5);

/// `SD_LOGIND_ROOT_CHECK_INHIBITORS`: root, too, is held up by inhibitors (systemd, `src/shared/logind-util.h`; fault S2).
const ROOT_CHECKS_INHIBITORS: u64 = 1;

/// Why the host was not suspended.
#[derive(Debug, Error)]
pub enum SuspendError {
    /// No answer in time.
    #[error("logind did not answer within {} s: is systemd-logind running?", BUS_DEADLINE.as_secs())]
    Silent,
    /// The bus or logind said no.
    #[error("logind refused to suspend")]
    Refused(#[source] zbus::Error),
}

/// The outcome of a suspend, as it becomes known.
pub type Outcome<'a> = Pin<Box<dyn Future<Output = Result<(), SuspendError>> + Send + 'a>>;

/// Something that suspends the host.
pub trait Suspender: Send + Sync {
    /// Suspends, and returns when the order was carried out or refused.
    fn suspend(&self) -> Outcome<'_>;
}

/// Says what it would do.
#[derive(Debug)]
pub struct DryRun;

impl Suspender for DryRun {
    fn suspend(&self) -> Outcome<'_> {
        tracing::info!("dry run: the host would be suspended at this point");
        Box::pin(async { Ok(()) })
    }
}

/// Asks systemd-logind (org.freedesktop.login1(5), `SuspendWithFlags`).
#[derive(Debug)]
pub struct Logind;

impl Suspender for Logind {
    fn suspend(&self) -> Outcome<'_> {
        Box::pin(async {
            tokio::time::timeout(BUS_DEADLINE, async {
                let bus = zbus::Connection::system().await?;
                ManagerProxy::new(&bus)
                    .await?
                    .suspend_with_flags(ROOT_CHECKS_INHIBITORS)
                    .await
            })
            .await
            .map_err(|_elapsed| SuspendError::Silent)?
            .map_err(SuspendError::Refused)
        })
    }
}
