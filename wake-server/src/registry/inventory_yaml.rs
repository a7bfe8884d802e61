//! An Ansible inventory in YAML, and so in JSON: groups of `hosts`, `children` and `vars`.
//!
//! The text is read into a tree with the place of each value first, so that everything that is wrong can be told at once. Text stays as
//! it is written: YAML would make a number of some MAC addresses.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Spanned};

use super::{
    MOST_NODES,
    entry::Stated,
    inventory::{Inventory, Owner},
    ranges::hosts_of,
};
use crate::complaint::{Complaints, Place, Source, nearest, quote};

/// Parts of a group.
const PARTS: [&str; 3] = ["hosts", "children", "vars"];

type Value = Spanned<Tree>;

/// One value.
enum Tree {
    Nothing,
    /// Text that YAML takes for text.
    Text(String),
    /// Text that YAML takes for something else: it is taken as it is written.
    Plain,
    List(Vec<Value>),
    Map(Vec<(Spanned<String>, Value)>),
}

pub(super) fn read(source: &Source<'_>, complaints: &mut Complaints) -> Inventory {
    let mut reader = Reader {
        source,
        complaints,
        inventory: Inventory::default(),
    };
    let options = serde_saphyr::options! {
        with_snippet: false,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // `1e9999999999` is a MAC address.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        budget: serde_saphyr::budget! {
            // In proportion to the longest file.
            max_events: 8_000_000,
            max_nodes: 4_000_000,
            // In proportion to a thread's stack of 2 MiB: a level takes 35 KiB of it without optimization.
            max_depth: 32,
        },
    };
    match serde_saphyr::from_str_with_options::<Value>(source.text, options) {
        Ok(root) => reader.root(&root),
        Err(error) => {
            let place = error.location().map_or(Place::whole(source.path), |location| Place {
                path: source.path.to_owned(),
                line: usize::try_from(location.line()).unwrap_or_default(),
                column: usize::try_from(location.column()).unwrap_or_default(),
            });
            reader
                .complaints
                .add(place, format!("not YAML: {}", error.without_snippet()), None);
        }
    }
    reader.inventory
}

struct Reader<'a, 't> {
    source: &'a Source<'t>,
    complaints: &'a mut Complaints,
    inventory: Inventory,
}

impl Reader<'_, '_> {
    fn root(&mut self, root: &Value) {
        if matches!(root.value, Tree::Nothing) {
            return;
        }
        for (name, group) in self.map(
            root,
            "an inventory",
            "write `all:` and below it `hosts:` or `children:`",
        ) {
            if name.value == "plugin" {
                self.complain(
                    name,
                    "this is the configuration of an inventory plugin, not an inventory",
                    "`ansible-inventory --list --yaml` writes out what it finds".to_owned(),
                );
                continue;
            }
            self.group(name, group);
        }
    }

    fn group(&mut self, name: &Spanned<String>, group: &Value) {
        self.inventory.group(&name.value);
        if matches!(group.value, Tree::Nothing) {
            return;
        }
        for (part, value) in self.map(group, "a group", "it has `hosts:`, `children:` or `vars:`") {
            match part.value.as_str() {
                "hosts" => self.hosts(&name.value, value),
                "children" => self.children(&name.value, value),
                "vars" => {
                    for (key, value) in self.part(value, "`vars:`", "a line is `name: value`") {
                        self.variable(Owner::Group(&name.value), key, value);
                    }
                }
                other => {
                    let hint = match nearest(other, PARTS) {
                        Some(meant) => format!("did you mean {}?", quote(meant)),
                        None => "a group within it belongs below `children:`, a host below `hosts:`".to_owned(),
                    };
                    let message = format!("unknown {} in the group {}", quote(other), quote(&name.value));
                    self.complain(part, message, hint);
                }
            }
        }
    }

    fn children(&mut self, parent: &str, children: &Value) {
        for (name, group) in self.part(children, "`children:`", "a line is `group:`") {
            let place = self.place(name);
            self.inventory.child(parent, &name.value, place);
            self.group(name, group);
        }
    }

