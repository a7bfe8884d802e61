//! Gathers the facts: files, ioctls, one question to the agent and one to logind, each with a deadline. Judges nothing.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::statvfs::statvfs,
    unistd::{AccessFlags, access},
};
use zbus_systemd::login1::ManagerProxy;

use super::{Agent, Configuration, Facts, HookFolder, Kernel, Ports, SleepStates, Standing, StateFolder};
use crate::{
    cgroups,
    config::{LoadError, Loaded, Policy},
    control::{self, Request, Response},
    printable::with_causes,
    suspend::fallback,
    wol::{self, Modes, Port},
};

/// Longest wait for the system bus.
const BUS_DEADLINE: Duration = Duration::from_secs(5);

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// The configuration; `None`: the one the agent would load.
    pub configuration: Option<PathBuf>,
    /// Control socket of the agent.
    pub socket: PathBuf,
    /// State folder of the agent.
    pub state_folder: PathBuf,
    /// `/sys`
    pub sys: PathBuf,
}

/// Whether ports are armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arming {
    /// They are only read.
    No,
    /// As the agent does, and they stay armed: only so is it known whether a driver takes it.
    Try,
}

/// Looks at everything. Blocks for 13 s at most if neither the agent nor the system bus answers, beside what the drivers take.
/// `env` looks up an environment variable.
pub fn collect(places: &Places, arming: Arming, env: &dyn Fn(&str) -> Option<String>) -> Facts {
    let (configuration, policy) = configuration(places.configuration.as_deref(), env);
    let settings = policy.sleep.clone();
    let sys = &places.sys;
    Facts {
        configuration,
        notification: policy.notification.clone(),
        probes: policy.probes,
        agent: agent(&places.socket),
        sleep_states: sleep_states(sys),
        only_mem: fallback::only_mem(Path::new("/")),
        ports: ports(sys, &policy, arming),
        wakealarm: line(&sys.join("class/rtc/rtc0/wakealarm")).ok(),
        logind: logind(BUS_DEADLINE),
        hooks: ["pre-sleep.d", "post-wake.d"]
            .map(|name| hooks(&settings.hooks_folder.join(name)))
            .into(),
        kernel: kernel(sys),
        state_folder: (places.state_folder.clone(), state_folder(&places.state_folder)),
        settings,
    }
}

fn configuration(path: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> (Result<Configuration, String>, Policy) {
    match Policy::load(path, env) {
        Ok(Loaded {
            policy,
            path,
            format,
            notes,
        }) => (Ok(Configuration { path, format, notes }), policy),
        Err(LoadError::Invalid(invalid)) => {
            let lines: Vec<_> = invalid.to_string().lines().map(|line| line.trim().to_owned()).collect();
            (Err(lines.join("; ")), Policy::default())
        }
        Err(error) => (Err(with_causes(&error)), Policy::default()),
    }
}

fn agent(socket: &Path) -> Agent {
    match control::call(socket, &Request::Status) {
        Ok(Response::Status(status)) => Agent::Answers(status),
        Ok(Response::Refused { message, .. } | Response::Done { message }) => Agent::Refuses(message),
        Ok(Response::Why(_) | Response::Attempt(_) | Response::SleepCheck { .. }) => {
            Agent::Refuses("the answer to another question".into())
        }
        Err(error) => Agent::NotReached(error),
    }
}

fn sleep_states(sys: &Path) -> SleepStates {
    let path = sys.join("power/state");
    SleepStates {
        states: line(&path).map_err(|error| format!("read {}: {error}", path.display())),
        mem_sleep: line(&sys.join("power/mem_sleep")).ok(),
    }
}

fn ports(sys: &Path, policy: &Policy, arming: Arming) -> Ports {
    let wanted = policy.detection.interfaces.clone();
    let exists = |name: &&String| sys.join("class/net").join(name).exists();
    let mut found = Ports {
        missing: wanted.iter().filter(|name| !exists(name)).cloned().collect(),
        names: wol::names(sys, &wanted)
            .map(|names| names.into_keys().collect())
            .map_err(|error| error.to_string()),
        counted: policy.detection.network_bytes_per_sec.is_some(),
        read: wol::ports(sys, &wanted).map_err(|error| with_causes(&error)),
        refusals: [].into(),
        wanted,
    };
    if arming == Arming::Try {
        arm(sys, &mut found);
    }
    found
}

/// Each port that offers it; what comes of it is kept.
fn arm(sys: &Path, ports: &mut Ports) {
    let offers = |port: &&mut Port| port.supported.contains(Modes::MAGIC);
    for port in ports.read.iter_mut().flatten().filter(offers) {
        match wol::arm(sys, port) {
            Ok(armed) => *port = armed,
            Err(error) => {
                ports.refusals.insert(port.interface.clone(), with_causes(&error));
            }
        }
    }
}

fn logind(deadline: Duration) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start a runtime: {error}"))?;
    let answer = runtime.block_on(async {
        tokio::time::timeout(deadline, async {
            let bus = zbus::Connection::system().await?;
            ManagerProxy::new(&bus).await?.can_suspend().await
        })
        .await
    });
    match answer {
        Err(_elapsed) => Err(format!("silence for {} s", deadline.as_secs_f64())),
        Ok(answer) => answer.map_err(|error| with_causes(&error)),
    }
}

