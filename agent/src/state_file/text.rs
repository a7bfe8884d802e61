//! The text of the state file: [`render`] and [`parse`], each the other's inverse. Pure.

use std::{collections::BTreeMap, fmt::Write as _, str::FromStr, time::Duration};

use super::{SavedBoot, SavedHold, SavedState};
use crate::{clock::BootTime, energy::Account};

/// Version of the file; it rises when a key changes its meaning or one is added.
const SCHEMA: u32 = 2;
/// The version before: it has no lines about sleeps.
const BEFORE_SLEEPS: u32 = 1;
/// The last line. A file without it was cut off.
const END: &str = "END=1\n";
/// All that the shell scripts before the agent wrote.
const LEGACY_KEYS: [&str; 4] = ["LAST_ACTIVITY", "SLEEP_PENDING", "SLEEP_ENABLED", "LAST_CHECK"];

/// Why a text is no state.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// Not UTF-8.
    #[error("the state file is not text")]
    NotText,
    /// Written by a newer agent.
    #[error("the state file has schema {schema}, this agent knows {SCHEMA}: it was written by a newer agent")]
    Newer {
        /// Its schema.
        schema: u32,
    },
    /// The end is missing.
    #[error("the state file is incomplete")]
    Incomplete,
    /// A line is not `KEY=value`, or its key is not expected or there twice.
    #[error("line {line} of the state file is not understood")]
    Line {
        /// From 1.
        line: usize,
    },
    /// A value is missing or malformed.
    #[error("{key} in the state file is missing or malformed")]
    Value {
        /// Its key.
        key: &'static str,
    },
}

/// The text of a state. A shell can source it: every free text is in single quotes with all but plain characters written as `%XX`.
pub fn render(state: &SavedState) -> String {
    let mut text = format!(
        "SCHEMA={SCHEMA}\nLAST_ACTIVITY={}\nSLEEP_PENDING={}\nSLEEP_ENABLED={}\nLAST_CHECK={}\nFAILURES={}\nDISABLED_BY_OPERATOR={}\n",
        state.last_activity,
        state.sleep_pending,
        state.sleep_enabled,
        state.last_check,
        state.failures,
        state.disabled_by_operator
    );
    text.push_str(&sleeps(state));
    let mut line = |key: &str, value: &str| {
        let _infallible = writeln!(text, "{key}={value}");
    };
    if let Some(boot) = &state.boot {
        line("BOOT_ID", &quote(&boot.id));
        line("LAST_ACTIVITY_BOOT", &seconds(boot.last_activity));
    }
    if let Some(hold) = &state.hold {
        line("HOLD_UNTIL_BOOT", &seconds(hold.until));
        line("HOLD_SECONDS", &hold.seconds.to_string());
        line("HOLD_BY", &quote(&hold.by));
        line("HOLD_REASON", &quote(&hold.reason));
    }
    text.push_str(END);
    text
}

/// The lines of the account and what belongs to it.
fn sleeps(state: &SavedState) -> String {
    let Account {
        sleeps,
        wakes,
        external,
        failed,
        refused,
        aborted,
        asleep,
        saved_joules,
    } = &state.account;
    let mut text = format!(
        "SLEEPS={sleeps}\nWAKES={wakes}\nEXTERNAL_SUSPENDS={external}\nFAILED_SLEEPS={failed}\nREFUSED_SLEEPS={refused}\n\
         ABORTED_SLEEPS={aborted}\nASLEEP_SECONDS={}\nSHORT_SLEEPS={}\nDISABLED_BY_WAKE_LOOP={}\n",
        decimal(*asleep),
        state.short_sleeps,
        state.disabled_by_wake_loop,
    );
    if let Some(joules) = saved_joules {
        let _infallible = writeln!(text, "SAVED_JOULES={joules}");
    }
    text
}

