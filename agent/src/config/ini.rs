//! The guide's `autosleep.conf`: lines, sections and comments, with the place of each.
//!
//! Own code, because neither rust-ini nor configparser tells where a key stands, notices that one is written twice, keeps comments
//! or knows keys without `=`; `[excluded_namespaces]` needs the last, and every complaint needs the first.
//!
//! The rules: `;` and `#` begin a comment at the start of a line or after white space, so that a URL or a `#channel` stays
//! whole. A value in single or double quotes is taken as it stands, comment signs included; there are no escapes. Each section and each key
//! comes once. Indentation means nothing.

use std::{collections::BTreeMap, ops::Range};

use toml::Spanned;

use super::{
    complaint::{Complaints, quote},
    file::ConfigFile,
    setting::{Form, SECTIONS, Setting, suggest_section},
    value::{FromText, Origin, Slot},
};

/// One line.
#[derive(Debug)]
pub(super) struct Line<'t> {
    pub(super) content: Content<'t>,
    /// With its sign, without white space around it.
    pub(super) comment: Option<&'t str>,
}

/// What a line says.
#[derive(Debug)]
pub(super) enum Content<'t> {
    /// Nothing, or a comment only.
    Blank,
    /// `[name]`
    Section(Word<'t>),
    /// `key=value`
    Entry {
        key: Word<'t>,
        /// Without quotes.
        value: Word<'t>,
        /// Whether it had them.
        quoted: bool,
    },
    /// `key`
    Bare(Word<'t>),
    /// None of these, and why.
    Broken(Word<'t>, &'static str),
}

/// A piece of the text and where it begins, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word<'t> {
    pub(super) text: &'t str,
    pub(super) start: usize,
}

impl<'t> Word<'t> {
    fn trim(self) -> Self {
        let text = self.text.trim_start();
        Self {
            start: self.start + self.text.len() - text.len(),
            text: text.trim_end(),
        }
    }

    fn split(self, at: usize) -> (Self, Self) {
        let (left, right) = self.text.split_at(at);
        let right = Word {
            text: right,
            start: self.start + at,
        };
        (Word { text: left, ..self }, right)
    }

    pub(super) fn span(self) -> Range<usize> {
        self.start..self.start + self.text.len()
    }

    /// The part before a comment, and the comment: its sign comes after white space.
    fn split_comment(self) -> (Self, Option<&'t str>) {
        let mut before = None;
        for (at, character) in self.text.char_indices() {
            if matches!(character, '#' | ';') && before.is_some_and(char::is_whitespace) {
                let (value, comment) = self.split(at);
                return (value.trim(), Some(comment.text.trim_end()));
            }
            before = Some(character);
        }
        (self.trim(), None)
    }
}

/// All lines of `text`, the last included if it has no end of line.
pub(super) fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut start = 0;
    text.split_inclusive('\n').map(move |line| {
        let word = Word { text: line, start };
        start += line.len();
        read_line(word)
    })
}