    fn hosts(&mut self, group: &str, hosts: &Value) {
        for (pattern, variables) in self.part(hosts, "`hosts:`", "a line is `host:`, its variables below it") {
            let place = self.place(pattern);
            if self.inventory.is_full(&place, self.complaints) {
                return;
            }
            let names = match hosts_of(&pattern.value, MOST_NODES) {
                Ok(names) => names,
                Err(why) => {
                    self.complaints.add(place, why, None);
                    continue;
                }
            };
            for name in &names {
                self.inventory.host(Some(group), name, &place);
            }
            for (key, value) in self.part(variables, "a host", "its variables are `name: value`") {
                if matches!(key.value.as_str(), "wol_mac" | "ansible_host") && names.len() > 1 {
                    let message = format!("{} hosts cannot share one {}", names.len(), key.value);
                    self.complain(key, message, "write each host".to_owned());
                    continue;
                }
                let place = self.place(key);
                if self.inventory.is_full(&place, self.complaints) {
                    return;
                }
                for name in &names {
                    self.variable(Owner::Host(name), key, value);
                }
            }
        }
    }

    fn variable(&mut self, owner: Owner<'_>, key: &Spanned<String>, value: &Value) {
        let words = match &value.value {
            Tree::Nothing => return,
            Tree::Text(_) | Tree::Plain => vec![value],
            Tree::List(items) => items.iter().collect(),
            Tree::Map(_) => Vec::new(),
        };
        let texts: Vec<Stated<String>> = words
            .iter()
            .filter_map(|word| {
                Some(Stated {
                    value: self.text(word)?.trim().to_owned(),
                    place: self.place(word),
                })
            })
            .collect();
        let is_known = key.value.starts_with("wol_") || key.value == "ansible_host";
        if texts.len() < words.len() || matches!(value.value, Tree::Map(_)) {
            if is_known {
                self.complain(value, format!("{} has to be text", quote(&key.value)), None);
            }
            return;
        }
        self.inventory.set(owner, &key.value, texts, self.complaints);
    }

    /// The text of a value, as it is written if YAML takes it for something else.
    fn text<'v>(&'v self, value: &'v Value) -> Option<&'v str> {
        match &value.value {
            Tree::Text(text) => Some(text),
            Tree::Plain => {
                let span = value.defined.span();
                let (start, length) = (span.byte_offset()?, span.byte_len()?);
                let (start, length) = (usize::try_from(start).ok()?, usize::try_from(length).ok()?);
                self.source.text.get(start..start.checked_add(length)?)
            }
            Tree::Nothing | Tree::List(_) | Tree::Map(_) => None,
        }
    }

    /// As [`Self::map`]; nothing and a single word are read as Ansible does.
    fn part<'v>(&mut self, value: &'v Value, what: &str, hint: &str) -> Vec<&'v (Spanned<String>, Value)> {
        match &value.value {
            Tree::Nothing => Vec::new(),
            Tree::Text(_) | Tree::Plain | Tree::List(_) | Tree::Map(_) => self.map(value, what, hint),
        }
    }

    /// The pairs of a map, none twice.
    fn map<'v>(&mut self, value: &'v Value, what: &str, hint: &str) -> Vec<&'v (Spanned<String>, Value)> {
        let Tree::Map(pairs) = &value.value else {
            self.complain(value, format!("{what} has to be a map"), hint.to_owned());
            return Vec::new();
        };
        let mut seen: BTreeMap<&str, Place> = BTreeMap::new();
        let mut kept = Vec::new();
        for pair in pairs {
            let (key, _) = pair;
            let place = self.place(key);
            match seen.get(key.value.as_str()) {
                Some(first) => self.complaints.add(
                    place,
                    format!("{} is written twice, first in {first}", quote(&key.value)),
                    "keep one of the two".to_owned(),
                ),
                None => {
                    seen.insert(&key.value, place);
                    kept.push(pair);
                }
            }
        }
        kept
    }

    fn complain<T>(&mut self, at: &Spanned<T>, message: impl Into<String>, hint: impl Into<Option<String>>) {
        let place = self.place(at);
        self.complaints.add(place, message, hint);
    }

    fn place<T>(&self, value: &Spanned<T>) -> Place {
        Place {
            path: self.source.path.to_owned(),
            line: usize::try_from(value.referenced.line()).unwrap_or_default(),
            column: usize::try_from(value.referenced.column()).unwrap_or_default(),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nothing)
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Tree, E> {
        Ok(Tree::Text(text))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Plain)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Plain)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Plain)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Tree, E> {
        Ok(Tree::Plain)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Tree, E> {
        Ok(Tree::Plain)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Plain)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Tree, A::Error> {
        let mut map = Vec::new();
        while let Some(pair) = pairs.next_entry()? {
            map.push(pair);
        }
        Ok(Tree::Map(map))
    }
}
