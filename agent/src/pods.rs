//! The user pods of this node. The agent's only file that may name a Kubernetes library; it reads, and never writes to the cluster.

use crate::counters::{PodsSeen, Reading};

/// The pods sensor. It has no access to a Kubernetes API configured, and says so.
#[derive(Debug, Default)]
pub struct Pods;

impl Pods {
    /// The pods of this node.
    pub const fn read(&self) -> Reading<PodsSeen> {
        Reading::NotConfigured
    }
}