fn hooks(path: &Path) -> HookFolder {
    let list = || -> io::Result<_> {
        let mut hooks = Vec::new();
        for file in fs::read_dir(path)? {
            let name = file?.file_name();
            // A link that leads nowhere is no file.
            let standing = fs::metadata(path.join(&name)).map_or(
                Standing {
                    is_file: false,
                    uid: 0,
                    mode: 0,
                },
                |found| standing(&found),
            );
            hooks.push((name.to_string_lossy().into_owned(), standing));
        }
        hooks.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(hooks)
    };
    HookFolder {
        path: path.to_owned(),
        standing: fs::metadata(path).ok().as_ref().map(standing),
        hooks: list().map_err(|error| format!("list {}: {error}", path.display())),
    }
}

fn standing(found: &fs::Metadata) -> Standing {
    Standing {
        is_file: found.is_file(),
        uid: found.uid(),
        mode: found.mode() & 0o7777,
    }
}

fn kernel(sys: &Path) -> Kernel {
    Kernel {
        release: line(Path::new("/proc/sys/kernel/osrelease")).unwrap_or_else(|_| "of unknown release".into()),
        btf: sys.join("kernel/btf/vmlinux").exists(),
        cgroup2: cgroups::root(),
    }
}

fn state_folder(folder: &Path) -> StateFolder {
    let full = || statvfs(folder).is_ok_and(|found| found.blocks_available() == 0);
    match access(folder, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) if full() => StateFolder::NotWritable("the disk is full".into()),
        Ok(()) => StateFolder::Writable,
        Err(Errno::ENOENT) => StateFolder::Missing,
        Err(Errno::EACCES) => StateFolder::NotPermitted,
        Err(error) => StateFolder::NotWritable(error.desc().into()),
    }
}

fn line(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn h4_hooks_are_found_in_order_with_owner_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, mode| {
            let path = folder.path().join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        make("20-late", 0o777);
        make("10-early", 0o755);
        symlink("/nonexistent", folder.path().join("30-nowhere")).unwrap();
        let found = hooks(folder.path());
        let seen: Vec<_> = found.hooks.unwrap();
        let brief: Vec<_> = seen
            .iter()
            .map(|(name, standing)| (name.as_str(), standing.is_file, standing.mode))
            .collect();
        assert_eq!(
            brief,
            [
                ("10-early", true, 0o755),
                ("20-late", true, 0o777),
                ("30-nowhere", false, 0)
            ]
        );
        assert_eq!(seen[0].1.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(hooks(&folder.path().join("none")).standing, None);
    }

    #[test]
    fn s8_sleep_states_are_those_of_the_kernel() {
        let sys = tempfile::tempdir().unwrap();
        assert!(sleep_states(sys.path()).states.is_err());
        fs::create_dir(sys.path().join("power")).unwrap();
        fs::write(sys.path().join("power/state"), "freeze mem disk\n").unwrap();
        fs::write(sys.path().join("power/mem_sleep"), "s2idle [deep]\n").unwrap();
        let expected = SleepStates {
            states: Ok("freeze mem disk".into()),
            mem_sleep: Some("s2idle [deep]".into()),
        };
        assert_eq!(sleep_states(sys.path()), expected);
    }

    #[test]
    fn f3_a_state_folder_is_writable_missing_or_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(state_folder(folder.path()), StateFolder::Writable);
        assert_eq!(state_folder(&folder.path().join("none")), StateFolder::Missing);
        fs::write(folder.path().join("file"), "").unwrap();
        let below = state_folder(&folder.path().join("file/below"));
        assert!(matches!(below, StateFolder::NotWritable(_)), "{below:?}");
    }
}
