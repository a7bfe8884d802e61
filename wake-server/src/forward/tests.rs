//! A follower before a leader on loopback.

use std::net::SocketAddr;

use axum::{Router, middleware, routing::any};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::net::TcpListener;

use super::*;
use crate::cluster::election::{Fence, Leader, Term};

const PATIENCE: Patience = Patience {
    wake: Duration::from_secs(30),
    poll: Duration::from_secs(30),
    drain: Duration::from_secs(30),
};

fn follows(url: Option<String>) -> Leadership {
    Leadership::Following {
        leader: Some(Leader {
            identity: "other".into(),
            url,
        }),
    }
}

async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = TowerToHyperService::new(app);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
            tokio::spawn(connection);
        }
    });
    address
}

/// What the leader gets, as lines.
async fn leader() -> SocketAddr {
    serve(Router::new().fallback(any(|request: Request| async {
        let (parts, body) = request.into_parts();
        let body = to_bytes(body, 9999).await.unwrap();
        let mut lines = vec![
            format!("{} {}", parts.method, parts.uri),
            String::from_utf8_lossy(&body).into_owned(),
        ];
        lines.extend(
            parts
                .headers
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())),
        );
        (StatusCode::ACCEPTED, lines.join("\n"))
    })))
    .await
}

async fn follower(leadership: Leadership) -> (Router, watch::Sender<Leadership>) {
    let (tell, told) = watch::channel(leadership);
    let forward = Forward::new("me_1", told, &KubernetesSettings::default(), PATIENCE)
        .await
        .unwrap();
    let app = Router::new()
        .fallback(any(|| async { "here" }))
        .layer(middleware::from_fn_with_state(Arc::new(forward), super::forward));
    (app, tell)
}

/// Status, `Retry-After` and body of the follower's answer.
async fn ask(app: Router, headers: &[(&str, &str)]) -> (u16, Option<String>, String) {
    ask_for(app, "/wake/worker-01?verify=1", headers).await
}

async fn ask_for(app: Router, path: &str, headers: &[(&str, &str)]) -> (u16, Option<String>, String) {
    let client = https::client::<Full<Bytes>>(false, None).unwrap();
    let mut request = hyper::Request::post(format!("http://{}{path}", serve(app).await));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from_static(b"{\"a\":1}"))).unwrap();
    let answer = client.request(request).await.unwrap();
    let status = answer.status().as_u16();
    let later = answer
        .headers()
        .get(header::RETRY_AFTER)
        .map(|value| value.to_str().unwrap().to_owned());
    let body = to_bytes(Body::new(answer.into_body()), 9999).await.unwrap();
    (status, later, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn a_write_is_passed_on_with_its_token_and_body() {
    let url = format!("http://{}", leader().await);
    let (app, _tell) = follower(follows(Some(url))).await;
    let headers = [
        ("authorization", "Bearer opensesame"),
        ("origin", "http://here"),
        ("sec-fetch-site", "same-origin"),
    ];
    let (status, _, body) = ask(app, &headers).await;
    assert_eq!(status, 202);
    for line in [
        "POST /wake/worker-01?verify=1",
        "{\"a\":1}",
        "authorization: Bearer opensesame",
        "x-vmstation-forwarded: me_1",
    ] {
        assert!(body.lines().any(|found| found == line), "{line} in {body}");
    }
    assert!(!body.contains("origin"), "{body}");
}

#[tokio::test]
async fn who_leads_answers_itself() {
    let term = Term {
        fence: Fence(1),
        acts_until: Moment::now().after(Duration::from_hours(1)),
    };
    let (app, _tell) = follower(Leadership::Acting(term)).await;
    let (status, _, body) = ask(app, &[(FORWARDED.as_str(), "other")]).await;
    assert_eq!((status, body.as_str()), (200, "here"));
}

#[tokio::test]
async fn what_was_passed_on_is_not_passed_on_again() {
    let url = format!("http://{}", leader().await);
    let (app, _tell) = follower(follows(Some(url))).await;
    let (status, later, body) = ask(app, &[(FORWARDED.as_str(), "other")]).await;
    assert_eq!((status, later.as_deref()), (503, Some("3")), "{body}");
    assert!(body.contains("not_the_leader"), "{body}");
}

#[tokio::test]
async fn k1_without_a_leader_the_cause_is_told() {
    let over = Term {
        fence: Fence(1),
        acts_until: Moment::from_boot(Duration::ZERO),
    };
    let nobody = Leadership::Following { leader: None };
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    for (leadership, words) in [
        (nobody, "no wake server leads"),
        (Leadership::Acting(over), "no wake server leads"),
        (follows(None), "other leads and does not say where it is"),
        (follows(Some(closed)), "cannot be asked"),
    ] {
        let (app, _tell) = follower(leadership).await;
        let (status, later, body) = ask_for(app, "/sleep/worker-01", &[]).await;
        assert_eq!((status, later.as_deref()), (503, Some("3")), "{body}");
        assert!(body.contains(words), "{body}");
    }
}

#[tokio::test]
async fn without_a_leader_nodes_are_woken_all_the_same() {
    let (app, _tell) = follower(Leadership::Following { leader: None }).await;
    let (status, _, body) = ask(app, &[]).await;
    assert_eq!((status, body.as_str()), (200, "here"));
}

#[tokio::test]
async fn a_leader_that_leads_no_more_is_not_waited_for() {
    let hangs = serve(Router::new().fallback(any(|| async {
        sleep(Duration::from_hours(1)).await;
    })))
    .await;
    let (app, tell) = follower(follows(Some(format!("http://{hangs}")))).await;
    let asked = tokio::spawn(async move { ask(app, &[]).await });
    sleep(Duration::from_millis(50)).await;
    tell.send_replace(Leadership::Following { leader: None });
    let (status, _, body) = asked.await.unwrap();
    assert_eq!(status, 503);
    assert!(
        body.contains("does not lead any more") || body.contains("no wake server leads"),
        "{body}"
    );
}
