//! Answers of API servers that are slow, dead or refuse, on loopback.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;

fn file(url: &str, token: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{}", kubeconfig_text(url, token)).unwrap();
    file
}

fn kubeconfig_text(url: &str, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         clusters: [{{name: c, cluster: {{server: '{url}'}}}}]\nusers: [{{name: u, user: {{token: {token}}}}}]\n"
    )
}

fn settings(path: &Path) -> KubernetesSettings {
    KubernetesSettings {
        access: Access::Kubeconfig(path.to_owned()),
        ..KubernetesSettings::default()
    }
}

async fn read(connection: &Connection, within: Duration) -> Result<Node, ClusterError> {
    connection
        .ask_within(within, "read node a", |client| async move {
            Api::<Node>::all(client).get("a").await
        })
        .await
}

/// Answers 200 to whoever comes with the token, 401 to others; counts them.
async fn strict(token: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            let head = String::from_utf8_lossy(&head[..length]).to_lowercase();
            count.fetch_add(1, Ordering::SeqCst);
            let (status, body) = if head.contains(&format!("authorization: bearer {token}\r\n")) {
                ("200 OK", r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a"}}"#)
            } else {
                (
                    "401 Unauthorized",
                    r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}"#,
                )
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, asked)
}

#[tokio::test]
async fn k2_credentials_that_are_refused_are_read_again_once() {
    let (url, asked) = strict("second").await;
    let file = file(&url, "first");
    let connection = Connection::new(&settings(file.path())).await.unwrap();
    std::fs::write(file.path(), kubeconfig_text(&url, "second")).unwrap();
    read(&connection, WITHIN).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 2, "refused once, then not");
    read(&connection, WITHIN).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 3, "they are kept");
}

#[tokio::test]
async fn k2_credentials_that_stay_wrong_are_not_read_for_each_request() {
    let (url, asked) = strict("right").await;
    let file = file(&url, "wrong");
    let connection = Connection::new(&settings(file.path())).await.unwrap();
    for requests in [2, 3, 4] {
        let error = read(&connection, WITHIN).await.unwrap_err();
        assert!(error.is_of_permission(), "{error:?}");
        assert!(
            error.to_string().contains("does not accept the credentials (401)"),
            "{error}"
        );
        assert_eq!(asked.load(Ordering::SeqCst), requests);
    }
}

#[tokio::test]
async fn k1_a_server_that_sends_a_byte_at_a_time_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let asked = stream.read(&mut [0; 4096]).await.unwrap();
        assert!(asked > 0);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")
            .await
            .unwrap();
        while stream.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let file = file(&url, "t");
    let connection = Connection::new(&settings(file.path())).await.unwrap();
    let error = read(&connection, Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "read node a: no complete answer within 0.3 s; is the API server overloaded?"
    );
}

#[tokio::test]
async fn k1_a_server_that_is_down_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let file = file(&url, "t");
    let connection = Connection::new(&settings(file.path())).await.unwrap();
    let error = read(&connection, WITHIN).await.unwrap_err();
    assert!(matches!(error, ClusterError::Unreachable { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .starts_with("read node a: the API server cannot be reached: "),
        "{error}"
    );
}

#[tokio::test]
async fn credentials_that_cannot_be_used_are_told_by_their_file() {
    let missing = connect(&settings(Path::new("/nonexistent/kubeconfig")))
        .await
        .err()
        .unwrap();
    assert!(missing.to_string().contains("/nonexistent/kubeconfig"), "{missing}");
    let off = KubernetesSettings {
        access: Access::Off,
        ..KubernetesSettings::default()
    };
    assert_eq!(connect(&off).await.err(), Some(ConnectError::Off));
}
