//! All sensors behind one `read`: for each signal the plain counters and what the eBPF program counts, its failure flagged, else
//! "unreadable".
//!
//! Owns the probes and the SSH session tracker. Never judges what it reads.

use std::{collections::BTreeMap, os::fd::BorrowedFd};

use agent_ebpf::SshRecordKind;

use crate::{
    clock::BootTime,
    config::{Detection, Policy, ProbeMode, Scope},
    counters::{Counters, CpuTotals, Interface, NetReading, PodsSeen, Program, Reading, Source, SshSeen, Twofold},
    edges::{Budget, Edge},
    interfaces,
    knocks::Knocks,
    kubepods::{self, PodTraffic},
    probes::{Cost, Family, Probes},
    procfs,
    sessions::{Noticed, Sessions},
};

const FAMILIES: [Family; 3] = [Family::Net, Family::Ssh, Family::Sched];

/// The sensors of this host.
pub struct Sensors {
    probes: Probes,
    sessions: Option<Sessions>,
    /// Only if the pods alone count.
    pod_traffic: PodTraffic,
    detection: Detection,
    mode: ProbeMode,
    /// Kernel records of SSH connections that were lost so far.
    ssh_lost: u64,
    /// Why the list of interfaces could not be read.
    blind: Option<String>,
    /// Configured interfaces that lie on top of another one, with that one.
    left_out: BTreeMap<String, String>,
    /// Somebody had detached the programs from an interface since the last reading.
    disturbed: bool,
    knocks: Knocks,
}

impl Sensors {
    /// Loads and attaches what the policy asks for. What cannot be loaded is left to its substitute.
    pub fn new(policy: &Policy) -> Self {
        let detection = policy.detection.clone();
        let ports = detection.ssh.as_ref().map_or(&[][..], |ssh| &ssh.ports);
        let namespaces = detection.ssh.as_ref().map(|ssh| ssh.namespaces).unwrap_or_default();
        let mut sensors = Self {
            probes: Probes::load_with(ports, namespaces, policy.probes),
            sessions: detection.ssh.as_ref().map(|ssh| Sessions::new(&ssh.ports)),
            pod_traffic: PodTraffic::default(),
            detection,
            mode: policy.probes,
            ssh_lost: 0,
            blind: None,
            left_out: BTreeMap::new(),
            disturbed: false,
            knocks: Knocks::default(),
        };
        for family in FAMILIES {
            if let Err(why) = sensors.probes.state(family) {
                tracing::warn!(program = ?family, why, "eBPF program does not run; /proc and /sys stand in for it");
            }
        }
        sensors.tell_background();
        sensors.links_changed();
        sensors
    }

    /// Goes on under another policy. Programs and counters stay, unless it wants other programs or SSH ports, or one does not run, which
    /// is then tried again.
    ///
    /// Whether they stayed: if not, the descriptors that tell of records are others.
    pub fn reconfigure(&mut self, before: &Policy, policy: &Policy) -> bool {
        let all_run = FAMILIES.iter().all(|family| self.probes.state(*family).is_ok());
        if before.probes != policy.probes || before.detection.ssh != policy.detection.ssh || !all_run {
            *self = Self::new(policy);
            return false;
        }
        self.detection = policy.detection.clone();
        // Rates begin anew with a policy.
        self.pod_traffic = PodTraffic::default();
        self.tell_background();
        self.links_changed();
        true
    }

    fn tell_background(&mut self) {
        // Where the program does not run nothing is background, which the fallback's source says.
        if self.probes.state(Family::Net).is_ok()
            && let Err(why) = self.probes.set_background(&self.detection.background)
        {
            tracing::warn!(why, "background traffic may count as activity");
        }
    }

    /// Brings the watched interfaces up to date.
    pub fn links_changed(&mut self) {
        self.tell_left_out();
        match interfaces::select(&self.detection.interfaces) {
            Ok(wanted) => {
                self.disturbed |= self.probes.sync_interfaces(&wanted);
                self.blind = None;
            }
            Err(error) => self.blind = Some(format!("cannot list the network interfaces: {error}")),
        }
    }

    /// Says once which configured interfaces do not count.
    fn tell_left_out(&mut self) {
        // Where it cannot be told, nothing can be counted either, which the reading says.
        let left_out = interfaces::left_out(&self.detection.interfaces).unwrap_or_default();
        for (upper, lower) in left_out.iter().filter(|(upper, _)| !self.left_out.contains_key(*upper)) {
            tracing::warn!(
                interface = upper,
                on = lower,
                "a configured interface is left out: it lies on top of another one, where its traffic counts already"
            );
        }
        self.left_out = left_out;
    }

