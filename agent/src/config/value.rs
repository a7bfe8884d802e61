//! One value as it was written: read from INI text, from the environment or by serde from TOML.
//!
//! Says whether the text has the right form. Ranges are checked in [`super::file`].

use std::{borrow::Cow, fmt, ops::Range, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use toml::Spanned;

use super::Scope;

/// What would be right, where the setting's own words are not enough.
pub(super) type Hint = Option<String>;

/// Where a value stands: bytes of the text, or what the environment variable held.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Ini(Range<usize>),
    Toml(Range<usize>),
    Variable(String),
}

/// A setting as the file has it.
#[derive(Clone, Debug, Default)]
pub(super) enum Slot<T> {
    /// Not written.
    #[default]
    Absent,
    /// Written, but not of the right form.
    Refused(Origin, Hint),
    /// Written.
    Given(T, Origin),
}

impl<T: FromText> Slot<T> {
    pub(super) fn read(text: &str, origin: Origin) -> Self {
        match T::from_text(text) {
            Ok(value) => Self::Given(value, origin),
            Err(hint) => Self::Refused(origin, hint),
        }
    }
}

/// Never fails for a value of the wrong type: that is kept as [`Slot::Refused`], so that the other values are read too.
impl<'de, T: DeserializeOwned> Deserialize<'de> for Slot<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Spanned::<toml::Value>::deserialize(deserializer)?;
        let origin = Origin::Toml(value.span());
        Ok(match T::deserialize(value.into_inner()) {
            Ok(value) => Self::Given(value, origin),
            Err(_) => Self::Refused(origin, None),
        })
    }
}

impl<T: JsonSchema> JsonSchema for Slot<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// Read from INI text or an environment variable.
pub(super) trait FromText: Sized {
    fn from_text(text: &str) -> Result<Self, Hint>;
}

impl FromText for String {
    fn from_text(text: &str) -> Result<Self, Hint> {
        Ok(text.to_owned())
    }
}

impl FromText for bool {
    fn from_text(text: &str) -> Result<Self, Hint> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(None),
        }
    }
}

impl FromText for u32 {
    fn from_text(text: &str) -> Result<Self, Hint> {
        text.parse().map_err(|_| None)
    }
}

impl FromText for u64 {
    fn from_text(text: &str) -> Result<Self, Hint> {
        text.parse().map_err(|_| {
            let bytes = size_with_unit(text.trim_end_matches("/s"))?;
            Some(format!("bytes per second, without a unit: {bytes}"))
        })
    }
}

impl FromText for f64 {
    fn from_text(text: &str) -> Result<Self, Hint> {
        text.parse().map_err(|_| {
            let number = text.strip_suffix('%')?.trim_end();
            number.parse::<Self>().ok()?;
            Some(format!("without the percent sign: {number}"))
        })
    }
}

/// A duration: whole minutes in the INI form and the environment, `"120m"` in TOML.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub(super) struct Span(pub(super) Duration);

impl TryFrom<String> for Span {
    type Error = humantime::DurationError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        humantime::parse_duration(&text).map(Self)
    }
}

impl FromText for Span {
    fn from_text(text: &str) -> Result<Self, Hint> {
        if let Ok(minutes) = text.parse::<u64>() {
            return minutes.checked_mul(60).map(Duration::from_secs).map(Self).ok_or(None);
        }
        let Ok(duration) = humantime::parse_duration(text) else {
            return Err(None);
        };
        let seconds = duration.as_secs();
        Err(Some(if seconds % 60 == 0 && seconds > 0 {
            format!("minutes, without a unit: {}", seconds / 60)
        } else {
            "whole minutes, without a unit; autosleep.toml takes seconds as well".into()
        }))
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^\\s*[0-9]+\\s*[a-zA-Z]+(\\s*[0-9]+\\s*[a-zA-Z]+)*\\s*$",
            "examples": ["30s", "120m", "2h"],
        })
    }
}

