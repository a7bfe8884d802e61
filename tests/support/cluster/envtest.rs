//! The real API server on its own etcd, as envtest starts them: on loopback, with certificates of its own, RBAC, and nothing else running;
//! or with the real scheduler and controllers as well, where they lie beside it.
//!
//! [`Envtest`] owns the processes and ends them when dropped.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::{Api, Client, api::PostParams};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;
use vmstation_agent::clock::BootTime;

use super::{kube_fake::Rule, objects};

const CONTROL_PLANE: [&str; 2] = ["kube-scheduler", "kube-controller-manager"];

/// How long pods stay on a node that does not answer. 5 minutes in a cluster.
const TOLERATION: &str = "5";

const ADMIN: &str = "envtest-administrator";

/// How long the server may take to be ready: it ends a trial that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Folder with the programs, if there is one.
pub(super) fn assets() -> Option<PathBuf> {
    let folder = PathBuf::from(env::var_os("KUBEBUILDER_ASSETS")?);
    let has_all = ["etcd", "kube-apiserver"]
        .iter()
        .all(|program| folder.join(program).is_file());
    has_all.then_some(folder)
}

/// The same, if the scheduler and the controllers are there too.
pub(super) fn control_plane() -> Option<PathBuf> {
    assets().filter(|folder| CONTROL_PLANE.iter().all(|program| folder.join(program).is_file()))
}

/// etcd and kube-apiserver, and what else was started.
pub(super) struct Envtest {
    /// In the order of their start.
    processes: Vec<Child>,
    port: u16,
    folder: PathBuf,
    authority: Issuer<'static, KeyPair>,
}

impl Envtest {
    pub(super) fn start(assets: &Path, folder: &Path) -> Self {
        let folder = folder.to_owned();
        let authority = authority(&folder);
        certify(&authority, &folder, "server", "kube-apiserver", Purpose::Server);
        let accounts = KeyPair::generate().unwrap();
        fs::write(folder.join("accounts.key"), accounts.serialize_pem()).unwrap();
        fs::write(folder.join("accounts.pub"), accounts.public_key_pem()).unwrap();
        fs::write(
            folder.join("tokens.csv"),
            format!("{ADMIN},admin,admin,system:masters\n"),
        )
        .unwrap();
        let [clients, peers, port] = free_ports();
        let etcd = Command::new(assets.join("etcd"))
            .arg(format!("--data-dir={}", folder.join("etcd").display()))
            .arg(format!("--listen-client-urls=http://127.0.0.1:{clients}"))
            .arg(format!("--advertise-client-urls=http://127.0.0.1:{clients}"))
            .arg(format!("--listen-peer-urls=http://127.0.0.1:{peers}"))
            .arg(format!("--initial-advertise-peer-urls=http://127.0.0.1:{peers}"))
            .arg(format!("--initial-cluster=default=http://127.0.0.1:{peers}"))
            .arg("--unsafe-no-fsync")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("etcd.log")).unwrap())
            .spawn()
            .unwrap();
        let file = |name: &str| folder.join(name).display().to_string();
        let server = Command::new(assets.join("kube-apiserver"))
            .arg(format!("--etcd-servers=http://127.0.0.1:{clients}"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", folder.display()))
            .arg(format!("--tls-cert-file={}", file("server.crt")))
            .arg(format!("--tls-private-key-file={}", file("server.key")))
            .arg(format!("--client-ca-file={}", file("ca.crt")))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .args(["--authorization-mode=RBAC", "--allow-privileged=true"])
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", file("accounts.pub")))
            .arg(format!("--service-account-signing-key-file={}", file("accounts.key")))
            .arg("--service-cluster-ip-range=10.0.0.0/24")
            // Nobody makes the accounts of pods here.
            .arg("--disable-admission-plugins=ServiceAccount")
            .arg(format!("--default-not-ready-toleration-seconds={TOLERATION}"))
            .arg(format!("--default-unreachable-toleration-seconds={TOLERATION}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("kube-apiserver.log")).unwrap())
            .spawn();
        let mut started = Self {
            processes: vec![etcd, server.unwrap()],
            port,
            folder,
            authority,
        };
        started.wait();
        started
    }

    /// Starts the scheduler and all controllers, which find out within seconds that a kubelet is gone; with the access in `kubeconfig`.
    pub(super) fn add_control_plane(&mut self, assets: &Path, kubeconfig: &Path) {
        for program in CONTROL_PLANE {
            let [port, ..] = free_ports();
            let mut command = Command::new(assets.join(program));
            command
                .arg(format!("--kubeconfig={}", kubeconfig.display()))
                .args(["--leader-elect=false", "--bind-address=127.0.0.1"])
                .arg(format!("--secure-port={port}"))
                .arg(format!("--cert-dir={}", self.folder.display()))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(fs::File::create(self.folder.join(format!("{program}.log"))).unwrap());
            if program == "kube-controller-manager" {
                command.args(["--node-monitor-period=1s", "--node-monitor-grace-period=6s"]);
            }
            self.processes.push(command.spawn().unwrap());
        }
    }

    pub(super) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub(super) fn authority(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    pub(super) fn token(&self) -> &'static str {
        ADMIN
    }

    /// Certificate and key of somebody to whom these rules are bound.
    pub(super) async fn user(&self, client: &Client, name: &str, rules: &[Rule]) -> (PathBuf, PathBuf) {
        for (number, rule) in rules.iter().enumerate() {
            let called = format!("{name}-{number}");
            let allowed = json!([{
                "apiGroups": rule.groups, "resources": rule.resources, "resourceNames": rule.names, "verbs": rule.verbs,
            }]);
            let metadata = json!({"name": called});
            let subjects = json!([{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}]);
            let role = |kind: &str| json!({"kind": kind, "name": called, "apiGroup": "rbac.authorization.k8s.io"});
            let params = PostParams::default();
            match &rule.namespace {
                None => {
                    let made: ClusterRole = objects::of(json!({"metadata": metadata, "rules": allowed}));
                    Api::all(client.clone()).create(&params, &made).await.unwrap();
                    let binding = json!({"metadata": metadata, "subjects": subjects, "roleRef": role("ClusterRole")});
                    let binding: ClusterRoleBinding = objects::of(binding);
                    Api::all(client.clone()).create(&params, &binding).await.unwrap();
                }
                Some(namespace) => {
                    let made: Role = objects::of(json!({"metadata": metadata, "rules": allowed}));
                    let roles = Api::namespaced(client.clone(), namespace);
                    roles.create(&params, &made).await.unwrap();
                    let binding = json!({"metadata": metadata, "subjects": subjects, "roleRef": role("Role")});
                    let binding: RoleBinding = objects::of(binding);
                    let bindings = Api::namespaced(client.clone(), namespace);
                    bindings.create(&params, &binding).await.unwrap();
                }
            }
        }
        certify(&self.authority, &self.folder, name, name, Purpose::Client);
        (
            self.folder.join(format!("{name}.crt")),
            self.folder.join(format!("{name}.key")),
        )
    }

    /// Until `/readyz` can be asked; the token is then good as well.
    fn wait(&mut self) {
        let began = BootTime::now();
        let authority = fs::read(self.authority()).unwrap();
        let runtime = thread::scope(|scope| {
            // A thread of its own: the trial may wait for us inside a runtime.
            let asking = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    while BootTime::now().since(began) < PATIENCE {
                        if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
                            && is_ready(&self.url(), &authority).await
                        {
                            return true;
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    false
                })
            });
            asking.join().unwrap()
        });
        if !runtime {
            let mut log = String::new();
            let file = fs::File::open(self.folder.join("kube-apiserver.log"));
            file.and_then(|mut file| file.read_to_string(&mut log)).unwrap();
            let _shown = std::io::stderr().write_all(log.as_bytes());
            panic!("kube-apiserver is not ready within {PATIENCE:?}");
        }
    }
}

