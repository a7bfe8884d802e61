//! Counts test results out of what libtest and libtest-mimic print.
//!
//! Never takes silence for success: a suite that ends without a result line, or with a bad exit code and no failed test, counts as one
//! failure.

use std::{fmt, ops::AddAssign};

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Ignored, or not run at all.
    pub(crate) skipped: u64,
}

/// What a suite printed, as far as it was understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transcript {
    /// Sum of the result lines.
    pub(crate) tally: Tally,
    /// Result lines seen.
    results: usize,
    /// Names of failed tests.
    pub(crate) failures: Vec<String>,
    /// Whether the lines that come are names of failed tests.
    in_list: bool,
}

impl Transcript {
    /// Takes in one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(tally) = result_line(line) {
            self.tally += tally;
            self.results += 1;
        }
        // The list at the end: what a test prints may stand between its name and its outcome.
        let text = line.trim_end();
        if text == "failures:" {
            self.in_list = true;
        } else if let Some(name) = text.strip_prefix("    ").filter(|_| self.in_list) {
            self.failures.push(name.to_string());
        } else if !text.is_empty() {
            self.in_list = false;
        }
    }

    /// Closes the books: `exit` is the exit code, `None` if a signal ended the suite.
    pub(crate) fn finish(mut self, exit: Option<i32>) -> Self {
        let explained = exit == Some(0) || self.tally.failed > 0;
        if self.results == 0 || !explained {
            let end = exit.map_or("a signal".to_string(), |code| format!("exit code {code}"));
            let seen = if self.results == 0 {
                "without a result line"
            } else {
                "although no test failed"
            };
            self.failures.push(format!("(the suite ended with {end} {seen})"));
            self.tally.failed += 1;
        }
        self
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

/// `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s`
fn result_line(line: &str) -> Option<Tally> {
    let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let count = |what: &str| {
        counts
            .split(';')
            .find_map(|part| part.trim().strip_suffix(what)?.trim_end().parse::<u64>().ok())
    };
    Some(Tally {
        passed: count("passed")?,
        failed: count("failed")?,
        skipped: count("ignored")?,
    })
}

/// Names of the tests out of `--list`: lines `name: test`.
pub(crate) fn listed(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.trim().strip_suffix(": test"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transcript(text: &str, exit: Option<i32>) -> Transcript {
        let mut transcript = Transcript::default();
        for line in text.lines() {
            transcript.line(line);
        }
        transcript.finish(exit)
    }

    #[test]
    fn results_add_up_over_several_result_lines() {
        let text = "running 2 tests\ntest a ... ok\ntest b ... FAILED\n\n\
            failures:\n\n---- b stdout ----\n    not a name\n\nfailures:\n    b\n\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 7 filtered out; finished in 1.00s\n";
        let sum = transcript(text, Some(101));
        assert_eq!(
            sum.tally,
            Tally {
                passed: 6,
                failed: 1,
                skipped: 2
            }
        );
        assert_eq!(sum.failures, ["b"]);
    }

    #[test]
    fn a_failed_test_that_printed_in_between_is_named() {
        let text = "test noisy   ... \nthread 'main' panicked\nFAILED\n\nfailures:\n    noisy\n\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.01s\n";
        assert_eq!(transcript(text, Some(101)).failures, ["noisy"]);
    }

    #[test]
    fn a_suite_that_dies_is_a_failure() {
        let died = transcript("running 3 tests\ntest a ... ok\n", None);
        assert_eq!(
            died.tally,
            Tally {
                passed: 0,
                failed: 1,
                skipped: 0
            }
        );
        let silent = transcript("", Some(0));
        assert_eq!(silent.tally.failed, 1, "no result line is no success");
    }

    #[test]
    fn a_bad_exit_code_without_a_failed_test_is_a_failure() {
        let text = "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(
            transcript(text, Some(1)).tally,
            Tally {
                passed: 5,
                failed: 1,
                skipped: 0
            }
        );
        assert_eq!(
            transcript(text, Some(0)).tally,
            Tally {
                passed: 5,
                failed: 0,
                skipped: 0
            }
        );
    }

    #[test]
    fn lines_that_only_look_like_results_are_none() {
        assert_eq!(result_line("test result: ok. many passed"), None);
        assert_eq!(result_line("the test result: ok. 1 passed; 0 failed; 0 ignored"), None);
    }

    #[test]
    fn the_list_of_tests() {
        assert_eq!(
            listed("a::b: test\nbench_c: benchmark\n\n2 tests, 1 benchmark\n"),
            ["a::b"]
        );
    }

    #[test]
    fn the_sum_line() {
        let tally = Tally {
            passed: 12,
            failed: 0,
            skipped: 3,
        };
        assert_eq!(tally.to_string(), "12 passed, 0 failed, 3 skipped");
    }
}
