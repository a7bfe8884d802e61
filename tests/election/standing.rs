//! Wake servers that stand for election, and who sees that never two of them act.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use tempfile::TempDir;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use vmstation_wake_server::{
    clock::Moment,
    cluster::{
        connect::{self, Connection},
        election::{Election, Fence, Leadership},
    },
    config::kubernetes::{Access, KubernetesSettings},
};

use crate::{kube_fake::KubeFake, way::Way};

/// When a trial hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// One wake server.
pub(crate) struct Server {
    pub(crate) election: Option<Election>,
    pub(crate) way: Way,
    pub(crate) leadership: watch::Receiver<Leadership>,
}

/// The API server, a folder, and who watches.
pub(crate) struct Stand {
    pub(crate) fake: KubeFake,
    folder: TempDir,
    lease_duration: Duration,
}

pub(crate) fn run<T>(trial: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .unwrap()
        .block_on(async { timeout(LIMIT, trial).await.unwrap() })
}

pub(crate) fn kubeconfig(folder: &Path, name: &str, url: &str, token: &str) -> PathBuf {
    let path = folder.join(name);
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: '{url}'}}}}]\nusers: [{{name: u, user: {{token: {token}}}}}]\n"
    );
    fs::write(&path, text).unwrap();
    path
}

impl Stand {
    pub(crate) fn new(lease_duration: Duration) -> Self {
        Self {
            fake: KubeFake::start(),
            folder: tempfile::tempdir().unwrap(),
            lease_duration,
        }
    }

    pub(crate) fn settings(&self, name: &str, url: &str) -> KubernetesSettings {
        KubernetesSettings {
            access: Access::Kubeconfig(kubeconfig(self.folder.path(), name, url, self.fake.token())),
            advertise: Some(format!("http://{name}:9876")),
            lease_duration: self.lease_duration,
            renew: Duration::from_millis(200),
            ..KubernetesSettings::default()
        }
    }

    pub(crate) async fn server(&self, name: &str) -> Server {
        let way = Way::to(&self.fake.url()).await;
        let settings = self.settings(name, &way.url());
        let connection = Connection::new(&settings).await.unwrap();
        let election = Election::start(Arc::new(connection), &settings, name.to_owned());
        Server {
            way,
            leadership: election.leadership(),
            election: Some(election),
        }
    }

    /// Looks at them all the time.
    pub(crate) async fn observe(&self, servers: &[&Server]) -> Observer {
        let settings = self.settings("observer", &self.fake.url());
        let leases = Api::<Lease>::namespaced(connect::connect(&settings).await.unwrap(), &settings.namespace);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let acting = tokio::spawn({
            let (seen, all) = (Arc::clone(&seen), leaderships(servers));
            async move {
                loop {
                    // The moment comes first: what is told later may hold for longer, and not for less.
                    let now = Moment::now();
                    let acting: Vec<_> = all.iter().filter_map(|one| one.borrow().fence(now)).collect();
                    seen.lock().unwrap().acting(acting);
                    sleep(Duration::from_millis(1)).await;
                }
            }
        });
        let history = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                loop {
                    if let Ok(lease) = leases.get("vmstation-wake-server").await {
                        let spec = lease.spec.unwrap();
                        let held = (spec.lease_transitions.unwrap(), spec.holder_identity);
                        seen.lock().unwrap().held(held);
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            }
        });
        Observer {
            seen,
            tasks: [acting, history],
        }
    }
}

fn leaderships(servers: &[&Server]) -> Vec<watch::Receiver<Leadership>> {
    servers.iter().map(|server| server.leadership.clone()).collect()
}

#[derive(Debug, Default)]
struct Seen {
    looks: usize,
    /// More than one, at the same moment.
    together: Vec<Vec<Fence>>,
    fences: Vec<Fence>,
    history: Vec<(i32, Option<String>)>,
}

impl Seen {
    fn acting(&mut self, acting: Vec<Fence>) {
        self.looks += 1;
        if let Some(fence) = acting.first()
            && self.fences.last() != Some(fence)
        {
            self.fences.push(*fence);
        }
        if acting.len() > 1 {
            self.together.push(acting);
        }
    }

    fn held(&mut self, held: (i32, Option<String>)) {
        if self.history.last() != Some(&held) {
            self.history.push(held);
        }
    }
}

/// What was seen.
pub(crate) struct Observer {
    seen: Arc<Mutex<Seen>>,
    tasks: [JoinHandle<()>; 2],
}

impl Observer {
    /// Who held the Lease, in this order; panics if ever two acted at once, or if a number came twice.
    pub(crate) fn holders(self) -> Vec<Option<String>> {
        for task in &self.tasks {
            assert!(!task.is_finished(), "it looked until now");
            task.abort();
        }
        let seen = self.seen.lock().unwrap();
        assert!(seen.looks > 10, "{seen:?}");
        assert!(seen.together.is_empty(), "{seen:?}");
        assert!(seen.fences.is_sorted_by(|one, next| one < next), "{seen:?}");
        let taken = seen.history.iter().filter(|(_, holder)| holder.is_some());
        assert!(
            taken.map(|(number, _)| number).is_sorted_by(|one, next| one < next),
            "{seen:?}"
        );
        seen.history.iter().map(|(_, holder)| holder.clone()).collect()
    }
}

impl Server {
    pub(crate) async fn acts(&mut self) -> Fence {
        let told = self
            .leadership
            .wait_for(|told| told.fence(Moment::now()).is_some())
            .await;
        let fence = told.unwrap().fence(Moment::now());
        fence.unwrap()
    }

    /// Until it follows who is called `name`.
    pub(crate) async fn follows(&mut self, name: &str) {
        let url = format!("http://{name}:9876");
        let follows = |told: &Leadership| match told {
            Leadership::Acting(_) | Leadership::Following { leader: None } => false,
            Leadership::Following { leader: Some(leader) } => {
                leader.identity == name && leader.url.as_deref() == Some(&url)
            }
        };
        self.leadership.wait_for(follows).await.unwrap();
    }

    pub(crate) async fn ceases(&mut self) {
        let ceased = |told: &Leadership| matches!(told, Leadership::Following { .. });
        self.leadership.wait_for(ceased).await.unwrap();
    }
}
