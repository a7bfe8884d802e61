//! Asks leave to sleep of whoever coordinates the nodes, and hands it back. Without a coordinator there is nobody to ask.

/// Who has a say over the sleep of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coordinator {
    /// Nobody: a single host, or a node whose configuration names no wake server.
    Nobody,
}

impl Coordinator {
    /// Asks leave to sleep.
    ///
    /// # Errors
    /// Who refuses, and why.
    #[expect(clippy::unused_async, reason = "whoever is asked sits on another host")]
    pub async fn ask_leave(self) -> Result<(), String> {
        match self {
            Self::Nobody => Ok(()),
        }
    }

    /// The node is awake, or stays so: the leave is no longer needed.
    #[expect(clippy::unused_async, reason = "whoever is told sits on another host")]
    pub async fn hand_back(self) {
        match self {
            Self::Nobody => {}
        }
    }
}
