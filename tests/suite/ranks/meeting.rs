//! Ranks that meet, in processes of their own: who differs, who is missing, who is a stranger, who is killed.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tinyonn::ranks::launcher::of_environment;
use tinyonn::ranks::{Greeting, Meeting, Token, meet};

/// What a child is told, as JSON.
const TOLD: &str = "TINYONN_TEST_RANK";

/// A rank of the tests below; without what it is told it does nothing.
#[test]
fn a_rank() {
    let Ok(told) = std::env::var(TOLD) else { return };
    let told: Value = serde_json::from_str(&told).unwrap();
    let launched = of_environment().unwrap().unwrap();
    let token = Token::of_environment(&|name| std::env::var(name).ok()).unwrap();
    let own = told["card"].as_str().map(str::to_owned);
    let greeting = Greeting { facts: told["facts"].clone(), notes: Value::Null, own };
    let meeting = Meeting {
        place: told["place"].as_str().unwrap(),
        launched: &launched,
        token: &token,
        limit: Duration::from_millis(told["limit"].as_u64().unwrap()),
        shared: told["shared"].as_str().map(Path::new),
        gift: &|| Ok(b"a gift".to_vec()),
    };
    println!("\ncomes");
    let connected = meet(&meeting, &greeting).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(2);
    });
    assert_eq!(connected.gift(), b"a gift");
    println!("met");
    if told["watches"] != true {
        connected.leave();
        std::process::exit(0);
    }
    let watched = connected.watch(|error| {
        eprintln!("error: {error}");
        std::process::exit(2);
    });
    // It works until it is told that all is done, or that it failed.
    let mut done = String::new();
    std::io::stdin().read_line(&mut done).unwrap();
    let watched = watched.unwrap();
    if done.trim() == "fails" {
        watched.fail("has no room on its disk");
        std::process::exit(3);
    }
    drop(watched);
    std::process::exit(0);
}

/// A job of several ranks.
struct Job {
    ranks: usize,
    place: String,
    token: Token,
    restart: u64,
    told: Value,
}

struct Rank {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Job {
    fn new(ranks: usize) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let told = json!({ "facts": { "settings": { "smk": { "steps": 3 } } }, "limit": 20_000 });
        Self { ranks, place: free.to_string(), token: Token::random(), restart: 0, told }
    }

    fn start(&self, rank: usize) -> Rank {
        self.start_with(rank, |_| ())
    }

    fn start_with(&self, rank: usize, change: impl FnOnce(&mut Value)) -> Rank {
        let mut told = self.told.clone();
        told["place"] = self.place.as_str().into();
        change(&mut told);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "ranks::meeting::a_rank", "--nocapture"]).env(TOLD, told.to_string());
        let token = told["token"].as_str().map_or_else(|| self.token.hex(), str::to_owned);
        command.env("TINYONN_TOKEN", token).env("RANK", rank.to_string());
        command.env("WORLD_SIZE", told["ranks"].as_u64().unwrap_or(self.ranks as u64).to_string());
        command.env("LOCAL_RANK", rank.to_string()).env("LOCAL_WORLD_SIZE", self.ranks.to_string());
        let restart = told["restart"].as_u64().unwrap_or(self.restart);
        command.env("TORCHELASTIC_RESTART_COUNT", restart.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut rank = Rank { child, out };
        rank.until("comes");
        rank
    }

    fn all(&self) -> Vec<Rank> {
        (0..self.ranks).map(|rank| self.start(rank)).collect()
    }
}

impl Rank {
    fn until(&mut self, word: &str) {
        let mut line = String::new();
        while line.trim() != word {
            line.clear();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "it ended before it said {word}: {}", self.said());
        }
    }

    fn said(&mut self) -> String {
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// Its exit code, and its last line.
    fn ended(mut self) -> (Option<i32>, String) {
        let said = self.said();
        let last = said.lines().rfind(|line| line.starts_with("error: ")).unwrap_or_default().to_owned();
        (self.child.wait().unwrap().code(), last)
    }

    fn ended_well(self) {
        assert_eq!(self.ended(), (Some(0), String::new()));
    }

    fn ended_with(self, parts: &[&str]) {
        let (code, last) = self.ended();
        assert!(code == Some(2) && parts.iter().all(|part| last.contains(part)), "{code:?}: {last}");
    }
}

