//! An API server for a trial: the real one where `KUBEBUILDER_ASSETS` names a folder with etcd and kube-apiserver, as envtest has them, and
//! the fake otherwise. The same trial runs on both.
//!
//! Neither runs controllers, a scheduler or kubelets: what these would do a trial does itself, with [`objects`] and [`kubelet`]. Where
//! `kube-scheduler` and `kube-controller-manager` lie beside the real one, [`Cluster::with_control_plane`] runs them too.
//! [`Cluster`] owns its folder and its processes; both end when it is dropped.

#[path = "cluster/envtest.rs"]
mod envtest;
#[path = "kube_fake.rs"]
pub(crate) mod kube_fake;
#[path = "cluster/kubelet.rs"]
pub(crate) mod kubelet;
#[path = "cluster/objects.rs"]
pub(crate) mod objects;

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tempfile::TempDir;

use self::{
    envtest::Envtest,
    kube_fake::{KubeFake, Rule},
};

/// A running API server, and how to reach it.
pub(crate) struct Cluster {
    server: Server,
    kubeconfig: PathBuf,
    // After the server: it writes there until it ends.
    folder: TempDir,
}

enum Server {
    Fake(KubeFake),
    Real(Box<Envtest>),
}

impl Cluster {
    /// Panics if the real one does not come up within a minute.
    pub(crate) fn start() -> Self {
        let folder = folder();
        let server = match envtest::assets() {
            Some(assets) => Server::Real(Box::new(Envtest::start(&assets, folder.path()))),
            None => Server::Fake(KubeFake::start()),
        };
        Self::of(server, folder)
    }

    /// The real one with the real scheduler and controllers, if they are there.
    pub(crate) fn with_control_plane() -> Option<Self> {
        let assets = envtest::control_plane()?;
        let folder = folder();
        let server = Server::Real(Box::new(Envtest::start(&assets, folder.path())));
        let mut cluster = Self::of(server, folder);
        if let Server::Real(real) = &mut cluster.server {
            real.add_control_plane(&assets, &cluster.kubeconfig);
        }
        Some(cluster)
    }

    /// The fake in any case: for trials that order faults.
    pub(crate) fn start_fake() -> Self {
        Self::of(Server::Fake(KubeFake::start()), folder())
    }

    /// The same, at an address of the network namespace of this thread.
    pub(crate) fn fake_at(address: Ipv4Addr) -> Self {
        Self::of(Server::Fake(KubeFake::start_at(address)), folder())
    }

    fn of(server: Server, folder: TempDir) -> Self {
        let kubeconfig = folder.path().join("kubeconfig");
        let access = match &server {
            Server::Fake(fake) => access_by_token(&fake.url(), None, fake.token()),
            Server::Real(real) => access_by_token(&real.url(), Some(&real.authority()), real.token()),
        };
        fs::write(&kubeconfig, access).unwrap();
        Self {
            server,
            kubeconfig,
            folder,
        }
    }

    /// Whether [`Self::start`] starts the real one.
    pub(crate) fn is_real() -> bool {
        envtest::assets().is_some()
    }

    pub(crate) fn url(&self) -> String {
        match &self.server {
            Server::Fake(fake) => fake.url(),
            Server::Real(real) => real.url(),
        }
    }

    /// File with the access of who may do everything.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// As who may do everything.
    pub(crate) async fn client(&self) -> Client {
        client_of(&self.kubeconfig).await
    }

    /// The fake, if it is one: the real one cannot be told to fail.
    pub(crate) fn fake(&self) -> Option<&KubeFake> {
        match &self.server {
            Server::Fake(fake) => Some(fake),
            Server::Real(_) => None,
        }
    }

    /// File with the access of somebody who may do what the rules say, and nothing else.
    pub(crate) async fn user(&self, name: &str, rules: &[Rule]) -> PathBuf {
        let token = format!("token-of-{name}");
        let access = match &self.server {
            Server::Fake(fake) => {
                fake.user(&token, name, rules);
                access_by_token(&fake.url(), None, &token)
            }
            Server::Real(real) => {
                let (certificate, key) = real.user(&self.client().await, name, rules).await;
                access_by_certificate(&real.url(), &real.authority(), &certificate, &key)
            }
        };
        let file = self.folder.path().join(format!("kubeconfig-of-{name}"));
        fs::write(&file, access).unwrap();
        file
    }
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("vmstation-kube-").tempdir().unwrap()
}

/// A client by the access in a file.
pub(crate) async fn client_of(kubeconfig: &Path) -> Client {
    let config = Kubeconfig::read_from(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default())
        .await
        .unwrap();
    // A refused eviction is an answer, and not to be asked for again by the client of its own accord.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

fn access_by_token(url: &str, authority: Option<&Path>, token: &str) -> String {
    access(url, authority, &format!("token: {token}"))
}

fn access_by_certificate(url: &str, authority: &Path, certificate: &Path, key: &Path) -> String {
    let user = format!(
        "client-certificate: {}\n    client-key: {}",
        certificate.display(),
        key.display()
    );
    access(url, Some(authority), &user)
}

fn access(url: &str, authority: Option<&Path>, user: &str) -> String {
    let authority = authority.map_or_else(String::new, |file| {
        format!("\n    certificate-authority: {}", file.display())
    });
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: trial\n\
         clusters:\n- name: trial\n  cluster:\n    server: {url}{authority}\n\
         users:\n- name: trial\n  user:\n    {user}\n\
         contexts:\n- name: trial\n  context:\n    cluster: trial\n    user: trial\n"
    )
}
