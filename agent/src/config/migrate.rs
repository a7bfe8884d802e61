//! The guide's `autosleep.conf` as `autosleep.toml`, line by line, so that every comment keeps its place.
//!
//! Only `[excluded_namespaces]` moves: in TOML it is a list and has to stand before the first section.

use std::path::Path;

use toml::Value;

use super::{
    Format, Invalid, Policy,
    ini::{self, Content, Line, Word},
    setting::{Form, Setting},
    value::{FromText, Level, LogSize, Method, ScopeName},
};

/// TOML with the same meaning and the same comments as `ini`, which stands in `path`.
///
/// # Errors
/// Everything that is wrong with `ini`.
pub fn migrate(ini: &str, path: &Path) -> Result<String, Invalid> {
    Policy::parse(ini, Format::Ini, path, &|_| None)?;
    let mut output = Output::default();
    for line in ini::lines(super::without_bom(ini)) {
        output.line(&line);
    }
    Ok(output.finish())
}

/// Where lines go to.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Part {
    /// Before the first section.
    #[default]
    Head,
    Namespaces,
    Section(&'static str),
}

#[derive(Default)]
struct Output {
    part: Part,
    head: String,
    namespaces: String,
    sections: String,
    /// Blank lines and comments that may belong to the section that follows.
    pending: Vec<String>,
}

impl Output {
    fn line(&mut self, line: &Line<'_>) {
        let comment = line.comment.map(comment).unwrap_or_default();
        match line.content {
            Content::Blank => self.pending.push(comment),
            Content::Section(name) => {
                self.begin(name);
                match self.part {
                    Part::Head => {}
                    Part::Namespaces => self.push(&with_comment("excluded_namespaces = [", &comment)),
                    Part::Section(name) => self.push(&with_comment(&format!("[{name}]"), &comment)),
                }
            }
            Content::Bare(name) => {
                self.flush();
                self.push(&with_comment(&format!("    {},", text(name.text)), &comment));
            }
            Content::Entry { key, value, quoted: _ } => {
                self.flush();
                if let Part::Section(section) = self.part {
                    self.push(&with_comment(&entry(section, key.text, value), &comment));
                }
            }
            Content::Broken(..) => {}
        }
    }

    /// Comments right above a header go with it, what stands before a blank line stays.
    fn begin(&mut self, name: Word<'_>) {
        let kept = self
            .pending
            .iter()
            .rposition(String::is_empty)
            .map_or(0, |blank| blank + 1);
        let above = self.pending.split_off(kept);
        self.flush();
        self.pending = above;
        if self.part == Part::Namespaces {
            self.close();
        }
        self.part = match super::setting::SECTIONS.into_iter().find(|known| *known == name.text) {
            Some("excluded_namespaces") => Part::Namespaces,
            Some(known) => Part::Section(known),
            None => Part::Head,
        };
        self.flush();
    }

    fn flush(&mut self) {
        for line in std::mem::take(&mut self.pending) {
            self.push(&line);
        }
    }

    fn push(&mut self, line: &str) {
        let part = match self.part {
            Part::Head => &mut self.head,
            Part::Namespaces => &mut self.namespaces,
            Part::Section(_) => &mut self.sections,
        };
        part.push_str(line);
        part.push('\n');
    }

    fn close(&mut self) {
        self.namespaces.truncate(self.namespaces.trim_end().len());
        self.namespaces.push_str("\n]\n\n");
    }

    fn finish(mut self) -> String {
        self.flush();
        if self.part == Part::Namespaces {
            self.close();
        }
        let whole = [self.head, self.namespaces, self.sections].concat();
        whole.trim_end().to_owned() + "\n"
    }
}

/// The same comment in TOML, which knows `#` only and no control characters.
fn comment(ini: &str) -> String {
    let text = ini.strip_prefix([';', '#']).unwrap_or(ini);
    let allowed = text.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c });
    format!("#{}", allowed.collect::<String>().trim_end())
}

fn with_comment(line: &str, comment: &str) -> String {
    if comment.is_empty() {
        line.to_owned()
    } else {
        format!("{line} {comment}")
    }
}

/// `key = value` in TOML. The value is known to be good.
fn entry(section: &str, key: &str, value: Word<'_>) -> String {
    let Some(setting) = Form::Ini.setting(section, key) else {
        return format!("{} = {}", text(key), text(value.text)); // a label
    };
    let written = value.text;
    let toml = match setting {
        Setting::Enabled
        | Setting::CheckPods
        | Setting::CheckCpu
        | Setting::CheckNetwork
        | Setting::CheckSshSessions
        | Setting::NotificationEnabled => bool::from_text(written).map(Value::Boolean).ok(),
        Setting::InactivityTimeout | Setting::CheckInterval | Setting::GracePeriod | Setting::NotificationBefore => {
            u64::from_text(written)
                .map(|minutes| Value::String(format!("{minutes}m")))
                .ok()
        }
        Setting::CpuThreshold => number(written),
        Setting::NetworkThreshold | Setting::LogRetention => written.parse().map(Value::Integer).ok(),
        Setting::NetworkInterfaces => Some(Value::Array(
            ini::interfaces(value)
                .map(|name| Value::String(name.text.into()))
                .collect(),
        )),
        Setting::NotificationMethod => Method::from_text(written)
            .map(|_| Value::String(written.to_ascii_lowercase()))
            .ok(),
        Setting::CpuScope | Setting::NetworkScope => ScopeName::from_text(written)
            .map(|_| Value::String(written.to_ascii_lowercase()))
            .ok(),
        Setting::LogLevel => Level::from_text(written)
            .map(|level| Value::String(level.name().into()))
            .ok(),
        Setting::MaxLogSize => LogSize::from_text(written)
            .map(|size| Value::String(size.to_string()))
            .ok(),
        Setting::WebhookUrl | Setting::SlackChannel | Setting::LogDir => None,
        Setting::MinAwake
        | Setting::Probes
        | Setting::SshPorts
        | Setting::SshNamespaces
        | Setting::BackgroundDefaults
        | Setting::BackgroundPorts
        | Setting::BackgroundCidrs
        | Setting::BackgroundProtocols
        | Setting::SshIdleCap
        | Setting::ExcludedNamespaces
        | Setting::PreventSleepLabels
        | Setting::AllowS2idle
        | Setting::ArmWol
        | Setting::AllowUnwakeable
        | Setting::WakeAfter
        | Setting::HookTimeout
        | Setting::HookFailure
        | Setting::HooksFolder
        | Setting::WakeServerUrl
        | Setting::WakeServerTokenFile
        | Setting::WakeServerCaFile
        | Setting::MetricsListen
        | Setting::MetricsTextfile
        | Setting::WattsAwake
        | Setting::WattsAsleep
        | Setting::KubernetesApi
        | Setting::KubernetesKubeconfig
        | Setting::KubernetesNode => None,
    };
    let key = setting.row().toml.unwrap_or(key);
    match toml {
        Some(value) => format!("{key} = {value}"),
        None => format!("{key} = {}", text(written)),
    }
}

/// `10` stays an integer.
fn number(written: &str) -> Option<Value> {
    let integer = written.parse().map(Value::Integer).ok();
    integer.or_else(|| f64::from_text(written).map(Value::Float).ok())
}

/// A quoted string, good as a key too.
fn text(text: &str) -> String {
    Value::String(text.into()).to_string()
}
