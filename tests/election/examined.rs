//! What `doctor` finds.

use std::{path::Path, time::Duration};

use vmstation_wake_server::{
    config::{Overrides, Settings},
    doctor::{self, Check, Exit, Findings, Verdict},
};

use crate::{
    kube_fake::Rule,
    standing::{Stand, run},
};

async fn look(stand: &Stand) -> Findings {
    let mut settings = Settings::parse("", Path::new("w.toml"), Overrides::default()).unwrap();
    settings.kubernetes = stand.settings("doctor", &stand.fake.url());
    doctor::look(Ok(settings)).await
}

/// Check and words of what fails.
fn failures(findings: &Findings) -> Vec<(Check, String)> {
    let failed = findings
        .found()
        .iter()
        .filter(|finding| finding.verdict == Verdict::Fail);
    failed
        .map(|finding| {
            assert!(finding.fix.is_some(), "{finding:?}");
            (finding.check, finding.what.clone())
        })
        .collect()
}

fn stand() -> Stand {
    Stand::new(Duration::from_secs(15))
}

pub(crate) fn unreachable() {
    run(async {
        let stand = stand();
        stand.fake.refuse();
        let findings = look(&stand).await;
        let failures = failures(&findings);
        assert_eq!(findings.exit(), Exit::Unreachable);
        assert!(failures[0].1.contains("cannot be reached"), "{failures:?}");
        stand.fake.accept();
        stand.fake.hang(true);
        let findings = look(&stand).await;
        assert_eq!(findings.exit(), Exit::Unreachable);
        assert_eq!(findings.found().last().unwrap().check, Check::ApiServer);
    });
}

pub(crate) fn unauthorized() {
    run(async {
        let stand = stand();
        stand.fake.reject_tokens(true);
        let findings = look(&stand).await;
        let failures = failures(&findings);
        assert_eq!(findings.exit(), Exit::Auth);
        assert!(
            failures[0].1.contains("does not accept the credentials (401)"),
            "{failures:?}"
        );
    });
}

pub(crate) fn forbidden() {
    run(async {
        let stand = stand();
        assert_eq!(look(&stand).await.exit(), Exit::Healthy);
        stand.fake.forbid(Rule::new(&[""], &["pods/eviction"], &["create"]));
        let findings = look(&stand).await;
        let failures = failures(&findings);
        assert_eq!(findings.exit(), Exit::Auth);
        let [(Check::Rights, what)] = failures.as_slice() else {
            panic!("{failures:?}");
        };
        assert!(
            what.contains("RBAC lacks: create pods/eviction, which is needed to drain"),
            "{what}"
        );
        stand
            .fake
            .forbid(Rule::new(&["coordination.k8s.io"], &["leases"], &["get"]));
        let findings = look(&stand).await;
        let lease = findings
            .found()
            .iter()
            .find(|finding| finding.check == Check::Lease)
            .unwrap();
        assert_eq!(lease.verdict, Verdict::Fail);
        assert!(
            lease
                .what
                .contains("RBAC lacks verb get on leases of coordination.k8s.io (403)"),
            "{lease:?}"
        );
    });
}

pub(crate) fn lease() {
    run(async {
        let stand = stand();
        let says =
            |findings: &Findings, words: &str| findings.found().iter().any(|finding| finding.what.contains(words));
        let findings = look(&stand).await;
        assert!(
            says(&findings, "there is no Lease kube-system/vmstation-wake-server"),
            "{findings:?}"
        );
        let mut a = stand.server("a").await;
        a.acts().await;
        let findings = look(&stand).await;
        assert!(says(&findings, "a leads (http://a:9876)"), "{findings:?}");
        assert_eq!(findings.exit(), Exit::Healthy);
    });
}
