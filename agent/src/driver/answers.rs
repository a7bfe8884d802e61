//! Answers what is asked over the control socket.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{Action, BootTime, Driver, IdleEvent, Notice, NoticeEvent, Notifier, Order, attempts::Pending};
use crate::{
    blame,
    config::ProbeMode,
    control::{Call, Peer, RefusalCode, Request, Response},
    idle::Hold,
    procfs,
    report::Why,
    talkers,
    verdict::stands_against,
};

/// Time over which `why` looks for who is busiest; it answers that much later.
const BLAME_OVER: Duration = Duration::from_millis(500);

impl Driver {
    pub(super) fn answer(&mut self, call: Call, now: BootTime) {
        let Call { request, peer, reply } = call;
        let name = request.name();
        let (event, message) = match request {
            Request::Status => {
                // A client that went away does not want its answer.
                let _gone = reply.send(Response::Status(Box::new(self.snapshot().status(now))));
                return;
            }
            Request::Why => return answer_why(self.snapshot().why(now), self.parts.policy.probes, reply),
            Request::Attempt => {
                let _gone = reply.send(self.attempt_document(now));
                return;
            }
            Request::NotifyTest => return answer_notify_test(self.notifier.clone(), &peer, reply),
            Request::SleepCheck { force } => return self.answer_check(order(force), peer, reply, now),
            Request::Sleep { force, hooks } => {
                tracing::info!(request = name, force, hooks, by = %peer, "an operator orders a sleep");
                let _gone = reply.send(self.sleep_now(order(force), hooks, procfs::ancestors(peer.pid), now));
                return;
            }
            Request::Enable => (IdleEvent::Enable, "sleeping is allowed".into()),
            Request::Disable => (IdleEvent::Disable, "sleeping is disabled until `enable`".into()),
            Request::Reset => (IdleEvent::Reset, "the idle time begins again".into()),
            Request::Release => (IdleEvent::Release, "no hold is in force".into()),
            Request::Hold { seconds, reason } => {
                let length = Duration::from_secs(seconds);
                let hold = Hold {
                    until: now.after(length),
                    by: peer.to_string(),
                    reason,
                };
                (
                    IdleEvent::Hold(hold),
                    format!("held awake for {}", humantime::format_duration(length)),
                )
            }
        };
        tracing::info!(request = name, by = %peer, outcome = message, "an operator changes the agent");
        let _gone = reply.send(self.operator(event, message, now));
    }

    /// Does what an operator asks, and says so only once it would survive the process.
    fn operator(&mut self, event: IdleEvent, message: String, now: BootTime) -> Response {
        let actions = self.idle_event(event, now);
        self.act(&actions, now);
        self.save(now);
        match self.keeper.failure() {
            None => Response::Done { message },
            Some(why) => Response::Refused {
                code: RefusalCode::Failed,
                message: format!("done, but it will not survive a restart of the agent: {why}"),
            },
        }
    }

    /// Begins an attempt, unless something stands against it. `own`: processes of the operator who orders it.
    pub(super) fn sleep_now(&mut self, order: Order, hooks: bool, own: Vec<u32>, now: BootTime) -> Response {
        if self.attempt.is_some() {
            return Response::refused(RefusalCode::Refused, "an attempt to sleep is under way already");
        }
        self.check(now);
        let objections = self.objections(order, &own, now);
        if !objections.is_empty() {
            return Response::refused(RefusalCode::Refused, objections.join("; "));
        }
        self.pending = Some(Pending { hooks, own });
        let actions = self.idle_event(IdleEvent::SleepNow(order), now);
        let begins = actions.contains(&Action::Prepare(order));
        self.act(&actions, now);
        self.pending = None;
        if begins {
            self.attempt_document(now)
        } else {
            Response::refused(RefusalCode::Refused, "the sleep that is announced is being carried out")
        }
    }

    /// What the agent itself has against an order.
    fn objections(&self, order: Order, own: &[u32], now: BootTime) -> Vec<String> {
        let brakes = self.idle.forbids(order, now);
        let brakes = self.snapshot().brakes_in_words(&brakes, now);
        let reasons = self
            .reasons
            .iter()
            .filter(|reason| stands_against(reason, order, own, false));
        brakes.into_iter().chain(reasons.map(ToString::to_string)).collect()
    }

    /// Everything that stands against an order, the agent's own objections first. Changes nothing.
    fn answer_check(&mut self, order: Order, peer: Peer, reply: oneshot::Sender<Response>, now: BootTime) {
        self.check(now);
        let mut objections = self.objections(order, &procfs::ancestors(peer.pid), now);
        let mut host = self.host(None, "");
        tokio::spawn(async move {
            objections.extend(host.objections().await);
            // A client that went away does not want its answer.
            let _gone = reply.send(Response::SleepCheck { objections });
        });
    }

    fn attempt_document(&self, now: BootTime) -> Response {
        let document = match &self.attempt {
            Some(running) => Some(running.report().clone()),
            None => self.last_attempt.clone(),
        };
        Response::Attempt(document.map(|document| Box::new(document.at(now))))
    }
}

const fn order(force: bool) -> Order {
    if force { Order::Forced } else { Order::Operator }
}

/// Sends a notification and answers what became of it.
fn answer_notify_test(notifier: Notifier, by: &Peer, reply: oneshot::Sender<Response>) {
    let notice = Notice {
        event: NoticeEvent::Test,
        reason: format!("asked for by {by}"),
        sleeps_at: None,
    };
    tokio::spawn(async move {
        let response = match notifier.deliver_now(notice).await {
            Ok(delivered) => Response::Done {
                message: delivered.to_string(),
            },
            Err(error) => Response::Refused {
                code: RefusalCode::Failed,
                message: format!("the notification was not delivered: {error}"),
            },
        };
        // A client that went away does not want its answer.
        let _gone = reply.send(response);
    });
}

/// Completes the answer with who causes it, which takes a moment to find out, and sends it; gives up when nobody waits for it any more.
fn answer_why(mut why: Why, probes: ProbeMode, mut reply: oneshot::Sender<Response>) {
    tokio::spawn(async move {
        let done = tokio::select! {
            () = name_causes(&mut why, probes) => true,
            () = reply.closed() => false,
        };
        if done {
            // A client that went away does not want its answer.
            let _gone = reply.send(Response::Why(Box::new(why)));
        }
    });
}

async fn name_causes(why: &mut Why, probes: ProbeMode) {
    let blocked_by = |signal: &str| why.blockers.iter().any(|blocker| blocker.signal == signal);
    let (by_cpu, by_network) = (blocked_by("cpu"), blocked_by("network"));
    let cpu = async {
        if by_cpu {
            let busiest = blame::busiest_over(BLAME_OVER).await;
            busiest.iter().map(ToString::to_string).collect()
        } else {
            Vec::new()
        }
    };
    let network = async {
        if by_network {
            talkers::named(talkers::busiest_over(BLAME_OVER, probes).await)
        } else {
            Vec::new()
        }
    };
    let (cpu, network) = tokio::join!(cpu, network);
    for blocker in &mut why.blockers {
        match blocker.signal.as_str() {
            "cpu" => blocker.by.clone_from(&cpu),
            // Which interface a socket uses is not asked.
            "network" => blocker.by.clone_from(&network),
            _ => {}
        }
    }
}
