//! Hears which cards answer for the addresses of nodes that are being woken, with one socket and one task for each interface.
//!
//! Owns those tasks: one begins with the first address on its interface and ends with the last. Never judges an answer.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Mutex as Turn, mpsc, oneshot},
    time::sleep,
};
use vmstation_protocol::MacAddr;

use crate::{
    arp::ArpProbe,
    route::{RouteError, Routes},
    transmit::route_to,
};

/// Pause after a failed look for answers: an interface may come back.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

type Interfaces = Arc<Mutex<BTreeMap<String, mpsc::UnboundedSender<Wish>>>>;

/// Hears answers on every interface.
#[derive(Default)]
pub(super) struct Answers {
    interfaces: Interfaces,
    /// One question for a route at a time, over one connection.
    routes: Turn<Option<Routes>>,
}

enum Wish {
    Hear(Listener),
    /// Somebody needs no more answers for this address.
    Gone(Ipv4Addr),
}

/// Who wants to know of one address.
struct Listener {
    address: Ipv4Addr,
    tell: mpsc::Sender<MacAddr>,
    /// Dropped where nothing is heard any more.
    _heard: oneshot::Sender<()>,
}

impl Answers {
    /// Tells the cards that answer for an address, on this interface or on that of its route, until nobody wants to know.
    pub(super) async fn tell(&self, interface: Option<String>, address: Ipv4Addr, tell: mpsc::Sender<MacAddr>) {
        while !tell.is_closed() {
            let found = match &interface {
                Some(interface) => Ok(interface.clone()),
                None => self.interface_to(address).await,
            };
            match found {
                Ok(interface) => {
                    let (heard, deaf) = oneshot::channel();
                    let to = self.join(
                        &interface,
                        Listener {
                            address,
                            tell: tell.clone(),
                            _heard: heard,
                        },
                    );
                    tokio::select! {
                        () = tell.closed() => {
                            // Its task may have ended just before.
                            let _known = to.send(Wish::Gone(address));
                            return;
                        }
                        _ended = deaf => {}
                    }
                }
                Err(why) => tracing::debug!(%address, %why, "no ARP answers are heard"),
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn interface_to(&self, address: Ipv4Addr) -> Result<String, RouteError> {
        let mut routes = self.routes.lock().await;
        let route = route_to(address.into(), &mut routes).await;
        if let Err(RouteError::Netlink { .. }) = &route {
            *routes = None;
        }
        Ok(route?.interface)
    }

    fn join(&self, interface: &str, listener: Listener) -> mpsc::UnboundedSender<Wish> {
        let mut interfaces = locked(&self.interfaces);
        // A task that ends takes itself out, under the same lock, before its receiver goes.
        if let Some(to) = interfaces.get(interface) {
            let _alive = to.send(Wish::Hear(listener));
            return to.clone();
        }
        let (to, wishes) = mpsc::unbounded_channel();
        interfaces.insert(interface.to_owned(), to.clone());
        tokio::spawn(hear(
            Arc::clone(&self.interfaces),
            interface.to_owned(),
            listener,
            wishes,
        ));
        to
    }
}

fn locked(interfaces: &Interfaces) -> MutexGuard<'_, BTreeMap<String, mpsc::UnboundedSender<Wish>>> {
    interfaces.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task of one interface.
async fn hear(interfaces: Interfaces, interface: String, first: Listener, mut wishes: mpsc::UnboundedReceiver<Wish>) {
    let mut listeners = BTreeMap::from([(first.address, vec![first])]);
    loop {
        let outcome = hear_while_anybody_listens(&interface, &mut listeners, &mut wishes).await;
        let mut interfaces = locked(&interfaces);
        if let Err(why) = &outcome {
            tracing::debug!(interface, %why, "no ARP answers are heard");
        }
        if outcome.is_err() || wishes.is_empty() {
            interfaces.remove(&interface);
            return;
        }
        // Somebody came just now.
        while let Ok(wish) = wishes.try_recv() {
            take(wish, &mut listeners);
        }
    }
}

async fn hear_while_anybody_listens(
    interface: &str,
    listeners: &mut BTreeMap<Ipv4Addr, Vec<Listener>>,
    wishes: &mut mpsc::UnboundedReceiver<Wish>,
) -> io::Result<()> {
    let Some(first) = listeners.keys().next() else {
        return Ok(());
    };
    let mut probe = ArpProbe::open(interface, *first)?;
    listeners.keys().try_for_each(|address| probe.ask_for(*address))?;
    while !listeners.is_empty() {
        tokio::select! {
            claim = probe.answer() => {
                let claim = claim?;
                for listener in listeners.get(&claim.address).into_iter().flatten() {
                    // One that has as many answers already needs no more.
                    let _told = listener.tell.try_send(claim.mac);
                }
            }
            Some(wish) = wishes.recv() => {
                let address = take(wish, listeners);
                if listeners.contains_key(&address) {
                    probe.ask_for(address)?;
                } else {
                    probe.forget(address);
                }
            }
        }
    }
    Ok(())
}

/// The address that it is about.
fn take(wish: Wish, listeners: &mut BTreeMap<Ipv4Addr, Vec<Listener>>) -> Ipv4Addr {
    match wish {
        Wish::Hear(listener) => {
            let address = listener.address;
            listeners.entry(address).or_default().push(listener);
            address
        }
        Wish::Gone(address) => {
            if let Some(its) = listeners.get_mut(&address) {
                its.retain(|listener| !listener.tell.is_closed());
                if its.is_empty() {
                    listeners.remove(&address);
                }
            }
            address
        }
    }
}
