//! `vmstation-wake token NODE`: the token of a node's agent. Made from the server's secret, on the server's host; asks no server.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vmstation_protocol::{NodeName, SCHEMA};

use super::{Exit, Failure, Output, print};
use crate::{
    auth::{agent_token, load_secret},
    config::{Overrides, Settings},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The node
    #[arg(value_name = "NODE")]
    node: NodeName,
    /// File with the server's secret, instead of that of the configuration
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Configuration of the server
    #[arg(long, value_name = "FILE", conflicts_with = "secret_file")]
    config: Option<PathBuf>,
}

#[derive(Serialize)]
struct Token<'a> {
    schema: u32,
    node: &'a NodeName,
    token: &'a str,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let configuration = |message: String| Failure::new(Exit::Configuration, message);
    let file = match &arguments.secret_file {
        Some(file) => file.clone(),
        None => configured(arguments.config.as_deref())?,
    };
    let secret = load_secret(Some(&file), None).map_err(|error| configuration(error.to_string()))?;
    let secret = secret.ok_or_else(|| configuration(format!("there is no secret in {}", file.display())))?;
    let token = agent_token(&secret, &arguments.node);
    let document = Token {
        schema: SCHEMA,
        node: &arguments.node,
        token: &token,
    };
    print(output, &document, || token.clone())
}

fn configured(config: Option<&Path>) -> Result<PathBuf, Failure> {
    let configuration = |message: String| Failure::new(Exit::Configuration, message);
    let settings = Settings::load(config, Overrides::default()).map_err(|error| configuration(error.to_string()))?;
    settings.secret_file.ok_or_else(|| {
        configuration(
            "the server's configuration names no secret_file, so agents have no tokens; or give --secret-file FILE"
                .to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_needs_a_usable_secret() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        let of = |file: &Path| {
            let arguments = Arguments {
                node: "worker-01".parse().unwrap(),
                secret_file: Some(file.to_owned()),
                config: None,
            };
            run(&arguments, Output::Human).map_err(|failure| failure.exit)
        };
        assert_eq!(of(&file), Err(Exit::Configuration), "missing");
        for (secret, exit) in [
            ("", Err(Exit::Configuration)),
            ("short", Err(Exit::Configuration)),
            ("0123456789abcdef0123456789abcdef\n", Ok(())),
        ] {
            std::fs::write(&file, secret).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&file, mode).unwrap();
            assert_eq!(of(&file), exit, "{secret:?}");
        }
    }
}
