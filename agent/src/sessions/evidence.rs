//! Pure: what a process of an SSH connection shows about whether somebody has logged in. Never reads a file.
//!
//! The anatomy behind it (OpenSSH 9.2 to 10: `sshd.c`, `sshd-session.c`, `monitor.c`, `session.c`). The listener forks one process per
//! connection. That one forks an unprivileged network child for the time before authentication (`[net]`; chrooted, user `sshd`; a
//! program of its own, `sshd-auth`, from 10.0) and stays as its monitor (`NAME [priv]`). After authentication it opens the PAM session
//! and forks a child that becomes the user; up to 9.7 root is served by the monitor itself. Whoever serves calls itself `NAME`, and
//! `NAME@TTY` once there is a shell or a command. Names in titles are those of valid accounts; others read `unknown`.

/// What a process says it is: its `comm` and the title sshd gives itself (`/proc/PID/cmdline`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// No process of a connection: the listener, something that is not sshd, or an sshd that has not named itself yet.
    Outside,
    /// Serves a connection nobody has logged in to: `[accepted]`, `[net]`, `NAME [pam]`, ..
    PreAuth,
    /// An sshd that has ended and not been waited for: it has no title any more, but still its user and login.
    Ended,
    /// `NAME [priv]`: watches over a connection, before authentication and after. Names the account asked for.
    Monitor(String),
    /// `NAME`: serves a user without shell or command (`ssh -N`).
    Served(String),
    /// `NAME@TTY` or `NAME@notty`: serves a shell, a command or a subsystem.
    Working(String),
}

/// Which login a process belongs to, according to those who keep book of logins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Login {
    /// Audit session (`/proc/PID/sessionid`), set by pam_loginuid; `None` if unset or the kernel has no audit.
    pub(super) audit: Option<u32>,
    /// The scope logind made for the session (`session-N.scope` in `/proc/PID/cgroup`, see sd_pid_get_session(3)).
    pub(super) scope: Option<String>,
}

/// A process, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Parent's process id.
    pub(super) parent: u32,
    /// What it says it is.
    pub(super) role: Role,
    /// Real user id. The effective one changes while the monitor reads a user's files, before authentication.
    pub(super) uid: u32,
    /// Whether its root folder is not the system's, or cannot be read.
    pub(super) chrooted: bool,
    /// Whose login it belongs to.
    pub(super) login: Login,
}

/// Why a connection is taken for authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// sshd says so in its title.
    Title,
    /// The process has become the user.
    User,
    /// PAM has given it an audit session of its own.
    AuditSession,
    /// logind has given it a session of its own.
    LogindSession,
}

impl Role {
    /// From `/proc/PID/comm` and the first string of `/proc/PID/cmdline`.
    pub(super) fn parse(comm: &str, title: &str) -> Self {
        if !comm.starts_with("sshd") {
            return Self::Outside;
        }
        if title.is_empty() {
            return Self::Ended;
        }
        let Some((program, body)) = title.split_once(": ") else {
            return Self::Outside;
        };
        // `[listener]` stands in the middle: `sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups`.
        if !program.starts_with("sshd") || body.contains("[listener]") {
            return Self::Outside;
        }
        let body = body.trim_end();
        if comm == "sshd-auth" || body.is_empty() {
            return Self::PreAuth;
        }
        if let Some(name) = body.strip_suffix(" [priv]") {
            return Self::Monitor(name.to_owned());
        }
        if body.ends_with(']') {
            return Self::PreAuth;
        }
        match body.rsplit_once('@') {
            Some((name, _tty)) => Self::Working(name.to_owned()),
            None => Self::Served(body.to_owned()),
        }
    }

    /// From the title in a kernel record, of a process named `sshd..`; `None` if there is none, or only a part that may lack the end.
    pub(super) fn told(title: &[u8]) -> Option<Self> {
        let title = &title[..title.iter().position(|&byte| byte == 0)?];
        if title.is_empty() {
            return None;
        }
        let title = String::from_utf8_lossy(title);
        let program = title.split(": ").next().filter(|program| program.starts_with("sshd"));
        Some(Self::parse(program.unwrap_or("sshd"), &title))
    }

    /// Whether this is a process of a connection.
    pub(super) const fn in_connection(&self) -> bool {
        match self {
            Self::Outside => false,
            Self::PreAuth | Self::Ended | Self::Monitor(_) | Self::Served(_) | Self::Working(_) => true,
        }
    }

    /// The account it names, if it can be one that has logged in.
    pub(super) const fn account(&self) -> Option<&String> {
        match self {
            Self::Outside | Self::PreAuth | Self::Ended => None,
            Self::Monitor(name) | Self::Served(name) | Self::Working(name) => Some(name),
        }
    }
}