impl Drop for Envtest {
    fn drop(&mut self) {
        for child in self.processes.iter_mut().rev() {
            // It may be over already.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}

async fn is_ready(url: &str, authority: &[u8]) -> bool {
    let config = kube::config::Kubeconfig::from_yaml(&super::access_by_token(url, None, ADMIN)).unwrap();
    let mut config = kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default())
        .await
        .unwrap();
    let blocks = pem_blocks(authority);
    config.root_cert = Some(blocks);
    let client = Client::try_from(config).unwrap();
    let request = hyper::Request::get("/readyz").body(Vec::new()).unwrap();
    let is_up = client.request_text(request).await.is_ok();
    // The default namespace comes a moment later.
    let namespace = Api::<k8s_openapi::api::core::v1::Namespace>::all(client)
        .get_opt("default")
        .await;
    is_up && namespace.is_ok_and(|namespace| namespace.is_some())
}

/// Certificates in DER.
fn pem_blocks(pem: &[u8]) -> Vec<Vec<u8>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    CertificateDer::pem_slice_iter(pem)
        .map(|certificate| certificate.unwrap().to_vec())
        .collect()
}

/// Ports that nobody listens at.
fn free_ports() -> [u16; 3] {
    let held = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

#[derive(Clone, Copy)]
enum Purpose {
    Server,
    Client,
}

fn authority(folder: &Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name = named("trial-ca");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key).unwrap();
    fs::write(folder.join("ca.crt"), certificate.pem()).unwrap();
    Issuer::new(params, key)
}

fn certify(authority: &Issuer<'static, KeyPair>, folder: &Path, file: &str, name: &str, purpose: Purpose) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name = named(name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    match purpose {
        Purpose::Server => {
            params.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }
        Purpose::Client => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
    }
    let certificate = params.signed_by(&key, authority).unwrap();
    fs::write(folder.join(format!("{file}.crt")), certificate.pem()).unwrap();
    fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).unwrap();
}

fn named(name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    full
}
