//! Whether a request comes from our own page (W14). Pure: looks at headers alone, refuses nothing itself.
//!
//! Programs send no `Origin` and are let through here; a token is asked of everybody all the same. A browser sends one with every POST,
//! and always the true one.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, header, uri::Authority};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The host a request is for: its one `Host` header as it is written; none: absent, repeated or not `name[:port]`. RFC 9112, 3.2, has
/// such a request answered with 400.
pub fn host(headers: &HeaderMap) -> Option<&str> {
    let host = one(headers, &header::HOST)?;
    authority(host).map(|_| host)
}

/// Whether a request that may change something comes from a page of this very server, the one it has as [`host`], or from no page at
/// all.
pub fn is_same_origin(headers: &HeaderMap) -> bool {
    let is_from_elsewhere = headers
        .get_all(SEC_FETCH_SITE)
        .iter()
        .any(|site| site != "same-origin" && site != "none");
    if is_from_elsewhere {
        return false;
    }
    if !headers.contains_key(header::ORIGIN) {
        return true;
    }
    let Some((scheme, origin)) = one(headers, &header::ORIGIN).and_then(|origin| origin.split_once("://")) else {
        return false; // `null`: a page that hides where it is from
    };
    let port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    match (authority(origin), host(headers).and_then(authority)) {
        (Some(origin), Some(host)) => {
            origin.host().eq_ignore_ascii_case(host.host())
                && origin.port_u16().unwrap_or(port) == host.port_u16().unwrap_or(port)
        }
        (None, _) | (_, None) => false,
    }
}

/// Whether a browser says of itself that it asks, and not a program: it does with whatever may change something.
pub fn is_of_browser(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN) || headers.contains_key(SEC_FETCH_SITE)
}

/// Whether a text can be the name of a host in an address: without a port, and no address itself.
pub fn is_host_name(text: &str) -> bool {
    let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=253).contains(&text.len()) && text.bytes().all(is_of_names) && text.parse::<IpAddr>().is_err()
}

/// Whether nobody elsewhere can have a name like this point to us (DNS rebinding): an address, a name without a dot, or one of `names`.
pub fn is_ours(host: &str, names: &[String]) -> bool {
    let Some(authority) = authority(host) else {
        return false;
    };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.parse::<IpAddr>().is_ok() || !name.contains('.') || names.iter().any(|ours| ours.eq_ignore_ascii_case(name))
}

/// The only value of a header, as text.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.to_str().ok())?
}

/// `name[:port]`, without a user.
fn authority(text: &str) -> Option<Authority> {
    let authority: Authority = text.parse().ok()?;
    let rest = text.strip_prefix(authority.host())?;
    let is_port = match rest.strip_prefix(':') {
        Some(_) => authority.port_u16().is_some(),
        None => rest.is_empty(),
    };
    (!authority.host().is_empty() && is_port).then_some(authority)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn w14_only_our_own_page_may_post() {
        for (host, origin, is_ours) in [
            ("master:9876", "http://master:9876", true),
            ("master:9876", "https://MASTER:9876", true),
            ("master", "http://master", true),
            ("master:80", "http://master", true),
            ("master", "https://master:443", true),
            ("[2001:db8::1]:9876", "http://[2001:db8::1]:9876", true),
            ("master:9876", "http://master", false),
            ("master:9876", "http://master:9877", false),
            ("master:9876", "http://elsewhere:9876", false),
            ("master:9876", "http://master:9876.example.org", false),
            ("master:9876", "http://user@master:9876", false),
            ("master:9876", "ftp://master:9876", false),
            ("master:9876", "null", false),
            ("master:9876", "", false),
            ("master:9876", "http://", false),
        ] {
            let headers = headers(&[("host", host), ("origin", origin)]);
            assert_eq!(is_same_origin(&headers), is_ours, "{host} {origin}");
        }
    }

    #[test]
    fn w14_a_browser_that_says_where_it_is_from_is_believed() {
        for (site, is_ours) in [
            ("same-origin", true),
            ("none", true),
            ("same-site", false),
            ("cross-site", false),
        ] {
            let headers = headers(&[("host", "master"), ("sec-fetch-site", site)]);
            assert_eq!(is_same_origin(&headers), is_ours, "{site}");
        }
    }

    #[test]
    fn a_program_has_no_origin() {
        assert!(is_same_origin(&HeaderMap::new()));
        for origins in [&["http://master", "http://master"][..], &["http://m\u{e4}ster"]] {
            let mut headers = headers(&[("host", "master")]);
            for origin in origins {
                headers.append("origin", HeaderValue::from_bytes(origin.as_bytes()).unwrap());
            }
            assert!(!is_same_origin(&headers), "{origins:?}");
        }
        assert!(!is_same_origin(&headers(&[("origin", "http://master")])), "no host");
    }

    #[test]
    fn a_request_has_one_host() {
        for text in ["master", "master:9876", "192.0.2.1:9876", "[2001:db8::1]"] {
            assert_eq!(host(&headers(&[("host", text)])), Some(text));
        }
        for text in [
            "",
            "user@master",
            "master:port",
            "master:99999",
            "master:",
            "a/b",
            "a b",
        ] {
            assert_eq!(host(&headers(&[("host", text)])), None, "{text:?}");
        }
        assert_eq!(host(&headers(&[("host", "a"), ("host", "a")])), None);
        assert_eq!(host(&HeaderMap::new()), None);
    }

    #[test]
    fn a_browser_tells_itself_from_a_program() {
        assert!(!is_of_browser(&headers(&[("host", "master")])));
        assert!(is_of_browser(&headers(&[("origin", "null")])));
        assert!(is_of_browser(&headers(&[("sec-fetch-site", "none")])));
    }

    #[test]
    fn a_host_name_has_no_port() {
        for name in ["master", "power.example.org", "a_b.example"] {
            assert!(is_host_name(name), "{name}");
        }
        for text in [
            "",
            "master:9876",
            "http://master",
            "192.0.2.1",
            "::1",
            "a b",
            "*.example.org",
            &"a".repeat(254),
        ] {
            assert!(!is_host_name(text), "{text}");
        }
    }

    #[test]
    fn w14_a_name_of_the_internet_must_be_known() {
        let names = ["power.example.org".to_owned()];
        for (host, is_known) in [
            ("master:9876", true),
            ("192.0.2.1:9876", true),
            ("[2001:db8::1]:9876", true),
            ("Power.example.org", true),
            ("rebound.example.net:9876", false),
            ("192.0.2.1.example.net", false),
            ("user@master", false),
        ] {
            assert_eq!(is_ours(host, &names), is_known, "{host}");
        }
    }
}
