//! The checks of `[sleep]`, `[wake_server]`, `[metrics]`, `[energy]` and `[kubernetes]`.

use std::path::PathBuf;

use hyper::{Uri, http::uri::InvalidUri};

use super::{Check, Checked, DAY, MINUTE, SECOND, valid};
use crate::config::{
    Energy, HookFailure, Kubernetes, KubernetesApi, Metrics, Sleep, WakeServer,
    complaint::quote,
    file::{EnergySection, KubernetesSection, MetricsSection, SleepSection, WakeServerSection},
    setting::Setting,
    value::{ApiForm, Hint, OnHookFailure, Slot},
};

impl Check<'_, '_> {
    pub(super) fn sleep(&mut self, written: SleepSection) -> Sleep {
        let default = Sleep::default();
        let wake_after = self.span(
            Setting::WakeAfter,
            written.wake_after,
            Slot::Absent,
            2 * SECOND..=30 * DAY,
        );
        let hook_timeout = self.span(
            Setting::HookTimeout,
            written.hook_timeout,
            Slot::Absent,
            SECOND..=60 * MINUTE,
        );
        let failure = self.any(Setting::HookFailure, written.hook_failure);
        Sleep {
            allow_s2idle: self
                .any(Setting::AllowS2idle, written.allow_s2idle)
                .or(default.allow_s2idle),
            arm_wol: self.any(Setting::ArmWol, written.arm_wol).or(default.arm_wol),
            allow_unwakeable: self
                .any(Setting::AllowUnwakeable, written.allow_unwakeable)
                .or(default.allow_unwakeable),
            wake_after: wake_after.good(),
            hook_timeout: hook_timeout.or(default.hook_timeout),
            hook_failure: match failure.good() {
                Some(OnHookFailure::Continue) => HookFailure::Continue,
                Some(OnHookFailure::Veto) => HookFailure::Veto,
                None => default.hook_failure,
            },
            hooks_folder: self
                .one(Setting::HooksFolder, written.hooks_folder, is_absolute)
                .good()
                .map_or(default.hooks_folder, PathBuf::from),
        }
    }

