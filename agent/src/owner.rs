//! Whose a cgroup is, told from its path: a pod's container, a service, a login session. Pure, but for [`PodNames::read`], which lists the
//! folders in which the kubelet keeps the logs of pods. Asks neither Kubernetes nor a container runtime.

use std::{collections::BTreeMap, fmt, fs, path::Path};

/// Where the kubelet keeps logs: one folder a pod, `namespace_name_uid`.
pub const POD_LOGS: &str = "/var/log/pods";

/// Most folders of pods that are looked at.
const MAX_PODS: usize = 4096;

/// Whose a cgroup is. Its `Display` is for people and made of the path as it is: it may hold control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The root: kernel threads, and processes that nobody has put elsewhere.
    Root,
    /// A pod, or one container of it.
    Pod {
        /// Uid as the API server writes it; of a static pod the hash of its manifest.
        uid: String,
        /// `None`: what all its containers share.
        container: Option<Container>,
    },
    /// A container that is no pod's.
    Container(Container),
    /// A login session.
    Session {
        /// User id.
        user: u32,
        /// logind's name of it.
        session: String,
    },
    /// A service of a user's own service manager.
    UserService {
        /// User id.
        user: u32,
        /// Name without `.service` or `.scope`.
        name: String,
    },
    /// All of a user that is in no session of its own.
    User(u32),
    /// A service of the system.
    Service(String),
    /// A slice as a whole; name without `.slice`.
    Slice(String),
    /// None of these: the path.
    Other(String),
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Container {
    /// Who runs it, if the path tells.
    pub runtime: Option<Runtime>,
    /// First 12 digits of its id, as the runtimes show it.
    pub id: String,
}

/// A container runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runtime {
    /// containerd.
    Containerd,
    /// CRI-O.
    Crio,
    /// Docker.
    Docker,
    /// Podman.
    Podman,
}

/// `namespace/name` of pods by their uid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodNames(BTreeMap<String, String>);

impl Owner {
    /// Whose the cgroup at `path` below the root is. Any text has an owner.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let Some(last) = parts.last() else {
            return Self::Root;
        };
        // The innermost: a node may itself be a container of another one.
        if let Some((at, uid)) = (0..parts.len())
            .rev()
            .find_map(|at| Some((at, pod_uid(&parts[..=at])?)))
        {
            let container = parts[at + 1..].iter().find_map(|part| container(part));
            return Self::Pod { uid, container };
        }
        if let Some(container) = outside_pods(&parts) {
            return Self::Container(container);
        }
        if let Some(user) = parts.iter().find_map(|part| number(part, "user-", ".slice")) {
            return of_user(user, &parts);
        }
        match (innermost(&parts, ".service"), last.strip_suffix(".slice")) {
            (Some(service), _) => Self::Service(service),
            (None, Some(slice)) => Self::Slice(plain(slice)),
            (None, None) => Self::Other(parts.join("/")),
        }
    }

    /// For people, with the name of the pod where it is known.
    #[must_use]
    pub fn named(&self, names: &PodNames) -> String {
        match self {
            Self::Pod { uid, container } => {
                let pod = match names.0.get(uid) {
                    Some(name) => format!("pod {name}"),
                    None => format!("pod {uid}"),
                };
                match container {
                    Some(container) => format!("{pod} {container}"),
                    None => pod,
                }
            }
            Self::Root => "no cgroup of its own (kernel, or processes in the root)".into(),
            Self::Container(container) => container.to_string(),
            Self::Session { user, session } => format!("user {user} session {session}"),
            Self::UserService { user, name } => format!("user {user} service {name}"),
            Self::User(user) => format!("user {user}"),
            Self::Service(name) => format!("service {name}"),
            Self::Slice(name) => format!("slice {name}"),
            Self::Other(path) => format!("cgroup {path}"),
        }
    }
}

impl PodNames {
    /// The pods that have a folder in `logs` (see [`POD_LOGS`]); none where there is no kubelet.
    #[must_use]
    pub fn read(logs: &Path) -> Self {
        let entries = fs::read_dir(logs).into_iter().flatten().flatten().take(MAX_PODS);
        let names = entries.filter_map(|entry| {
            let name = entry.file_name();
            // Neither namespaces nor names have an underscore (RFC 1123).
            let mut parts = name.to_str()?.splitn(3, '_');
            let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
            is_uid(uid).then(|| (uid.to_owned(), format!("{namespace}/{name}")))
        });
        Self(names.collect())
    }
}

