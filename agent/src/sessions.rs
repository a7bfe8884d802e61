//! Which SSH connections are authenticated sessions, and how long each has been idle.
//!
//! Three places are asked, each once its answer is needed: the kernel for the connections to the SSH ports and their last byte
//! (`connections`), `/proc` for the server's processes that hold them (`processes`), and those processes for what they prove
//! (`evidence`): sshd's own title, the user a process has become, the audit session PAM gave it, the scope logind gave it. utmp is
//! never asked, a password never seen, no process touched.
//!
//! A connection counts once anything proves a login, whoever it is, until it ends. A connection to the SSH port that no sshd holds, or
//! whose holder may not be seen, counts once it is older than [`DOUBT_AFTER`]: nobody could say it is not a session. One that sshd
//! holds without proof never counts, however long it hangs.
//!
//! [`Sessions`] owns what is known. The driver calls [`Sessions::refresh`] for the whole picture: at every check, when
//! [`Sessions::logind_fd`] wakes it, and within a second while [`Sessions::undecided`]. It hands over kernel records as they come: a
//! session forks for its shell or command, so that one shorter than any interval is seen. One in which nothing is ever started
//! (`ssh -N`, `-W`) has no such moment; without logind it can pass unseen if it is over before the next refresh.

mod connections;
mod evidence;
mod logind;
mod processes;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use agent_ebpf::{SshRecord, SshRecordKind};

use self::{
    connections::{Connection, Connections, HostConnections},
    evidence::{Evidence, Process, Role, evidence, evidence_of_parent},
    logind::LogindWatch,
    processes::{HostProcesses, Processes},
};
use crate::{
    clock::BootTime,
    counters::{Session, SshSeen},
};

/// A connection that no sshd holds counts as a session after this time. A real sshd holds every connection from the accept on.
pub const DOUBT_AFTER: Duration = Duration::from_secs(5);

/// How long it is believed without a listing that there is no connection.
const LIST_EVERY: Duration = Duration::from_secs(60);

/// Deepest nesting of processes within one connection; three are usual.
const DEEPEST: usize = 8;

/// How many processes of sessions that were judged are remembered, and for how long: for as long as another fork of one can still be
/// reported while its ancestors are gone already, and not until its process id is used again.
const JUDGED: usize = 256;
const JUDGED_FOR: Duration = Duration::from_secs(5);

/// The tracker of SSH sessions.
pub struct Sessions {
    tracker: Tracker<HostConnections, HostProcesses>,
    logind: Option<LogindWatch>,
}

/// What a kernel record led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// Nothing that counts.
    Nothing,
    /// Somebody has logged in: activity.
    Login,
    /// A session has ended.
    Ended,
}

/// Sessions could not be listed. Keeps the host awake.
#[derive(Debug, thiserror::Error)]
pub enum SessionsError {
    /// The kernel did not list the connections.
    #[error("cannot list the TCP connections through sock_diag (does the kernel have, or may it load, tcp_diag?)")]
    Connections(#[source] io::Error),
    /// The process list cannot be read.
    #[error("cannot list the processes in /proc")]
    Processes(#[source] io::Error),
}

impl Sessions {
    /// Watches the connections to these local ports (of any address). Reads nothing yet.
    pub fn new(ports: &[u16]) -> Self {
        Self {
            tracker: Tracker::new(ports, HostConnections, HostProcesses),
            logind: LogindWatch::new(),
        }
    }

    /// Lists everything: connections, and the processes of those that are undecided. Two or more netlink dumps and, only if something
    /// is undecided, one walk over `/proc`.
    ///
    /// # Errors
    /// If the kernel or `/proc` does not answer; what was known before stays known.
    pub fn refresh(&mut self, now: BootTime) -> Result<SshSeen, SessionsError> {
        if let Some(logind) = &self.logind {
            logind.drain();
        }
        self.tracker.refresh(now)
    }

    /// The same, but without asking for connections again where there were none at the last listing, a minute ago at most, and the kernel has
    /// seen none opened since: a walk through its table of connections is the dearest part of a sample.
    ///
    /// `opened`: how many the program has counted ([`agent_ebpf::SshCounters::opened`]), read before this call; `None` if it has missed
    /// some or does not run.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub fn look(&mut self, now: BootTime, opened: Option<u64>) -> Result<SshSeen, SessionsError> {
        if let Some(logind) = &self.logind {
            logind.drain();
        }
        self.tracker.look(now, opened)
    }

    /// Takes a record of the kernel. Costs a few file reads, and a listing only when somebody logs in.
    pub fn record(&mut self, record: &SshRecord, now: BootTime) -> Noticed {
        self.tracker.record(record, now)
    }

    /// Readable when logind has made or ended a session: refresh then. `None` where there is no logind.
    pub fn logind_fd(&self) -> Option<BorrowedFd<'_>> {
        self.logind.as_ref().map(AsFd::as_fd)
    }

