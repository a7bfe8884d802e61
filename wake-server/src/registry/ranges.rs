//! Ranges in the names of an Ansible inventory's hosts. Never makes more names than it is allowed.

use crate::complaint::quote;

/// The hosts that `pattern` means: `worker-[01:03].example`, `db-[a:f]`, `n[1:9:2]`, a port after a colon left out.
///
/// # Errors
/// What is wrong with it, or that it means more than `most`.
pub(super) fn hosts_of(pattern: &str, most: usize) -> Result<Vec<String>, String> {
    let pattern = without_port(pattern);
    let Some((before, rest)) = pattern.split_once('[') else {
        return Ok(vec![pattern.to_owned()]);
    };
    let Some((range, after)) = rest.split_once(']') else {
        return Err(format!("{} has a `[` without its `]`", quote(pattern)));
    };
    let middle =
        items_of(range, most).ok_or_else(|| format!("{} is no range: write it as [01:20] or [a:f]", quote(range)))?;
    let after = hosts_of(after, most)?;
    if middle.len() * after.len() > most {
        return Err(format!("{} means more than {most} hosts", quote(pattern)));
    }
    let each = |item: &String| {
        after
            .iter()
            .map(|after| format!("{before}{item}{after}"))
            .collect::<Vec<_>>()
    };
    Ok(middle.iter().flat_map(each).collect())
}

fn without_port(pattern: &str) -> &str {
    match pattern.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty() && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            // A colon within brackets is that of a range, and several are those of an IPv6 address.
            if host.matches('[').count() == host.matches(']').count() && !host.replace(['[', ']'], "").ends_with(':') {
                host
            } else {
                pattern
            }
        }
        Some(_) | None => pattern,
    }
}

/// `01:20`, `a:f`, each with a step after another colon.
fn items_of(range: &str, most: usize) -> Option<Vec<String>> {
    let parts: Vec<&str> = range.split(':').collect();
    let (first, last, step) = match parts.as_slice() {
        [first, last] => (*first, *last, 1),
        [first, last, step] => (*first, *last, step.parse::<usize>().ok().filter(|&step| step > 0)?),
        _ => return None,
    };
    if let ([first], [last]) = (first.as_bytes(), last.as_bytes())
        && (first.is_ascii_lowercase() && last.is_ascii_lowercase()
            || first.is_ascii_uppercase() && last.is_ascii_uppercase())
    {
        let items: Vec<String> = (*first..=*last)
            .step_by(step)
            .map(|byte| char::from(byte).to_string())
            .collect();
        return (!items.is_empty()).then_some(items);
    }
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(first) || !is_number(last) || (first.starts_with('0') && first.len() > 1 && first.len() != last.len())
    {
        return None;
    }
    let width = if first.starts_with('0') { first.len() } else { 0 };
    let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
    let items: Vec<String> = (first..=last)
        .step_by(step)
        .take(most + 1)
        .map(|number| format!("{number:0width$}"))
        .collect();
    (!items.is_empty()).then_some(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_ansible_takes_them_for() {
        for (pattern, hosts) in [
            ("a", "a"),
            ("a:22", "a"),
            ("w[1:3]:22", "w1 w2 w3"),
            ("w[08:10].x", "w08.x w09.x w10.x"),
            ("w[0:10:5]", "w0 w5 w10"),
            ("w[9:10]", "w9 w10"),
            ("[a:c]", "a b c"),
            ("[Y:Z]-[1:2]", "Y-1 Y-2 Z-1 Z-2"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(hosts_of(pattern, 100).unwrap().join(" "), hosts, "{pattern}");
        }
    }

    #[test]
    fn f6_what_is_no_range_or_too_large_is_refused() {
        for pattern in [
            "w[3:1]",
            "w[1]",
            "w[",
            "w[1:2",
            "w[a:1]",
            "w[a:Z]",
            "w[A:c]",
            "w[01:100]",
            "w[1:2:0]",
            "w[-1:2]",
            "w[1:2:3:4]",
            "w[:]",
            "w[é:é]",
        ] {
            assert!(hosts_of(pattern, 1000).is_err(), "{pattern}");
        }
        for pattern in ["w[1:101]", "w[1:4294967295]", "w[1:50][1:3]", "w[1:10][1:10][1:10]"] {
            assert!(
                hosts_of(pattern, 100).unwrap_err().contains("more than 100 hosts"),
                "{pattern}"
            );
        }
    }
}