/// The state of a text: one of [`render`], or the four lines of the shell scripts, where `SLEEP_ENABLED=false` was an operator's order.
///
/// # Errors
/// [`StateError`] for everything else, a cut-off text included.
pub fn parse(text: &str) -> Result<SavedState, StateError> {
    let mut lines = Lines::read(text)?;
    if !lines.values.contains_key("SCHEMA") {
        return lines.legacy();
    }
    let schema = lines.number("SCHEMA")?;
    if schema > SCHEMA {
        return Err(StateError::Newer { schema });
    }
    if !text.ends_with(&format!("\n{END}")) || lines.number::<u32>("END")? != 1 {
        return Err(StateError::Incomplete);
    }
    let mut state = SavedState {
        last_activity: lines.number("LAST_ACTIVITY")?,
        sleep_pending: lines.number("SLEEP_PENDING")?,
        sleep_enabled: lines.number("SLEEP_ENABLED")?,
        last_check: lines.number("LAST_CHECK")?,
        failures: lines.number("FAILURES")?,
        disabled_by_operator: lines.number("DISABLED_BY_OPERATOR")?,
        boot: match lines.values.contains_key("BOOT_ID") {
            true => Some(SavedBoot {
                id: lines.text("BOOT_ID")?,
                last_activity: lines.moment("LAST_ACTIVITY_BOOT")?,
            }),
            false => None,
        },
        hold: match lines.values.contains_key("HOLD_UNTIL_BOOT") {
            true => Some(SavedHold {
                until: lines.moment("HOLD_UNTIL_BOOT")?,
                seconds: lines.number("HOLD_SECONDS")?,
                by: lines.text("HOLD_BY")?,
                reason: lines.text("HOLD_REASON")?,
            }),
            false => None,
        },
        ..SavedState::default()
    };
    if schema > BEFORE_SLEEPS {
        state.account = lines.account()?;
        state.short_sleeps = lines.number("SHORT_SLEEPS")?;
        state.disabled_by_wake_loop = lines.number("DISABLED_BY_WAKE_LOOP")?;
    }
    lines.all_used()?;
    Ok(state)
}

/// The lines of a file by key, with their numbers; taken out as they are understood.
struct Lines<'a> {
    values: BTreeMap<&'a str, (usize, &'a str)>,
    terminated: bool,
}

impl<'a> Lines<'a> {
    fn read(text: &'a str) -> Result<Self, StateError> {
        let mut values = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let not_understood = StateError::Line { line: index + 1 };
            let Some((key, value)) = line.split_once('=') else {
                return Err(not_understood);
            };
            if values.insert(key, (index + 1, value)).is_some() {
                return Err(not_understood);
            }
        }
        Ok(Self {
            values,
            terminated: text.ends_with('\n'),
        })
    }

    /// All four keys and no other, each line complete.
    fn legacy(mut self) -> Result<SavedState, StateError> {
        if !self.terminated || LEGACY_KEYS.iter().any(|key| !self.values.contains_key(key)) {
            return Err(StateError::Incomplete);
        }
        let sleep_enabled = self.number("SLEEP_ENABLED")?;
        let state = SavedState {
            last_activity: self.number("LAST_ACTIVITY")?,
            sleep_pending: self.number("SLEEP_PENDING")?,
            sleep_enabled,
            last_check: self.number("LAST_CHECK")?,
            disabled_by_operator: !sleep_enabled,
            ..SavedState::default()
        };
        self.all_used()?;
        Ok(state)
    }

    fn account(&mut self) -> Result<Account, StateError> {
        Ok(Account {
            sleeps: self.number("SLEEPS")?,
            wakes: self.number("WAKES")?,
            external: self.number("EXTERNAL_SUSPENDS")?,
            failed: self.number("FAILED_SLEEPS")?,
            refused: self.number("REFUSED_SLEEPS")?,
            aborted: self.number("ABORTED_SLEEPS")?,
            asleep: self.moment("ASLEEP_SECONDS")?.0,
            saved_joules: match self.values.contains_key("SAVED_JOULES") {
                true => Some(self.joules("SAVED_JOULES")?),
                false => None,
            },
        })
    }

    fn joules(&mut self, key: &'static str) -> Result<f64, StateError> {
        let joules: f64 = self.number(key)?;
        let is_amount = joules.is_finite() && joules >= 0.0;
        is_amount.then_some(joules).ok_or(StateError::Value { key })
    }

    /// A number or a truth value, quoted or not.
    fn number<T: FromStr>(&mut self, key: &'static str) -> Result<T, StateError> {
        let (_, value) = self.values.remove(key).ok_or(StateError::Value { key })?;
        let bare = ['"', '\'']
            .into_iter()
            .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
            .unwrap_or(value);
        bare.parse().map_err(|_| StateError::Value { key })
    }

    fn text(&mut self, key: &'static str) -> Result<String, StateError> {
        let (_, value) = self.values.remove(key).ok_or(StateError::Value { key })?;
        unquote(value).ok_or(StateError::Value { key })
    }

    fn moment(&mut self, key: &'static str) -> Result<BootTime, StateError> {
        let (_, value) = self.values.remove(key).ok_or(StateError::Value { key })?;
        moment(value).ok_or(StateError::Value { key })
    }

    fn all_used(self) -> Result<(), StateError> {
        match self.values.values().next() {
            Some((line, _)) => Err(StateError::Line { line: *line }),
            None => Ok(()),
        }
    }
}

