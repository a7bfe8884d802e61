//! Where it takes place: a host with the API server and the wake server, a LAN, and the guest as a node of the cluster.
//!
//! What no emulated card does is done by `cable.rs`, which stands for the card: it takes the frames of the LAN, decodes them itself, and
//! counts the calls to a card that sleeps. The trial then wakes the machine (`system_wakeup`). What a scheduler, controllers and
//! kubelets would do the trial does.

use std::{fs, net::Ipv4Addr, path::Path, process::Command, thread, time::Duration};

use kube::Client;
use vmstation_agent::clock::BootTime;
use vmstation_wake_server::{cluster::rights::RIGHTS, permission::Terms};

use crate::{
    cable::Cable,
    cluster::{
        Cluster, client_of,
        kube_fake::Rule,
        kubelet::Kubelet,
        objects::{self, NewNode},
    },
    lan::{self, Host, MacAddress},
    server::{Master, program},
    vm::bed::{Bed, LAN},
};

/// The guest.
pub(crate) const NODE: &str = "worker-01";
/// A node that never sleeps, with room for what is moved.
pub(crate) const SPARE: &str = "worker-02";
/// How long leave holds: enough for an emulated CPU.
const LEAVE: Duration = Duration::from_secs(20);
const MAC: MacAddress = [0x52, 0x54, 0x00, 0x12, 0x34, 0x04];
const MASTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const REGISTRY: &str =
    "[[node]]\nname = \"worker-01\"\nmac = \"52:54:00:12:34:04\"\naddress = \"192.0.2.2\"\nrole = \"worker\"\n";

/// All of it. Nothing of it outlives it.
pub(crate) struct Place {
    // Before the API server: it asks that.
    pub(crate) kubelet: Kubelet,
    pub(crate) master: Master,
    pub(crate) cable: Cable,
    pub(crate) cluster: Cluster,
    /// When the wake server served.
    serves_since: BootTime,
}

/// What is missing for it here.
pub(crate) fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root, for a network namespace and a tap device");
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("needs /dev/net/tun");
    }
    let is_there = |tool: &&str| {
        ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .any(|folder| Path::new(folder).join(tool).is_file())
    };
    (!["ip", "curl"].iter().all(is_there)).then_some("needs iproute2 and curl")
}

impl Place {
    /// With two nodes that are ready, and what the agent needs in the guest but for its configuration.
    pub(crate) fn set(bed: &mut Bed) -> Self {
        let host = Host::new();
        let cable = Cable::plug(&host, "lan0", &bed.cable, MAC);
        host.ip(&format!("address add {MASTER}/24 broadcast + dev lan0"));
        host.ip("link set lan0 up");
        bed.channel.ask(&format!(
            "hostname {NODE}; ip link set {LAN} up; ip address replace 192.0.2.2/24 dev {LAN}"
        ));
        let cluster = host.run(|| Cluster::fake_at(MASTER));
        let rules: Vec<Rule> = RIGHTS.iter().map(Rule::of).collect();
        let of_server = lan::run(cluster.user("vmstation-wake-server", &rules));
        // As agent/kubernetes/rbac.yaml grants it.
        let reads = Rule::new(&[""], &["pods"], &["list", "watch"]);
        let of_agent = lan::run(cluster.user("vmstation-agent", &[reads]));
        host.run(|| {
            lan::run(async {
                let client = client_of(cluster.kubeconfig()).await;
                NewNode::new(NODE).create(&client).await;
                NewNode::new(SPARE).allocatable("cpu", "3").create(&client).await;
            });
        });
        let kubelet = host.run(|| Kubelet::start(&cluster, &[NODE, SPARE]));
        kubelet.renew_leases(true);
        let settings = format!(
            "deadline = \"3m\"\nresend = [\"0s\", \"1s\", \"2s\", \"4s\"]
[limits]
requests_per_minute = 1_000_000
[kubernetes]
kubeconfig = {of_server:?}
advertise = \"http://{MASTER}:9876\"
lease_duration = \"5s\"
renew = \"1s\"
[sleep]
leave = \"{}s\"
demand_settle = \"1s\"
",
            LEAVE.as_secs()
        );
        let master = Master::on(host, REGISTRY, &settings);
        let serves_since = BootTime::now();
        let token = Command::new(program("vmstation-wake"))
            .args(["token", NODE, "--secret-file"])
            .arg(master.file("secret"))
            .output()
            .unwrap();
        assert!(token.status.success(), "{token:?}");
        for (file, text) in [
            ("token", String::from_utf8(token.stdout).unwrap()),
            ("kubeconfig", fs::read_to_string(of_agent).unwrap()),
        ] {
            bed.channel
                .write(&format!("/etc/vmstation/autosleep/{file}"), "600", &text);
        }
        Self {
            kubelet,
            master,
            cable,
            cluster,
            serves_since,
        }
    }

    /// `[wake_server]` of the agent.
    pub(crate) fn wake_server() -> String {
        format!("url = \"http://{MASTER}:9876\"\ntoken_file = \"/etc/vmstation/autosleep/token\"")
    }

    /// `[kubernetes]` of the agent.
    pub(crate) fn kubernetes() -> String {
        format!("kubeconfig = \"/etc/vmstation/autosleep/kubeconfig\"\nnode = \"{NODE}\"")
    }

    /// Waits until no leave can hold of a wake server before this one: it gives none till then, and an agent that is refused asks again
    /// minutes later.
    pub(crate) fn can_grant(&self) {
        let over = LEAVE + Terms::default().entering + Duration::from_secs(1);
        thread::sleep(over.saturating_sub(BootTime::now().since(self.serves_since)));
    }

    /// What somebody does in the cluster.
    pub(crate) fn does<T: Send>(&self, act: impl AsyncFnOnce(Client) -> T + Send) -> T {
        let kubeconfig = self.cluster.kubeconfig();
        self.master
            .host
            .run(|| lan::run(async { act(client_of(kubeconfig).await).await }))
    }

    /// The machine sleeps: its card listens for calls, its kubelet is silent, and the node controller notices.
    pub(crate) fn sleeps(&self) {
        self.cable.sleeps();
        self.kubelet.leave(NODE);
        self.does(async |client| objects::set_ready(&client, NODE, false).await);
    }

    /// The kubelet is back.
    pub(crate) fn kubelet_comes(&self) {
        self.kubelet.join(NODE);
        self.does(async |client| objects::set_ready(&client, NODE, true).await);
    }
}
