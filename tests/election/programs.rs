//! Two of the real programs.

use std::path::Path;

use crate::{
    kube_fake::KubeFake,
    standing::{kubeconfig, run},
    wake_program::Program,
};

fn start(folder: &Path, name: &str, fake: &KubeFake) -> Program {
    let access = kubeconfig(folder, &format!("{name}.kubeconfig"), &fake.url(), fake.token());
    let nodes = "[[node]]\nname = \"worker-01\"\nmac = \"02:00:00:00:00:03\"\n";
    Program::start(
        folder,
        name,
        nodes,
        &access,
        "lease_duration = \"5m\"\nrenew = \"200ms\"\n",
    )
}

pub(crate) fn pair() {
    run(async {
        let fake = KubeFake::start();
        let folder = tempfile::tempdir().unwrap();
        let mut a = start(folder.path(), "a", &fake);
        a.leads(1).await;
        let b = start(folder.path(), "b", &fake);
        b.leads(0).await;
        // An order that only the leader has: it is given through the follower.
        let given = b.until("POST", "/sleep/worker-01", "HTTP/1.1 202").await;
        assert!(given.contains("\"sleep\""), "{given}");
        let orders = |answer: String| {
            answer
                .rsplit_once("\r\n\r\n")
                .map(|(_, body)| body.to_owned())
                .unwrap_or_default()
        };
        let path = "/v1/nodes/worker-01/orders";
        let of_leader = orders(a.ask("GET", path).await);
        assert!(of_leader.contains("\"sleep\""), "{of_leader}");
        assert_eq!(orders(b.ask("GET", path).await), of_leader);
        let unknown = b.ask("POST", "/sleep/nobody").await;
        assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
        // The lease lasts for longer than the trial: it is given back.
        assert!(a.stop().success());
        b.leads(1).await;
        let unknown = b.ask("POST", "/sleep/nobody").await;
        assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
    });
}
