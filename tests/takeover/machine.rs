//! Plays a machine for both wake servers: its card, which hears magic packets, and its agent, which speaks the routes of agents.

use std::{cell::Cell, net::SocketAddr, sync::Arc, time::Duration};

use serde_json::json;
use tokio::{
    net::UdpSocket,
    sync::{Notify, watch},
    task::JoinHandle,
    time::sleep,
};
use vmstation_protocol::{Activity, Leave, LeaveRequest, MacAddr, Orders, Port, Report, SCHEMA, Waking};

use crate::wake_program::ask;

pub(crate) const NODE: &str = "w1";
pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Time before an agent asks again that was not heard.
const AGAIN: Duration = Duration::from_millis(200);

/// What each of the two wake servers sent to the card. They send to different ports, by their configuration, of loopback's broadcast
/// address, to which nothing leaves this machine.
pub(crate) struct Card {
    pub(crate) ports: [u16; 2],
    heard: Arc<watch::Sender<[u32; 2]>>,
    listening: [JoinHandle<()>; 2],
}

impl Card {
    pub(crate) async fn new() -> Self {
        let heard = Arc::new(watch::Sender::new([0; 2]));
        let mut card = ([0; 2], Vec::new());
        for server in 0..2 {
            let socket = UdpSocket::bind("127.255.255.255:0").await.unwrap();
            card.0[server] = socket.local_addr().unwrap().port();
            let heard = Arc::clone(&heard);
            card.1.push(tokio::spawn(async move {
                let magic = [[0xff; 6].to_vec(), MAC.repeat(16)].concat();
                let mut datagram = [0; 200];
                loop {
                    let len = socket.recv(&mut datagram).await.unwrap();
                    assert_eq!(datagram[..len], magic, "not for this card");
                    heard.send_modify(|heard| heard[server] += 1);
                }
            }));
        }
        Self {
            ports: card.0,
            heard,
            listening: card.1.try_into().unwrap(),
        }
    }

    /// Packets of each server so far.
    pub(crate) fn heard(&self) -> [u32; 2] {
        *self.heard.borrow()
    }

    /// Until so many came.
    pub(crate) async fn hears(&self, count: u32) {
        let enough = |heard: &[u32; 2]| heard.iter().sum::<u32>() >= count;
        self.heard.subscribe().wait_for(enough).await.unwrap();
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.listening.iter().for_each(JoinHandle::abort);
    }
}

/// The agent. It asks the server that it asked before, and the other one if nobody is there.
pub(crate) struct Agent {
    servers: [SocketAddr; 2],
    tells: watch::Sender<(Activity, u64)>,
    /// A server heard it.
    told: Arc<Notify>,
    contact: JoinHandle<()>,
    resumes: Cell<u64>,
}

async fn asked(servers: &[SocketAddr; 2], method: &str, what: &str, body: &str) -> Option<String> {
    for server in servers {
        let answer = ask(*server, method, &format!("/v1/nodes/{NODE}/{what}"), body).await;
        if let Some((head, body)) = answer.split_once("\r\n\r\n") {
            return head.starts_with("HTTP/1.1 200").then(|| body.to_owned());
        }
    }
    None
}

/// Reports what there is to tell until it is heard, and holds a question for orders then. Of a machine that sleeps nothing is heard.
async fn keep_contact(servers: [SocketAddr; 2], mut tells: watch::Receiver<(Activity, u64)>, told: Arc<Notify>) {
    loop {
        let (activity, resumes) = *tells.borrow_and_update();
        let report = Report {
            schema: SCHEMA,
            node: NODE.parse().unwrap(),
            boot_id: "b".into(),
            resumes,
            activity,
            reasons: Vec::new(),
            ports: vec![Port {
                interface: "eth0".into(),
                mac: MacAddr::new(MAC).unwrap(),
                waking: Waking::Armed,
            }],
            role: None,
            version: "0".into(),
        };
        let report = serde_json::to_string(&report).unwrap();
        let speaks = async {
            let orders = asked(&servers, "POST", "report", &report).await;
            if orders.is_some() {
                told.notify_one();
            }
            if activity == Activity::Sleeping {
                return std::future::pending().await;
            }
            if let Some(orders) = orders {
                let orders: Orders = serde_json::from_str(&orders).unwrap();
                let what = format!("orders?after={}", orders.newest);
                asked(&servers, "GET", &what, "").await;
            }
            sleep(AGAIN).await;
        };
        tokio::select! {
            () = speaks => {}
            changed = tells.changed() => if changed.is_err() { return },
        }
    }
}

impl Agent {
    /// Of a machine in use.
    pub(crate) fn start(servers: [SocketAddr; 2]) -> Self {
        let (tells, heard) = watch::channel((Activity::Busy, 0));
        let told = Arc::new(Notify::new());
        Self {
            servers,
            tells,
            contact: tokio::spawn(keep_contact(servers, heard, Arc::clone(&told))),
            told,
            resumes: Cell::new(0),
        }
    }

    fn says(&self, activity: Activity) {
        self.tells.send_replace((activity, self.resumes.get()));
    }

    /// Asks leave to sleep. `None`: no answer that says anything, as from a server that dies.
    pub(crate) async fn asks_leave(&self) -> Option<Leave> {
        self.says(Activity::GoingToSleep { in_s: 0 });
        self.told.notified().await;
        let request = LeaveRequest {
            schema: SCHEMA,
            reason: "idle for 2 h".into(),
        };
        let request = json!(request).to_string();
        let answer = asked(&self.servers, "POST", "leave", &request).await;
        answer.map(|answer| serde_json::from_str(&answer).unwrap())
    }

    /// Did not sleep.
    pub(crate) fn stays(&self) {
        self.says(Activity::Busy);
    }

    /// Its last word; whether it is heard makes no difference.
    pub(crate) fn sleeps(&self) {
        self.says(Activity::Sleeping);
    }

    pub(crate) fn comes_back(&self) {
        self.resumes.set(self.resumes.get() + 1);
        self.says(Activity::Busy);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.contact.abort();
    }
}