    /// How many logins were noticed since this was made.
    pub const fn logins(&self) -> u64 {
        self.tracker.logins
    }

    /// Whether a connection may become a session without any record: refresh again within a second.
    pub fn undecided(&self) -> bool {
        self.tracker.undecided()
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("ports", &self.tracker.ports)
            .field("connections", &self.tracker.known)
            .finish_non_exhaustive()
    }
}

/// What is known of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing is proved.
    Undecided,
    /// Nobody we know holds it, for too long.
    Doubtful,
    /// Somebody has logged in. For good: a session does not become unauthenticated.
    Authenticated(Owner),
}

/// Who is served by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    user: Option<String>,
    /// The outermost process of the connection.
    pid: u32,
    /// Its parent: the listener, as a rule.
    origin: u32,
}

#[derive(Clone, Debug)]
struct Known {
    connection: Connection,
    /// Since when, look after look, no sshd has held it. One look alone proves nothing: between the listing and the look at the processes
    /// the connection may have ended.
    unheld_since: Option<BootTime>,
    standing: Standing,
}

/// A process of a session that was judged.
#[derive(Clone, Copy, Debug)]
struct Judged {
    pid: u32,
    at: BootTime,
    verdict: Verdict,
}

/// What a session that a record told of is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// On one of our ports, and not known before.
    New,
    /// On one of our ports, and counted already.
    Counted,
    /// On another port.
    Foreign,
}

/// The listener that has accepted last, and when it was looked at.
#[derive(Clone, Copy, Debug)]
struct Listener {
    pid: u32,
    at: BootTime,
    elsewhere: bool,
}

/// A listing without any connection.
#[derive(Clone, Copy, Debug)]
struct Rest {
    at: BootTime,
    /// Connections that the kernel had seen opened before.
    opened: u64,
}

struct Tracker<C, P> {
    ports: Vec<u16>,
    connections: C,
    processes: P,
    /// Open connections by cookie.
    known: BTreeMap<[u8; 8], Known>,
    /// Processes of the latest sessions that records told of, so that two forks of a short one count once.
    judged: VecDeque<Judged>,
    listener: Option<Listener>,
    /// Whether a connection was opened that has not been listed.
    unlisted: bool,
    rest: Option<Rest>,
    last_activity: Option<BootTime>,
    logins: u64,
}

impl<C: Connections, P: Processes> Tracker<C, P> {
    fn new(ports: &[u16], connections: C, processes: P) -> Self {
        Self {
            ports: ports.to_vec(),
            connections,
            processes,
            known: BTreeMap::new(),
            judged: VecDeque::new(),
            listener: None,
            unlisted: false,
            rest: None,
            last_activity: None,
            logins: 0,
        }
    }

    fn look(&mut self, now: BootTime, opened: Option<u64>) -> Result<SshSeen, SessionsError> {
        let rests = |rest: Rest| opened == Some(rest.opened) && now.since(rest.at) < LIST_EVERY;
        if !self.unlisted && self.known.is_empty() && self.rest.is_some_and(rests) {
            return Ok(self.seen());
        }
        self.rest = None;
        let seen = self.refresh(now)?;
        if self.known.is_empty() {
            self.rest = opened.map(|opened| Rest { at: now, opened });
        }
        Ok(seen)
    }

    fn refresh(&mut self, now: BootTime) -> Result<SshSeen, SessionsError> {
        let listed = self.connections.list(&self.ports).map_err(SessionsError::Connections)?;
        self.update(listed, now);
        self.unlisted = false;
        if self.known.values().any(Known::is_open_question) {
            self.decide(now).map_err(SessionsError::Processes)?;
        }
        Ok(self.seen())
    }

    fn seen(&self) -> SshSeen {
        SshSeen {
            sessions: self.known.values().filter_map(Known::session).collect(),
            last_activity: self.last_activity,
            logins: self.logins,
        }
    }

    fn record(&mut self, record: &SshRecord, now: BootTime) -> Noticed {
        let at = BootTime::from_nanos(record.at_ns).min(now);
        if record.kind == SshRecordKind::Forked as u32 {
            self.forked(record, at)
        } else if record.kind == SshRecordKind::Closed as u32 {
            self.closed(record, at)
        } else {
            // Opened. A kind this agent does not know calls for a listing just as well.
            self.unlisted = true;
            Noticed::Nothing
        }
    }