fn read_line(line: Word<'_>) -> Line<'_> {
    let of = |content, comment| Line { content, comment };
    let word = line.trim();
    let broken = |why| of(Content::Broken(word, why), None);
    if word.text.is_empty() {
        return of(Content::Blank, None);
    }
    if word.text.starts_with(['#', ';']) {
        return of(Content::Blank, Some(word.text));
    }
    if word.text.starts_with('[') {
        let Some(end) = word.text.find(']') else {
            return broken("this section header has no `]`");
        };
        let (header, rest) = word.split(end);
        let rest = rest.split(1).1.trim();
        if !rest.text.is_empty() && !rest.text.starts_with(['#', ';']) {
            return broken("there is something after the section header");
        }
        return of(
            Content::Section(header.split(1).1.trim()),
            (!rest.text.is_empty()).then_some(rest.text),
        );
    }
    let Some(equals) = word.text.find('=') else {
        let (bare, comment) = word.split_comment();
        return of(Content::Bare(bare), comment);
    };
    let (key, rest) = word.split(equals);
    // A comment may hold the `=`: `kube-system # = the control plane`.
    if let (bare, Some(_)) = key.split_comment() {
        return of(Content::Bare(bare), word.split_comment().1);
    }
    let key = key.trim();
    if key.text.is_empty() {
        return broken("there is no key before `=`");
    }
    let rest = rest.split(1).1;
    let value = rest.trim();
    match value.text.chars().next() {
        Some(mark @ ('"' | '\'')) => {
            let inside = value.split(1).1;
            let Some(end) = inside.text.find(mark) else {
                return broken("the quote that begins the value is not closed");
            };
            let (value, after) = inside.split(end);
            let after = after.split(1).1.trim();
            if !after.text.is_empty() && !after.text.starts_with(['#', ';']) {
                return broken("there is something after the quoted value");
            }
            of(
                Content::Entry {
                    key,
                    value,
                    quoted: true,
                },
                (!after.text.is_empty()).then_some(after.text),
            )
        }
        Some(_) | None => {
            let (value, comment) = rest.split_comment();
            let quoted = false;
            of(Content::Entry { key, value, quoted }, comment)
        }
    }
}

/// Reads the whole text; what is wrong with its lines goes to `complaints`.
pub(super) fn read(text: &str, complaints: &mut Complaints<'_>) -> ConfigFile {
    let mut file = ConfigFile::default();
    let mut place = Place::Before;
    let mut sections = BTreeMap::new();
    let mut keys = BTreeMap::new();
    for line in lines(text) {
        if complaints.is_full() {
            break;
        }
        match line.content {
            Content::Blank => {}
            Content::Broken(word, why) => complaints.broken(word.start, why, Some(
                "a line is `[section]`, `key=value`, a comment after `#` or `;`, or, in [excluded_namespaces], a name".into(),
            )),
            Content::Section(name) => {
                place = Place::of(name.text);
                match place {
                    Place::Before => {}
                    Place::Unknown => complaints.at(
                        name.start,
                        format!("unknown section {}", quote(name.text)),
                        Some(suggest_section(name.text)),
                    ),
                    Place::Namespaces => {
                        file.excluded_namespaces.get_or_insert_default();
                    }
                    Place::Labels => {
                        file.prevent_sleep_labels.get_or_insert_default();
                    }
                    Place::Settings(_) => {}
                }
                twice(&mut sections, name.text, name, complaints);
            }
            Content::Entry { key, value, quoted } => {
                if twice(&mut keys, (place, key.text), key, complaints) {
                    continue;
                }
                let swallowed = line
                    .comment
                    .filter(|comment| !quoted && value.text.is_empty() && is_channel(comment));
                match (swallowed, key.text) {
                    (Some(comment), "slack_channel") => complaints.at(
                        value.start,
                        "`slack_channel` has no value: what follows is a comment",
                        Some(format!("write slack_channel=\"{comment}\"")),
                    ),
                    (Some(_) | None, _) => entry(&mut file, place, key, value, complaints),
                }
            }
            Content::Bare(word) => bare(&mut file, place, word, complaints),
        }
    }
    file
}

/// `#ops` rather than `# a remark`.
fn is_channel(comment: &str) -> bool {
    comment
        .strip_prefix('#')
        .is_some_and(|name| name.starts_with(char::is_alphanumeric) && !name.contains(char::is_whitespace))
}

/// In which section a line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Before the first.
    Before,
    /// In one that does not exist: its lines are not complained about as well.
    Unknown,
    Namespaces,
    Labels,
    Settings(&'static str),
}

impl Place {
    fn of(name: &str) -> Self {
        match SECTIONS.into_iter().find(|known| *known == name) {
            None => Self::Unknown,
            Some("excluded_namespaces") => Self::Namespaces,
            Some("prevent_sleep_labels") => Self::Labels,
            Some(known) => Self::Settings(known),
        }
    }
}

/// Complains if `what` was seen before.
fn twice<K: Ord>(seen: &mut BTreeMap<K, usize>, what: K, word: Word<'_>, complaints: &mut Complaints<'_>) -> bool {
    let Some(first) = seen.get(&what) else {
        seen.insert(what, word.start);
        return false;
    };
    let (first, second) = (complaints.line(*first), complaints.line(word.start));
    complaints.at(
        word.start,
        format!("{} is written twice, first in line {first}", quote(word.text)),
        Some(format!("keep one of the lines {first} and {second}")),
    );
    true
}

fn entry(file: &mut ConfigFile, place: Place, key: Word<'_>, value: Word<'_>, complaints: &mut Complaints<'_>) {
    match place {
        Place::Unknown => {}
        Place::Before => complaints.at(
            key.start,
            format!("{} stands before the first section", quote(key.text)),
            Some("begin with [general]".into()),
        ),
        Place::Namespaces => complaints.at(
            key.start,
            format!("{} has a value", quote(key.text)),
            Some(format!("[excluded_namespaces] takes names only: {}", quote(key.text))),
        ),
        Place::Labels => {
            let name = Spanned::new(key.span(), key.text.to_owned());
            let labels = file.prevent_sleep_labels.get_or_insert_default();
            labels.insert(name, Slot::read(value.text, Origin::Ini(value.span())));
        }
        Place::Settings(section) => match Form::Ini.setting(section, key.text) {
            Some(setting) => set(file, setting, value),
            None => complaints.at(
                key.start,
                format!("unknown key {} in [{section}]", quote(key.text)),
                Form::Ini.suggest_key(section, key.text),
            ),
        },
    }
}

fn bare(file: &mut ConfigFile, place: Place, word: Word<'_>, complaints: &mut Complaints<'_>) {
    // Only the first word is shown: what follows it may be a secret.
    let first = word.text.split(char::is_whitespace).next().unwrap_or_default();
    match place {
        Place::Unknown => {}
        Place::Namespaces => {
            let names = file.excluded_namespaces.get_or_insert_default();
            names.push(Slot::read(word.text, Origin::Ini(word.span())));
        }
        Place::Before | Place::Labels | Place::Settings(_) => complaints.broken(
            word.start,
            format!("{} has no value", quote(first)),
            Some("a line is `key=value`".into()),
        ),
    }
}

/// Puts the value where the file has the setting. Empty is as good as not written where that means something.
fn set(file: &mut ConfigFile, setting: Setting, value: Word<'_>) {
    fn slot<T: FromText>(value: Word<'_>) -> Slot<T> {
        Slot::read(value.text, Origin::Ini(value.span()))
    }
    let ConfigFile {
        general,
        activity_detection: detection,
        notification,
        logging,
        network_background: _,
        sleep: _,
        wake_server: _,
        metrics: _,
        energy: _,
        kubernetes: _,
        excluded_namespaces: _,
        prevent_sleep_labels: _,
    } = file;
    match setting {
        Setting::Enabled => general.enabled = slot(value),
        Setting::InactivityTimeout => general.inactivity_timeout = slot(value),
        Setting::CheckInterval => general.check_interval = slot(value),
        Setting::GracePeriod => general.grace_period = slot(value),
        Setting::CheckPods => detection.check_pods = slot(value),
        Setting::CheckCpu => detection.check_cpu = slot(value),
        Setting::CpuThreshold => detection.cpu_threshold_percent = slot(value),
        Setting::CpuScope => detection.cpu_scope = slot(value),
        Setting::CheckNetwork => detection.check_network = slot(value),
        Setting::NetworkThreshold => detection.network_threshold_bytes = slot(value),
        Setting::NetworkScope => detection.network_scope = slot(value),
        Setting::NetworkInterfaces => {
            detection.network_interfaces = Some(interfaces(value).map(slot).collect());
        }
        Setting::CheckSshSessions => detection.check_ssh_sessions = slot(value),
        Setting::NotificationEnabled => notification.enabled = slot(value),
        Setting::NotificationBefore => notification.before = slot(value),
        Setting::NotificationMethod => notification.method = slot(value),
        Setting::WebhookUrl => notification.webhook_url = slot(value),
        Setting::SlackChannel => notification.slack_channel = slot(value),
        Setting::LogDir => logging.log_dir = slot(value),
        Setting::LogLevel => logging.log_level = slot(value),
        Setting::MaxLogSize => logging.max_log_size = slot(value),
        Setting::LogRetention => logging.log_retention = slot(value),
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
        | Setting::KubernetesNode => unreachable!("{setting:?} has no name in the INI form"),
    }
}

/// The names in `eth0, eth1`; none in an empty value.
pub(super) fn interfaces(value: Word<'_>) -> impl Iterator<Item = Word<'_>> {
    let mut start = value.start;
    value
        .text
        .split_inclusive(|c: char| c == ',' || c.is_whitespace())
        .map(move |piece| {
            let name = piece.trim_end_matches(|c: char| c == ',' || c.is_whitespace());
            let word = Word { text: name, start };
            start += piece.len();
            word
        })
        .filter(|word| !word.text.is_empty())
}