#[test]
fn ranks_meet_and_leave() {
    let job = Job::new(3);
    job.all().into_iter().for_each(Rank::ended_well);
}

/// Rank 0 need not be the first.
#[test]
fn ranks_wait_for_rank_0() {
    let job = Job::new(2);
    let other = job.start(1);
    std::thread::sleep(Duration::from_millis(300));
    [job.start(0), other].into_iter().for_each(Rank::ended_well);
}

#[test]
fn what_differs_is_refused_by_rank_and_field() {
    let job = Job::new(3);
    let ranks =
        [job.start(0), job.start(1), job.start_with(2, |told| told["facts"]["settings"]["smk"]["steps"] = 4.into())];
    for rank in ranks {
        rank.ended_with(&["rank 2: ", "`settings.smk.steps` is 4, and 3 on rank 0"]);
    }
}

#[test]
fn two_ranks_on_one_card_are_refused() {
    let job = Job::new(3);
    let on = |rank: usize, card: &'static str| job.start_with(rank, move |told| told["card"] = card.into());
    for rank in [on(0, "host/0"), on(1, "host/1"), on(2, "host/1")] {
        rank.ended_with(&["rank 2: ", "the card of rank 1"]);
    }
}

#[test]
fn who_does_not_come_is_named() {
    let job = Job::new(4);
    let short = |told: &mut Value| told["limit"] = 700.into();
    let ranks = [job.start_with(0, short), job.start(2)];
    for rank in ranks {
        rank.ended_with(&["rank 1: has not come", "nor has rank 3", "2 of 4 ranks are there"]);
    }
    let alone = Job::new(2);
    alone.start_with(1, short).ended_with(&["rank 0: was not found at 127.0.0.1:"]);
}

#[test]
fn another_number_of_ranks_is_refused() {
    let job = Job::new(2);
    let ranks = [job.start(0), job.start_with(1, |told| told["ranks"] = 3.into())];
    for rank in ranks {
        rank.ended_with(&["rank 1: is one of 3 ranks, and rank 0 one of 2"]);
    }
}

#[test]
fn a_folder_that_one_does_not_see_is_refused() {
    let (job, dirs) = (Job::new(2), [TempDir::new().unwrap(), TempDir::new().unwrap()]);
    let at = |rank: usize, dir: &TempDir| {
        let dir = dir.path().to_str().unwrap().to_owned();
        job.start_with(rank, move |told| told["shared"] = dir.into())
    };
    for rank in [at(0, &dirs[0]), at(1, &dirs[1])] {
        rank.ended_with(&["rank 1: does not see in ", "give all ranks one --out"]);
    }
    let together = Job::new(2);
    let at = |rank: usize| together.start_with(rank, |told| told["shared"] = dirs[0].path().to_str().unwrap().into());
    [at(0), at(1)].into_iter().for_each(Rank::ended_well);
    assert_eq!(std::fs::read_dir(dirs[0].path()).unwrap().count(), 0);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let job = Job::new(2);
    let _other = TcpListener::bind(&job.place).unwrap();
    job.start(0).ended_with(&["`--rendezvous`: ", "is taken by another program"]);
    // What listens there is none of ours.
    job.start_with(1, |told| told["limit"] = 500.into()).ended_with(&["rank 0: was not found"]);
}

/// An earlier start that has not ended yet.
#[test]
fn a_rank_of_an_earlier_start_takes_no_place() {
    let job = Job { restart: 1, ..Job::new(2) };
    let host = job.start(0);
    job.start_with(1, |told| told["restart"] = 0.into()).ended_with(&["rank 1: is of start 0, and rank 0 of 1"]);
    [host, job.start(1)].into_iter().for_each(Rank::ended_well);
}

#[test]
fn another_token_opens_nothing() {
    let job = Job::new(2);
    let host = job.start_with(0, |told| told["limit"] = 1500.into());
    let stranger = job.start_with(1, |told| {
        told["token"] = Token::random().hex().into();
        told["limit"] = 1000.into();
    });
    stranger.ended_with(&["rank 0: "]);
    host.ended_with(&["rank 1: has not come"]);
}