/// What `process` proves. `origin` is the nearest ancestor outside the connection, the listener as a rule: what the process has in
/// common with it was inherited and proves nothing.
pub(super) fn evidence(process: &Process, origin: &Process) -> Option<Evidence> {
    match &process.role {
        Role::Outside | Role::PreAuth => return None,
        Role::Working(_) => return Some(Evidence::Title),
        // The network child is chrooted for as long as it is not root: whatever it may call itself, it does not get here.
        Role::Served(_) if !process.chrooted => return Some(Evidence::Title),
        Role::Served(_) | Role::Monitor(_) | Role::Ended => {}
    }
    if process.role != Role::Ended && process.uid != 0 && process.uid != origin.uid && !process.chrooted {
        return Some(Evidence::User);
    }
    if process.login.audit.is_some() && process.login.audit != origin.login.audit {
        return Some(Evidence::AuditSession);
    }
    if process.login.scope.is_some() && process.login.scope != origin.login.scope {
        return Some(Evidence::LogindSession);
    }
    None
}

/// As [`evidence`], of a process that has forked. The network child may not (seccomp, and `RLIMIT_NPROC` 0 where there is none): one
/// that is not root and did has become the user, even if that is all that is left to see of it.
pub(super) fn evidence_of_parent(process: &Process, origin: &Process) -> Option<Evidence> {
    let became_user = process.role == Role::Ended && process.uid != 0 && process.uid != origin.uid;
    evidence(process, origin).or_else(|| became_user.then_some(Evidence::User))
}

