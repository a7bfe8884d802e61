//! The tracker on a host of fakes: a table of connections and a table of processes.

use std::{cell::RefCell, rc::Rc};

use super::{
    evidence::{Login, Process, Role},
    *,
};

const LISTENER: u32 = 10;

#[derive(Default)]
struct Host {
    connections: Vec<Connection>,
    processes: BTreeMap<u32, (Process, Vec<u64>)>,
    /// Local port and inode.
    listeners: Vec<(u16, u64)>,
    listings: usize,
    unreadable: bool,
}

#[derive(Clone, Default)]
struct FakeHost(Rc<RefCell<Host>>);

impl Connections for FakeHost {
    fn list(&self, ports: &[u16]) -> io::Result<Vec<Connection>> {
        let mut host = self.0.borrow_mut();
        host.listings += 1;
        if host.unreadable {
            return Err(io::Error::other("no answer"));
        }
        let listed = host
            .connections
            .iter()
            .filter(|c| ports.is_empty() || ports.contains(&c.local_port));
        Ok(listed.cloned().collect())
    }

    fn listeners(&self, ports: &[u16]) -> io::Result<Vec<u64>> {
        let host = self.0.borrow();
        let listed = host
            .listeners
            .iter()
            .filter(|(port, _)| ports.is_empty() || ports.contains(port));
        Ok(listed.map(|&(_, inode)| inode).collect())
    }
}

impl FakeHost {
    /// A listener on another port than ours.
    fn listen_elsewhere(&self, pid: u32, inode: u64) {
        self.process(pid, 1, Role::Outside, 0, &[inode]);
        self.0.borrow_mut().listeners.push((2222, inode));
    }
}

impl Processes for FakeHost {
    fn servers(&self) -> io::Result<Vec<u32>> {
        Ok(self
            .0
            .borrow()
            .processes
            .keys()
            .copied()
            .filter(|&pid| pid >= LISTENER)
            .collect())
    }

    fn role(&self, pid: u32) -> Role {
        self.look(pid).map_or(Role::Outside, |process| process.role)
    }

    fn look(&self, pid: u32) -> Option<Process> {
        self.0.borrow().processes.get(&pid).map(|(process, _)| process.clone())
    }

    fn sockets(&self, pid: u32) -> Vec<u64> {
        self.0
            .borrow()
            .processes
            .get(&pid)
            .map(|(_, held)| held.clone())
            .unwrap_or_default()
    }
}

impl FakeHost {
    /// A host with init and a listener.
    fn new() -> (Self, Tracker<Self, Self>) {
        let host = Self::default();
        host.process(1, 0, Role::Outside, 0, &[]);
        host.process(LISTENER, 1, Role::Outside, 0, &[3]);
        host.0.borrow_mut().listeners.push((22, 3));
        (host.clone(), Tracker::new(&[22], host.clone(), host))
    }

    fn process(&self, pid: u32, parent: u32, role: Role, uid: u32, sockets: &[u64]) {
        let process = Process {
            parent,
            role,
            uid,
            chrooted: uid == 104,
            login: Login::default(),
        };
        self.0.borrow_mut().processes.insert(pid, (process, sockets.to_vec()));
    }

    fn kill(&self, pid: u32) {
        self.0.borrow_mut().processes.remove(&pid);
    }

    /// A connection to port 22; its inode doubles as the peer's port.
    fn connect(&self, inode: u16) {
        self.connect_to(22, inode);
    }

    fn connect_to(&self, local_port: u16, inode: u16) {
        self.0.borrow_mut().connections.push(Connection {
            cookie: u64::from(inode).to_ne_bytes(),
            inode: inode.into(),
            established: true,
            local_port,
            peer: IpAddr::from([192, 0, 2, 1]),
            peer_port: inode,
            idle: Duration::from_secs(1),
        });
    }

    fn disconnect(&self, inode: u16) {
        self.0
            .borrow_mut()
            .connections
            .retain(|connection| connection.peer_port != inode);
    }

    /// What a connection looks like before authentication: monitor `pid` and network child `pid + 1`.
    fn preauth(&self, pid: u32, inode: u16, user: &str) {
        self.connect(inode);
        self.process(pid, LISTENER, Role::Monitor(user.into()), 0, &[inode.into()]);
        self.process(pid + 1, pid, Role::PreAuth, 104, &[inode.into()]);
    }

    /// After authentication: the network child has become the user's child.
    fn authenticated(&self, pid: u32, inode: u16, user: &str) {
        self.process(pid + 1, pid, Role::Served(user.into()), 1000, &[inode.into()]);
    }
}