    /// Attaches the programs of a family, or takes them out of the kernel.
    pub fn set_attached(&mut self, family: Family, wanted: bool) {
        if wanted {
            self.probes.attach(family);
        } else {
            self.probes.detach(family);
        }
    }

    /// Whether the programs of a family are in the kernel.
    ///
    /// # Errors
    /// Why they cannot be.
    pub fn attached(&self, family: Family) -> Result<bool, &str> {
        self.probes.state(family).map(|()| self.probes.attached(family))
    }

    /// See [`Probes::cost`].
    pub fn cost(&self, family: Family) -> Option<Cost> {
        self.probes.cost(family)
    }

    /// Reads everything. `pods`: what is known of them, which nothing on this host tells.
    pub fn read(&mut self, pods: Reading<PodsSeen>) -> Counters {
        Counters {
            at: BootTime::now(),
            net: self.net(),
            cpu: self.cpu(),
            ssh: self.ssh(),
            pods,
        }
    }

    /// The SSH sessions alone.
    pub fn ssh(&mut self) -> Reading<SshSeen> {
        let Some(sessions) = &mut self.sessions else {
            return Reading::NotConfigured;
        };
        let counted = self.probes.ssh();
        let opened = counted.as_ref().ok().filter(|counters| counters.lost == self.ssh_lost);
        let seen = match sessions.look(BootTime::now(), opened.map(|counters| counters.opened)) {
            Ok(seen) => seen,
            Err(error) => return Reading::Unreadable(error.to_string()),
        };
        match counted {
            // A record that was lost may have told of a session that is over: in doubt there was one.
            Ok(counters) if counters.lost > self.ssh_lost => {
                let lost = counters.lost - self.ssh_lost;
                self.ssh_lost = counters.lost;
                Reading::Unreadable(format!(
                    "{lost} kernel records of SSH connections were lost since the last sample"
                ))
            }
            Ok(_) => Reading::Known {
                value: seen,
                source: Source::Kernel,
            },
            Err(why) => Reading::Known {
                value: seen,
                source: Source::Fallback(why),
            },
        }
    }

