//! SSH sessions, against a real sshd on loopback: who counts, who never does, from when, until when, and how long idle.
//!
//! Needs root, and for the trials of kernel records the eBPF programs built in; trials that cannot run here are listed as ignored.
//! Needs nothing of the build tree, so that it can be copied into a virtual machine.

#[path = "support/sshd.rs"]
mod sshd;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    process::ExitCode,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sshd::{Login, Pam, Sshd, USER};
use vmstation_agent::{
    clock::BootTime,
    config::ProbeMode,
    counters::SshSeen,
    probes::{Family, Probes},
    sessions::{Noticed, Sessions},
};

/// A login is seen, and its end is, within this time.
const SEEN_WITHIN: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);

type Body = fn(Pam) -> anyhow::Result<()>;

/// With netlink and `/proc` alone.
const TRIALS: [(&str, Body); 6] = [
    ("every_login_counts_until_logout", every_login_counts_until_logout),
    ("every_kind_of_session_counts", every_kind_of_session_counts),
    ("two_hundred_failed_logins_count_nothing", failed_logins_count_nothing),
    ("port_scans_count_nothing", port_scans_count_nothing),
    (
        "session_older_than_the_agent_counts",
        session_older_than_the_agent_counts,
    ),
    ("idle_age_runs_and_is_reset_by_a_byte", idle_age_runs_and_is_reset),
];

/// With the kernel's records.
const RECORD_TRIALS: [(&str, Body); 3] = [
    ("sessions_shorter_than_any_interval_are_seen", short_sessions_are_seen),
    (
        "login_and_logout_are_noticed_without_a_listing",
        login_and_logout_are_noticed,
    ),
    (
        "records_of_failed_logins_and_scans_count_nothing",
        records_of_failed_logins_count_nothing,
    ),
];

fn main() -> ExitCode {
    let no_sshd = sshd::missing();
    let no_records = no_sshd.clone().or_else(|| {
        let state = Probes::load(&[22], ProbeMode::Always)
            .state(Family::Ssh)
            .map_err(String::from);
        state.err()
    });
    let mut trials = Vec::new();
    for (pam, with) in [(Pam::Yes, "pam"), (Pam::No, "no_pam")] {
        for (bodies, missing) in [(&TRIALS[..], &no_sshd), (&RECORD_TRIALS[..], &no_records)] {
            for &(name, body) in bodies {
                let trial = Trial::test(format!("{name}::{with}"), move || passed(body(pam)));
                trials.push(trial.with_ignored_flag(missing.is_some()));
            }
        }
    }
    trials.push(Trial::test("server_that_is_not_openssh_counts_after_the_doubt", || {
        passed(unknown_server_counts_after_the_doubt())
    }));
    for reason in [no_sshd, no_records].into_iter().flatten() {
        eprintln!("not run: {reason}");
    }
    let mut arguments = Arguments::from_args();
    // They are about what happens within a second.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn passed(result: anyhow::Result<()>) -> Result<(), Failed> {
    result.map_err(|error| format!("{error:#}").into())
}

fn every_login_counts_until_logout(pam: Pam) -> anyhow::Result<()> {
    let sshd = Sshd::start(pam)?;
    let mut sessions = Sessions::new(&[sshd.port()]);
    let mut logins = 0;
    for user in [USER, "root"] {
        for login in [Login::Key, Login::Password] {
            ensure!(seen(&mut sessions)?.sessions.is_empty());
            let session = sshd.open(user, login)?;
            logins += 1;
            let seen = wait_for(&mut sessions, 1)?;
            let [counted] = seen.sessions.as_slice() else {
                unreachable!()
            };
            ensure!(counted.user.as_deref() == Some(user), "{login:?}: {counted:?}");
            ensure!(
                counted.peer == IpAddr::V4(Ipv4Addr::LOCALHOST) && counted.pid != 0,
                "{counted:?}"
            );
            ensure!(seen.logins == logins && seen.last_activity.is_some(), "{seen:?}");
            session.close()?;
            ensure!(wait_for(&mut sessions, 0)?.logins == logins);
        }
    }
    // Two at a time, and a client that is killed.
    let staying = sshd.open(USER, Login::Key)?;
    let killed = sshd.open("root", Login::Key)?;
    wait_for(&mut sessions, 2)?;
    drop(killed);
    let seen = wait_for(&mut sessions, 1)?;
    ensure!(
        seen.sessions[0].user.as_deref() == Some(USER) && seen.logins == logins + 2,
        "{seen:?}"
    );
    staying.close()?;
    wait_for(&mut sessions, 0)?;
    Ok(())
}

