//! The cgroups in which the kubelet keeps all pods of this node, and the CPU time and the traffic of those. Asks neither the kubelet nor Kubernetes.
//!
//! Where there are none, nothing is known of pods: pods were asked for, so that is a reason to stay awake and never "no use".

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use crate::{
    cgroups::{self, Cgroup},
    config::Background,
    counters::NetTotals,
    probes::PodsProbe,
};

/// Cgroups above that of the pods: none, or the slice of the kubelet.
const DEEPEST: usize = 2;

/// The outermost cgroups of pods below `root`: `kubepods` (the kubelet's cgroupfs driver), `kubepods.slice` (its systemd driver), or either
/// below another slice (`--cgroup-root`).
///
/// # Errors
/// There is none.
pub fn find(root: &Path) -> Result<Vec<Cgroup>, String> {
    let is_pods = |cgroup: &Cgroup| {
        let name = cgroup.path.rsplit('/').next().unwrap_or_default();
        matches!(name, "kubepods" | "kubepods.slice") || name.ends_with("-kubepods.slice")
    };
    let mut found = cgroups::down_to(root, DEEPEST);
    found.retain(is_pods);
    let all = found.clone();
    found.retain(|one| {
        !all.iter()
            .any(|other| one.folder != other.folder && one.folder.starts_with(&other.folder))
    });
    if found.is_empty() {
        return Err(format!(
            "only pods count, and there is no kubepods cgroup in {}: is the kubelet running?",
            root.display()
        ));
    }
    Ok(found)
}

/// CPU time used so far by all pods, by the path of each cgroup of [`find`]. The host's cgroup v2 is looked for.
///
/// # Errors
/// Why it is not known, in one line.
pub fn cpu() -> Result<BTreeMap<String, Duration>, String> {
    cpu_below(&cgroups::root()?)
}

fn cpu_below(root: &Path) -> Result<BTreeMap<String, Duration>, String> {
    let used = find(root)?.into_iter().map(|cgroup| {
        let file = cgroup.folder.join("cpu.stat");
        let stat = fs::read_to_string(&file).map_err(|error| format!("read {}: {error}", file.display()))?;
        let used = cgroups::cpu_used(&stat).ok_or_else(|| format!("{} has no usage_usec", file.display()))?;
        Ok((cgroup.path, used))
    });
    used.collect()
}

/// Whether the kubelet keeps a cgroup of a pod on this host.
pub fn any_pod() -> bool {
    let found = cgroups::root().and_then(|root| find(&root)).unwrap_or_default();
    found.iter().any(|pods| any_pod_below(&pods.folder))
}

/// A pod's cgroup is called `pod` and its UID (the kubelet's cgroupfs driver), or ends so (its systemd driver); it is directly below that of
/// all pods or that of its class of service.
fn any_pod_below(pods: &Path) -> bool {
    const BELOW: usize = 2;
    cgroups::down_to(pods, BELOW).iter().any(|cgroup| {
        let name = cgroup.path.rsplit('/').next().unwrap_or_default();
        let name = name.strip_suffix(".slice").unwrap_or(name);
        let last = name
            .rsplit_once("-pod")
            .map_or_else(|| name.strip_prefix("pod"), |(_, uid)| Some(uid));
        // The UID of a pod, or the checksum of a file that makes one.
        last.is_some_and(|uid| uid.len() >= 32 && uid.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, '-' | '_')))
    })
}

/// The traffic of all pods, counted since the first [`Self::read`] for as long as this lives.
#[derive(Default)]
pub struct PodTraffic {
    tried: Option<Tried>,
    /// How often counting began anew.
    epoch: u64,
}

/// The last attempt to count, and for which cgroups (by id). What failed is not tried again for the same ones: it costs some 20 ms.
struct Tried {
    cgroups: Vec<u64>,
    probe: Result<PodsProbe, String>,
}

impl PodTraffic {
    /// What was counted, and since which beginning: the kubelet may make other cgroups at any time. Finds them and attaches to them.
    /// `background` holds from the next beginning on.
    ///
    /// # Errors
    /// Why it is not counted, in one line.
    pub fn read(&mut self, background: &Background) -> Result<(NetTotals, u64), String> {
        let cgroups = match cgroups::root().and_then(|root| find(&root)) {
            Ok(cgroups) => cgroups,
            Err(why) => {
                self.tried = None;
                return Err(why);
            }
        };
        let ids: Vec<u64> = cgroups.iter().map(|cgroup| cgroup.id).collect();
        let stands = |tried: &Tried| tried.cgroups == ids && tried.probe.as_ref().map_or(true, PodsProbe::holds);
        let tried = match self.tried.take().filter(stands) {
            Some(tried) => tried,
            None => {
                self.epoch += 1;
                Tried {
                    cgroups: ids,
                    probe: PodsProbe::attach(&cgroups, background),
                }
            }
        };
        let probe = &self.tried.insert(tried).probe;
        let totals = probe.as_ref().map_err(String::clone)?.read()?;
        Ok((totals, self.epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(root: &Path, path: &str, micros: u64) {
        let folder = root.join(path);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cpu.stat"), format!("usage_usec {micros}\n")).unwrap();
    }

    #[test]
    fn adds_nothing_up_twice() {
        let root = tempfile::tempdir().unwrap();
        make(root.path(), "system.slice", 9000);
        make(root.path(), "kubepods.slice", 5000);
        make(root.path(), "kubepods.slice/kubepods-burstable.slice", 4000);
        make(root.path(), "kubelet.slice/kubelet-kubepods.slice", 70);
        make(
            root.path(),
            "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice",
            60,
        );
        make(root.path(), "a/b/kubepods", 1);
        let used = cpu_below(root.path()).unwrap();
        let expected = [
            ("kubelet.slice/kubelet-kubepods.slice".into(), Duration::from_micros(70)),
            ("kubepods.slice".into(), Duration::from_micros(5000)),
        ];
        assert_eq!(used, expected.into());
    }

    #[test]
    fn k12_the_cgroup_of_a_pod_tells_that_one_runs() {
        let pods = tempfile::tempdir().unwrap();
        let has = |path: &str| {
            make(pods.path(), path, 0);
            any_pod_below(pods.path())
        };
        assert!(!has("kubepods-besteffort.slice/cri-containerd-0123.scope"));
        assert!(!has("besteffort/podman"));
        assert!(has(
            "kubepods-besteffort.slice/kubepods-besteffort-pod0d1f6c7e_1111_2222_3333_444455556666.slice"
        ));
        let pods = tempfile::tempdir().unwrap();
        make(pods.path(), "pod0d1f6c7e-1111-2222-3333-444455556666", 0);
        assert!(any_pod_below(pods.path()));
    }

    #[test]
    fn no_pods_to_look_at_is_a_reason_and_never_zero() {
        let root = tempfile::tempdir().unwrap();
        make(root.path(), "system.slice/kubelet.service", 5000);
        let why = cpu_below(root.path()).unwrap_err();
        assert!(why.contains("is the kubelet running?"), "{why}");
        make(root.path(), "kubepods", 5000);
        assert_eq!(cpu_below(root.path()).unwrap().len(), 1);
        fs::write(root.path().join("kubepods/cpu.stat"), "nothing\n").unwrap();
        assert!(cpu_below(root.path()).unwrap_err().contains("usage_usec"));
    }
}