/// The uid, if the last of these parts is a pod's cgroup: `kubepods-burstable-podUID.slice` with `_` for `-` (the kubelet's systemd driver,
/// also below another slice), or `podUID` somewhere below `kubepods` (its cgroupfs driver).
fn pod_uid(parts: &[&str]) -> Option<String> {
    let (last, above) = parts.split_last()?;
    let uid = match last.strip_suffix(".slice") {
        Some(slice) => {
            let (kind, uid) = slice.rsplit_once("-pod")?;
            kind.contains("kubepods").then(|| uid.replace('_', "-"))?
        }
        None => {
            above.contains(&"kubepods").then_some(())?;
            last.strip_prefix("pod")?.to_owned()
        }
    };
    is_uid(&uid).then_some(uid)
}

/// A UUID, or the hash that names a static pod.
fn is_uid(text: &str) -> bool {
    (32..=36).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// `RUNTIME-ID.scope` (systemd), or the id alone (cgroupfs).
fn container(part: &str) -> Option<Container> {
    match part.strip_suffix(".scope") {
        Some(scope) => {
            let (runtime, id) = scope.rsplit_once('-')?;
            short(id).map(|id| Container {
                runtime: Runtime::of(runtime),
                id,
            })
        }
        None => short(part).map(|id| Container { runtime: None, id }),
    }
}

/// A container needs a runtime there: a folder that merely has an id for a name can be anything.
fn outside_pods(parts: &[&str]) -> Option<Container> {
    parts.iter().enumerate().find_map(|(at, part)| {
        let found = container(part)?;
        let above = at.checked_sub(1).map(|above| parts[above]);
        let runtime = found.runtime.or_else(|| Runtime::of(above?))?;
        Some(Container {
            runtime: Some(runtime),
            ..found
        })
    })
}

/// The first 12 digits of a container's id.
fn short(id: &str) -> Option<String> {
    const LONG: usize = 64;
    const SHORT: usize = 12;
    let is_id = id.len() == LONG && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| id[..SHORT].to_owned())
}

fn of_user(user: u32, parts: &[&str]) -> Owner {
    if let Some(session) = innermost(parts, ".scope").and_then(|scope| Some(scope.strip_prefix("session-")?.to_owned()))
    {
        return Owner::Session { user, session };
    }
    let manager = format!("user@{user}.service");
    let below = parts
        .iter()
        .position(|part| *part == manager)
        .map(|at| &parts[at + 1..]);
    let service = below.and_then(|below| innermost(below, ".service").or_else(|| innermost(below, ".scope")));
    match service {
        Some(name) => Owner::UserService { user, name },
        None => Owner::User(user),
    }
}

fn innermost(parts: &[&str], suffix: &str) -> Option<String> {
    parts.iter().rev().find_map(|part| part.strip_suffix(suffix)).map(plain)
}

fn number(part: &str, prefix: &str, suffix: &str) -> Option<u32> {
    part.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok()
}

/// Without systemd's escapes, `\xHH` (systemd.unit(5), "String escaping for inclusion in unit names"), as far as they are printable.
fn plain(name: &str) -> String {
    let mut parts = name.split("\\x");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok());
        match code.filter(|code| code.is_ascii_graphic() || *code == b' ') {
            Some(code) => {
                text.push(char::from(code));
                text.push_str(&part[2..]);
            }
            None => {
                text.push_str("\\x");
                text.push_str(part);
            }
        }
    }
    text
}