    fn undecided(&self) -> bool {
        self.unlisted || self.known.values().any(|known| known.standing == Standing::Undecided)
    }

    /// Takes over a listing: new connections come in undecided, those that are gone go.
    fn update(&mut self, listed: Vec<Connection>, now: BootTime) {
        let mut before = std::mem::take(&mut self.known);
        for connection in listed.into_iter().filter(|connection| connection.established) {
            let known = match before.remove(&connection.cookie) {
                Some(known) => Known { connection, ..known },
                None => Known {
                    connection,
                    unheld_since: None,
                    standing: Standing::Undecided,
                },
            };
            self.known.insert(known.connection.cookie, known);
        }
        if before.values().any(Known::counts) {
            // Ended at some time since the last listing; the latest possible is the safe one.
            self.saw_activity(now);
        }
    }

    /// Asks the processes about every open question.
    fn decide(&mut self, now: BootTime) -> io::Result<()> {
        let servers = self.processes.servers()?;
        let holders: Vec<(u32, Vec<u64>)> = servers
            .into_iter()
            .map(|pid| (pid, self.processes.sockets(pid)))
            .collect();
        let mut logins = 0;
        for known in self.known.values_mut().filter(|known| known.is_open_question()) {
            let inode = known.connection.inode;
            if inode == 0 {
                continue; // Not accepted: nobody can have logged in.
            }
            let held_by: Vec<u32> = holders
                .iter()
                .filter(|(_, held)| held.contains(&inode))
                .map(|&(pid, _)| pid)
                .collect();
            let counted = known.counts();
            known.unheld_since = held_by.is_empty().then(|| known.unheld_since.unwrap_or(now));
            let unheld_for = known.unheld_since.map_or(Duration::ZERO, |since| now.since(since));
            known.standing = match held_by.iter().find_map(|&pid| owner(&self.processes, pid, evidence)) {
                Some(owner) => Standing::Authenticated(owner),
                None if unheld_for >= DOUBT_AFTER => Standing::Doubtful,
                None => Standing::Undecided,
            };
            logins += u64::from(known.counts() && !counted);
        }
        if logins > 0 {
            self.logins += logins;
            self.saw_activity(now);
        }
        Ok(())
    }

    /// An sshd has forked: the listener for a new connection, the monitor for the network or the user's child, or a server for a
    /// shell. In the first two nobody is authenticated, which the title tells: the one in the record, as `/proc` may come too late.
    fn forked(&mut self, record: &SshRecord, at: BootTime) -> Noticed {
        let (pid, child) = (record.pid, record.child);
        let role = Role::told(&record.title).unwrap_or_else(|| self.processes.role(pid));
        let user = match role {
            Role::Outside => return self.accepted(pid, child, at),
            Role::PreAuth => return Noticed::Nothing,
            Role::Working(user) => Some(user),
            Role::Ended | Role::Monitor(_) | Role::Served(_) => None,
        };
        let judged = self
            .judged
            .iter()
            .find(|judged| judged.pid == pid && at.since(judged.at) < JUDGED_FOR);
        let verdict = if let Some(judged) = judged {
            judged.verdict
        } else if let Some(owner) = owner(&self.processes, pid, evidence_of_parent) {
            self.judge(pid, owner, at)
        } else if let Some(owner) = owner(&self.processes, child, evidence) {
            self.judge(child, owner, at)
        } else if user.is_some() {
            // Nothing is left of it, but it said so itself.
            self.judge(pid, Owner { user, pid, origin: 0 }, at)
        } else {
            // The user's child may not have become the user yet.
            self.unlisted = true;
            return Noticed::Nothing;
        };
        self.remember([pid, child], at, verdict);
        match verdict {
            Verdict::New => {
                self.logins += 1;
                self.saw_activity(at);
                Noticed::Login
            }
            Verdict::Counted => {
                self.saw_activity(at);
                Noticed::Nothing
            }
            Verdict::Foreign => Noticed::Nothing,
        }
    }

    /// A listener has forked for a connection. If that is on another port, it is remembered for when nothing is left of it to tell.
    fn accepted(&mut self, listener: u32, child: u32, at: BootTime) -> Noticed {
        let checked = self
            .listener
            .filter(|last| last.pid == listener && at.since(last.at) < JUDGED_FOR);
        let elsewhere = checked.map_or_else(|| self.listens_elsewhere(listener), |last| last.elsewhere);
        self.listener = Some(Listener {
            pid: listener,
            at: checked.map_or(at, |last| last.at),
            elsewhere,
        });
        if elsewhere {
            self.remember([child], at, Verdict::Foreign);
        }
        Noticed::Nothing
    }