/// Size of a log file in bytes. K, M and G are powers of 1024, as in logrotate.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(try_from = "SizeForm")]
#[schemars(inline)]
pub(super) struct LogSize(pub(super) u64);

/// With the largest unit that divides it.
impl fmt::Display for LogSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
            if self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// As TOML has it.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum SizeForm {
    /// Bytes.
    Bytes(u64),
    /// With a unit: `"10M"`, `"10MB"`, `"10MiB"`.
    Text(String),
}

impl TryFrom<SizeForm> for LogSize {
    type Error = &'static str;

    fn try_from(form: SizeForm) -> Result<Self, Self::Error> {
        match form {
            SizeForm::Bytes(bytes) => Ok(Self(bytes)),
            SizeForm::Text(text) => size_with_unit(&text).map(Self).ok_or("not a size"),
        }
    }
}

/// The deployed `max_log_size=100` means megabytes; numbers above this cannot mean that and are bytes.
const MOST_MEBIBYTES: u64 = 10_000;

impl FromText for LogSize {
    fn from_text(text: &str) -> Result<Self, Hint> {
        match text.parse::<u64>() {
            Ok(number) if number <= MOST_MEBIBYTES => Ok(Self(number << 20)),
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => size_with_unit(text).map(Self).ok_or(None),
        }
    }
}

/// `10k`, `10 MB`, `1GiB`, `4096B`; powers of 1024. The unit is required.
fn size_with_unit(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// `always` or `off`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Probes {
    /// Attached only while their answer could change the verdict.
    Auto,
    /// Attached while the agent runs.
    Always,
    /// Never: /proc and /sys only.
    Off,
}

/// How the Kubernetes API is found.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(super) enum ApiForm {
    /// As a pod finds it, else by a kubeconfig, where there is one.
    Auto,
    /// As a pod finds it.
    InCluster,
    /// Not at all.
    Off,
}

/// What the failure of a hook before the sleep means.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum OnHookFailure {
    /// It is logged; the host sleeps.
    Continue,
    /// The host stays awake.
    Veto,
}

/// Network namespaces whose SSH servers count.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Namespaces {
    /// The agent's own.
    Host,
    /// Those of pods and containers too.
    All,
}

/// Whose use counts.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum ScopeName {
    /// All of the node's.
    Node,
    /// That of its pods.
    Pods,
}

impl FromText for ScopeName {
    fn from_text(text: &str) -> Result<Self, Hint> {
        match text.to_ascii_lowercase().as_str() {
            "node" => Ok(Self::Node),
            "pods" => Ok(Self::Pods),
            _ => Err(None),
        }
    }
}

impl From<ScopeName> for Scope {
    fn from(name: ScopeName) -> Self {
        match name {
            ScopeName::Node => Self::Node,
            ScopeName::Pods => Self::Pods,
        }
    }
}

/// Where a notification goes.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Method {
    /// The log only.
    Log,
    /// POST of a JSON document.
    Webhook,
    /// Slack incoming webhook.
    Slack,
}

impl FromText for Method {
    fn from_text(text: &str) -> Result<Self, Hint> {
        match text.to_ascii_lowercase().as_str() {
            "log" => Ok(Self::Log),
            "webhook" => Ok(Self::Webhook),
            "slack" => Ok(Self::Slack),
            _ => Err(None),
        }
    }
}

/// Least important message that is logged.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl FromText for Level {
    fn from_text(text: &str) -> Result<Self, Hint> {
        match text.to_ascii_lowercase().as_str() {
            "error" => Ok(Self::Error),
            "warn" | "warning" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err(None),
        }
    }
}

impl Level {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl From<Level> for tracing::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::ERROR,
            Level::Warn => Self::WARN,
            Level::Info => Self::INFO,
            Level::Debug => Self::DEBUG,
            Level::Trace => Self::TRACE,
        }
    }
}