    /// `None` also after a complaint.
    pub(super) fn wake_server(&mut self, written: WakeServerSection) -> Option<WakeServer> {
        let url = self.one(Setting::WakeServerUrl, written.url, is_server);
        let token = self.one(Setting::WakeServerTokenFile, written.token_file, is_absolute);
        let ca = self.one(Setting::WakeServerCaFile, written.ca_file, is_absolute);
        if url.is_absent() {
            for (setting, file) in [(Setting::WakeServerTokenFile, &token), (Setting::WakeServerCaFile, &ca)] {
                if let Checked::Good(_, origin) = file {
                    let message = format!(
                        "{} in [wake_server] means nothing without `url`",
                        quote(setting.name(origin))
                    );
                    let hint = Setting::WakeServerUrl.takes(origin);
                    self.about(origin, message, Some(format!("set `url` to {hint}")));
                }
            }
        }
        let url = url.good()?.trim_end_matches('/').to_owned();
        let (token_file, ca_file) = (token.good().map(PathBuf::from), ca.good().map(PathBuf::from));
        let is_plain = url.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("http:"));
        if is_plain && ca_file.is_some() {
            let note = "`ca_file` in [wake_server] means nothing for a `url` that begins with http://";
            self.notes.push(note.into());
        }
        if token_file.is_none() {
            let note = "[wake_server] has no `token_file`: only a server without a token, at 127.0.0.1, will listen to this node";
            self.notes.push(note.into());
        }
        let server = WakeServer {
            url,
            token_file,
            ca_file,
        };
        if server.traffic().is_none() {
            let note =
                "`url` in [wake_server] has the port of web servers: what is said to the wake server counts as traffic";
            self.notes.push(note.into());
        }
        Some(server)
    }

    pub(super) fn metrics(&mut self, written: MetricsSection) -> Metrics {
        let listen = self
            .one(Setting::MetricsListen, written.listen, |listen| {
                valid(listen.port() != 0)
            })
            .good();
        if let Some(listen) = listen.filter(|listen| !listen.ip().is_loopback()) {
            self.notes.push(format!(
                "`listen` in [metrics] is {listen}: whoever reaches that address can read the figures, there is no password"
            ));
        }
        Metrics {
            listen,
            textfile: self
                .one(Setting::MetricsTextfile, written.textfile, is_textfile)
                .good()
                .map(PathBuf::from),
        }
    }

    pub(super) fn energy(&mut self, written: EnergySection) -> Energy {
        let range = |watts: &f64| valid((0.0..=10_000.0).contains(watts));
        let awake = self.one(Setting::WattsAwake, written.watts_awake, range);
        let asleep = self.one(Setting::WattsAsleep, written.watts_asleep, range);
        if let (Checked::Good(awake, _), Checked::Good(asleep, origin)) = (&awake, &asleep)
            && asleep >= awake
            && !self.complaints.any_broken()
        {
            let message = format!(
                "{} ({asleep}) is not below {} ({awake})",
                quote(Setting::WattsAsleep.name(origin)),
                quote(Setting::WattsAwake.name(origin)),
            );
            let hint = "what the host draws asleep is less than what it draws awake".to_owned();
            self.about(origin, message, Some(hint));
        }
        Energy {
            watts_awake: awake.good(),
            watts_asleep: asleep.good(),
        }
    }

    pub(super) fn kubernetes(&mut self, written: KubernetesSection) -> Kubernetes {
        let api = self.any(Setting::KubernetesApi, written.api);
        let file = self.one(Setting::KubernetesKubeconfig, written.kubeconfig, is_absolute);
        if let (Checked::Good(ApiForm::InCluster | ApiForm::Off, _), Checked::Good(_, origin)) = (&api, &file) {
            let message = format!(
                "{} in [kubernetes] means nothing unless `api` is auto",
                quote(Setting::KubernetesKubeconfig.name(origin))
            );
            self.about(origin, message, Some("write one of the two".into()));
        }
        Kubernetes {
            api: match (api.good(), file.good()) {
                (Some(ApiForm::Off), _) => KubernetesApi::Off,
                (Some(ApiForm::InCluster), _) => KubernetesApi::InCluster,
                (Some(ApiForm::Auto) | None, Some(path)) => KubernetesApi::Kubeconfig(path.into()),
                (Some(ApiForm::Auto) | None, None) => KubernetesApi::Auto,
            },
            node: self.one(Setting::KubernetesNode, written.node, is_node).good(),
        }
    }
}

/// A DNS subdomain (RFC 1123), as Kubernetes has it for nodes.
#[expect(clippy::ptr_arg, reason = "a check of a `Slot<String>`")]
fn is_node(name: &String) -> Result<(), Hint> {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let words = name.split('.').all(|word| {
        word.starts_with(is_inner) && word.ends_with(is_inner) && word.chars().all(|c| is_inner(c) || c == '-')
    });
    valid(name.len() <= 253 && words)
}

#[expect(clippy::ptr_arg, reason = "a check of a `Slot<String>`")]
fn is_absolute(path: &String) -> Result<(), Hint> {
    valid(path.starts_with('/') && !path.contains('\0'))
}

/// Scheme, host, and a port if any.
#[expect(clippy::ptr_arg, reason = "a check of a `Slot<String>`")]
fn is_server(url: &String) -> Result<(), Hint> {
    let uri: Result<Uri, InvalidUri> = url.parse();
    let Ok(uri) = uri else {
        return valid(false);
    };
    let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
    // What is before the host, a user, is in the way too.
    let host = uri.host().filter(|host| !host.is_empty());
    let port = host.and_then(|host| uri.authority()?.as_str().strip_prefix(host));
    let port = port.is_some_and(|port| match port.strip_prefix(':') {
        Some(port) => port.parse().is_ok_and(|port: u16| port != 0),
        None => port.is_empty(),
    });
    // A fragment is cut off when a URL is read.
    valid(scheme && port && uri.path() == "/" && uri.query().is_none() && !url.contains(['?', '#']))
}

/// node_exporter reads no file of another name.
fn is_textfile(path: &String) -> Result<(), Hint> {
    is_absolute(path)?;
    let name = path.rsplit('/').next().unwrap_or_default();
    valid(name.strip_suffix(".prom").is_some_and(|stem| !stem.is_empty()))
}
