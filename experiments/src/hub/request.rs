//! One request to the hub: its redirects, whom the token is shown to, how long is waited.

use std::time::Duration;

use tinyonn::Error;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

use super::Hub;

/// How many redirects one request follows.
const REDIRECTS: usize = 10;
/// How long a connection may take, how long an answer to begin, and how long the next bytes of one.
const CONNECT: Duration = Duration::from_secs(10);
const RESPONSE: Duration = Duration::from_secs(30);
const STALL: Duration = Duration::from_mins(1);

/// Why something could not be had.
#[derive(Debug)]
pub(super) enum Failure {
    /// The hub answers that it will not.
    Status(u16),
    /// The connection failed or ended early: the next one may do better.
    Broken(String),
    /// What it answered cannot be used.
    Unfit(String),
    /// This machine's own files.
    Local(Error),
}

/// An answer, and the headers of the redirects that led to it, the first one first.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    /// Those of the hub's own answers, this one's among them if it is the hub's.
    pub(super) of_hub: Vec<HeaderMap>,
}

/// What asks.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
}

impl<'a> Client<'a> {
    pub(super) fn new(hub: &'a Hub) -> Self {
        // Redirects are followed here, since the token must not go to other hosts; bytes are compared, so nothing may be compressed.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("tinyonn/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(RESPONSE))
            .timeout_per_read(Some(STALL))
            .build();
        Self { hub, agent: config.into() }
    }

    /// The answer to `GET path`, of the bytes `range` if that is given, whatever its status.
    ///
    /// # Errors
    /// No connection; redirects without an end, without an aim, or from https to http.
    pub(super) fn get(&self, path: &str, range: Option<&str>) -> Result<Answer, Failure> {
        let mut at = parsed(&format!("{}{path}", self.hub.endpoint))?;
        let hub = origin(&at);
        let mut token = self.hub.token.as_ref();
        let mut of_hub = Vec::new();
        for _ in 0..=REDIRECTS {
            let mut request = self.agent.get(&at);
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(range) = range {
                request = request.header("range", range);
            }
            let response = request.call().map_err(|error| Failure::Broken(error.to_string()))?;
            if origin(&at) == hub {
                of_hub.push(response.headers().clone());
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, of_hub });
            }
            let aim = header(response.headers(), "location");
            let aim = aim.ok_or_else(|| Failure::Unfit(format!("{at} redirects to nowhere")))?;
            let next = parsed(&joined(&at, aim))?;
            if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(Failure::Unfit(format!("{at} redirects from https to {next}")));
            }
            // Whoever it comes back from may have chosen what is asked: the token stays away.
            token = token.filter(|_| origin(&next) == hub);
            at = next;
        }
        Err(Failure::Unfit(format!("more than {REDIRECTS} redirects, the last one to {at}")))
    }
}

/// A header's text.
pub(super) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn parsed(address: &str) -> Result<Uri, Failure> {
    let uri = address.parse::<Uri>().ok();
    let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
    uri.ok_or_else(|| Failure::Unfit(format!("{address} is no address of http or https")))
}

/// Scheme, host and port: who answers.
fn origin(uri: &Uri) -> (Option<String>, Option<String>, Option<u16>) {
    let port = uri.port_u16().or(match uri.scheme_str() {
        Some("https") => Some(443),
        _ => Some(80),
    });
    (uri.scheme_str().map(str::to_owned), uri.host().map(str::to_ascii_lowercase), port)
}

/// Where `aim` leads that was read at `at` (RFC 3986, 5.2, without dots: they are the server's to resolve).
fn joined(at: &Uri, aim: &str) -> String {
    let aim = aim.split_once('#').map_or(aim, |(aim, _)| aim);
    let scheme = at.scheme_str().unwrap_or("https");
    let authority = at.authority().map_or("", |authority| authority.as_str());
    if aim.split_once("://").is_some_and(|(scheme, _)| scheme.chars().all(|c| c.is_ascii_alphanumeric())) {
        return aim.to_owned();
    }
    if aim.starts_with("//") {
        return format!("{scheme}:{aim}");
    }
    if aim.starts_with('/') {
        return format!("{scheme}://{authority}{aim}");
    }
    let folder = at.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{scheme}://{authority}{folder}/{aim}")
}
