//! The eBPF toolchain: what is on this machine ([`Findings`]), what to do about it ([`choose`], pure), and the result
//! ([`Toolchain`]).
//!
//! A toolchain is a compiler with the sources of `core` and a bpf-linker whose LLVM can read what that compiler writes. Never
//! touches a toolchain of the user: the nightly it asks rustup for has a date in its name.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    elf, packages,
    privilege::Privilege,
    step,
    workspace::{Workspace, find_program, foreign},
};

/// Version of bpf-linker that is built here. A bpf-linker found on `PATH` may be another.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// LLVM versions that bpf-linker can be built for.
const LINKER_LLVMS: [u32; 3] = [21, 22, 23];
/// The nightly that is installed through rustup, by date, so that a build today and one next year use the same compiler.
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";
/// LLVM of [`NIGHTLY`].
const NIGHTLY_LLVM: u32 = 22;
/// Debian's packages with a recent compiler. It installs as `/usr/bin/rustc`.
pub(crate) const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// Oldest compiler that builds the programs (`rust-version` of the workspace).
const OLDEST: (u32, u32) = (1, 95);

/// Where a compiler comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Debian's packages.
    Debian,
    /// A nightly of rustup.
    Rustup,
}

/// A compiler that might build the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    pub(crate) route: Route,
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    /// Major and minor version.
    pub(crate) release: (u32, u32),
    /// Major version of its LLVM.
    pub(crate) llvm: u32,
    /// Whether the sources of `core` are installed.
    pub(crate) has_core_sources: bool,
}

/// A bpf-linker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    /// Major version of its LLVM; `None` if linked statically, where it is taken to fit.
    pub(crate) llvm: Option<u32>,
}

/// What is on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Findings {
    pub(crate) compilers: Vec<Compiler>,
    pub(crate) linkers: Vec<Linker>,
    /// LLVM versions installed with what is needed to link against them.
    pub(crate) llvm_libraries: BTreeSet<u32>,
    pub(crate) has_rustup: bool,
    pub(crate) has_apt: bool,
    pub(crate) privilege: Privilege,
}

/// One thing that can be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Install {
    /// [`NIGHTLY`], through rustup.
    Nightly,
    /// [`DEBIAN_COMPILER`].
    DebianCompiler,
    /// LLVM of that major version, from Debian.
    Llvm(u32),
    /// bpf-linker for the LLVM of that major version.
    Linker(u32),
}

/// A compiler and a linker that fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: Linker,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Nothing: a toolchain is complete.
    Ready(Toolchain),
    /// Install this, then look again.
    Next(Install),
    /// Every route is closed.
    Stuck,
}

/// A choice, and why what comes before it in the order did not work; for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) choice: Choice,
    pub(crate) rejected: Vec<String>,
}

/// What was tried, and how it failed.
pub(crate) type Failures = [(Install, String)];

/// Picks the next step. The order: a complete toolchain (Debian's first); a compiler that is there and lacks a linker; rustup; Debian.
pub(crate) fn choose(findings: &Findings, failures: &Failures) -> Decision {
    let mut rejected = Vec::new();
    let mut open = None;
    for compiler in &findings.compilers {
        match missing_for(compiler, findings, failures) {
            Ok(None) => {
                if let Some(linker) = fitting_linker(findings, compiler.llvm) {
                    let toolchain = Toolchain {
                        compiler: compiler.clone(),
                        linker: linker.clone(),
                    };
                    return Decision {
                        choice: Choice::Ready(toolchain),
                        rejected,
                    };
                }
            }
            Ok(Some(install)) => {
                rejected.push(format!("{compiler}: lacks {install}"));
                open = open.or(Some(install));
            }
            Err(why) => rejected.push(format!("{compiler}: {why}")),
        }
    }
    let installs = [(Install::Nightly, Some(NIGHTLY_LLVM)), (Install::DebianCompiler, None)];
    for (install, llvm) in installs {
        if open.is_some() {
            break;
        }
        let linker_feasible = llvm.map_or(Ok(()), |llvm| linker_step(findings, failures, llvm).map(drop));
        match feasible(install, findings, failures).and(linker_feasible) {
            Ok(()) => open = Some(install),
            Err(why) => rejected.push(format!("{install}: {why}")),
        }
    }
    Decision {
        choice: open.map_or(Choice::Stuck, Choice::Next),
        rejected,
    }
}

/// What `compiler` lacks: nothing, one thing that can be installed, or something that cannot be helped.
fn missing_for(compiler: &Compiler, findings: &Findings, failures: &Failures) -> Result<Option<Install>, String> {
    if compiler.release < OLDEST {
        return Err(format!("is older than {}.{}", OLDEST.0, OLDEST.1));
    }
    if !compiler.has_core_sources {
        return Err("has no sources of core (component rust-src, package rust-web-src)".into());
    }
    linker_step(findings, failures, compiler.llvm)
}