fn at(seconds: u64) -> BootTime {
    BootTime(Duration::from_secs(seconds))
}

fn forked(seconds: u64, pid: u32, child: u32) -> SshRecord {
    let at_ns = seconds * 1_000_000_000;
    SshRecord {
        at_ns,
        kind: SshRecordKind::Forked as u32,
        pid,
        child,
        ..SshRecord::default()
    }
}

fn closed(seconds: u64, peer_port: u16) -> SshRecord {
    SshRecord {
        at_ns: seconds * 1_000_000_000,
        kind: SshRecordKind::Closed as u32,
        local_port: 22,
        peer_port,
        peer: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1],
        ..SshRecord::default()
    }
}

fn users(seen: &SshSeen) -> Vec<&str> {
    seen.sessions
        .iter()
        .map(|session| session.user.as_deref().unwrap_or("?"))
        .collect()
}

#[test]
fn a_login_counts_from_proof_to_end() {
    let (host, mut tracker) = FakeHost::new();
    assert_eq!(tracker.refresh(at(1)).unwrap(), SshSeen::default());
    assert!(!tracker.undecided());

    host.preauth(20, 500, "alice");
    let seen = tracker.refresh(at(2)).unwrap();
    assert_eq!((users(&seen), seen.last_activity, seen.logins), (vec![], None, 0));
    assert!(tracker.undecided());

    host.authenticated(20, 500, "alice");
    let seen = tracker.refresh(at(3)).unwrap();
    assert_eq!(
        (users(&seen), seen.last_activity, seen.logins),
        (vec!["alice"], Some(at(3)), 1)
    );
    assert_eq!((seen.sessions[0].pid, seen.sessions[0].peer_port), (20, 500));
    assert!(!tracker.undecided());

    // Known once, known for good: even if its processes can no longer be seen.
    host.kill(21);
    let seen = tracker.refresh(at(4)).unwrap();
    assert_eq!(
        (users(&seen), seen.last_activity, seen.logins),
        (vec!["alice"], Some(at(3)), 1)
    );

    host.disconnect(500);
    let seen = tracker.refresh(at(5)).unwrap();
    assert_eq!(
        (users(&seen), seen.last_activity, seen.logins),
        (vec![], Some(at(5)), 1)
    );
    assert_eq!(tracker.refresh(at(9)).unwrap().last_activity, Some(at(5)));
}

#[test]
fn connections_are_asked_for_again_when_the_kernel_has_seen_one_or_a_minute_is_over() {
    let (host, mut tracker) = FakeHost::new();
    let listings = |host: &FakeHost| host.0.borrow().listings;
    tracker.look(at(1), Some(7)).unwrap();
    for second in 2..61 {
        tracker.look(at(second), Some(7)).unwrap();
    }
    assert_eq!(listings(&host), 1);
    tracker.look(at(61), Some(7)).unwrap();
    assert_eq!(listings(&host), 2, "a minute is over");

    // The record of it may still wait in the ring buffer.
    host.preauth(20, 500, "alice");
    host.authenticated(20, 500, "alice");
    assert_eq!(users(&tracker.look(at(62), Some(8)).unwrap()), ["alice"]);
    for second in 63..70 {
        tracker.look(at(second), Some(8)).unwrap();
    }
    assert_eq!(listings(&host), 10, "how long it has been idle is asked each time");
    host.disconnect(500);
    assert_eq!(users(&tracker.look(at(70), Some(8)).unwrap()), Vec::<&str>::new());

    // Where the kernel does not tell, or may have missed one.
    let before = listings(&host);
    tracker.look(at(71), None).unwrap();
    tracker.look(at(72), Some(8)).unwrap();
    assert_eq!(listings(&host), before + 2);
}

#[test]
fn hanging_before_authentication_never_counts() {
    let (host, mut tracker) = FakeHost::new();
    host.preauth(20, 500, "root");
    for second in 1..1000 {
        let seen = tracker.refresh(at(second)).unwrap();
        assert_eq!((seen.sessions.len(), seen.last_activity, seen.logins), (0, None, 0));
    }
}