/// Terminals, file transfer, and sessions in which nothing runs at all.
fn every_kind_of_session_counts(pam: Pam) -> anyhow::Result<()> {
    let sshd = Sshd::start(pam)?;
    let mut sessions = Sessions::new(&[sshd.port()]);
    for user in [USER, "root"] {
        for options in [&["-tt"] as &[&str], &["-s"], &["-N"]] {
            let command: &[&str] = match options[0] {
                "-tt" => &["sleep", "60"],
                "-s" => &["sftp"],
                _ => &[],
            };
            let mut ssh = sshd.client(user, Login::Key, options);
            let mut client = Owned(ssh.args(command).stdin(std::process::Stdio::piped()).spawn()?);
            // From the start of the client, which takes some time until it is authenticated.
            let seen =
                wait_up_to(Duration::from_secs(60), &mut sessions, 1).with_context(|| format!("{user} {options:?}"))?;
            ensure!(seen.sessions[0].user.as_deref() == Some(user), "{seen:?}");
            client.end()?;
            wait_for(&mut sessions, 0).with_context(|| format!("end of {user} {options:?}"))?;
        }
    }
    Ok(())
}

fn failed_logins_count_nothing(pam: Pam) -> anyhow::Result<()> {
    const FAILED_LOGINS: usize = 200;
    // What a client tries over one connection; pam_unix ends it after three.
    const PER_CONNECTION: u32 = 20;
    const AT_ONCE: usize = 8;
    const MOST_CONNECTIONS: usize = 100;
    let sshd = Sshd::start(pam)?;
    let mut sessions = Sessions::new(&[sshd.port()]);
    let failed = || {
        sshd.log()
            .lines()
            .filter(|line| line.starts_with("Failed password for"))
            .count()
    };
    let mut accounts = ["root", USER, "nobody-of-this-name"]
        .into_iter()
        .cycle()
        .take(MOST_CONNECTIONS);
    let mut clients = Vec::new();
    let mut undecided = false;
    while failed() < FAILED_LOGINS {
        clients.retain_mut(Owned::runs);
        if clients.len() < AT_ONCE {
            let account = accounts
                .next()
                .with_context(|| format!("only {} logins failed: {}", failed(), sshd.log()))?;
            clients.push(Owned(
                sshd.client(account, Login::WrongPassword(PER_CONNECTION), &[])
                    .arg("true")
                    .spawn()?,
            ));
        }
        counted_nothing(&seen(&mut sessions)?)?;
        undecided |= sessions.undecided();
        sleep(POLL);
    }
    drop(clients);
    counted_nothing(&seen(&mut sessions)?)?;
    ensure!(undecided, "the attempts were never looked at");
    ensure!(!sshd.log().contains("Accepted"), "somebody did log in: {}", sshd.log());
    Ok(())
}

/// Connections that are closed at once, that say nothing, and that stop in the middle of the handshake.
fn port_scans_count_nothing(pam: Pam) -> anyhow::Result<()> {
    let sshd = Sshd::start(pam)?;
    let mut sessions = Sessions::new(&[sshd.port()]);
    for _ in 0..50 {
        drop(TcpStream::connect(("127.0.0.1", sshd.port()))?);
        counted_nothing(&seen(&mut sessions)?)?;
    }
    let mut hanging = Vec::new();
    for scan in 0..6 {
        let mut connection = TcpStream::connect(("127.0.0.1", sshd.port()))?;
        if scan % 2 == 0 {
            connection.write_all(b"SSH-2.0-scan\r\n")?;
        }
        hanging.push(connection);
    }
    let until = BootTime::now().after(vmstation_agent::sessions::DOUBT_AFTER + Duration::from_secs(2));
    while BootTime::now() < until {
        counted_nothing(&seen(&mut sessions)?)?;
        sleep(POLL);
    }
    ensure!(
        sessions.undecided(),
        "the scans are not connected any more: {}",
        sshd.log()
    );
    Ok(())
}

