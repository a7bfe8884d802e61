//! Required node affinity.

use std::collections::BTreeMap;

/// Required node affinity: one of the terms must match. Without a term nothing matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// The terms.
    pub terms: Vec<Term>,
}

/// A term: all of it must match. An empty one matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Term {
    /// On labels.
    pub labels: Vec<Requirement>,
    /// On fields; `metadata.name` is the only one that Kubernetes has.
    pub fields: Vec<Requirement>,
}

/// A requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Key of the label, or the field.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    pub values: Vec<String>,
}

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// Is one of the values.
    In,
    /// Is none of the values, or is absent.
    NotIn,
    /// Is there.
    Exists,
    /// Is absent.
    DoesNotExist,
    /// Is a number above the only value.
    Gt,
    /// Is a number below the only value.
    Lt,
    /// Not known: matches nothing.
    Unknown,
}

impl Affinity {
    /// Whether a node of this name with these labels matches.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.terms.iter().any(|term| term.matches(name, labels))
    }
}

impl Term {
    fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let is_empty = self.labels.is_empty() && self.fields.is_empty();
        let on_labels =
            |requirement: &Requirement| requirement.matches(labels.get(&requirement.key).map(String::as_str));
        let on_name = |requirement: &Requirement| requirement.key == "metadata.name" && requirement.matches(Some(name));
        !is_empty && self.labels.iter().all(on_labels) && self.fields.iter().all(on_name)
    }
}

impl Requirement {
    /// Whether this value, or its absence, matches.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let is_listed = || value.is_some_and(|value| self.values.iter().any(|listed| listed == value));
        match self.operator {
            Operator::In => is_listed(),
            Operator::NotIn => !is_listed(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => self.numbers(value).is_some_and(|(value, bound)| value > bound),
            Operator::Lt => self.numbers(value).is_some_and(|(value, bound)| value < bound),
            Operator::Unknown => false,
        }
    }

    fn numbers(&self, value: Option<&str>) -> Option<(i64, i64)> {
        match self.values.as_slice() {
            [bound] => Some((value?.parse().ok()?, bound.parse().ok()?)),
            [] | [_, _, ..] => None,
        }
    }
}