#[test]
fn a_connection_nobody_holds_counts_after_the_doubt() {
    let (host, mut tracker) = FakeHost::new();
    host.connect(500);
    assert_eq!(users(&tracker.refresh(at(1)).unwrap()), Vec::<&str>::new());
    assert!(tracker.undecided());
    assert_eq!(users(&tracker.refresh(at(5)).unwrap()), Vec::<&str>::new());
    let seen = tracker.refresh(at(6)).unwrap();
    assert_eq!((users(&seen), seen.logins), (vec!["?"], 1));
    assert!(!tracker.undecided(), "doubt is a decision: no polling");
    assert_eq!(tracker.refresh(at(60)).unwrap().logins, 1);

    // Not accepted by anybody (inode 0): nobody can have logged in.
    let (host, mut tracker) = FakeHost::new();
    host.connect(0);
    for second in [1, 6, 60] {
        assert_eq!(users(&tracker.refresh(at(second)).unwrap()), Vec::<&str>::new());
    }
}

#[test]
fn a_connection_that_ends_between_two_looks_is_not_doubted() {
    let (host, mut tracker) = FakeHost::new();
    host.preauth(20, 500, "root");
    tracker.refresh(at(1)).unwrap();
    // Listed, and its processes gone when they are looked for.
    host.kill(20);
    host.kill(21);
    assert_eq!(users(&tracker.refresh(at(60)).unwrap()), Vec::<&str>::new());
    // Held by others all the time since.
    assert_eq!(users(&tracker.refresh(at(65)).unwrap()), vec!["?"]);
}

#[test]
fn a_fork_shows_a_session_shorter_than_any_interval() {
    let (host, mut tracker) = FakeHost::new();
    host.preauth(20, 500, "alice");
    assert_eq!(tracker.record(&forked(1, LISTENER, 20), at(1)), Noticed::Nothing);
    assert_eq!(tracker.record(&forked(1, 20, 21), at(1)), Noticed::Nothing);
    assert_eq!(host.0.borrow().listings, 0, "no listing without proof");
    assert!(tracker.undecided(), "the child of a monitor may become the user");
    host.authenticated(20, 500, "alice");
    assert_eq!(tracker.record(&forked(2, 21, 22), at(2)), Noticed::Login);
    assert_eq!(
        tracker.record(&forked(3, 21, 23), at(3)),
        Noticed::Nothing,
        "a second command is no second login"
    );
    assert_eq!(
        tracker.record(&closed(4, 501), at(4)),
        Noticed::Nothing,
        "somebody else's end"
    );
    assert_eq!(tracker.record(&closed(4, 500), at(4)), Noticed::Ended);
    host.disconnect(500);
    let seen = tracker.refresh(at(9)).unwrap();
    assert_eq!(
        (users(&seen), seen.last_activity, seen.logins),
        (vec![], Some(at(4)), 1)
    );
}

#[test]
fn a_session_that_is_over_before_it_is_listed_counts_once() {
    let (host, mut tracker) = FakeHost::new();
    host.preauth(20, 500, "alice");
    host.authenticated(20, 500, "alice");
    host.disconnect(500);
    assert_eq!(tracker.record(&forked(2, 20, 21), at(2)), Noticed::Login);
    assert_eq!(tracker.record(&forked(2, 21, 22), at(2)), Noticed::Nothing);
    let seen = tracker.refresh(at(9)).unwrap();
    assert_eq!(
        (users(&seen), seen.last_activity, seen.logins),
        (vec![], Some(at(2)), 1)
    );
    // The process id comes round again.
    assert_eq!(tracker.record(&forked(60, 20, 21), at(60)), Noticed::Login);
}

#[test]
fn a_session_of_which_only_dead_processes_are_left_counts_once() {
    let (host, mut tracker) = FakeHost::new();
    host.process(20, LISTENER, Role::Ended, 0, &[]);
    host.process(21, 20, Role::Ended, 1000, &[]);
    assert_eq!(
        tracker.record(&forked(2, 20, 21), at(2)),
        Noticed::Nothing,
        "the child may be the network child"
    );
    assert_eq!(tracker.record(&forked(2, 21, 22), at(2)), Noticed::Login);
    assert_eq!(tracker.record(&forked(2, 21, 23), at(2)), Noticed::Nothing);
    assert_eq!(tracker.refresh(at(3)).unwrap().logins, 1);
}

#[test]
fn two_forks_of_a_session_that_is_gone_count_once() {
    let (host, mut tracker) = FakeHost::new();
    host.preauth(20, 500, "alice");
    host.authenticated(20, 500, "alice");
    assert_eq!(tracker.record(&forked(2, 20, 21), at(2)), Noticed::Login);
    assert_eq!(tracker.record(&closed(2, 500), at(2)), Noticed::Ended);
    host.disconnect(500);
    host.kill(20);
    host.process(21, 1, Role::Ended, 1000, &[]); // init's by then
    assert_eq!(tracker.record(&forked(2, 21, 22), at(2)), Noticed::Nothing);
    assert_eq!(tracker.refresh(at(3)).unwrap().logins, 1);
}

