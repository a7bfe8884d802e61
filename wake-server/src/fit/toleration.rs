//! Taints and what tolerates them.

/// A taint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value, often empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
    /// `timeAdded`, as the API server has it: kept as it is.
    pub time_added: Option<String>,
}

/// A toleration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    /// Of taints with this key; empty: of all.
    pub key: String,
    /// How the value is compared.
    pub operator: TolerationOperator,
    /// The value, if it is compared.
    pub value: String,
    /// Of taints with this effect; empty: of all.
    pub effect: String,
}

/// How a toleration compares the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TolerationOperator {
    /// Not at all.
    Exists,
    /// It is the same.
    Equal,
    /// The taint's is a whole number above it. As `Lt`, since Kubernetes 1.35.
    Gt,
    /// The taint's is a whole number below it.
    Lt,
}

impl Taint {
    /// The taint that stands beside a cordon.
    pub fn cordon() -> Taint {
        Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            value: String::new(),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        }
    }

    /// Whether the scheduler places no pod here that does not tolerate it.
    pub fn keeps_pods_away(&self) -> bool {
        matches!(self.effect.as_str(), "NoSchedule" | "NoExecute")
    }
}

impl Toleration {
    /// Whether it tolerates the taint.
    pub fn tolerates(&self, taint: &Taint) -> bool {
        let is_meant =
            (self.effect.is_empty() || self.effect == taint.effect) && (self.key.is_empty() || self.key == taint.key);
        is_meant
            && match self.operator {
                TolerationOperator::Exists => true,
                TolerationOperator::Equal => self.value == taint.value,
                TolerationOperator::Gt => self.numbers(taint).is_some_and(|(taint, bound)| taint > bound),
                TolerationOperator::Lt => self.numbers(taint).is_some_and(|(taint, bound)| taint < bound),
            }
    }

    fn numbers(&self, taint: &Taint) -> Option<(i64, i64)> {
        Some((taint.value.parse().ok()?, self.value.parse().ok()?))
    }
}

/// Whether one of them tolerates the taint.
pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| toleration.tolerates(taint))
}