/// Seconds since boot with three decimals.
fn seconds(at: BootTime) -> String {
    decimal(at.0)
}

/// Seconds with three decimals.
fn decimal(length: Duration) -> String {
    format!("{}.{:03}", length.as_secs(), length.subsec_millis())
}

fn moment(text: &str) -> Option<BootTime> {
    let (seconds, millis) = text.split_once('.')?;
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if millis.len() != 3 || !digits(seconds) || !digits(millis) {
        return None;
    }
    let seconds = Duration::from_secs(seconds.parse().ok()?);
    Some(BootTime(seconds + Duration::from_millis(millis.parse().ok()?)))
}

/// In single quotes, with every byte of a character that is not plain as `%XX`: safe to source, and even to expand again unquoted.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('\'');
    for c in text.chars() {
        if plain(c) {
            quoted.push(c);
            continue;
        }
        for byte in c.encode_utf8(&mut [0; 4]).bytes() {
            let _infallible = write!(quoted, "%{byte:02X}");
        }
    }
    quoted.push('\'');
    quoted
}

/// Nothing a shell gives a meaning to.
fn plain(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, ' ' | '.' | ',' | ':' | '/' | '_' | '-' | '+' | '@' | '(' | ')')
}

/// The inverse of [`quote`]; `None` for what it never writes.
fn unquote(quoted: &str) -> Option<String> {
    let mut rest = quoted.strip_prefix('\'')?.strip_suffix('\'')?;
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some(c) = rest.chars().next() {
        if plain(c) {
            bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            rest = &rest[c.len_utf8()..];
        } else {
            let digits = rest.strip_prefix('%')?.get(..2)?;
            if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[3..];
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use proptest::prelude::*;

    use super::{SavedBoot, SavedHold, SavedState, StateError, parse, render};
    use crate::{clock::BootTime, energy::Account};

    fn moments() -> impl Strategy<Value = BootTime> {
        any::<u64>().prop_map(|millis| BootTime(Duration::from_millis(millis)))
    }

    /// Strings of any characters, and of those a shell minds.
    fn texts() -> impl Strategy<Value = String> {
        prop_oneof![any::<String>(), "['\"`$(){};&|<>\\\\!*?~#%=\r\n\t \u{0} A-F0-9é]{0,24}"]
    }

    fn accounts() -> impl Strategy<Value = Account> {
        (any::<[u64; 6]>(), any::<u64>(), prop::option::of(0.0..f64::MAX)).prop_map(
            |([sleeps, wakes, external, failed, refused, aborted], millis, saved_joules)| Account {
                sleeps,
                wakes,
                external,
                failed,
                refused,
                aborted,
                asleep: Duration::from_millis(millis),
                saved_joules,
            },
        )
    }

    fn states() -> impl Strategy<Value = SavedState> {
        let boot = (texts(), moments()).prop_map(|(id, last_activity)| SavedBoot { id, last_activity });
        let hold = (moments(), any::<u64>(), texts(), texts()).prop_map(|(until, seconds, by, reason)| SavedHold {
            until,
            seconds,
            by,
            reason,
        });
        (
            any::<[u64; 2]>(),
            any::<[bool; 4]>(),
            prop::option::of(boot),
            prop::option::of(hold),
            any::<[u32; 2]>(),
            accounts(),
        )
            .prop_map(
                |(
                    [last_activity, last_check],
                    [
                        sleep_pending,
                        sleep_enabled,
                        disabled_by_operator,
                        disabled_by_wake_loop,
                    ],
                    boot,
                    hold,
                    [failures, short_sleeps],
                    account,
                )| {
                    SavedState {
                        last_activity,
                        sleep_pending,
                        sleep_enabled,
                        last_check,
                        boot,
                        hold,
                        failures,
                        disabled_by_operator,
                        account,
                        short_sleeps,
                        disabled_by_wake_loop,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_rendered_is_parsed(state in states()) {
            prop_assert_eq!(parse(&render(&state)), Ok(state));
        }

        #[test]
        fn a_cut_off_text_is_never_a_state(state in states()) {
            let whole = render(&state);
            for (length, _) in whole.char_indices() {
                prop_assert!(parse(&whole[..length]).is_err(), "{:?}", &whole[..length]);
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>(), cut in "(SCHEMA=[0-9]{1,12}\n)?([A-Z_]{1,12}=['%A-F0-9.]{0,8}\n){0,6}(END=1\n)?") {
            let _ = parse(&text);
            let _ = parse(&cut);
        }
    }

    #[test]
    fn the_shell_scripts_files_load() {
        let text = "LAST_ACTIVITY=1700000000\nSLEEP_PENDING=false\nSLEEP_ENABLED=true\nLAST_CHECK=1700000300\n";
        let state = SavedState {
            last_activity: 1_700_000_000,
            sleep_enabled: true,
            last_check: 1_700_000_300,
            ..SavedState::default()
        };
        assert_eq!(parse(text), Ok(state.clone()));
        assert_eq!(parse(&text.replace("=true", "=\"true\"")), Ok(state.clone()));
        let disabled = SavedState {
            sleep_enabled: false,
            disabled_by_operator: true,
            ..state
        };
        assert_eq!(parse(&text.replace("ENABLED=true", "ENABLED=false")), Ok(disabled));
        for (length, _) in text.char_indices() {
            assert!(parse(&text[..length]).is_err(), "{:?}", &text[..length]);
        }
    }

    #[test]
    fn a_file_from_before_the_account_loads_with_an_empty_one() {
        let text = "SCHEMA=1\nLAST_ACTIVITY=1700000000\nSLEEP_PENDING=false\nSLEEP_ENABLED=true\nLAST_CHECK=1700000300\n\
                    FAILURES=2\nDISABLED_BY_OPERATOR=true\nEND=1\n";
        let state = SavedState {
            last_activity: 1_700_000_000,
            sleep_enabled: true,
            last_check: 1_700_000_300,
            failures: 2,
            disabled_by_operator: true,
            ..SavedState::default()
        };
        assert_eq!(parse(text), Ok(state));
        let surprise = text.replace("END=1", "SLEEPS=1\nEND=1");
        assert_eq!(parse(&surprise), Err(StateError::Line { line: 8 }));
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        let whole = render(&SavedState::default());
        assert!(parse(&whole).is_ok());
        for (wrong, why) in [
            (whole.replace("SCHEMA=2", "SCHEMA=3"), StateError::Newer { schema: 3 }),
            (whole.replace("SCHEMA=2", "SCHEMA=1"), StateError::Line { line: 13 }),
            (whole.replace("\nSLEEPS=0", ""), StateError::Value { key: "SLEEPS" }),
            (
                whole.replace("END=1", "SAVED_JOULES=inf\nEND=1"),
                StateError::Value { key: "SAVED_JOULES" },
            ),
            (
                whole.replace("END=1", "SAVED_JOULES=-1\nEND=1"),
                StateError::Value { key: "SAVED_JOULES" },
            ),
            (whole.replace("SCHEMA=2\n", ""), StateError::Line { line: 12 }),
            (whole.replace("END=1\n", ""), StateError::Incomplete),
            (whole.replace("END=1\n", "END=1"), StateError::Incomplete),
            (
                whole.replace("FAILURES=0", "FAILURES=-1"),
                StateError::Value { key: "FAILURES" },
            ),
            (whole.replace("FAILURES=0\n", ""), StateError::Value { key: "FAILURES" }),
            (
                whole.replace("FAILURES=0", "FAILURES=0\nFAILURES=0"),
                StateError::Line { line: 7 },
            ),
            (
                whole.replace("FAILURES=0", "FAILURES=0\nSURPRISE=0"),
                StateError::Line { line: 7 },
            ),
            (
                whole.replace("FAILURES=0", "FAILURES=0\nHOLD_BY='x'"),
                StateError::Line { line: 7 },
            ),
        ] {
            assert_eq!(parse(&wrong), Err(why), "{wrong}");
        }
    }

    #[test]
    fn a_shell_sources_it_without_running_anything() {
        let folder = tempfile::tempdir().unwrap();
        let trap = folder.path().join("trap");
        let reason = format!("'; touch {0}; $(touch {0}) `touch {0}`\ntouch {0}\n", trap.display());
        let state = SavedState {
            sleep_enabled: true,
            hold: Some(SavedHold {
                until: BootTime::default(),
                seconds: 7,
                by: "O'Neil (uid 1000)".into(),
                reason,
            }),
            ..SavedState::default()
        };
        let file = folder.path().join("state");
        std::fs::write(&file, render(&state)).unwrap();
        let shell = Command::new("sh")
            .args([
                "-euc",
                ". \"$0\"; eval \": $HOLD_SECONDS\"; echo \"$SLEEP_ENABLED $HOLD_SECONDS $HOLD_BY\"",
            ])
            .arg(&file)
            .output()
            .unwrap();
        assert!(shell.status.success(), "{shell:?}");
        assert_eq!(String::from_utf8_lossy(&shell.stdout), "true 7 O%27Neil (uid 1000)\n");
        assert!(shell.stderr.is_empty(), "{shell:?}");
        assert!(!trap.exists(), "the reason was run");
    }
}
