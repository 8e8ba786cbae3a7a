//! A hub of one model: `/api/models/ID/revision/REV` and `/ID/resolve/REV/FILE`, ranges, entity tags, cut connections; and what a broken or hostile one does.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use serde_json::json;
use sha2::{Digest as _, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What is wrong with how it answers for files.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Its entity tag.
    Tag(&'static str),
    /// The commit that it says a file is of.
    Commit(&'static str),
    /// It redirects to the same path of another address, naming tag, size and commit as the hub does.
    Elsewhere(String),
    /// It redirects to itself for ever.
    Loop,
    /// It redirects without saying where.
    Nowhere,
    /// It answers a range with the whole file.
    Whole,
    /// It says no length of what it sends.
    Unmeasured,
    /// It has nothing behind a first byte.
    Unsatisfied,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// How it answers everything, if not with what it has.
    status: Option<u16>,
    fault: Option<Fault>,
    /// A file whose first answer ends behind so many bytes.
    cut: Option<(String, usize)>,
    asked: Vec<String>,
    ranges: Vec<String>,
    tokens: Vec<String>,
    /// Bytes of files that were sent.
    bodies: usize,
    closing: bool,
}

pub(crate) struct Server {
    port: u16,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.lock().unwrap().closing {
                    return;
                }
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(&stream.unwrap(), &shared));
            }
        });
        Self { port, state, thread: Some(thread) }
    }

    /// It has the files of a folder.
    pub(crate) fn of_folder(dir: &Path) -> Self {
        let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let files =
            files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap()));
        Self::start(State { files: files.collect(), ..State::default() })
    }

    /// It answers everything with `status`.
    pub(crate) fn refusing(status: u16) -> Self {
        Self::start(State { status: Some(status), ..State::default() })
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on it answers everything with `status`.
    pub(crate) fn refuse(&self, status: u16) {
        self.state().status = Some(status);
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.state().fault = Some(fault);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn add(&self, name: &str, content: &[u8]) {
        self.state().files.insert(name.into(), content.to_vec());
    }

    pub(crate) fn cut(&self, name: &str, behind: usize) {
        self.state().cut = Some((name.into(), behind));
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    pub(crate) fn ranges(&self) -> Vec<String> {
        self.state().ranges.clone()
    }

    pub(crate) fn tokens(&self) -> Vec<String> {
        self.state().tokens.clone()
    }

    pub(crate) fn bodies(&self) -> usize {
        self.state().bodies
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state().closing = true;
        // Whoever waits for the next connection gets one.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.thread.take().unwrap().join();
    }
}

/// One request, one connection.
fn serve(stream: &TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let path = request.split(' ').nth(1).unwrap().to_owned();
    let headers: Vec<(String, String)> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())))
        .collect();
    let header = |name: &str| headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    let answer = {
        let mut state = state.lock().unwrap();
        state.asked.push(path.clone());
        state.ranges.extend(header("range"));
        state.tokens.extend(header("authorization"));
        answer(&mut state, &path, header("range").as_deref())
    };
    let mut out = stream;
    let _ = out.write_all(&answer);
    let _ = stream.shutdown(Shutdown::Both);
}

fn answer(state: &mut State, path: &str, range: Option<&str>) -> Vec<u8> {
    if let Some(status) = state.status {
        return format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").into_bytes();
    }
    if path.starts_with("/api/models/") {
        let siblings: Vec<_> = state.files.keys().map(|name| json!({ "rfilename": name })).collect();
        let body = json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        return [head.as_bytes(), body.as_bytes()].concat();
    }
    let name = path.rsplit('/').next().unwrap().to_owned();
    let Some(content) = state.files.get(&name).cloned() else {
        return b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec();
    };
    let fault = state.fault.clone();
    let tag: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let (tag, commit) = match fault {
        Some(Fault::Tag(tag)) => (tag.to_owned(), COMMIT),
        Some(Fault::Commit(commit)) => (tag, commit),
        _ => (tag, COMMIT),
    };
    let named = format!("x-repo-commit: {commit}\r\nconnection: close\r\n");
    let aim = match &fault {
        Some(Fault::Elsewhere(address)) => Some(format!("location: {address}{path}\r\n")),
        Some(Fault::Loop) => Some(format!("location: {path}\r\n")),
        Some(Fault::Nowhere) => Some(String::new()),
        _ => None,
    };
    if let Some(aim) = aim {
        let linked = format!("x-linked-etag: \"{tag}\"\r\nx-linked-size: {}\r\n", content.len());
        return format!("HTTP/1.1 302 Found\r\netag: W/\"302\"\r\n{aim}{linked}content-length: 0\r\n{named}\r\n")
            .into_bytes();
    }
    let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let probe = range == Some(("0", "0"));
    let range = range.filter(|_| probe || !matches!(fault, Some(Fault::Whole)));
    let (first, last) = range.map_or((0, ""), |(first, last)| (first.parse().unwrap(), last));
    if first >= content.len() || first > 0 && matches!(fault, Some(Fault::Unsatisfied)) {
        let total = content.len();
        return format!(
            "HTTP/1.1 416 No\r\ncontent-range: bytes */{total}\r\netag: \"{tag}\"\r\ncontent-length: 0\r\n{named}\r\n"
        )
        .into_bytes();
    }
    let end = last.parse::<usize>().map_or(content.len(), |last| (last + 1).min(content.len()));
    let status = match range {
        Some(_) => {
            format!("206 Partial Content\r\ncontent-range: bytes {first}-{}/{}", end.max(1) - 1, content.len())
        }
        None => "200 OK".to_owned(),
    };
    let length = match fault {
        Some(Fault::Unmeasured) if !probe => String::new(),
        _ => format!("content-length: {}\r\n", end - first),
    };
    let head = format!("HTTP/1.1 {status}\r\n{length}etag: \"{tag}\"\r\n{named}\r\n");
    let mut body = content[first..end].to_vec();
    // What asks for one byte asks for the size.
    if !probe {
        if let Some((_, behind)) = state.cut.take_if(|(cut, _)| *cut == name) {
            body.truncate(behind);
        }
        state.bodies += body.len();
    }
    [head.as_bytes(), &body].concat()
}