fn session_older_than_the_agent_counts(pam: Pam) -> anyhow::Result<()> {
    let sshd = Sshd::start(pam)?;
    let by_user = sshd.open(USER, Login::Key)?;
    let by_root = sshd.open("root", Login::Password)?;
    let mut sessions = Sessions::new(&[sshd.port()]);
    let first = seen(&mut sessions)?;
    ensure!(first.sessions.len() == 2 && first.logins == 2, "{first:?}");
    by_user.close()?;
    by_root.close()?;
    wait_for(&mut sessions, 0)?;
    Ok(())
}

fn idle_age_runs_and_is_reset(pam: Pam) -> anyhow::Result<()> {
    let sshd = Sshd::start(pam)?;
    let mut sessions = Sessions::new(&[sshd.port()]);
    let mut session = sshd.open(USER, Login::Key)?;
    wait_for(&mut sessions, 1)?;
    sleep(Duration::from_secs(3));
    let silent = seen(&mut sessions)?.sessions[0].idle;
    ensure!(silent >= Duration::from_millis(2500), "idle for {silent:?}");
    session.type_line()?;
    let typed = seen(&mut sessions)?.sessions[0].idle;
    ensure!(typed < silent, "idle for {typed:?} after a byte");
    session.close()
}

/// Nothing is listed between the logins: only records tell of them.
fn short_sessions_are_seen(pam: Pam) -> anyhow::Result<()> {
    const TIMES: u64 = 5;
    let sshd = Sshd::start(pam)?;
    let mut watch = Watch::new(&sshd)?;
    let mut logins = 0;
    for user in [USER, "root"] {
        for login in [Login::Key, Login::Password] {
            for command in [["--", "true"], ["-s", "sftp"]] {
                for _ in 0..TIMES {
                    let [option, command] = command;
                    let mut client = Owned(sshd.client(user, login, &[]).args([option, command]).spawn()?);
                    while client.runs() {
                        watch.records(POLL)?;
                    }
                    logins += 1;
                }
                watch.records(POLL)?;
                let noticed = watch
                    .noticed
                    .iter()
                    .filter(|&&noticed| noticed == Noticed::Login)
                    .count();
                ensure!(
                    noticed as u64 == logins,
                    "{noticed} of {logins} noticed with {user} {login:?} {command:?}"
                );
            }
        }
    }
    let seen = seen(&mut watch.sessions)?;
    ensure!(seen.logins == logins && seen.last_activity.is_some(), "{seen:?}");
    Ok(())
}

fn login_and_logout_are_noticed(pam: Pam) -> anyhow::Result<()> {
    let sshd = Sshd::start(pam)?;
    let mut watch = Watch::new(&sshd)?;
    for user in [USER, "root"] {
        watch.noticed.clear();
        // The processes stay, so their records may be taken after the login.
        let session = sshd.open(user, Login::Key)?;
        watch.records(SEEN_WITHIN)?;
        ensure!(
            watch.noticed == [Noticed::Login],
            "{:?} after {user}'s login",
            watch.noticed
        );
        session.close()?;
        watch.records(SEEN_WITHIN)?;
        ensure!(
            watch.noticed == [Noticed::Login, Noticed::Ended],
            "{:?} after {user}'s logout",
            watch.noticed
        );
    }
    let seen = seen(&mut watch.sessions)?;
    ensure!(seen.sessions.is_empty() && seen.logins == 2, "{seen:?}");
    Ok(())
}

