//! Takes the keys it is asked for out of TOML, and complains about the rest: about everything at once, where serde would stop at the
//! first. Never knows what a key means.

use std::collections::BTreeSet;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::complaint::{Complaints, Place, Source, nearest, quote};

/// What would be right, where a key's own words are not enough.
pub(crate) type Hint = Option<String>;

/// The document; what is wrong with its form is complained about.
pub(crate) fn document<'t>(source: &Source<'t>, complaints: &mut Complaints) -> DeTable<'t> {
    let (root, errors) = DeTable::parse_recoverable(source.text);
    for error in errors {
        let span = error.span().unwrap_or_default();
        let message = match error.message() {
            "duplicate key" => format!("{} is written twice", quote(source.written(span.clone()))),
            other => format!("not TOML: {other}"),
        };
        complaints.add(source.place(span.start), message, None);
    }
    root.into_inner()
}

/// One table of it.
pub(crate) struct Keys<'a, 't> {
    source: &'a Source<'t>,
    table: &'a DeTable<'t>,
    /// As in `[wake]`; empty: the table without a header.
    name: &'static str,
    asked: BTreeSet<&'static str>,
}

impl<'a, 't> Keys<'a, 't> {
    pub(crate) fn new(source: &'a Source<'t>, table: &'a DeTable<'t>, name: &'static str) -> Self {
        Self {
            source,
            table,
            name,
            asked: BTreeSet::new(),
        }
    }

    /// Where `key` stands; `None`: it is not written.
    pub(crate) fn place(&mut self, key: &'static str) -> Option<Place> {
        self.asked.insert(key);
        let (key, _) = self.table.get_key_value(key)?;
        Some(self.source.place(key.span().start))
    }

    /// What `read` makes of the value of `key`, which `takes` says in words. `None`: not written, or complained about.
    pub(crate) fn read<T>(
        &mut self,
        key: &'static str,
        takes: &str,
        complaints: &mut Complaints,
        read: impl FnOnce(&DeValue<'t>) -> Result<T, Hint>,
    ) -> Option<T> {
        let value = self.value(key)?;
        let written = Some(self.source.written(value.span()));
        self.judge(key, takes, written, value, complaints, read)
    }

    /// The same for text that is not to be shown to anybody.
    pub(crate) fn secret<T>(
        &mut self,
        key: &'static str,
        takes: &str,
        complaints: &mut Complaints,
        read: impl FnOnce(&str) -> Result<T, Hint>,
    ) -> Option<T> {
        let value = self.value(key)?;
        self.judge(key, takes, None, value, complaints, |value| text(value).and_then(read))
    }

    /// What `read` makes of the items of the list `key`. `None` also if one of them cannot be read: each such is complained about.
    pub(crate) fn list<T>(
        &mut self,
        key: &'static str,
        takes: &str,
        complaints: &mut Complaints,
        mut read: impl FnMut(&DeValue<'t>) -> Result<T, Hint>,
    ) -> Option<Vec<(T, Place)>> {
        let value = self.value(key)?;
        let Some(items) = value.get_ref().as_array() else {
            let written = Some(self.source.written(value.span()));
            return self.judge(key, takes, written, value, complaints, |_| Err(None));
        };
        let item = |item: &Spanned<DeValue<'t>>| {
            let written = Some(self.source.written(item.span()));
            let read = self.judge(key, takes, written, item, complaints, &mut read)?;
            Some((read, self.source.place(item.span().start)))
        };
        let read: Vec<Option<_>> = items.iter().map(item).collect();
        read.into_iter().collect()
    }

    /// The table `key` within this one.
    pub(crate) fn table(&mut self, key: &'static str, complaints: &mut Complaints) -> Option<Keys<'a, 't>> {
        let value = self.value(key)?;
        let Some(table) = value.get_ref().as_table() else {
            let hint = format!("write [{key}]");
            complaints.add(
                self.source.place(value.span().start),
                format!("{} has to be a section", quote(key)),
                hint,
            );
            return None;
        };
        Some(Keys::new(self.source, table, key))
    }

    /// The tables `[[key]]` within this one, and where each begins.
    pub(crate) fn tables(&mut self, key: &'static str, complaints: &mut Complaints) -> Vec<(Keys<'a, 't>, Place)> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        let mut take = |value: &'a Spanned<DeValue<'t>>| {
            let place = self.source.place(value.span().start);
            match value.get_ref().as_table() {
                Some(table) => found.push((Keys::new(self.source, table, key), place)),
                None => complaints.add(
                    place,
                    format!("{} has to be a list of sections", quote(key)),
                    format!("write [[{key}]]"),
                ),
            }
        };
        match value.get_ref().as_array() {
            Some(items) => items.iter().for_each(take),
            // `[node]` instead of `[[node]]`.
            None => match value.get_ref().as_table() {
                Some(_) => complaints.add(
                    self.source.place(value.span().start),
                    format!("[{key}] can be written once only"),
                    format!("write [[{key}]]"),
                ),
                None => take(value),
            },
        }
        found
    }

    /// Complains about every key that nobody asked for.
    pub(crate) fn finish(self, complaints: &mut Complaints) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if self.asked.contains(name) {
                continue;
            }
            let within = if self.name.is_empty() {
                String::new()
            } else {
                format!(" in [{}]", self.name)
            };
            let hint = match nearest(name, self.asked.iter().copied()) {
                Some(meant) => format!("did you mean {}?", quote(meant)),
                None => format!(
                    "known here: {}",
                    self.asked.iter().copied().collect::<Vec<_>>().join(", ")
                ),
            };
            complaints.add(
                self.source.place(key.span().start),
                format!("unknown key {}{within}", quote(name)),
                hint,
            );
        }
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'t>>> {
        self.asked.insert(key);
        self.table.get(key)
    }

    fn judge<T>(
        &self,
        key: &str,
        takes: &str,
        written: Option<&str>,
        value: &Spanned<DeValue<'t>>,
        complaints: &mut Complaints,
        read: impl FnOnce(&DeValue<'t>) -> Result<T, Hint>,
    ) -> Option<T> {
        let hint = match read(value.get_ref()) {
            Ok(value) => return Some(value),
            Err(hint) => hint,
        };
        let message = match written {
            Some(written) => format!("{} cannot be {}", quote(key), quote(written)),
            None => format!("{} cannot be what is written here", quote(key)),
        };
        let hint = hint.unwrap_or_else(|| format!("it takes {takes}"));
        complaints.add(self.source.place(value.span().start), message, hint);
        None
    }
}

/// The value as text.
pub(crate) fn text<'v>(value: &'v DeValue<'_>) -> Result<&'v str, Hint> {
    value.as_str().ok_or(None)
}

/// The value as a number.
pub(crate) fn number(value: &DeValue<'_>) -> Result<u64, Hint> {
    let number = value.as_integer().ok_or(None)?;
    u64::from_str_radix(number.as_str(), number.radix()).map_err(|_| None)
}
