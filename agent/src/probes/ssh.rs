//! Connections to the SSH ports: counters and the ring buffer of records.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
};

use agent_ebpf::{SSH_RING_BYTES, SshCounters, SshRecord};
use aya::{
    Btf, Ebpf,
    maps::{MapData, PerCpuArray, RingBuf},
};

use super::{RECORD_HEADER, fdinfo, missing, reason, take, trace};

const PROGRAMS: [(&str, &str); 2] = [
    ("vms_ssh", "inet_sock_set_state"),
    ("vms_ssh_fork", "sched_process_fork"),
];

/// The counters and records of the attached programs.
pub(super) struct Ssh {
    counters: PerCpuArray<MapData, SshCounters>,
    ring: RingBuf<MapData>,
}

impl Ssh {
    pub(super) fn load(ebpf: &mut Ebpf, btf: &Btf) -> Result<Self, String> {
        let this = Self {
            counters: take(ebpf, "VMS_SSH")?,
            ring: take(ebpf, "VMS_SSH_RING")?,
        };
        for (name, tracepoint) in PROGRAMS {
            trace(ebpf, btf, name, tracepoint)?;
        }
        Ok(this)
    }

    /// Readable when a record comes.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    pub(super) fn total(&self, ebpf: &Ebpf) -> Result<SshCounters, String> {
        let mut total = self.sum()?;
        for (name, _) in PROGRAMS {
            total.lost += skipped_runs(ebpf, name)?;
        }
        Ok(total)
    }

    fn sum(&self) -> Result<SshCounters, String> {
        let slots = self
            .counters
            .get(&0, 0)
            .map_err(|error| reason("read the ssh counters", &error))?;
        Ok(slots.iter().fold(SshCounters::default(), |sum, cpu| SshCounters {
            opened: sum.opened + cpu.opened,
            closed: sum.closed + cpu.closed,
            rx_bytes: sum.rx_bytes + cpu.rx_bytes,
            tx_bytes: sum.tx_bytes + cpu.tx_bytes,
            last_activity_ns: sum.last_activity_ns.max(cpu.last_activity_ns),
            lost: sum.lost + cpu.lost,
        }))
    }

    pub(super) fn take_records(&mut self) -> Vec<SshRecord> {
        let most = usize::try_from(SSH_RING_BYTES).unwrap_or(usize::MAX) / (RECORD_HEADER + size_of::<SshRecord>());
        let mut records = Vec::new();
        while records.len() < most
            && let Some(item) = self.ring.next()
        {
            if item.len() == size_of::<SshRecord>() {
                // SAFETY: as long as a record, and every bit pattern is one; the ring aligns to 8 bytes, but that is not relied on.
                records.push(unsafe { item.as_ptr().cast::<SshRecord>().read_unaligned() });
            }
        }
        records
    }
}

/// Runs of a program that the kernel skipped because the same program was running on that CPU (`recursion_misses` in
/// /proc/PID/fdinfo, since Linux 5.14).
fn skipped_runs(ebpf: &Ebpf, name: &str) -> Result<u64, String> {
    let program = ebpf.program(name).ok_or_else(|| missing(name))?;
    let fd = program.fd().map_err(|error| reason(name, &error))?.as_fd().as_raw_fd();
    fdinfo(Path::new(&format!("/proc/self/fdinfo/{fd}")), "recursion_misses:")
}