/// What is to be installed next for a linker with this LLVM.
fn linker_step(findings: &Findings, failures: &Failures, llvm: u32) -> Result<Option<Install>, String> {
    if fitting_linker(findings, llvm).is_some() {
        return Ok(None);
    }
    if !LINKER_LLVMS.contains(&llvm) {
        return Err(format!(
            "no bpf-linker for its LLVM {llvm}, and version {LINKER_VERSION} cannot be built for it"
        ));
    }
    feasible(Install::Linker(llvm), findings, failures)?;
    if findings.llvm_libraries.contains(&llvm) {
        return Ok(Some(Install::Linker(llvm)));
    }
    feasible(Install::Llvm(llvm), findings, failures)?;
    Ok(Some(Install::Llvm(llvm)))
}

/// A newer LLVM reads what an older one wrote, not the other way round.
fn fitting_linker(findings: &Findings, llvm: u32) -> Option<&Linker> {
    findings
        .linkers
        .iter()
        .find(|linker| linker.llvm.is_none_or(|version| version >= llvm))
}

fn feasible(install: Install, findings: &Findings, failures: &Failures) -> Result<(), String> {
    if let Some((_, why)) = failures.iter().find(|(failed, _)| *failed == install) {
        return Err(format!("{install} failed: {why}"));
    }
    match install {
        Install::Nightly if !findings.has_rustup => Err("there is no rustup".into()),
        Install::DebianCompiler | Install::Llvm(_) if !findings.has_apt => {
            Err(format!("{install} comes from Debian, and there is no apt-get"))
        }
        Install::DebianCompiler | Install::Llvm(_) if !findings.privilege.is_available() => {
            Err(format!("installing {install} {}", Privilege::WHY_NOT))
        }
        Install::Nightly | Install::DebianCompiler | Install::Llvm(_) | Install::Linker(_) => Ok(()),
    }
}

impl Findings {
    /// Looks around. Takes a few tenths of a second and changes nothing.
    pub(crate) fn look(workspace: &Workspace) -> Self {
        let has_rustup = find_program("rustup").is_some();
        let mut compilers: Vec<_> = debian_compiler().into_iter().collect();
        if has_rustup {
            compilers.extend(nightlies());
        }
        let linkers = [
            Some(workspace.tools().join("bin/bpf-linker")),
            find_program("bpf-linker"),
        ];
        let llvm_libraries = LINKER_LLVMS
            .into_iter()
            .filter(|llvm| llvm_prefix(*llvm).join("bin/llvm-config").exists());
        Self {
            compilers,
            linkers: linkers.into_iter().flatten().filter_map(linker).collect(),
            llvm_libraries: llvm_libraries.collect(),
            has_rustup,
            has_apt: packages::have_apt(),
            privilege: Privilege::find(),
        }
    }
}

/// Where Debian installs an LLVM.
pub(crate) fn llvm_prefix(llvm: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{llvm}"))
}

fn debian_compiler() -> Option<Compiler> {
    let (rustc, cargo) = (PathBuf::from("/usr/bin/rustc"), PathBuf::from("/usr/bin/cargo"));
    if !cargo.exists() {
        return None;
    }
    compiler(Route::Debian, rustc, cargo)
}