fn records_of_failed_logins_count_nothing(pam: Pam) -> anyhow::Result<()> {
    let sshd = Sshd::start(pam)?;
    let mut watch = Watch::new(&sshd)?;
    for account in ["root", USER, "nobody-of-this-name"].into_iter().cycle().take(9) {
        let mut client = Owned(
            sshd.client(account, Login::WrongPassword(20), &[])
                .arg("true")
                .spawn()?,
        );
        drop(TcpStream::connect(("127.0.0.1", sshd.port()))?);
        while client.runs() {
            watch.records(POLL)?;
        }
    }
    watch.records(SEEN_WITHIN)?;
    ensure!(watch.noticed.is_empty(), "{:?}", watch.noticed);
    let opened = watch.probes.ssh().map_err(anyhow::Error::msg)?.opened;
    ensure!(opened == 18, "the kernel saw {opened} connections");
    counted_nothing(&seen(&mut watch.sessions)?)
}

/// Doubt keeps the host awake: nobody can say who is behind this connection.
fn unknown_server_counts_after_the_doubt() -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    let mut sessions = Sessions::new(&[listener.local_addr()?.port()]);
    let start = BootTime::now();
    counted_nothing(&sessions.refresh(start)?)?;
    counted_nothing(&sessions.refresh(start.after(Duration::from_secs(4)))?)?;
    let counted = sessions.refresh(start.after(Duration::from_secs(6)))?;
    ensure!(
        counted.sessions.len() == 1 && counted.sessions[0].user.is_none(),
        "{counted:?}"
    );
    drop(server);
    client.read_to_end(&mut Vec::new())?;
    ensure!(
        sessions
            .refresh(start.after(Duration::from_secs(7)))?
            .sessions
            .is_empty()
    );
    Ok(())
}

fn seen(sessions: &mut Sessions) -> anyhow::Result<SshSeen> {
    Ok(sessions.refresh(BootTime::now())?)
}

fn counted_nothing(seen: &SshSeen) -> anyhow::Result<()> {
    ensure!(*seen == SshSeen::default(), "{seen:?}");
    Ok(())
}

fn wait_for(sessions: &mut Sessions, count: usize) -> anyhow::Result<SshSeen> {
    wait_up_to(SEEN_WITHIN, sessions, count)
}

fn wait_up_to(limit: Duration, sessions: &mut Sessions, count: usize) -> anyhow::Result<SshSeen> {
    let start = BootTime::now();
    loop {
        let seen = seen(sessions)?;
        if seen.sessions.len() == count {
            return Ok(seen);
        }
        ensure!(
            BootTime::now().since(start) < limit,
            "not {count} sessions after {limit:?}: {seen:?}"
        );
        sleep(POLL);
    }
}

/// The tracker, fed by the kernel.
struct Watch {
    sessions: Sessions,
    probes: Probes,
    /// What records led to, where they led to anything.
    noticed: Vec<Noticed>,
}

impl Watch {
    fn new(sshd: &Sshd) -> anyhow::Result<Self> {
        let probes = Probes::load(&[sshd.port()], ProbeMode::Always);
        probes.state(Family::Ssh).map_err(|why| anyhow!("no records: {why}"))?;
        Ok(Self {
            sessions: Sessions::new(&[sshd.port()]),
            probes,
            noticed: Vec::new(),
        })
    }

    /// Takes records as they come, for some time.
    fn records(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = BootTime::now().after(time);
        loop {
            let left = end.since(BootTime::now());
            if left.is_zero() {
                return Ok(());
            }
            let ring = self.probes.ssh_fd().context("no ring buffer")?;
            poll(
                &mut [PollFd::new(ring, PollFlags::POLLIN)],
                PollTimeout::try_from(left)?,
            )?;
            for record in self.probes.ssh_records() {
                match self.sessions.record(&record, BootTime::now()) {
                    Noticed::Nothing => {}
                    noticed @ (Noticed::Login | Noticed::Ended) => self.noticed.push(noticed),
                }
            }
        }
    }
}

/// A client process that does not outlive the test.
struct Owned(std::process::Child);

impl Owned {
    fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Ended and reaped already, as a rule.
        let _ = self.end();
    }
}
