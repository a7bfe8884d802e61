//! The real network behind [`Air`]: packets by [`crate::transmit`], those of many nodes together; answers by [`crate::arp`], with one socket for
//! all nodes of an interface. Ten thousand wakes at a time need no more sockets than one.

mod answers;
mod sending;

use std::{net::IpAddr, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use vmstation_protocol::MacAddr;

use self::{answers::Answers, sending::Sending};
use crate::{registry::Node, transmit::Target, wake::Sent, waker::Air};

/// Answers that wait.
const ANSWERS: usize = 16;

/// The networks that this host is in.
pub struct Lan {
    sending: Sending,
    answers: Arc<Answers>,
}

impl Lan {
    /// Sends UDP to these ports besides frames.
    pub fn new(udp_ports: &[u16]) -> Self {
        Self {
            sending: Sending::new(udp_ports),
            answers: Arc::default(),
        }
    }

    async fn call(&self, node: &Node) -> Result<Sent, String> {
        let target = |mac: &MacAddr| Target {
            mac: *mac,
            secure_on: node.secure_on.as_ref().map(|password| password.bytes().to_vec()),
            interface: node.interface.clone(),
            address: node.address,
            broadcast: node.broadcast,
        };
        let targets: Vec<_> = node.macs.iter().map(target).collect();
        let mut failed = "there is no card to call".to_owned();
        let mut all: Option<Sent> = None;
        for transmission in self.sending.transmit(&targets).await {
            match transmission {
                Ok(transmission) => {
                    let packets = transmission
                        .packets
                        .saturating_add(all.as_ref().map_or(0, |sent| sent.packets));
                    let first = all.take();
                    all = Some(Sent {
                        packets,
                        ..first.unwrap_or(Sent {
                            transport: transmission.transport,
                            interface: transmission.interface,
                            packets,
                            note: transmission.note,
                        })
                    });
                }
                Err(error) => failed = error.to_string(),
            }
        }
        all.ok_or(failed)
    }
}

impl Air for Lan {
    fn send<'a>(&'a self, node: &'a Node) -> BoxFuture<'a, Result<Sent, String>> {
        Box::pin(self.call(node))
    }

    fn answers(&self, node: &Node) -> mpsc::Receiver<MacAddr> {
        let (tell, answers) = mpsc::channel(ANSWERS);
        if let Some(IpAddr::V4(address)) = node.address {
            let (all, interface) = (Arc::clone(&self.answers), node.interface.clone());
            tokio::spawn(async move { all.tell(interface, address, tell).await });
        }
        answers
    }
}