/// The pinned nightly first, then others the user has.
fn nightlies() -> Vec<Compiler> {
    let list = step::answer(foreign("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let mut names: Vec<&str> = list
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .collect();
    names.sort_by_key(|name| !name.starts_with(NIGHTLY));
    names
        .into_iter()
        .filter_map(|name| {
            let rustc = step::answer(foreign("rustup").args(["which", "--toolchain", name, "rustc"]))?;
            let rustc = PathBuf::from(rustc.trim());
            let cargo = rustc.with_file_name("cargo");
            compiler(Route::Rustup, rustc, cargo)
        })
        .collect()
}

fn compiler(route: Route, rustc: PathBuf, cargo: PathBuf) -> Option<Compiler> {
    let version = step::answer(foreign(&rustc).arg("-vV"))?;
    let sysroot = step::answer(foreign(&rustc).args(["--print", "sysroot"]))?;
    let (release, llvm) = parse_version(&version)?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    Some(Compiler {
        route,
        rustc,
        cargo,
        release,
        llvm,
        has_core_sources: core.exists(),
    })
}

/// Release and LLVM's major version out of `rustc -vV`.
fn parse_version(text: &str) -> Option<((u32, u32), u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut release = field("release:")?.split('.');
    let major = release.next()?.parse().ok()?;
    let minor = release.next()?.parse().ok()?;
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some(((major, minor), llvm))
}

fn linker(path: PathBuf) -> Option<Linker> {
    step::answer(Command::new(&path).arg("--version"))?;
    let llvm = elf::linked_llvm(&path);
    Some(Linker { path, llvm })
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.release;
        let route = match self.route {
            Route::Debian => "Debian's",
            Route::Rustup => "rustup's",
        };
        write!(
            f,
            "{route} rustc {major}.{minor} (LLVM {}, {})",
            self.llvm,
            self.rustc.display()
        )
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {}", self.compiler, self.linker.path.display())
    }
}

impl fmt::Display for Install {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nightly => write!(f, "{NIGHTLY} through rustup"),
            Self::DebianCompiler => write!(f, "Debian's {}", DEBIAN_COMPILER.join(" ")),
            Self::Llvm(version) => write!(f, "LLVM {version}"),
            Self::Linker(version) => write!(f, "bpf-linker for LLVM {version}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(route: Route, llvm: u32) -> Compiler {
        Compiler {
            route,
            rustc: "rustc".into(),
            cargo: "cargo".into(),
            release: (1, 96),
            llvm,
            has_core_sources: true,
        }
    }

    fn linker(llvm: Option<u32>) -> Linker {
        Linker {
            path: "bpf-linker".into(),
            llvm,
        }
    }

    /// rustup's stable, apt and root: nothing else.
    fn fresh() -> Findings {
        Findings {
            compilers: Vec::new(),
            linkers: Vec::new(),
            llvm_libraries: BTreeSet::new(),
            has_rustup: true,
            has_apt: true,
            privilege: Privilege::Root,
        }
    }

    fn next(findings: &Findings, failures: &Failures) -> Choice {
        choose(findings, failures).choice
    }

    #[test]
    fn a_complete_toolchain_is_used_and_debians_comes_first() {
        let debian = compiler(Route::Debian, 22);
        let nightly = compiler(Route::Rustup, 22);
        let found = Findings {
            compilers: vec![debian.clone(), nightly],
            linkers: vec![linker(Some(22))],
            ..fresh()
        };
        let expected = Toolchain {
            compiler: debian,
            linker: linker(Some(22)),
        };
        assert_eq!(next(&found, &[]), Choice::Ready(expected));
    }

    #[test]
    fn a_nightly_that_is_complete_beats_an_incomplete_debian() {
        let debian = Compiler {
            has_core_sources: false,
            ..compiler(Route::Debian, 22)
        };
        let nightly = compiler(Route::Rustup, 22);
        let found = Findings {
            compilers: vec![debian, nightly.clone()],
            linkers: vec![linker(None)],
            ..fresh()
        };
        let decision = choose(&found, &[]);
        assert_eq!(
            decision.choice,
            Choice::Ready(Toolchain {
                compiler: nightly,
                linker: linker(None)
            })
        );
        assert_eq!(decision.rejected.len(), 1, "{:?}", decision.rejected);
    }

    #[test]
    fn a_fresh_machine_goes_through_rustup_step_by_step() {
        let mut found = fresh();
        assert_eq!(next(&found, &[]), Choice::Next(Install::Nightly));
        found.compilers.push(compiler(Route::Rustup, NIGHTLY_LLVM));
        assert_eq!(next(&found, &[]), Choice::Next(Install::Llvm(NIGHTLY_LLVM)));
        found.llvm_libraries.insert(NIGHTLY_LLVM);
        assert_eq!(next(&found, &[]), Choice::Next(Install::Linker(NIGHTLY_LLVM)));
        found.linkers.push(linker(Some(NIGHTLY_LLVM)));
        assert!(matches!(next(&found, &[]), Choice::Ready(_)));
    }

    #[test]
    fn debian_follows_when_rustup_fails_or_is_missing() {
        let failed = [(Install::Nightly, "no network".to_string())];
        let decision = choose(&fresh(), &failed);
        assert_eq!(decision.choice, Choice::Next(Install::DebianCompiler));
        assert!(decision.rejected[0].contains("no network"), "{:?}", decision.rejected);
        assert_eq!(
            next(
                &Findings {
                    has_rustup: false,
                    ..fresh()
                },
                &[]
            ),
            Choice::Next(Install::DebianCompiler)
        );
    }

    #[test]
    fn without_root_rustup_works_only_with_a_linker_at_hand() {
        let user = Findings {
            privilege: Privilege::None,
            ..fresh()
        };
        let decision = choose(&user, &[]);
        assert_eq!(decision.choice, Choice::Stuck);
        assert_eq!(
            decision.rejected.len(),
            2,
            "one reason a route: {:?}",
            decision.rejected
        );
        let with_linker = Findings {
            linkers: vec![linker(None)],
            ..user
        };
        assert_eq!(next(&with_linker, &[]), Choice::Next(Install::Nightly));
    }

    #[test]
    fn an_older_llvm_cannot_read_a_newer_compilers_output() {
        let found = Findings {
            compilers: vec![compiler(Route::Rustup, 23), compiler(Route::Debian, 22)],
            linkers: vec![linker(Some(22))],
            ..fresh()
        };
        let expected = Toolchain {
            compiler: compiler(Route::Debian, 22),
            linker: linker(Some(22)),
        };
        assert_eq!(next(&found, &[]), Choice::Ready(expected));
    }

    #[test]
    fn an_unknown_llvm_closes_the_route_instead_of_guessing() {
        let found = Findings {
            compilers: vec![compiler(Route::Debian, 99)],
            has_rustup: false,
            ..fresh()
        };
        let failed = [(Install::DebianCompiler, "did not help".to_string())];
        assert_eq!(next(&found, &failed), Choice::Stuck);
    }

    #[test]
    fn versions_are_read_as_rustc_prints_them() {
        let text = "rustc 1.96.0\nbinary: rustc\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(parse_version(text), Some(((1, 97), 22)));
        assert_eq!(parse_version("release: 1.97.0\n"), None);
    }
}
