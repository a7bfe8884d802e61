//! Label and field selectors.

use serde_json::Value;

use super::{
    refusal::Refusal,
    resources::{Resource, Scope},
};

/// Which objects a list or a watch is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<LabelTest>,
    fields: Vec<FieldTest>,
}

#[derive(Clone, Debug)]
enum LabelTest {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

#[derive(Clone, Debug)]
struct FieldTest {
    field: String,
    /// The field as a JSON pointer.
    pointer: String,
    value: String,
    equal: bool,
}

impl Selector {
    pub(super) fn parse(resource: &Resource, labels: Option<&str>, fields: Option<&str>) -> Result<Self, Refusal> {
        let labels = match labels {
            Some(text) => split(text)
                .into_iter()
                .map(LabelTest::parse)
                .collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let fields = match fields {
            Some(text) => text
                .split(',')
                .filter(|part| !part.is_empty())
                .map(|part| FieldTest::parse(resource, part))
                .collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        Ok(Self { labels, fields })
    }

    /// That of a PodDisruptionBudget: none selects nothing, an empty one everything.
    pub(super) fn of_budget(selector: Option<&Value>) -> Option<Self> {
        let selector = selector.filter(|selector| !selector.is_null())?;
        let mut labels = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            labels.push(LabelTest::In(key.clone(), vec![value.as_str()?.to_owned()]));
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let key = expression["key"].as_str()?.to_owned();
            let values = expression["values"].as_array().into_iter().flatten();
            let values = values.filter_map(|value| value.as_str().map(str::to_owned)).collect();
            labels.push(match expression["operator"].as_str()? {
                "In" => LabelTest::In(key, values),
                "NotIn" => LabelTest::NotIn(key, values),
                "Exists" => LabelTest::Exists(key),
                "DoesNotExist" => LabelTest::Absent(key),
                _ => return None,
            });
        }
        Some(Self {
            labels,
            fields: Vec::new(),
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|test| test.matches(object)) && self.fields.iter().all(|test| test.matches(object))
    }
}

impl LabelTest {
    fn parse(text: &str) -> Result<Self, Refusal> {
        let text = text.trim();
        let unreadable = || Refusal::bad_request(format!("unable to parse requirement: {text}"));
        if let Some((key, values)) = text.split_once('(') {
            let values = values.strip_suffix(')').ok_or_else(unreadable)?;
            let values = values.split(',').map(|value| value.trim().to_owned()).collect();
            let (key, operator) = key.trim().rsplit_once(' ').ok_or_else(unreadable)?;
            let key = key.trim().to_owned();
            return match operator {
                "in" => Ok(Self::In(key, values)),
                "notin" => Ok(Self::NotIn(key, values)),
                _ => Err(unreadable()),
            };
        }
        if let Some((key, value)) = text.split_once("!=") {
            return Ok(Self::NotIn(key.trim().into(), vec![value.trim().into()]));
        }
        if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            return Ok(Self::In(key.trim().into(), vec![value.trim().into()]));
        }
        if let Some(key) = text.strip_prefix('!') {
            return Ok(Self::Absent(key.trim().into()));
        }
        if text.is_empty() || text.contains(' ') {
            return Err(unreadable());
        }
        Ok(Self::Exists(text.into()))
    }

    fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let label = |key: &String| labels.get(key).and_then(Value::as_str);
        let one_of = |value: &str, values: &[String]| values.iter().any(|listed| listed == value);
        match self {
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
            Self::In(key, values) => label(key).is_some_and(|value| one_of(value, values)),
            Self::NotIn(key, values) => label(key).is_none_or(|value| !one_of(value, values)),
        }
    }
}

/// At the commas that are in no parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_usize, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

impl FieldTest {
    fn parse(resource: &Resource, text: &str) -> Result<Self, Refusal> {
        let (field, value, equal) = if let Some((field, value)) = text.split_once("!=") {
            (field, value, false)
        } else if let Some((field, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            (field, value, true)
        } else {
            return Err(Refusal::bad_request(format!(
                "invalid selector: '{text}'; can't understand '{text}'"
            )));
        };
        if !is_selectable(resource, field) {
            return Err(Refusal::bad_request(format!("field label not supported: {field}")));
        }
        Ok(Self {
            field: field.into(),
            pointer: format!("/{}", field.replace('.', "/")),
            value: value.into(),
            equal,
        })
    }

    fn matches(&self, object: &Value) -> bool {
        let is_flag = matches!(self.field.as_str(), "spec.unschedulable" | "spec.hostNetwork");
        let is_it = match object.pointer(&self.pointer) {
            Some(Value::String(text)) => *text == self.value,
            Some(Value::Bool(flag)) => flag.to_string() == self.value,
            Some(Value::Number(number)) => number.to_string() == self.value,
            _ if is_flag => self.value == "false",
            _ => self.value.is_empty(),
        };
        is_it == self.equal
    }
}

fn is_selectable(resource: &Resource, field: &str) -> bool {
    match (resource.plural, field) {
        (_, "metadata.name") => true,
        (_, "metadata.namespace") => resource.scope == Scope::Namespaced,
        ("pods", field) => [
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ]
        .contains(&field),
        ("nodes", field) => field == "spec.unschedulable",
        ("namespaces", field) => field == "status.phase",
        ("events", field) => {
            field.starts_with("involvedObject.")
                || field.starts_with("regarding.")
                || ["reason", "type", "source", "reportingComponent"].contains(&field)
        }
        ("jobs", field) => field == "status.successful",
        _ => false,
    }
}