impl Runtime {
    /// By what its cgroups begin with, or the folder they are in.
    fn of(name: &str) -> Option<Self> {
        [
            ("cri-containerd", Self::Containerd),
            ("containerd", Self::Containerd),
            ("nerdctl", Self::Containerd),
            ("crio", Self::Crio),
            ("docker", Self::Docker),
            ("libpod", Self::Podman),
            ("libpod_parent", Self::Podman),
        ]
        .into_iter()
        .find_map(|(known, runtime)| (known == name).then_some(runtime))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.named(&PodNames::default()))
    }
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.runtime {
            Some(runtime) => write!(f, "container {} ({runtime})", self.id),
            None => write!(f, "container {}", self.id),
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containerd => "containerd",
            Self::Crio => "CRI-O",
            Self::Docker => "Docker",
            Self::Podman => "Podman",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "4be1c4cba2c74f1a9d1a0b6b6ed37df2c4be1c4cba2c74f1a9d1a0b6b6ed37df";
    const UID: &str = "8f3c0a52-11d2-4c0e-9d1e-6f2a7b9c0d1e";
    const HASH: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn every_known_path_has_its_owner() {
        let unit = UID.replace('-', "_");
        let table = [
            (
                String::new(),
                "no cgroup of its own (kernel, or processes in the root)".into(),
            ),
            (
                "/".into(),
                "no cgroup of its own (kernel, or processes in the root)".into(),
            ),
            (
                format!(
                    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{unit}.slice/cri-containerd-{ID}.scope"
                ),
                format!("pod {UID} container 4be1c4cba2c7 (containerd)"),
            ),
            (
                format!("kubepods.slice/kubepods-pod{unit}.slice/crio-{ID}.scope"),
                format!("pod {UID} container 4be1c4cba2c7 (CRI-O)"),
            ),
            (
                format!(
                    "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{unit}.slice/docker-{ID}.scope/init.scope"
                ),
                format!("pod {UID} container 4be1c4cba2c7 (Docker)"),
            ),
            (
                format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice"),
                format!("pod {HASH}"),
            ),
            (
                format!("kubepods/burstable/pod{UID}/{ID}"),
                format!("pod {UID} container 4be1c4cba2c7"),
            ),
            (format!("kubepods/pod{UID}"), format!("pod {UID}")),
            (
                format!(
                    "system.slice/docker-{ID}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{unit}.slice/cri-containerd-{}.scope",
                    ID.replace('4', "a")
                ),
                format!("pod {UID} container abe1cacba2c7 (containerd)"),
            ),
            (
                format!("system.slice/docker-{ID}.scope"),
                "container 4be1c4cba2c7 (Docker)".into(),
            ),
            (format!("docker/{ID}"), "container 4be1c4cba2c7 (Docker)".into()),
            (
                format!("machine.slice/libpod-{ID}.scope/container"),
                "container 4be1c4cba2c7 (Podman)".into(),
            ),
            (
                format!("user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
                "container 4be1c4cba2c7 (Podman)".into(),
            ),
            (
                "user.slice/user-1000.slice/session-3.scope".into(),
                "user 1000 session 3".into(),
            ),
            (
                "user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox@1.service".into(),
                "user 1000 service app-firefox@1".into(),
            ),
            (
                "user.slice/user-1000.slice/user@1000.service/init.scope".into(),
                "user 1000 service init".into(),
            ),
            ("user.slice/user-0.slice".into(), "user 0".into()),
            ("system.slice/ssh.service".into(), "service ssh".into()),
            ("system.slice/ssh.service/worker".into(), "service ssh".into()),
            (
                r"system.slice/system-getty.slice/getty@tty1.service".into(),
                "service getty@tty1".into(),
            ),
            (
                r"system.slice/dbus\x2dbroker.service".into(),
                "service dbus-broker".into(),
            ),
            (
                r"system.slice/x\x0a\xzz\x2.service".into(),
                r"service x\x0a\xzz\x2".into(),
            ),
            ("system.slice".into(), "slice system".into()),
            ("kubepods.slice".into(), "slice kubepods".into()),
            ("init.scope".into(), "cgroup init.scope".into()),
            // No ids, however much they look like it.
            (format!("pod{UID}"), format!("cgroup pod{UID}")),
            ("kubepods/podlike".into(), "cgroup kubepods/podlike".into()),
            (format!("mine/{ID}"), format!("cgroup mine/{ID}")),
            ("docker-4be1.scope".into(), "cgroup docker-4be1.scope".into()),
        ];
        for (path, expected) in table {
            assert_eq!(Owner::of(&path).to_string(), expected, "{path}");
        }
    }

    #[test]
    fn the_kubelets_folders_name_pods() {
        let logs = tempfile::tempdir().unwrap();
        for folder in [
            format!("default_web-0_{UID}"),
            format!("kube-system_etcd-master_{HASH}"),
            "no_uid".into(),
            "default_other_notauid".into(),
        ] {
            fs::create_dir(logs.path().join(folder)).unwrap();
        }
        let names = PodNames::read(logs.path());
        let path = format!("kubepods/pod{UID}/{ID}");
        assert_eq!(
            Owner::of(&path).named(&names),
            "pod default/web-0 container 4be1c4cba2c7"
        );
        assert_eq!(
            Owner::of(&format!("kubepods/pod{HASH}")).named(&names),
            "pod kube-system/etcd-master"
        );
        assert_eq!(names.0.len(), 2);
        assert_eq!(PodNames::read(&logs.path().join("none")), PodNames::default());
    }

    proptest! {
        #[test]
        fn any_path_has_an_owner(path in "(/?[a-z0-9@.\\\\x_é-]{0,40}){0,6}") {
            prop_assert!(!Owner::of(&path).to_string().is_empty());
        }

        #[test]
        fn either_driver_gives_the_same_pod(uid in "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", id in "[0-9a-f]{64}", qos in "(burstable|besteffort)") {
            let unit = uid.replace('-', "_");
            let systemd = Owner::of(&format!("kubepods.slice/kubepods-{qos}.slice/kubepods-{qos}-pod{unit}.slice/crio-{id}.scope"));
            let cgroupfs = Owner::of(&format!("kubepods/{qos}/pod{uid}/{id}"));
            let short = id[..12].to_owned();
            prop_assert_eq!(&systemd, &Owner::Pod { uid: uid.clone(), container: Some(Container { runtime: Some(Runtime::Crio), id: short.clone() }) });
            prop_assert_eq!(&cgroupfs, &Owner::Pod { uid, container: Some(Container { runtime: None, id: short }) });
        }
    }
}
