//! What a notice looks like elsewhere: a document for programs, a sentence for people. Pure.

use jiff::Zoned;
use serde::Serialize;

use super::{Notice, NoticeEvent};

/// A notice on its way.
#[derive(Debug)]
pub(super) struct Message {
    notice: Notice,
    time: Zoned,
}

/// The body of the webhook.
#[derive(Serialize)]
struct Document<'a> {
    event: NoticeEvent,
    node: &'a str,
    reason: &'a str,
    time: String,
    sleeps_at: Option<String>,
}

/// The body of a Slack incoming webhook.
#[derive(Serialize)]
struct Slack<'a> {
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<&'a str>,
}

impl Message {
    /// Of `time`; its reason says if others were held back before it.
    pub(super) fn new(mut notice: Notice, time: Zoned, held_back: u32) -> Self {
        if held_back > 0 {
            let before = format!("{held_back} notices before this one were held back");
            notice.reason = match notice.reason.as_str() {
                "" => before,
                reason => format!("{reason} ({before})"),
            };
        }
        Self { notice, time }
    }

    pub(super) fn event(&self) -> NoticeEvent {
        self.notice.event
    }

    /// # Errors
    /// What serde_json says.
    pub(super) fn webhook(&self, node: &str) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Document {
            event: self.notice.event,
            node,
            reason: &self.notice.reason,
            time: rfc3339(&self.time),
            sleeps_at: self.notice.sleeps_at.as_ref().map(rfc3339),
        })
    }

    /// # Errors
    /// What serde_json says.
    pub(super) fn slack(&self, node: &str, channel: Option<&str>) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Slack {
            text: plain(&self.sentence(node)),
            channel,
        })
    }

    fn sentence(&self, node: &str) -> String {
        let what = match (self.notice.event, &self.notice.sleeps_at) {
            (NoticeEvent::GoingToSleep, Some(at)) => format!("goes to sleep at {}", at.strftime("%H:%M:%S %:z")),
            (NoticeEvent::GoingToSleep, None) => "goes to sleep soon".into(),
            (NoticeEvent::Sleeping, _) => "sleeps now".into(),
            (NoticeEvent::Awake, _) => "is awake".into(),
            (NoticeEvent::SleepRefused, _) => "was due to sleep and does not".into(),
            (NoticeEvent::SleepFailed, _) => "could not sleep".into(),
            (NoticeEvent::Test, _) => "tries out its notifications".into(),
        };
        match self.notice.reason.as_str() {
            "" => format!("{node} {what}"),
            reason => format!("{node} {what}: {reason}"),
        }
    }
}

/// Local time with its offset, as in `power.log`.
pub(super) fn rfc3339(time: &Zoned) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// Without what Slack takes for markup, `<!channel>` above all.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
