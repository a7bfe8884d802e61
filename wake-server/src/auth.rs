//! Who asks: nobody known, the agent of a node, or an operator. Owns the secrets, once read; never says what is wrong with a token.
//!
//! A comparison takes as long for a wrong token as for the right one, and every request without a right one gets the same answer.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use axum::{
    http::{HeaderMap, StatusCode},
    response::Response,
};
use hmac::{Hmac, Mac as _};
use nix::fcntl::OFlag;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use thiserror::Error;
use vmstation_protocol::{NodeName, TOKEN_HEADER};

use crate::server::problem;

/// Name of the systemd credential with the operators' token.
pub const TOKEN_CREDENTIAL: &str = "wake-token";
/// Name of the systemd credential with the secret of the agents' tokens.
pub const SECRET_CREDENTIAL: &str = "wake-secret";
/// Longest token, bytes.
const LONGEST: u64 = 4096;
/// Shortest secret, characters: who has a node's token could try out shorter ones.
const SHORTEST_SECRET: usize = 16;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Without a token, or with a wrong one.
    Nobody,
    /// The agent of this node.
    Agent(NodeName),
    /// A person, or a program of one.
    Operator,
}

/// What tokens are compared with.
#[derive(Clone, Default)]
pub struct Keys {
    operator: Option<[u8; 32]>,
    secret: Option<Secret>,
}

/// What agents' tokens are derived from.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

/// Why a token or secret cannot be used.
#[derive(Debug, Error)]
#[error("cannot use {}: {why}", path.display())]
pub struct KeyError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub why: KeyFault,
}

/// What is wrong with the file of a token or secret.
#[derive(Debug, Error)]
pub enum KeyFault {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Something else than a file.
    #[error("it is no regular file")]
    NoFile,
    /// Permissions.
    #[error("other users have access to it (mode {mode:04o}); use `chmod o= FILE`")]
    Readable {
        /// Its permissions.
        mode: u32,
    },
    /// Nothing in it.
    #[error("it is empty; put a token in it, for instance with `openssl rand -hex 32`")]
    Empty,
    /// Too much in it.
    #[error("it is longer than {LONGEST} bytes")]
    TooLong,
    /// A header could not carry it.
    #[error(
        "it has white space, control characters or other than ASCII characters within the token; one line of visible ones is needed"
    )]
    Characters,
    /// Too easily guessed.
    #[error("the secret is shorter than {SHORTEST_SECRET} characters; make one with `openssl rand -hex 32`")]
    ShortSecret,
}

impl Keys {
    /// Reads both. What no file is named for is looked for among the systemd credentials (`$CREDENTIALS_DIRECTORY`), and may be missing:
    /// then nobody is an operator, or no token is an agent's.
    ///
    /// # Errors
    /// [`KeyError`]: a file that is named or a credential that exists cannot be used.
    pub fn load(
        token_file: Option<&Path>,
        secret_file: Option<&Path>,
        credentials: Option<&Path>,
    ) -> Result<Self, KeyError> {
        let operator = read_key(token_file, credentials, TOKEN_CREDENTIAL)?.map(|token| Sha256::digest(&token).into());
        let secret = load_secret(secret_file, credentials)?;
        Ok(Self { operator, secret })
    }

    /// Keys in memory.
    ///
    /// # Errors
    /// [`KeyFault`]: the token could not be one of [`Keys::load`].
    pub fn new(token: &str, secret: Option<Secret>) -> Result<Self, KeyFault> {
        let token = checked(token.as_bytes())?;
        Ok(Self {
            operator: Some(Sha256::digest(token).into()),
            secret,
        })
    }

    /// Whether anybody can be an operator.
    pub const fn knows_operators(&self) -> bool {
        self.operator.is_some()
    }

    /// Who sent these headers. Exactly one token counts; two are as good as none, even the same twice.
    pub fn caller(&self, headers: &HeaderMap) -> Caller {
        let mut tokens = headers.get_all(TOKEN_HEADER).iter();
        let (Some(token), None) = (tokens.next(), tokens.next()) else {
            return Caller::Nobody;
        };
        self.bearer(token.as_bytes())
    }

