//! How often something may be asked for, and how much of it held: requests and connections of one client, wakes of one node, lines of a
//! log. Every table is bounded, and whoever has been quiet for long enough is forgotten. Pure: the time is an argument.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use governor::{
    Quota, RateLimiter,
    clock::{Clock, Reference as _},
    middleware::NoOpMiddleware,
    state::keyed::HashMapStateStore,
};

use crate::{clock::Moment, server::problem};

/// Clients that are known at a time.
const MOST_CLIENTS: usize = 65_536;
/// A table below this size is not looked through for what can be forgotten.
const FEW: usize = 1024;

/// Asked too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests: try again in {} s", self.seconds())]
pub struct TooMany {
    /// When the next one is taken, from now.
    pub wait: Duration,
}

impl TooMany {
    /// Whole seconds to wait, rounded up; at least one.
    pub fn seconds(&self) -> u64 {
        self.wait
            .as_millis()
            .div_ceil(1000)
            .try_into()
            .unwrap_or(u64::MAX)
            .max(1)
    }
}

impl IntoResponse for TooMany {
    /// Status 429 with `Retry-After`.
    fn into_response(self) -> Response {
        let mut response = problem(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", self.to_string());
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(self.seconds()));
        response
    }
}

/// Requests of each client: so many in a minute, in a burst or evenly.
#[derive(Debug)]
pub struct Clients {
    per_minute: NonZeroU32,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    limiter: RateLimiter<IpAddr, HashMapStateStore<IpAddr>, Told, NoOpMiddleware<Duration>>,
    clock: Told,
    /// Size at which it is looked through next.
    sweep_at: usize,
}

/// The time as it was last told.
#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Duration>>);

impl Clock for Told {
    type Instant = Duration;

    fn now(&self) -> Duration {
        *held(&self.0)
    }
}

impl Clients {
    /// No client is known.
    pub fn new(per_minute: NonZeroU32) -> Self {
        Self {
            per_minute,
            table: Mutex::new(Table::new(per_minute)),
        }
    }

    /// Counts a request of `client`. All addresses of one IPv6 network (/64) are one client, and an IPv4 address is the same written as
    /// an IPv6 one.
    ///
    /// # Errors
    /// [`TooMany`]: it has had its share.
    pub fn admit(&self, client: IpAddr, now: Moment) -> Result<(), TooMany> {
        let mut table = held(&self.table);
        let time = now.since(Moment::default());
        *held(&table.clock.0) = time;
        if table.limiter.len() >= table.sweep_at {
            table.limiter.retain_recent();
            table.limiter.shrink_to_fit();
            if table.limiter.len() >= MOST_CLIENTS {
                // Whoever has that many addresses is not held back by a share for each of them.
                *table = Table::new(self.per_minute);
                *held(&table.clock.0) = time;
            }
            table.sweep_at = table.limiter.len().saturating_mul(2).clamp(FEW, MOST_CLIENTS);
        }
        table.limiter.check_key(&network(client)).map_err(|refused| TooMany {
            wait: Duration::from(refused.earliest_possible().duration_since(time)),
        })
    }

    /// Clients that are known.
    pub fn known(&self) -> usize {
        held(&self.table).limiter.len()
    }
}

impl Table {
    fn new(per_minute: NonZeroU32) -> Self {
        let clock = Told::default();
        let state = HashMapStateStore::new(HashMap::default());
        Self {
            limiter: RateLimiter::new(Quota::per_minute(per_minute), state, clock.clone()),
            clock,
            sweep_at: FEW,
        }
    }
}

/// Connections that are held, of everybody and of each client: so many at a time.
#[derive(Debug)]
pub struct Places {
    most: usize,
    most_of_client: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    /// Only who holds any.
    of_clients: HashMap<IpAddr, usize>,
}

/// A place that is held until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    client: IpAddr,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Nobody gets one.
    #[error("there are {most} connections, as many as limits.connections allows")]
    Everywhere {
        /// The bound.
        most: usize,
    },
    /// This client gets none.
    #[error("the client has {most} connections, as many as limits.connections_per_client allows")]
    OfClient {
        /// The bound.
        most: usize,
    },
}

impl Places {
    /// None is held yet.
    pub fn new(most: usize, most_of_client: usize) -> Self {
        Self {
            most,
            most_of_client,
            held: Mutex::default(),
        }
    }