#[test]
fn a_session_of_which_nothing_is_left_counts_by_its_title() {
    let (_, mut tracker) = FakeHost::new();
    let mut record = forked(2, 21, 22);
    record.title[..17].copy_from_slice(b"sshd: root [priv]");
    assert_eq!(tracker.record(&record, at(2)), Noticed::Nothing);
    record.title[..18].copy_from_slice(b"sshd: root@notty\0\0");
    assert_eq!(tracker.record(&record, at(2)), Noticed::Login);
    assert_eq!(tracker.record(&record, at(2)), Noticed::Nothing);
    assert_eq!(tracker.refresh(at(3)).unwrap().logins, 1);
}

#[test]
fn sessions_on_other_ports_do_not_count() {
    let (host, mut tracker) = FakeHost::new();
    host.connect_to(2222, 500);
    host.process(20, LISTENER, Role::Working("alice".into()), 1000, &[500]);
    assert_eq!(tracker.record(&forked(1, 20, 21), at(1)), Noticed::Nothing);
    let seen = tracker.refresh(at(2)).unwrap();
    assert_eq!((users(&seen), seen.last_activity, seen.logins), (vec![], None, 0));
}

#[test]
fn sessions_on_other_ports_do_not_count_even_if_they_are_over() {
    let (host, mut tracker) = FakeHost::new();
    host.listen_elsewhere(11, 400);
    host.process(20, 11, Role::Working("alice".into()), 1000, &[500]);
    assert_eq!(tracker.record(&forked(1, 20, 21), at(1)), Noticed::Nothing);
    assert_eq!(tracker.refresh(at(2)).unwrap().logins, 0);
}

#[test]
fn a_session_on_another_port_of_which_nothing_is_left_does_not_count() {
    let (host, mut tracker) = FakeHost::new();
    host.listen_elsewhere(11, 400);
    assert_eq!(tracker.record(&forked(1, 11, 20), at(1)), Noticed::Nothing);
    let monitor = forked(1, 20, 21);
    let shell = forked(2, 21, 22);
    let titled = |mut record: SshRecord, title: &[u8]| {
        record.title[..title.len()].copy_from_slice(title);
        record
    };
    assert_eq!(
        tracker.record(&titled(monitor, b"sshd: alice [priv]"), at(2)),
        Noticed::Nothing
    );
    assert_eq!(
        tracker.record(&titled(shell, b"sshd: alice@notty"), at(2)),
        Noticed::Nothing
    );
    assert_eq!(tracker.refresh(at(3)).unwrap().logins, 0);
}

#[test]
fn brute_force_lists_nothing() {
    let (host, mut tracker) = FakeHost::new();
    for pid in (100..2000).step_by(2) {
        let inode = u16::try_from(pid).unwrap();
        host.preauth(pid, inode, "root");
        assert_eq!(tracker.record(&forked(1, LISTENER, pid), at(1)), Noticed::Nothing);
        assert_eq!(tracker.record(&forked(1, pid, pid + 1), at(1)), Noticed::Nothing);
        assert_eq!(tracker.record(&closed(1, inode), at(1)), Noticed::Nothing);
    }
    assert_eq!(host.0.borrow().listings, 0);
    assert_eq!(tracker.refresh(at(2)).unwrap().logins, 0);
}

#[test]
fn an_opened_connection_asks_for_a_listing() {
    let (_, mut tracker) = FakeHost::new();
    let opened = SshRecord {
        kind: SshRecordKind::Opened as u32,
        local_port: 22,
        ..SshRecord::default()
    };
    assert_eq!(tracker.record(&opened, at(1)), Noticed::Nothing);
    assert!(tracker.undecided());
    tracker.refresh(at(2)).unwrap();
    assert!(!tracker.undecided());
}

#[test]
fn what_cannot_be_read_is_an_error_and_forgets_nothing() {
    let (host, mut tracker) = FakeHost::new();
    host.preauth(20, 500, "alice");
    host.authenticated(20, 500, "alice");
    tracker.refresh(at(1)).unwrap();
    host.0.borrow_mut().unreadable = true;
    let error = tracker.refresh(at(2)).unwrap_err();
    assert!(matches!(error, SessionsError::Connections(_)), "{error}");
    host.0.borrow_mut().unreadable = false;
    assert_eq!(users(&tracker.refresh(at(3)).unwrap()), ["alice"]);
}
