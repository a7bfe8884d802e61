//! Wakes what is wanted through the server, again if it failed, and keeps what came of it.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;
use vmstation_protocol::{SCHEMA, WakeAllDocument, WakeDocument, WakeOutcome};

use super::{
    Exit, Failure, Target, Wanted,
    client::{Accept, Client},
    progress::Progress,
};

/// What is told of failures altogether, bytes; each wake has a line of its own besides.
const LONGEST: usize = 2000;

/// How to wake.
pub(super) struct Waking<'a> {
    pub(super) client: &'a Client,
    pub(super) verify: bool,
    pub(super) retries: u32,
    pub(super) delay: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Woken {
    /// Every wake the server has told of.
    pub(super) document: WakeAllDocument,
    /// What is worst about it.
    pub(super) failure: Option<Failure>,
}

impl Woken {
    /// What a document tells.
    pub(super) fn of(document: WakeAllDocument) -> Self {
        let mut failure = None;
        for wake in &document.nodes {
            worsen(&mut failure, failed(wake));
        }
        if let Some(name) = document.without_mac.first() {
            let message = format!("no MAC address of {name} is known; enter it in the server's registry");
            worsen(&mut failure, Some(Failure::new(Exit::Failed, message)));
        }
        Self { document, failure }
    }

    fn nothing() -> Self {
        Self {
            document: WakeAllDocument {
                schema: SCHEMA,
                nodes: Vec::new(),
                without_mac: Vec::new(),
            },
            failure: None,
        }
    }

    fn add(&mut self, other: Self) {
        self.document.nodes.extend(other.document.nodes);
        self.document.without_mac.extend(other.document.without_mac);
        worsen(&mut self.failure, other.failure);
    }
}

impl Waking<'_> {
    /// Wakes all that is wanted. One that fails does not keep the others asleep.
    pub(super) async fn wake(&self, wanted: &Wanted) -> Woken {
        let progress = Progress::new();
        match wanted {
            Wanted::All => self.many("/wake/all", &progress).await,
            Wanted::Roles(roles) => {
                let mut woken = Woken::nothing();
                for role in roles {
                    woken.add(self.many(&format!("/wake/all?role={role}"), &progress).await);
                }
                woken
            }
            Wanted::Nodes(targets) => self.each(targets, &progress).await,
        }
    }

    /// All at the same time: the server waits for each as long as for the slowest.
    async fn each(&self, targets: &[Target], progress: &Progress) -> Woken {
        let wakes = targets.iter().map(|target| self.one(target, progress));
        let mut woken = Woken::nothing();
        for one in join_all(wakes).await {
            woken.add(one);
        }
        woken
    }

    async fn one(&self, target: &Target, progress: &Progress) -> Woken {
        let line = progress.line(&target.to_string());
        let path = format!("/wake/{target}");
        self.again(async || {
            let wake: WakeDocument = if self.verify {
                let path = format!("{path}?verify=true");
                self.client.wake(&path, Accept::Events, |wake| line.wake(wake)).await?
            } else {
                self.client
                    .wake(&path, Accept::Document, |wake| line.wake(wake))
                    .await?
            };
            Ok(WakeAllDocument {
                schema: SCHEMA,
                nodes: vec![wake],
                without_mac: Vec::new(),
            })
        })
        .await
    }

    async fn many(&self, path: &str, progress: &Progress) -> Woken {
        let line = progress.line("nodes");
        let path = match (self.verify, path.contains('?')) {
            (false, _) => path.to_owned(),
            (true, false) => format!("{path}?verify=true"),
            (true, true) => format!("{path}&verify=true"),
        };
        // As events in any case: staggered, it takes longer than a silence may last.
        self.again(async || self.client.wake(&path, Accept::Events, |wakes| line.wakes(wakes)).await)
            .await
    }

    /// Until it succeeds, it would fail the same way again, or the tries are used up.
    async fn again(&self, mut ask: impl AsyncFnMut() -> Result<WakeAllDocument, Failure>) -> Woken {
        let mut tries = self.retries;
        loop {
            let woken = match ask().await {
                Ok(document) => Woken::of(document),
                Err(failure) => Woken {
                    failure: Some(failure),
                    ..Woken::nothing()
                },
            };
            let is_worth_it = woken.failure.as_ref().is_some_and(|failure| failure.exit.may_pass());
            if tries == 0 || !is_worth_it {
                return woken;
            }
            tries -= 1;
            sleep(self.delay).await;
        }
    }
}

impl Exit {
    /// Whether the same request may succeed later.
    const fn may_pass(self) -> bool {
        match self {
            Self::Failed | Self::Refused | Self::Unreachable | Self::TimedOut => true,
            Self::Usage | Self::Unauthorized | Self::Configuration => false,
        }
    }
}

fn failed(wake: &WakeDocument) -> Option<Failure> {
    let (exit, how) = match wake.outcome {
        WakeOutcome::Sent | WakeOutcome::Awake => return None,
        WakeOutcome::Waking => (Exit::Failed, "the server ended before the wake of it did"),
        WakeOutcome::TimedOut => (Exit::TimedOut, "not proved awake in time"),
        WakeOutcome::NotSent => (Exit::Failed, "no packet could be sent"),
        WakeOutcome::Cancelled => (Exit::Refused, "the wake was called off"),
    };
    Some(Failure::new(exit, format!("{}: {how}", wake.node)))
}

/// Tells both, up to a bound, and exits as the worse of them says.
fn worsen(failure: &mut Option<Failure>, other: Option<Failure>) {
    let Some(other) = other else {
        return;
    };
    match failure {
        None => *failure = Some(other),
        Some(failure) => {
            failure.exit = failure.exit.max(other.exit);
            if failure.message.len() + other.message.len() < LONGEST {
                failure.message.push_str("; ");
                failure.message.push_str(&other.message);
            }
        }
    }
}