/// The scope of a logind session in the text of `/proc/PID/cgroup`: the innermost `session-N.scope` of any hierarchy.
pub(super) fn logind_scope(cgroup: &str) -> Option<String> {
    let scope = cgroup
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .flat_map(|path| path.rsplit('/'))
        .find(|unit| unit.starts_with("session-") && unit.ends_with(".scope"))?;
    Some(scope.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor(name: &str) -> Role {
        Role::Monitor(name.into())
    }

    fn served(name: &str) -> Role {
        Role::Served(name.into())
    }

    fn working(name: &str) -> Role {
        Role::Working(name.into())
    }

    #[test]
    fn titles_of_all_openssh_generations() {
        for (comm, title, role) in [
            // 9.2, as seen on Debian 12
            (
                "sshd",
                "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups",
                Role::Outside,
            ),
            ("sshd", "sshd: [accepted]", Role::PreAuth),
            ("sshd", "sshd: [net]", Role::PreAuth),
            ("sshd", "sshd: root [net]", Role::PreAuth),
            ("sshd", "sshd: unknown [net]", Role::PreAuth),
            ("sshd", "sshd: alice [pam]", Role::PreAuth),
            ("sshd", "sshd: alice [priv]", monitor("alice")),
            ("sshd", "sshd: [priv]", Role::PreAuth),
            ("sshd", "sshd: alice", served("alice")),
            ("sshd", "sshd: alice@pts/0", working("alice")),
            ("sshd", "sshd: root@notty", working("root")),
            ("sshd", "sshd: alice@internal-sftp", working("alice")),
            (
                "sshd",
                "sshd: alice@example.org@pts/0,pts/1",
                working("alice@example.org"),
            ),
            ("sshd", "sshd: alice@example.org [priv]", monitor("alice@example.org")),
            ("sshd", "sshd: alice@example.org [net]", Role::PreAuth),
            // padded by older setproctitle emulations
            ("sshd", "sshd: alice@pts/0      ", working("alice")),
            // before the first title, and the listener of old versions
            ("sshd", "/usr/sbin/sshd", Role::Outside),
            // ended, and not yet waited for
            ("sshd", "", Role::Ended),
            ("", "", Role::Outside),
            // 9.8
            ("sshd-session", "sshd-session: [accepted]", Role::PreAuth),
            ("sshd-session", "sshd-session: alice [priv]", monitor("alice")),
            ("sshd-session", "sshd-session: root@pts/0", working("root")),
            // 10
            ("sshd-auth", "sshd-auth: [session-auth]", Role::PreAuth),
            ("sshd-auth", "sshd-auth: alice", Role::PreAuth),
            // somebody else
            ("bash", "sshd: root@pts/0", Role::Outside),
            ("sshd", "nginx: worker", Role::Outside),
        ] {
            assert_eq!(Role::parse(comm, title), role, "{comm} {title:?}");
        }
    }

    #[test]
    fn titles_in_records() {
        for (title, role) in [
            (&b"sshd: root@notty\0HOME=/\0\0\0\0\0\0\0\0"[..], Some(working("root"))),
            (b"sshd-session: alice [priv]\0\0\0\0\0\0", Some(monitor("alice"))),
            (b"sshd-auth: alice\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", Some(Role::PreAuth)),
            (b"/usr/sbin/sshd\0-D\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", Some(Role::Outside)),
            // Cut off: a "[priv]" may have followed.
            (b"sshd-session: a-very-long-name@e", None),
            (b"sshd: /usr/sbin/sshd -D [listene", None),
            (&[0; 32], None),
            (b"", None),
        ] {
            assert_eq!(Role::told(title), role, "{}", title.escape_ascii());
        }
    }

    #[test]
    fn what_proves_a_login() {
        const SSHD: u32 = 104;
        const ALICE: u32 = 1000;
        let audit = |id| Login {
            audit: Some(id),
            scope: None,
        };
        let scope = |name: &str| Login {
            audit: None,
            scope: Some(name.into()),
        };
        let none = Login::default;
        let boot = (0, none());
        let by_hand = (0, audit(7)); // a listener started from a login
        let unprivileged = (ALICE, none()); // a listener run by a user
        for (what, role, uid, chrooted, login, origin, proof) in [
            (
                "network child, valid account",
                Role::PreAuth,
                SSHD,
                true,
                none(),
                &boot,
                None,
            ),
            (
                "network child without a bracket",
                served("alice"),
                SSHD,
                true,
                none(),
                &boot,
                None,
            ),
            (
                "child before it dropped root",
                monitor("alice"),
                0,
                false,
                none(),
                &boot,
                None,
            ),
            (
                "monitor before authentication",
                monitor("root"),
                0,
                false,
                none(),
                &boot,
                None,
            ),
            (
                "monitor, listener's login inherited",
                monitor("root"),
                0,
                false,
                audit(7),
                &by_hand,
                None,
            ),
            (
                "monitor of an unprivileged sshd",
                monitor("alice"),
                ALICE,
                false,
                none(),
                &unprivileged,
                None,
            ),
            (
                "listener in the accept call",
                Role::Outside,
                0,
                false,
                audit(9),
                &boot,
                None,
            ),
            (
                "monitor after PAM",
                monitor("alice"),
                0,
                false,
                audit(9),
                &boot,
                Some(Evidence::AuditSession),
            ),
            (
                "the same under a listener with a login",
                monitor("root"),
                0,
                false,
                audit(9),
                &by_hand,
                Some(Evidence::AuditSession),
            ),
            (
                "monitor after logind, no audit",
                monitor("root"),
                0,
                false,
                scope("session-3.scope"),
                &boot,
                Some(Evidence::LogindSession),
            ),
            (
                "user child, title inherited, no PAM",
                monitor("alice"),
                ALICE,
                false,
                none(),
                &boot,
                Some(Evidence::User),
            ),
            (
                "chrooted user child, title inherited",
                monitor("alice"),
                ALICE,
                true,
                none(),
                &boot,
                None,
            ),
            (
                "chrooted user child, PAM",
                monitor("alice"),
                ALICE,
                true,
                audit(9),
                &boot,
                Some(Evidence::AuditSession),
            ),
            (
                "chrooted sftp, no PAM",
                working("alice"),
                ALICE,
                true,
                none(),
                &boot,
                Some(Evidence::Title),
            ),
            (
                "root without command, no PAM",
                served("root"),
                0,
                false,
                none(),
                &boot,
                Some(Evidence::Title),
            ),
            (
                "root with a shell, no PAM",
                working("root"),
                0,
                false,
                none(),
                &boot,
                Some(Evidence::Title),
            ),
            (
                "unprivileged sshd, shell",
                working("alice"),
                ALICE,
                false,
                none(),
                &unprivileged,
                Some(Evidence::Title),
            ),
        ] {
            let process = Process {
                parent: 2,
                role,
                uid,
                chrooted,
                login,
            };
            let (uid, login) = origin.clone();
            let origin = Process {
                parent: 1,
                role: Role::Outside,
                uid,
                chrooted: false,
                login,
            };
            assert_eq!(evidence(&process, &origin), proof, "{what}");
        }
    }

    #[test]
    fn what_is_left_of_a_process_that_has_ended() {
        let ended = |uid, audit| Process {
            parent: 2,
            role: Role::Ended,
            uid,
            chrooted: true,
            login: Login { audit, scope: None },
        };
        let origin = Process {
            parent: 1,
            role: Role::Outside,
            ..ended(0, None)
        };
        for (what, process, alone, has_forked) in [
            (
                "network child, which never forks",
                ended(104, None),
                None,
                Some(Evidence::User),
            ),
            ("user child", ended(1000, None), None, Some(Evidence::User)),
            ("monitor of a failed login", ended(0, None), None, None),
            (
                "monitor after PAM",
                ended(0, Some(9)),
                Some(Evidence::AuditSession),
                Some(Evidence::AuditSession),
            ),
        ] {
            assert_eq!(evidence(&process, &origin), alone, "{what}");
            assert_eq!(
                evidence_of_parent(&process, &origin),
                has_forked,
                "{what}, having forked"
            );
        }
    }

    #[test]
    fn scope_of_a_logind_session() {
        for (cgroup, scope) in [
            (
                "0::/user.slice/user-1000.slice/session-3.scope\n",
                Some("session-3.scope"),
            ),
            (
                "12:pids:/user.slice\n1:name=systemd:/user.slice/user-0.slice/session-c1.scope\n0::/\n",
                Some("session-c1.scope"),
            ),
            ("0::/system.slice/ssh.service\n", None),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/session-x.service\n",
                None,
            ),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(logind_scope(cgroup).as_deref(), scope, "{cgroup:?}");
        }
    }
}
