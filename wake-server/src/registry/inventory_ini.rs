//! An Ansible inventory in INI form. Own code: it is not what INI libraries read (host lines with `key=value` words in shell quotes,
//! ranges, `[a:children]`), and none tells lines.
//!
//! As Ansible's `plugins/inventory/ini.py`: `#` and `;` begin a comment at the start of a line; within a host line `#` does; words of a
//! host line are split and unquoted as a POSIX shell does; in `[a:vars]` the rest of a line is the value. What follows ` #` there is a
//! comment, where Ansible makes it part of the value: no value that matters here can hold it.

use super::{
    MOST_NODES,
    entry::Stated,
    inventory::{Inventory, Owner},
    ranges::hosts_of,
};
use crate::complaint::{Complaints, Place, Source, quote};

/// What the lines are that follow.
enum Section {
    Hosts(Option<String>),
    Children(String),
    Variables(String),
    /// Its lines are not complained about as well.
    Broken,
}

const HOST_LINE: &str = "a line is `host key=value key=\"two words\"`; a comment within it begins with #";

pub(super) fn read(source: &Source<'_>, complaints: &mut Complaints) -> Inventory {
    let mut inventory = Inventory::default();
    let mut section = Section::Hosts(None);
    // Groups that have to be defined somewhere, before this line or after.
    let mut used: Vec<(String, Place)> = Vec::new();
    let mut variables: Vec<(String, &str, Stated<String>)> = Vec::new();
    let mut children: Vec<(String, String, Place)> = Vec::new();
    let mut start = 0;
    for line in source.text.split_inclusive('\n') {
        let at = start + line.len() - line.trim_start().len();
        start += line.len();
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let place = source.place(at);
        if line.starts_with('[') {
            section = header(line, &place, complaints);
            match &section {
                Section::Hosts(Some(group)) | Section::Children(group) => inventory.group(group),
                Section::Variables(group) => used.push((group.clone(), place)),
                Section::Hosts(None) | Section::Broken => {}
            }
            continue;
        }
        match &section {
            Section::Hosts(group) => host_line(&mut inventory, group.as_deref(), source, line, at, complaints),
            Section::Children(parent) => {
                let name = line.split('#').next().unwrap_or_default().trim();
                if name.contains(|c: char| c.is_whitespace() || matches!(c, '=' | ':' | ']')) {
                    let message = format!("{} is no name of a group", quote(name));
                    complaints.add(
                        place,
                        message,
                        "a line of [..:children] is the name of a group".to_owned(),
                    );
                } else {
                    used.push((name.to_owned(), place.clone()));
                    children.push((parent.clone(), name.to_owned(), place));
                }
            }
            Section::Variables(group) => match line.split_once('=') {
                Some((key, value)) => {
                    let value = unquoted(without_comment(value.trim())).to_owned();
                    variables.push((group.clone(), key.trim(), Stated { value, place }));
                }
                None => complaints.add(
                    place,
                    format!("{} has no value", quote(first_word(line))),
                    "a line of [..:vars] is `key=value`".to_owned(),
                ),
            },
            Section::Broken => {}
        }
    }
    for (name, place) in used {
        if !inventory.has_group(&name) && name != "all" && name != "ungrouped" {
            let hint = inventory
                .nearest_group(&name)
                .map(|meant| format!("did you mean {}?", quote(meant)));
            complaints.add(place, format!("there is no group {}", quote(&name)), hint);
        }
    }
    for (parent, child, place) in children {
        inventory.child(&parent, &child, place);
    }
    for (group, key, value) in variables {
        inventory.group(&group);
        inventory.set(Owner::Group(&group), key, vec![value], complaints);
    }
    inventory
}

/// `[group]`, `[group:children]` or `[group:vars]`, and perhaps a comment.
fn header(line: &str, place: &Place, complaints: &mut Complaints) -> Section {
    let inner = line.strip_prefix('[').and_then(|line| line.split_once(']'));
    let mut broken = |hint: String| {
        let message = format!("{} is no section", quote(line));
        complaints.add(place.clone(), message, hint);
        Section::Broken
    };
    const FORMS: &str = "a section is [group], [group:children] or [group:vars]";
    let Some((inner, rest)) = inner else {
        return broken(FORMS.into());
    };
    let rest = rest.trim_start();
    let (group, kind) = match inner.split_once(':') {
        Some((group, kind)) => (group, Some(kind)),
        None => (inner, None),
    };
    let is_name = !group.is_empty() && !group.contains(char::is_whitespace);
    if !is_name || !(rest.is_empty() || rest.starts_with('#')) {
        return broken(FORMS.into());
    }
    match kind {
        None | Some("hosts") => Section::Hosts(Some(group.to_owned())),
        Some("children") => Section::Children(group.to_owned()),
        Some("vars") => Section::Variables(group.to_owned()),
        Some(other) => {
            let known = ["children", "vars", "hosts"];
            broken(match crate::complaint::nearest(other, known) {
                Some(meant) => format!("did you mean [{group}:{meant}]?"),
                None => FORMS.into(),
            })
        }
    }
}

