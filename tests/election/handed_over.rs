//! From one leader to the next.

use std::time::Duration;

use tokio::time::sleep;

use crate::standing::{LIMIT, Server, Stand, run};

/// The shortest that can be configured.
const SHORT: Duration = Duration::from_secs(3);

/// `a` leads, `b` follows.
async fn pair(stand: &Stand) -> (Server, Server) {
    let mut a = stand.server("a").await;
    a.acts().await;
    let mut b = stand.server("b").await;
    b.follows("a").await;
    (a, b)
}

fn some(names: &[&str]) -> Vec<Option<String>> {
    names
        .iter()
        .map(|name| (!name.is_empty()).then(|| (*name).to_owned()))
        .collect()
}

pub(crate) fn killed() {
    run(async {
        let stand = Stand::new(SHORT);
        let (mut a, mut b) = pair(&stand).await;
        let observer = stand.observe(&[&a, &b]).await;
        let before = a.acts().await;
        drop(a.election.take());
        assert!(b.acts().await > before);
        sleep(Duration::from_millis(100)).await;
        assert_eq!(observer.holders(), some(&["a", "b"]));
    });
}

pub(crate) fn cut_off() {
    run(async {
        let stand = Stand::new(SHORT);
        let (mut a, mut b) = pair(&stand).await;
        let observer = stand.observe(&[&a, &b]).await;
        a.way.cut();
        a.ceases().await;
        b.acts().await;
        a.way.mend();
        a.follows("b").await;
        assert_eq!(observer.holders(), some(&["a", "b"]));
    });
}

pub(crate) fn resigned() {
    run(async {
        // Nobody waits for the end of this one.
        let stand = Stand::new(5 * LIMIT);
        let (mut a, mut b) = pair(&stand).await;
        let observer = stand.observe(&[&a, &b]).await;
        let before = a.acts().await;
        a.election.take().unwrap().resign().await;
        assert!(b.acts().await > before);
        sleep(Duration::from_millis(100)).await;
        let holders = observer.holders();
        assert!(
            holders == some(&["a", "", "b"]) || holders == some(&["a", "b"]),
            "{holders:?}"
        );
    });
}

pub(crate) fn restarted() {
    run(async {
        let stand = Stand::new(5 * LIMIT);
        let (mut a, mut b) = pair(&stand).await;
        let observer = stand.observe(&[&a, &b]).await;
        let before = a.acts().await;
        stand.fake.refuse();
        sleep(Duration::from_millis(600)).await;
        stand.fake.accept();
        sleep(Duration::from_millis(600)).await;
        assert_eq!(a.acts().await, before);
        b.follows("a").await;
        assert_eq!(observer.holders(), some(&["a"]));
    });
}