    /// Readable when the kernel has something to tell of SSH connections; `None` if its program does not run.
    pub fn ssh_fd(&self) -> Option<BorrowedFd<'_>> {
        self.sessions.as_ref().and(self.probes.ssh_fd())
    }

    /// Readable when logind has a new session; `None` where there is no logind. Reading the sessions takes note of it.
    pub fn logind_fd(&self) -> Option<BorrowedFd<'_>> {
        self.sessions.as_ref().and_then(Sessions::logind_fd)
    }

    /// Takes the kernel's records of SSH connections; the most important thing they brought. `None`: there were none.
    pub fn ssh_records(&mut self) -> Option<Noticed> {
        let sessions = self.sessions.as_mut()?;
        let mut noticed = None;
        loop {
            let records = self.probes.ssh_records();
            if records.is_empty() {
                return noticed;
            }
            let now = BootTime::now();
            for record in records {
                if record.kind == SshRecordKind::Opened as u32 {
                    self.knocks.knock(now);
                }
                noticed = match (noticed, sessions.record(&record, now)) {
                    (Some(Noticed::Login), _) | (_, Noticed::Login) => Some(Noticed::Login),
                    (Some(Noticed::Ended), _) | (_, Noticed::Ended) => Some(Noticed::Ended),
                    (None | Some(Noticed::Nothing), Noticed::Nothing) => Some(Noticed::Nothing),
                };
            }
        }
    }

    /// From now on, the kernel tells of the first activity beyond the budget. Where it cannot, activity is seen at the next reading.
    pub fn arm_edges(&mut self, budget: Budget) {
        if self.probes.edge_fd().is_some()
            && let Err(why) = self.probes.arm_edges(budget)
        {
            tracing::warn!(why, "activity before the next sample will not be noticed");
        }
    }

    /// The kernel tells of nothing from now on.
    pub fn disarm_edges(&mut self) {
        if self.probes.edge_fd().is_some()
            && let Err(why) = self.probes.disarm_edges()
        {
            tracing::warn!(why, "the kernel may tell of activity once more");
        }
    }

    /// Readable when the kernel noticed activity beyond the budget; `None` if it cannot.
    pub fn edge_fd(&self) -> Option<BorrowedFd<'_>> {
        self.probes.edge_fd()
    }

    /// Takes what the kernel noticed.
    pub fn edges(&mut self) -> Vec<Edge> {
        self.probes.edge_records()
    }

    /// Whether somebody may be logging in at this moment: nothing is proved of a connection. Without the SSH program nothing is known of
    /// that.
    pub fn login_begins(&mut self, now: BootTime) -> bool {
        self.ssh_undecided() && self.knocks().may_be_login(now)
    }

    /// As [`Self::ssh_fd`], unless passwords are being guessed: what becomes readable says that somebody may be logging in.
    pub fn login_fd(&mut self, now: BootTime) -> Option<BorrowedFd<'_>> {
        if self.knocks().are_guesses(now) {
            return None;
        }
        self.ssh_fd()
    }

    fn knocks(&mut self) -> &Knocks {
        if let Some(sessions) = &self.sessions {
            self.knocks.logins(sessions.logins());
        }
        &self.knocks
    }

    /// Whether a connection may become a session without the kernel saying so.
    pub fn ssh_undecided(&self) -> bool {
        self.sessions.as_ref().is_some_and(Sessions::undecided)
    }

    /// Traffic alone, to leave out of a sample what the agent itself sends in between. What [`Sensors::read`] has to tell of it besides is
    /// left for that.
    pub fn traffic(&mut self) -> NetReading {
        let disturbed = self.disturbed;
        let traffic = self.net();
        self.disturbed = disturbed;
        traffic
    }

    fn net(&mut self) -> NetReading {
        const DISTURBED: &str = "somebody had detached the programs; they are attached again";
        if self.detection.network_bytes_per_sec.is_none() {
            return Twofold::NOT_CONFIGURED;
        }
        match self.detection.network_scope {
            Scope::Node => {}
            Scope::Pods => return self.net_of_pods(),
        }
        let disturbed = std::mem::take(&mut self.disturbed).then_some(DISTURBED);
        if let Some(why) = disturbed.or(self.blind.as_deref()) {
            return Twofold {
                plain: Reading::Unreadable(why.to_owned()),
                program: Program::Away,
            };
        }
        let interfaces = self.probes.interfaces().iter();
        let plain = interfaces
            .map(|interface| Ok((interface.clone(), procfs::net(interface)?)))
            .collect();
        let counted = self.probes.net().into_iter();
        let program = self.program(Family::Net, || {
            counted.map(|(interface, totals)| Ok((interface, totals?))).collect()
        });
        Twofold {
            plain: plainly(plain),
            program,
        }
    }

    /// As if all pods were one interface, whose index is no interface's. No plain counter tells their traffic.
    fn net_of_pods(&mut self) -> NetReading {
        const BEGINS: &str = "the traffic of pods is counted since this reading: a rate needs two";
        let counted = match self.mode {
            ProbeMode::Off => Err("only eBPF programs can tell the traffic of pods, and `probes` is off".into()),
            ProbeMode::Auto | ProbeMode::Always => self.pod_traffic.read(&self.detection.background),
        };
        let pods = Interface {
            index: 0,
            name: "all pods".into(),
        };
        match counted {
            Ok((totals, epoch)) => Twofold {
                plain: Reading::Unreadable(BEGINS.into()),
                program: Program::Counts {
                    value: [(pods, totals)].into(),
                    epoch,
                },
            },
            Err(why) => Twofold {
                plain: Reading::Unreadable(why),
                program: Program::Away,
            },
        }
    }

    fn cpu(&self) -> Twofold<CpuTotals, CpuTotals> {
        if self.detection.cpu_percent.is_none() {
            return Twofold::NOT_CONFIGURED;
        }
        let pods = match self.detection.cpu_scope {
            Scope::Node => None,
            Scope::Pods => match kubepods::cpu() {
                Ok(used) => Some(used),
                Err(why) => {
                    return Twofold {
                        plain: Reading::Unreadable(why),
                        program: Program::Away,
                    };
                }
            },
        };
        let with_pods = |cpu| CpuTotals {
            pods: pods.clone(),
            ..cpu
        };
        Twofold {
            plain: plainly(procfs::cpu().map(with_pods)),
            program: self.program(Family::Sched, || self.probes.cpu().map(with_pods)),
        }
    }

    /// What the programs of a family counted, if they are there.
    fn program<T>(&self, family: Family, read: impl FnOnce() -> Result<T, String>) -> Program<T> {
        match self.attached(family) {
            Err(why) => Program::Failed(why.to_owned()),
            Ok(false) => Program::Away,
            Ok(true) => match read() {
                Err(why) => Program::Failed(why),
                Ok(value) => Program::Counts {
                    value,
                    epoch: self.probes.epoch(family),
                },
            },
        }
    }
}

fn plainly<T>(read: Result<T, String>) -> Reading<T> {
    match read {
        Err(why) => Reading::Unreadable(why),
        Ok(value) => Reading::Known {
            value,
            source: Source::Plain,
        },
    }
}