    /// `pid` proves a login. On which port, and is it known?
    fn judge(&mut self, pid: u32, owner: Owner, at: BootTime) -> Verdict {
        let mut known = self.known.values();
        if known.any(|known| matches!(&known.standing, Standing::Authenticated(other) if other.pid == owner.pid)) {
            return Verdict::Counted;
        }
        let mut held = self.processes.sockets(pid);
        held.extend(self.processes.sockets(owner.pid));
        let holds = |connection: &&Connection| connection.inode != 0 && held.contains(&connection.inode);
        // No listing, no way to tell it from a session on another port: then it counts.
        let listed = self.connections.list(&self.ports).unwrap_or_default();
        let Some(connection) = listed.iter().find(holds) else {
            let elsewhere = self.connections.list(&[]).unwrap_or_default();
            let foreign = elsewhere.iter().any(|connection| holds(&connection)) || self.listens_elsewhere(owner.origin);
            let verdict = if foreign { Verdict::Foreign } else { Verdict::New };
            self.remember([owner.pid], at, verdict);
            return verdict;
        };
        self.remember([owner.pid], at, Verdict::Counted);
        if !connection.established {
            return Verdict::New;
        }
        let known = self.known.entry(connection.cookie).or_insert_with(|| Known {
            connection: connection.clone(),
            unheld_since: None,
            standing: Standing::Undecided,
        });
        let verdict = if known.counts() { Verdict::Counted } else { Verdict::New };
        known.standing = Standing::Authenticated(owner);
        verdict
    }

    /// Whether `pid` is a listener, and not on one of our ports. In doubt it is not.
    fn listens_elsewhere(&self, pid: u32) -> bool {
        let held = self.processes.sockets(pid);
        let listens = |ports| {
            let listeners = self.connections.listeners(ports).unwrap_or_default();
            listeners.iter().any(|listener| held.contains(listener))
        };
        listens(&[]) && !listens(&self.ports)
    }

    fn closed(&mut self, record: &SshRecord, at: BootTime) -> Noticed {
        let peer = Ipv6Addr::from(record.peer).to_canonical();
        let ended = self.known.extract_if(.., |_, known| {
            known.is_between(record.local_port, peer, record.peer_port)
        });
        if ended.filter(|(_, known)| known.counts()).count() == 0 {
            return Noticed::Nothing;
        }
        self.saw_activity(at);
        Noticed::Ended
    }

    fn saw_activity(&mut self, at: BootTime) {
        self.last_activity = self.last_activity.max(Some(at));
    }

    fn remember<const N: usize>(&mut self, pids: [u32; N], at: BootTime, verdict: Verdict) {
        let verdict = match verdict {
            Verdict::New | Verdict::Counted => Verdict::Counted,
            Verdict::Foreign => Verdict::Foreign,
        };
        self.judged.truncate(JUDGED - N);
        for pid in pids {
            self.judged.push_front(Judged { pid, at, verdict });
        }
    }
}

/// The session `pid` serves, if it proves one.
fn owner(processes: &impl Processes, pid: u32, proof: fn(&Process, &Process) -> Option<Evidence>) -> Option<Owner> {
    let process = processes.look(pid)?;
    if !process.role.in_connection() {
        return None;
    }
    let mut outermost = pid;
    let mut origin = processes.look(process.parent)?;
    let mut next = process.parent;
    for _ in 0..DEEPEST {
        if !origin.role.in_connection() {
            proof(&process, &origin)?;
            return Some(Owner {
                user: process.role.account().cloned(),
                pid: outermost,
                origin: next,
            });
        }
        outermost = next;
        next = origin.parent;
        origin = processes.look(next)?;
    }
    None
}

impl Known {
    const fn counts(&self) -> bool {
        match self.standing {
            Standing::Undecided => false,
            Standing::Doubtful | Standing::Authenticated(_) => true,
        }
    }

    const fn is_open_question(&self) -> bool {
        match self.standing {
            Standing::Undecided | Standing::Doubtful => true,
            Standing::Authenticated(_) => false,
        }
    }

    fn is_between(&self, local_port: u16, peer: IpAddr, peer_port: u16) -> bool {
        let connection = &self.connection;
        (connection.local_port, connection.peer, connection.peer_port) == (local_port, peer, peer_port)
    }

    fn session(&self) -> Option<Session> {
        let (user, pid) = match &self.standing {
            Standing::Undecided => return None,
            Standing::Doubtful => (None, 0),
            Standing::Authenticated(owner) => (owner.user.clone(), owner.pid),
        };
        let Connection {
            peer, peer_port, idle, ..
        } = self.connection;
        Some(Session {
            user,
            peer,
            peer_port,
            pid,
            idle,
        })
    }
}

#[cfg(test)]
mod tests;