fn host_line(
    inventory: &mut Inventory,
    group: Option<&str>,
    source: &Source<'_>,
    line: &str,
    start: usize,
    complaints: &mut Complaints,
) {
    let place = source.place(start);
    if inventory.is_full(&place, complaints) {
        return;
    }
    let words = match words(line) {
        Ok(words) => words,
        Err(why) => return complaints.add(place, why, HOST_LINE.to_owned()),
    };
    let Some(((_, pattern), variables)) = words.split_first() else {
        return;
    };
    if let Some((key, _)) = pattern.split_once('=') {
        let message = format!("a value of {} stands where a host is named", quote(key));
        return complaints.add(place, message, HOST_LINE.to_owned());
    }
    let hosts = match hosts_of(pattern, MOST_NODES) {
        Ok(hosts) => hosts,
        Err(why) => return complaints.add(place, why, None),
    };
    for host in &hosts {
        inventory.host(group, host, &place);
    }
    let mut before = None;
    for (at, word) in variables {
        let place = source.place(start + at);
        // What follows belongs to it in a way that is not known.
        let Some((key, value)) = word.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            let message = match before {
                Some(key) if !is_shown(key) => format!("a word after {} is no `key=value`", quote(key)),
                Some(_) | None => format!("{} is no `key=value`", quote(word)),
            };
            return complaints.add(place, message, HOST_LINE.to_owned());
        };
        before = Some(key);
        if matches!(key, "wol_mac" | "ansible_host") && hosts.len() > 1 {
            complaints.add(
                place,
                format!("{} hosts cannot share one {key}", hosts.len()),
                "write a line for each host".to_owned(),
            );
            continue;
        }
        if inventory.is_full(&place, complaints) {
            return;
        }
        for host in &hosts {
            let value = Stated {
                value: value.to_owned(),
                place: place.clone(),
            };
            inventory.set(Owner::Host(host), key, vec![value], complaints);
        }
    }
}

/// Whether what stands after this variable may be shown: the rest of another's value may be a secret.
fn is_shown(key: &str) -> bool {
    matches!(key, "wol_mac" | "wol_interface" | "wol_broadcast" | "ansible_host")
}

/// The name of a variable, and nothing of its value.
fn first_word(line: &str) -> &str {
    line.split(|c: char| c.is_whitespace() || c == ':')
        .next()
        .unwrap_or_default()
}

/// The words of a line and where each begins, as Python's `shlex.split(line, comments=True)` has them.
fn words(line: &str) -> Result<Vec<(usize, String)>, &'static str> {
    let mut words: Vec<(usize, String)> = Vec::new();
    let mut word: Option<(usize, String)> = None;
    let mut characters = line.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '#' => break,
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' | '"' => {
                let (_, text) = word.get_or_insert((at, String::new()));
                loop {
                    match characters.next() {
                        Some((_, c)) if c == character => break,
                        Some((_, '\\')) if character == '"' => match characters.next() {
                            Some((_, c @ ('"' | '\\'))) => text.push(c),
                            Some((_, c)) => text.extend(['\\', c]),
                            None => return Err("a quote is not closed"),
                        },
                        Some((_, c)) => text.push(c),
                        None => return Err("a quote is not closed"),
                    }
                }
            }
            '\\' => {
                let (_, text) = word.get_or_insert((at, String::new()));
                match characters.next() {
                    Some((_, c)) => text.push(c),
                    None => return Err("nothing follows the backslash"),
                }
            }
            c => word.get_or_insert((at, String::new())).1.push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// A comment begins with `#` after white space; within quotes there is none.
fn without_comment(value: &str) -> &str {
    if value.starts_with(['"', '\'']) {
        return value;
    }
    let mut before = ' ';
    for (at, character) in value.char_indices() {
        if character == '#' && before.is_whitespace() {
            return value[..at].trim_end();
        }
        before = character;
    }
    value
}

fn unquoted(value: &str) -> &str {
    ['"', '\'']
        .into_iter()
        .find_map(|mark| value.strip_prefix(mark)?.strip_suffix(mark))
        .unwrap_or(value)
}
