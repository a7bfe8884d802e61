//! `autosleep.toml`: the TOML form of the configuration.
//!
//! serde stops at the first error. So that all are reported, whatever [`ConfigFile`] has no place for is complained about and taken out
//! first, and a value of the wrong type is kept as refused (see [`super::value::Slot`]).

use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeTable, DeValue, Deserializer, ValueDeserializer},
};

use super::{
    complaint::{Complaints, quote},
    file::ConfigFile,
    setting::{Form, SECTIONS, Setting, suggest_section},
    value::Origin,
};

/// Reads the whole text; what is wrong with its form goes to `complaints`.
pub(super) fn read(text: &str, complaints: &mut Complaints<'_>) -> ConfigFile {
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        if complaints.is_full() {
            break;
        }
        let span = error.span().unwrap_or_default();
        let first = (error.message() == "duplicate key")
            .then(|| first_of(&root, text, span.start))
            .flatten();
        match first {
            Some(first) => {
                let (first, second) = (complaints.line(first), complaints.line(span.start));
                complaints.broken(
                    span.start,
                    format!(
                        "{} is written twice, first in line {first}",
                        quote(complaints.written(span.clone()))
                    ),
                    Some(format!("keep one of the lines {first} and {second}")),
                );
            }
            None => complaints.broken(span.start, format!("not TOML: {}", error.message()), None),
        }
    }
    let root = Spanned::new(root.span(), known_only(root.into_inner(), complaints));
    ConfigFile::deserialize(Deserializer::from(root)).unwrap_or_else(|error| {
        let offset = error.span().unwrap_or_default().start;
        complaints.at(offset, error.message(), None);
        ConfigFile::default()
    })
}

/// Where the key or section at `second` was written before.
fn first_of(root: &Spanned<DeTable<'_>>, text: &str, second: usize) -> Option<usize> {
    let key = |at: usize| text[at..].split(['=', ']', '\n']).next().map(str::trim);
    let is_header = text[..second].trim_end().ends_with('[');
    let word = key(second)?;
    if is_header {
        let header = format!("[{word}]");
        let mut start = 0;
        return text.split_inclusive('\n').find_map(|line| {
            let at = start;
            start += line.len();
            (at < second && line.trim_start().starts_with(&header)).then_some(at)
        });
    }
    let tables = root.get_ref().values().filter_map(|value| value.get_ref().as_table());
    [root.get_ref()]
        .into_iter()
        .chain(tables)
        .flat_map(DeTable::keys)
        .map(|key| key.span().start)
        .filter(|&at| at < second && key(at) == Some(word))
        .max()
}

/// The table without what [`ConfigFile`] cannot hold.
fn known_only<'t>(root: DeTable<'t>, complaints: &mut Complaints<'_>) -> DeTable<'t> {
    root.into_iter()
        .filter_map(|(key, value)| {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            let (span, value) = (value.span(), value.into_inner());
            let value = match (name, value) {
                ("excluded_namespaces", value) => is_usable(
                    Setting::ExcludedNamespaces,
                    &Spanned::new(span.clone(), value.clone()),
                    complaints,
                )
                .then_some(value)?,
                (section, DeValue::Table(table)) if SECTIONS.contains(&section) => {
                    DeValue::Table(known_keys(section, table, complaints))
                }
                (section, _) if SECTIONS.contains(&section) => {
                    complaints.at(
                        at,
                        format!("{} has to be a section", quote(name)),
                        Some(format!("write [{section}]")),
                    );
                    return None;
                }
                (_, DeValue::Table(_)) => {
                    complaints.at(
                        at,
                        format!("unknown section {}", quote(name)),
                        Some(suggest_section(name)),
                    );
                    return None;
                }
                (
                    _,
                    DeValue::String(_)
                    | DeValue::Integer(_)
                    | DeValue::Float(_)
                    | DeValue::Boolean(_)
                    | DeValue::Datetime(_)
                    | DeValue::Array(_),
                ) => {
                    let hint = Form::Toml
                        .suggest_key("", name)
                        .unwrap_or_else(|| suggest_section(name));
                    complaints.at(
                        at,
                        format!("unknown key {} outside of a section", quote(name)),
                        Some(hint),
                    );
                    return None;
                }
            };
            Some((key, Spanned::new(span, value)))
        })
        .collect()
}

fn known_keys<'t>(section: &str, table: DeTable<'t>, complaints: &mut Complaints<'_>) -> DeTable<'t> {
    table
        .into_iter()
        .filter(|(key, value)| {
            let name = key.get_ref().as_ref();
            let setting = match section {
                "prevent_sleep_labels" => Some(Setting::PreventSleepLabels),
                section => Form::Toml.setting(section, name),
            };
            let Some(setting) = setting else {
                let hint = Form::Toml.suggest_key(section, name);
                complaints.at(
                    key.span().start,
                    format!("unknown key {} in [{section}]", quote(name)),
                    hint,
                );
                return false;
            };
            is_usable(setting, value, complaints)
        })
        .collect()
}

/// Complains about a list that is none and about numbers no integer can hold: serde would stop there.
fn is_usable(setting: Setting, value: &Spanned<DeValue<'_>>, complaints: &mut Complaints<'_>) -> bool {
    let needs_list = matches!(
        setting,
        Setting::ExcludedNamespaces
            | Setting::NetworkInterfaces
            | Setting::SshPorts
            | Setting::BackgroundPorts
            | Setting::BackgroundCidrs
            | Setting::BackgroundProtocols
    );
    let bad = if needs_list && value.get_ref().as_array().is_none() {
        Some(value.span())
    } else {
        let read = toml::Value::deserialize(ValueDeserializer::from(value.clone()));
        read.err().map(|error| error.span().unwrap_or(value.span()))
    };
    let Some(span) = bad else {
        return true;
    };
    let origin = Origin::Toml(span.clone());
    let message = if setting.is_secret() {
        format!("{} is not a URL that can be used", quote(setting.name(&origin)))
    } else {
        format!(
            "{} cannot be {}",
            quote(setting.name(&origin)),
            quote(complaints.written(span.clone()))
        )
    };
    complaints.at(span.start, message, Some(setting.takes(&origin).into()));
    false
}