    fn bearer(&self, token: &[u8]) -> Caller {
        // The digests are compared: they are of one length, whatever the tokens are.
        let digest: [u8; 32] = Sha256::digest(token).into();
        if self
            .operator
            .is_some_and(|operator| operator[..].ct_eq(&digest[..]).into())
        {
            return Caller::Operator;
        }
        let Some(secret) = &self.secret else {
            return Caller::Nobody;
        };
        let claimed = std::str::from_utf8(token)
            .ok()
            .and_then(|token| token.split_once(':'))
            .and_then(|(name, _)| name.parse::<NodeName>().ok());
        match claimed {
            Some(node) if agent_token(secret, &node).as_bytes().ct_eq(token).into() => Caller::Agent(node),
            Some(_) | None => Caller::Nobody,
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("operator", &self.operator.is_some())
            .field("secret", &self.secret.is_some())
            .finish()
    }
}

impl Secret {
    /// A secret in memory.
    ///
    /// # Errors
    /// [`KeyFault`]: it could not be one of [`load_secret`].
    pub fn new(secret: &str) -> Result<Self, KeyFault> {
        let secret = checked(secret.as_bytes())?;
        if secret.len() < SHORTEST_SECRET {
            return Err(KeyFault::ShortSecret);
        }
        Ok(Self(secret.to_vec()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Reads the secret agents' tokens are derived from: the file, or else the systemd credential if there is one.
///
/// # Errors
/// [`KeyError`]: it cannot be used.
pub fn load_secret(secret_file: Option<&Path>, credentials: Option<&Path>) -> Result<Option<Secret>, KeyError> {
    let Some(secret) = read_key(secret_file, credentials, SECRET_CREDENTIAL)? else {
        return Ok(None);
    };
    if secret.len() < SHORTEST_SECRET {
        let path = secret_file.map_or_else(|| PathBuf::from(SECRET_CREDENTIAL), Path::to_owned);
        return Err(KeyError {
            path,
            why: KeyFault::ShortSecret,
        });
    }
    Ok(Some(Secret(secret)))
}

/// The token of a node's agent: `NAME:` and the HMAC-SHA256 (RFC 2104) of the name with the secret, hexadecimal. It says whose it is, so
/// that one comparison is enough to check it.
pub fn agent_token(secret: &Secret, node: &NodeName) -> String {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
    let mut mac = <Hmac<Sha256>>::new_from_slice(&secret.0).expect("a key");
    mac.update(node.as_str().as_bytes());
    let code = mac.finalize().into_bytes();
    let mut token = format!("{node}:");
    for byte in code {
        token.push_str(&format!("{byte:02x}"));
    }
    token
}

/// The one answer to everybody who may not do what he asks for.
pub fn unauthorized() -> Response {
    problem(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        format!("this needs the header {TOKEN_HEADER}, once, with a token that may do it"),
    )
}

fn read_key(file: Option<&Path>, credentials: Option<&Path>, credential: &str) -> Result<Option<Vec<u8>>, KeyError> {
    let (path, may_be_missing) = match (file, credentials) {
        (Some(file), _) => (file.to_owned(), false),
        (None, Some(credentials)) => (credentials.join(credential), true),
        (None, None) => return Ok(None),
    };
    // The service manager guards the folder of its credentials.
    let guarded = credentials.is_some_and(|credentials| path.starts_with(credentials));
    match read(&path, guarded) {
        Ok(key) => Ok(Some(key)),
        Err(KeyFault::Io(error)) if may_be_missing && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(KeyError { path, why }),
    }
}

fn read(path: &Path, guarded: bool) -> Result<Vec<u8>, KeyFault> {
    // Without O_NONBLOCK a named pipe would be waited for.
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(KeyFault::NoFile);
    }
    let mode = metadata.mode() & 0o7777;
    if !guarded && mode & 0o007 != 0 {
        return Err(KeyFault::Readable { mode });
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(KeyFault::TooLong);
    }
    checked(&bytes).map(<[u8]>::to_vec)
}

/// A token without the white space around it.
fn checked(bytes: &[u8]) -> Result<&[u8], KeyFault> {
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(KeyFault::Empty);
    }
    if !token.iter().all(u8::is_ascii_graphic) {
        return Err(KeyFault::Characters);
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use axum::http::HeaderValue;
    use tempfile::TempDir;

    use super::*;

    const SECRET: &str = "0123456789abcdef";

    fn keys() -> Keys {
        Keys::new("opensesame", Some(Secret::new(SECRET).unwrap())).unwrap()
    }

    fn headers(tokens: &[&[u8]]) -> HeaderMap {
        let value = |token: &&[u8]| HeaderValue::from_bytes(token).unwrap();
        let mut headers = HeaderMap::new();
        for token in tokens {
            headers.append(TOKEN_HEADER, value(token));
        }
        headers
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn written(bytes: &[u8], mode: u32) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn w7_the_right_token_is_an_operators() {
        assert_eq!(keys().caller(&headers(&[b"opensesame"])), Caller::Operator);
    }

    #[test]
    fn w7_every_other_token_is_nobodys() {
        let wrong: [&[&[u8]]; 9] = [
            &[],
            &[b""],
            &[b"opensesam"],
            &[b"opensesame2"],
            &[b"Opensesame"],
            &[b"opensesame", b"opensesame"],
            &[b"opensesame", b"wrong"],
            &[b"opensesame\xe9"],
            &["öffnedich".as_bytes()],
        ];
        for tokens in wrong {
            assert_eq!(keys().caller(&headers(tokens)), Caller::Nobody, "{tokens:?}");
        }
        assert_eq!(Keys::default().caller(&headers(&[b""])), Caller::Nobody);
        assert_eq!(Keys::default().caller(&headers(&[])), Caller::Nobody);
    }

    #[test]
    fn an_agents_token_is_that_of_its_node() {
        let secret = Secret::new(SECRET).unwrap();
        let token = agent_token(&secret, &node("worker-01"));
        // printf worker-01 | openssl dgst -sha256 -hmac 0123456789abcdef
        assert_eq!(
            token,
            "worker-01:f479d631f3ca18a88a2fef156a204b3e55eeb2ed5ccf2dbe6a001a83c6a7a762"
        );
        assert_eq!(
            keys().caller(&headers(&[token.as_bytes()])),
            Caller::Agent(node("worker-01"))
        );
        let of_another = token.replace("worker-01", "worker-02");
        let shorter = &token[..token.len() - 1];
        let upper = token.to_ascii_uppercase();
        for wrong in [of_another.as_str(), shorter, &upper, "worker-01:", ":", "worker-01"] {
            assert_eq!(keys().caller(&headers(&[wrong.as_bytes()])), Caller::Nobody, "{wrong}");
        }
        let without = Keys::new("opensesame", None).unwrap();
        assert_eq!(without.caller(&headers(&[token.as_bytes()])), Caller::Nobody);
    }

    #[test]
    fn w7_a_token_is_read_from_its_file() {
        let (_folder, path) = written(b"opensesame\r\n", 0o640);
        let keys = Keys::load(Some(&path), None, None).unwrap();
        assert_eq!(keys.caller(&headers(&[b"opensesame"])), Caller::Operator);
        assert!(!format!("{keys:?}").contains("sesame"));
    }

    #[test]
    fn w7_a_file_that_will_not_do_is_refused() {
        let refused = |bytes: &[u8], mode| {
            let (_folder, path) = written(bytes, mode);
            Keys::load(Some(&path), None, None).unwrap_err()
        };
        assert!(matches!(refused(b"", 0o600).why, KeyFault::Empty));
        assert!(matches!(refused(b" \n\t\n", 0o600).why, KeyFault::Empty));
        for bytes in [
            &b"open sesame"[..],
            b"open\nsesame",
            b"open\0sesame",
            b"open\x7fsesame",
            "öffne".as_bytes(),
        ] {
            assert!(matches!(refused(bytes, 0o600).why, KeyFault::Characters), "{bytes:?}");
        }
        assert!(matches!(refused(&[b'a'; 4097], 0o600).why, KeyFault::TooLong));
        let readable = refused(b"opensesame", 0o644);
        assert!(matches!(readable.why, KeyFault::Readable { mode: 0o644 }));
        assert!(
            readable
                .to_string()
                .contains("/token: other users have access to it (mode 0644)"),
            "{readable}"
        );

        let folder = tempfile::tempdir().unwrap();
        let fault = |path: &Path| Keys::load(Some(path), None, None).unwrap_err().why;
        assert!(matches!(fault(folder.path()), KeyFault::NoFile));
        assert!(matches!(fault(&folder.path().join("none")), KeyFault::Io(_)));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(fault(&pipe), KeyFault::NoFile));
    }

    #[test]
    fn w7_a_credential_stands_in_for_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let load = || Keys::load(None, None, Some(folder.path()));
        assert!(!load().unwrap().knows_operators());
        let path = folder.path().join(TOKEN_CREDENTIAL);
        fs::write(&path, "opensesame").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        assert_eq!(load().unwrap().caller(&headers(&[b"opensesame"])), Caller::Operator);
        fs::write(&path, "").unwrap();
        assert!(matches!(load().unwrap_err().why, KeyFault::Empty));
    }

    #[test]
    fn a_short_secret_is_refused() {
        assert!(matches!(Secret::new("0123456789abcde"), Err(KeyFault::ShortSecret)));
        let (_folder, path) = written(b"0123456789abcde", 0o600);
        assert!(matches!(
            Keys::load(None, Some(&path), None).unwrap_err().why,
            KeyFault::ShortSecret
        ));
        fs::write(&path, SECRET).unwrap();
        assert!(load_secret(Some(&path), None).unwrap().is_some());
    }
}
