//! Section `[kubernetes]`: how the cluster's API server is reached, and who of several wake servers leads.
//!
//! Pure: a kubeconfig is not read here, and whether there is a service account is asked when it is used.

use std::{path::PathBuf, time::Duration};

use axum::http::Uri;

use super::values::{MINUTE, SECOND, duration, file};
use crate::{
    complaint::{Complaints, Place},
    keys::{self, Hint, Keys},
};

/// Longest name of an object (RFC 1123 label, as the API server checks it).
const LONGEST_NAME: usize = 63;
/// A lease has to outlast so many renewals: one that fails is not the end.
const RENEWALS: u32 = 3;

/// How the wake server gets at the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// Whose credentials are used.
    pub access: Access,
    /// Namespace of the Lease and of whatever else is ours.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// URL under which other wake servers reach this one, without a path; needed if there are several.
    pub advertise: Option<String>,
    /// Certificates that those of other wake servers are checked with, besides the system's.
    pub advertise_ca: Option<PathBuf>,
    /// Another wake server leads if the leader has not renewed for so long; whole seconds, 3s to 5m.
    pub lease_duration: Duration,
    /// Time between two renewals, and between two looks of who follows; 100ms to a third of `lease_duration`.
    pub renew: Duration,
}

/// Whose credentials are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// None: there is no cluster.
    Off,
    /// Those of the service account if this runs in a pod, none otherwise. A person's kubeconfig is never looked for.
    Auto,
    /// Those of the service account.
    InCluster,
    /// Those of this file.
    Kubeconfig(PathBuf),
}

impl Default for KubernetesSettings {
    fn default() -> Self {
        Self {
            access: Access::Auto,
            namespace: "kube-system".to_owned(),
            lease: "vmstation-wake-server".to_owned(),
            advertise: None,
            advertise_ca: None,
            lease_duration: Duration::from_secs(15),
            renew: Duration::from_secs(3),
        }
    }
}

pub(super) fn kubernetes(mut keys: Keys<'_, '_>, complaints: &mut Complaints) -> KubernetesSettings {
    let default = KubernetesSettings::default();
    let access = access(&mut keys, complaints).unwrap_or(default.access);
    let namespace = name(&mut keys, "namespace", complaints).unwrap_or(default.namespace);
    let lease = name(&mut keys, "lease", complaints).unwrap_or(default.lease);
    let takes = "a URL of this server without a path, as \"http://192.0.2.1:9876\"";
    let advertise = keys.read("advertise", takes, complaints, base_url);
    let advertise_ca = file(&mut keys, "advertise_ca", complaints);
    let [duration_at, renew_at] = ["lease_duration", "renew"].map(|key| keys.place(key));
    let lease_duration = duration(&mut keys, "lease_duration", 3 * SECOND..=5 * MINUTE, complaints);
    let renew = duration(&mut keys, "renew", SECOND / 10..=2 * MINUTE, complaints);
    keys.finish(complaints);
    let lease_duration = lease_duration.unwrap_or(default.lease_duration);
    if lease_duration.subsec_nanos() > 0 {
        complaints.add(
            duration_at.clone().unwrap_or(Place::whole("lease_duration")),
            "`lease_duration` has to be whole seconds",
            "a Lease knows no others".to_owned(),
        );
    }
    // A short lease shortens the default too.
    let longest = lease_duration / RENEWALS;
    let renew = renew.unwrap_or(default.renew.min(longest));
    if renew > longest {
        complaints.add(
            renew_at.or(duration_at).unwrap_or(Place::whole("renew")),
            format!(
                "a lease of {} is lost when renewals {} apart fail once",
                humantime::format_duration(lease_duration),
                humantime::format_duration(renew)
            ),
            format!(
                "`renew` is at most a third of `lease_duration`: {}",
                humantime::format_duration(longest)
            ),
        );
    }
    KubernetesSettings {
        access,
        namespace,
        lease,
        advertise,
        advertise_ca,
        lease_duration,
        renew,
    }
}

/// What is written under `api`.
#[derive(Clone, Copy)]
enum Api {
    Off,
    Auto,
    InCluster,
}

fn access(keys: &mut Keys<'_, '_>, complaints: &mut Complaints) -> Option<Access> {
    let place = keys.place("api");
    let takes = "\"off\", \"auto\" or \"in-cluster\"";
    let api = keys.read("api", takes, complaints, |value| match keys::text(value)? {
        "off" => Ok(Api::Off),
        "auto" => Ok(Api::Auto),
        "in-cluster" => Ok(Api::InCluster),
        "kubeconfig" => Err(Some("write kubeconfig = \"/path\" instead".to_owned())),
        _ => Err(None),
    });
    let kubeconfig = file(keys, "kubeconfig", complaints);
    match (api, kubeconfig) {
        (Some(Api::InCluster), Some(_)) => {
            complaints.add(
                place.unwrap_or(Place::whole("api")),
                "the service account, or the kubeconfig? Both are named",
                "leave one of `api` and `kubeconfig` out".to_owned(),
            );
            None
        }
        (Some(Api::Off), Some(_) | None) => Some(Access::Off),
        (Some(Api::Auto) | None, Some(path)) => Some(Access::Kubeconfig(path)),
        (Some(Api::InCluster), None) => Some(Access::InCluster),
        (Some(Api::Auto), None) => Some(Access::Auto),
        (None, None) => None,
    }
}