/// Who connects to the port and is no rank: it is dropped within its two seconds, and no rank waits for one behind the other.
#[rstest]
#[case::silent(&[])]
#[case::babbling(&[0x55; 1 << 14])]
#[case::half_right(&[1; 36])]
#[case::endless(&[0xff; 40])]
fn strangers_delay_nobody(#[case] said: &[u8]) {
    let job = Job::new(2);
    let host = job.start(0);
    let connect = || loop {
        if let Ok(stream) = TcpStream::connect(&job.place) {
            return stream;
        }
    };
    let mut strangers: Vec<TcpStream> = (0..20).map(|_| connect()).collect();
    for stranger in &mut strangers {
        // It may be closed in the middle of it.
        let _ = stranger.write_all(said);
    }
    let began = Instant::now();
    [job.start(1), host].into_iter().for_each(Rank::ended_well);
    // One behind the other they would take 40 seconds.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// A byte now and then does not keep a stranger connected.
#[test]
fn slow_strangers_are_dropped() {
    let job = Job::new(2);
    let mut host = job.start(0);
    let mut stranger = loop {
        if let Ok(stream) = TcpStream::connect(&job.place) {
            break stream;
        }
    };
    let began = Instant::now();
    while stranger.write_all(&[7]).is_ok() && began.elapsed() < Duration::from_secs(9) {
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    host.child.kill().unwrap();
    host.child.wait().unwrap();
}

#[test]
fn a_rank_that_is_killed_before_all_have_met_is_named() {
    let job = Job::new(3);
    let (host, mut killed) = (job.start(0), job.start(1));
    std::thread::sleep(Duration::from_millis(500));
    killed.child.kill().unwrap();
    let began = Instant::now();
    host.ended_with(&["rank 1: came, and was lost before all had met"]);
    assert!(began.elapsed() < Duration::from_secs(3));
    killed.child.wait().unwrap();
}

#[rstest]
#[case(0)]
#[case(1)]
#[case(2)]
fn a_rank_that_is_killed_is_named_to_all(#[case] which: usize) {
    let mut job = Job::new(3);
    job.told["watches"] = true.into();
    let mut ranks = job.all();
    ranks.iter_mut().for_each(|rank| rank.until("met"));
    let mut killed = ranks.remove(which);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    let began = Instant::now();
    for rank in ranks {
        rank.ended_with(&[&format!("rank {which}: was lost: its connection closed")]);
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn a_rank_that_says_nothing_for_ten_seconds_is_named() {
    let mut job = Job::new(3);
    job.told["watches"] = true.into();
    let mut ranks = job.all();
    ranks.iter_mut().for_each(|rank| rank.until("met"));
    let mut stopped = ranks.remove(1);
    stopped.signal("STOP");
    let began = Instant::now();
    for rank in ranks {
        rank.ended_with(&["rank 1: was lost: nothing was heard of it for 10 s"]);
    }
    assert!((Duration::from_secs(7)..Duration::from_secs(20)).contains(&began.elapsed()), "{:?}", began.elapsed());
    stopped.child.kill().unwrap();
    stopped.child.wait().unwrap();
}

#[test]
fn what_one_cannot_do_is_said_by_all() {
    let mut job = Job::new(3);
    job.told["watches"] = true.into();
    let mut ranks = job.all();
    ranks.iter_mut().for_each(|rank| rank.until("met"));
    let mut failing = ranks.remove(2);
    failing.tell("fails");
    for rank in ranks {
        rank.ended_with(&["rank 2: has no room on its disk"]);
    }
    assert_eq!(failing.ended().0, Some(3));
}

/// Who has done all it had to is not missed, whoever leaves first.
#[rstest]
#[case([0, 1, 2])]
#[case([2, 1, 0])]
fn who_leaves_is_not_missed(#[case] order: [usize; 3]) {
    let mut job = Job::new(3);
    job.told["watches"] = true.into();
    let mut ranks: Vec<Option<Rank>> = job.all().into_iter().map(Some).collect();
    ranks.iter_mut().flatten().for_each(|rank| rank.until("met"));
    for at in order {
        let mut rank = ranks[at].take().unwrap();
        rank.tell("done");
        rank.ended_well();
        std::thread::sleep(Duration::from_millis(100));
    }
}