    /// A place for a connection of `client`; who is one client is as for [`Clients::admit`].
    ///
    /// # Errors
    /// [`Full`]: as many are held as may be.
    pub fn take(self: &Arc<Self>, client: IpAddr) -> Result<Place, Full> {
        let client = network(client);
        let mut held = held(&self.held);
        if held.all >= self.most {
            return Err(Full::Everywhere { most: self.most });
        }
        let of_client = held.of_clients.get(&client).copied().unwrap_or_default();
        if of_client >= self.most_of_client {
            return Err(Full::OfClient {
                most: self.most_of_client,
            });
        }
        held.all += 1;
        held.of_clients.insert(client, of_client + 1);
        Ok(Place {
            places: Arc::clone(self),
            client,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = held(&self.places.held);
        held.all -= 1;
        if let Some(of_client) = held.of_clients.get_mut(&self.client) {
            *of_client -= 1;
            if *of_client == 0 {
                held.of_clients.remove(&self.client);
            }
        }
    }
}

/// What a client's share belongs to.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A shortest time between two of the same, such as wakes of one node.
#[derive(Debug)]
pub struct Interval<K> {
    shortest: Duration,
    last: HashMap<K, Moment>,
    sweep_at: usize,
}

impl<K: Eq + Hash> Interval<K> {
    /// Nothing has been yet.
    pub fn new(shortest: Duration) -> Self {
        Self {
            shortest,
            last: HashMap::new(),
            sweep_at: FEW,
        }
    }

    /// Counts one at this moment. What is refused does not count: asking again and again does not put it off.
    ///
    /// # Errors
    /// [`TooMany`]: the last one was too short a time ago.
    pub fn admit(&mut self, key: K, now: Moment) -> Result<(), TooMany> {
        if let Some(last) = self.last.get(&key) {
            let wait = self.shortest.saturating_sub(now.since(*last));
            if !wait.is_zero() {
                return Err(TooMany { wait });
            }
        }
        if self.last.len() >= self.sweep_at {
            let shortest = self.shortest;
            self.last.retain(|_, last| now.since(*last) < shortest);
            self.sweep_at = self.last.len().saturating_mul(2).max(FEW);
        }
        self.last.insert(key, now);
        Ok(())
    }
}

/// Keeps lines that strangers can cause from filling a log: one of a client in a second, and [`Lines::MOST`] of all clients.
#[derive(Debug, Default)]
pub struct Lines {
    /// When the second began.
    began: Option<Moment>,
    /// Whose lines were written in it.
    written: Vec<IpAddr>,
    left_out: u64,
}

impl Lines {
    /// Lines in a second.
    pub const MOST: usize = 10;
    const SECOND: Duration = Duration::from_secs(1);

    /// Whether to write a line of this client, and how many lines, of whomever, were left out since the last one.
    pub fn tell(&mut self, client: IpAddr, now: Moment) -> Option<u64> {
        if self.began.is_none_or(|began| now.since(began) >= Self::SECOND) {
            self.began = Some(now);
            self.written.clear();
        }
        let client = network(client);
        if self.written.len() >= Self::MOST || self.written.contains(&client) {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.written.push(client);
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(per_minute: u32) -> Clients {
        Clients::new(NonZeroU32::new(per_minute).unwrap())
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_boot(Duration::from_secs(seconds))
    }

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn w8_a_client_has_its_share_and_then_waits() {
        let clients = clients(6);
        for _ in 0..6 {
            assert_eq!(clients.admit(v4(1), at(100)), Ok(()));
        }
        let refused = clients.admit(v4(1), at(100)).unwrap_err();
        assert_eq!(refused.seconds(), 10);
        assert_eq!(clients.admit(v4(1), at(109)).unwrap_err().seconds(), 1);
        assert_eq!(clients.admit(v4(2), at(100)), Ok(()), "others are not concerned");
        assert_eq!(clients.admit(v4(1), at(110)), Ok(()));
        assert!(clients.admit(v4(1), at(110)).is_err());
    }

    #[test]
    fn w8_a_client_is_its_network() {
        let clients = clients(1);
        let admit = |address: &str| clients.admit(address.parse().unwrap(), at(1)).is_ok();
        assert!(admit("2001:db8::1"));
        assert!(!admit("2001:db8::ffff:ffff:ffff:ffff"));
        assert!(admit("2001:db8:0:1::1"));
        assert!(admit("192.0.2.1"));
        assert!(!admit("::ffff:192.0.2.1"));
        assert!(admit("192.0.2.2"));
    }

    #[test]
    fn w8_quiet_clients_are_forgotten() {
        let clients = clients(60);
        for number in 0..2000 {
            clients.admit(v4(number), at(0)).unwrap();
        }
        assert_eq!(clients.known(), 2000);
        for number in 0..100 {
            clients.admit(v4(1 << 20 | number), at(61)).unwrap();
        }
        assert!(clients.known() < 2100, "not before there are twice as many");
        for number in 0..3000 {
            clients.admit(v4(1 << 21 | number), at(200)).unwrap();
        }
        assert!(clients.known() <= 3000, "{}", clients.known());
    }

    #[test]
    fn w8_the_table_is_bounded() {
        let clients = clients(60);
        for number in 0..200_000 {
            clients.admit(v4(number), at(5)).unwrap();
            assert!(clients.known() <= MOST_CLIENTS);
        }
    }

    #[test]
    fn w8_the_answer_says_when_to_come_back() {
        let response = TooMany {
            wait: Duration::from_millis(1001),
        }
        .into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(TooMany { wait: Duration::ZERO }.seconds(), 1);
    }

    #[test]
    fn w8_a_node_is_woken_once_in_an_interval() {
        let mut interval = Interval::new(Duration::from_secs(5));
        assert_eq!(interval.admit("a", at(10)), Ok(()));
        assert_eq!(
            interval.admit("a", at(12)),
            Err(TooMany {
                wait: Duration::from_secs(3)
            })
        );
        assert_eq!(interval.admit("b", at(12)), Ok(()));
        assert_eq!(interval.admit("a", at(15)), Ok(()), "what was refused did not count");
    }

    #[test]
    fn w8_an_interval_that_is_over_is_forgotten() {
        let mut interval = Interval::new(Duration::from_secs(5));
        for key in 0..10_000_u64 {
            interval.admit(key, at(key)).unwrap();
            assert!(interval.last.len() <= FEW);
        }
    }

    #[test]
    fn w8_a_client_has_so_many_places_and_all_have_so_many() {
        let places = Arc::new(Places::new(5, 2));
        let take = |address: &str| places.take(address.parse().unwrap());
        let (first, _second) = (take("2001:db8::1").unwrap(), take("2001:db8::2").unwrap());
        assert_eq!(take("2001:db8::3").unwrap_err(), Full::OfClient { most: 2 });
        let _others = ["192.0.2.1", "192.0.2.1", "192.0.2.2"].map(|address| take(address).unwrap());
        assert_eq!(take("192.0.2.2").unwrap_err(), Full::Everywhere { most: 5 });
        drop(first);
        assert_eq!(take("192.0.2.1").unwrap_err(), Full::OfClient { most: 2 });
        take("2001:db8::3").expect("a place that is left is free again");
    }

    #[test]
    fn w8_who_holds_no_place_is_forgotten() {
        let places = Arc::new(Places::new(usize::MAX, 1));
        for number in 0..10_000 {
            places.take(v4(number)).unwrap();
        }
        assert_eq!(held(&places.held).all, 0);
        assert!(held(&places.held).of_clients.is_empty());
    }

    #[test]
    fn w8_one_line_of_a_client_in_a_second() {
        let mut lines = Lines::default();
        assert_eq!(lines.tell(v4(1), at(1)), Some(0));
        assert_eq!(lines.tell(v4(1), at(1)), None);
        assert_eq!(lines.tell(v4(1), at(1)), None);
        assert_eq!(lines.tell(v4(2), at(1)), Some(2));
        assert_eq!(lines.tell(v4(1), at(2)), Some(0));
    }

    #[test]
    fn w8_so_many_lines_in_a_second_whoever_causes_them() {
        let mut lines = Lines::default();
        for second in 0..3 {
            let written = (0..10_000).filter(|client| lines.tell(v4(*client), at(second)).is_some());
            assert_eq!(written.count(), Lines::MOST);
            assert!(lines.written.len() <= Lines::MOST);
        }
        assert_eq!(lines.tell(v4(1), at(3)), Some(9_990));
    }
}