fn name(keys: &mut Keys<'_, '_>, key: &'static str, complaints: &mut Complaints) -> Option<String> {
    let takes = "a name of small letters, digits and dashes, as \"kube-system\"";
    keys.read(key, takes, complaints, |value| {
        let name = keys::text(value)?;
        let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_name = name.len() <= LONGEST_NAME
            && name.bytes().all(|byte| is_inner(byte) || byte == b'-')
            && name.bytes().next().is_some_and(is_inner)
            && name.bytes().next_back().is_some_and(is_inner);
        is_name.then(|| name.to_owned()).ok_or(None)
    })
}

/// A URL to which paths can be added. Without credentials: everybody who may read the Lease reads them.
fn base_url(value: &toml::de::DeValue<'_>) -> Result<String, Hint> {
    let text = keys::text(value)?;
    let uri: Uri = text.parse().map_err(|_| None)?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    let names_host = uri
        .authority()
        .is_some_and(|authority| !authority.host().is_empty() && !authority.as_str().contains('@'));
    let has_path = !matches!(uri.path(), "" | "/") || uri.query().is_some();
    if !is_http || !names_host || has_path {
        return Err(None);
    }
    let host = uri.host().unwrap_or_default();
    if host == "0.0.0.0" || host == "[::]" {
        return Err(Some("the address that others reach this host by".to_owned()));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Overrides, Settings};

    fn parse(section: &str) -> Result<KubernetesSettings, String> {
        let text = format!("[kubernetes]\n{section}");
        Settings::parse(&text, Path::new("w.toml"), Overrides::default())
            .map(|settings| settings.kubernetes)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_written_is_the_defaults() {
        assert_eq!(parse(""), Ok(KubernetesSettings::default()));
    }

    #[test]
    fn everything_can_be_written() {
        let text = r#"kubeconfig = "/etc/vmstation/kubeconfig"
namespace = "power"
lease = "wake-server-2"
advertise = "https://192.0.2.1:9876/"
advertise_ca = "/ca.pem"
lease_duration = "30s"
renew = "5s"
"#;
        assert_eq!(
            parse(text),
            Ok(KubernetesSettings {
                access: Access::Kubeconfig("/etc/vmstation/kubeconfig".into()),
                namespace: "power".into(),
                lease: "wake-server-2".into(),
                advertise: Some("https://192.0.2.1:9876".into()),
                advertise_ca: Some("/ca.pem".into()),
                lease_duration: Duration::from_secs(30),
                renew: Duration::from_secs(5),
            })
        );
    }

    #[test]
    fn a_kubeconfig_is_used_unless_it_is_turned_off() {
        let access = |text| parse(text).map(|settings| settings.access);
        let kubeconfig = || Ok(Access::Kubeconfig("/k".into()));
        assert_eq!(access("kubeconfig = \"/k\""), kubeconfig());
        assert_eq!(access("api = \"auto\"\nkubeconfig = \"/k\""), kubeconfig());
        assert_eq!(access("api = \"off\"\nkubeconfig = \"/k\""), Ok(Access::Off));
        assert_eq!(access("api = \"in-cluster\""), Ok(Access::InCluster));
        assert_eq!(
            access("api = \"in-cluster\"\nkubeconfig = \"/k\""),
            Err(
                "w.toml:2:1: error: the service account, or the kubeconfig? Both are named\n  \
                 hint: leave one of `api` and `kubeconfig` out"
                    .into()
            )
        );
    }

    #[test]
    fn f5_what_is_wrong_is_told_with_line_and_hint() {
        let text = r#"api = "on"
namespace = "Kube"
lease = "-a"
advertise = "http://0.0.0.0:9876"
lease_duration = "4500ms"
renew = "2s"
"#;
        assert_eq!(
            parse(text).unwrap_err(),
            r#"w.toml:2:7: error: `api` cannot be `"on"`
  hint: it takes "off", "auto" or "in-cluster"
w.toml:3:13: error: `namespace` cannot be `"Kube"`
  hint: it takes a name of small letters, digits and dashes, as "kube-system"
w.toml:4:9: error: `lease` cannot be `"-a"`
  hint: it takes a name of small letters, digits and dashes, as "kube-system"
w.toml:5:13: error: `advertise` cannot be `"http://0.0.0.0:9876"`
  hint: the address that others reach this host by
w.toml:6:1: error: `lease_duration` has to be whole seconds
  hint: a Lease knows no others
w.toml:7:1: error: a lease of 4s 500ms is lost when renewals 2s apart fail once
  hint: `renew` is at most a third of `lease_duration`: 1s 500ms"#
        );
        for url in [
            "ftp://192.0.2.1",
            "192.0.2.1:9876",
            "http://a:b@192.0.2.1",
            "http://192.0.2.1/x",
            "http://192.0.2.1/?x",
        ] {
            assert!(parse(&format!("advertise = \"{url}\"")).is_err(), "{url}");
        }
    }

    #[test]
    fn a_short_lease_is_renewed_more_often() {
        let settings = parse("lease_duration = \"3s\"").unwrap();
        assert_eq!(settings.renew, Duration::from_secs(1));
    }
}
