//! The flags of programs that several ranks run together, and what this process is among them.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use candle_core::Device;
use serde_json::{Value, json};
use tinyonn::interrupt::Signal;
use tinyonn::ranks::address::meeting_place;
use tinyonn::ranks::launcher::of_environment;
use tinyonn::ranks::{Connected, Greeting, Launched, Launcher, Meeting, Token, end_now, meet};
use tinyonn::train::{Together, begin};
use tinyonn::{Error, Result, files};

use crate::main_error::ERROR;
use crate::{interrupt, local_ranks};

/// How the ranks of a run are started and meet.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RankFlags {
    /// Start a rank on each of so many GPUs of this host (or use torchrun, mpirun or srun)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    pub gpus: Option<u64>,
    /// Where the ranks meet: a port of rank 0's host [default: the host that the launcher names]
    #[arg(long, value_name = "HOST:PORT")]
    pub rendezvous: Option<String>,
    /// Seconds that ranks wait for each other at the start
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub join_limit: u64,
    /// Seconds that a sum or copy between GPUs may take: longer, and a rank hangs
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub collective_timeout: u64,
}

/// What this process is.
pub enum Started {
    /// A world of one.
    Alone,
    /// One of several ranks.
    Rank(Rank),
    /// It started ranks, which have ended.
    Ended(ExitCode),
}

/// One of several ranks, and what it knows the others by.
pub struct Rank {
    /// Which it is.
    pub launched: Launched,
    token: Token,
}

impl RankFlags {
    /// What this process is; with `--gpus` it starts that many ranks first, and waits for them.
    ///
    /// # Errors
    /// Variables of a launcher that contradict each other; `--gpus` under another launcher; no token.
    pub fn started(&self) -> Result<Started> {
        let launched = of_environment()?;
        if let Some(launched) = &launched
            && launched.launcher != Launcher::Parent
            && self.gpus.is_some()
        {
            let problem = format!(
                "{} has started this process already, as rank {} of {}",
                launched.launcher, launched.rank, launched.ranks
            );
            return Err(Error::setting("--gpus", problem, "leave it out, or start the program by itself"));
        }
        match (launched, self.gpus) {
            (Some(launched), _) => {
                let token = match launched.launcher {
                    Launcher::Parent => local_ranks::token_of_parent()?,
                    _ => Token::of_environment(&variable)?,
                };
                Ok(Started::Rank(Rank { launched, token }))
            }
            (None, Some(count @ 2..)) => local_ranks::run(count as usize).map(Started::Ended),
            (None, _) => Ok(Started::Alone),
        }
    }

    /// Meets the other ranks, which must have been given the same program, settings and files; all must see the folder `shared`.
    ///
    /// # Errors
    /// As of [`meet`].
    pub fn meet(&self, rank: &Rank, given: &Value, shared: &Path) -> Result<Connected> {
        let place = self.place(rank)?;
        meet(&self.meeting(rank, &place, shared), &greeting(given)?)
    }

    /// The same on GPUs, which then compute together. This process ends when another rank is lost.
    ///
    /// # Errors
    /// As of [`begin`].
    pub fn begin(&self, rank: &Rank, given: &Value, shared: &Path, device: &Device) -> Result<Together> {
        let (place, asked) = (self.place(rank)?, interrupt());
        let code = move || asked.requested().map_or(ERROR, Signal::exit_code);
        let timeout = Duration::from_secs(self.collective_timeout);
        let lost = move |error| end_now(&error, code());
        begin(&self.meeting(rank, &place, shared), greeting(given)?, device, timeout, lost)
    }

    fn place(&self, rank: &Rank) -> Result<String> {
        meeting_place(self.rendezvous.as_deref(), &rank.launched, &variable)
    }

    fn meeting<'a>(&self, rank: &'a Rank, place: &'a str, shared: &'a Path) -> Meeting<'a> {
        Meeting {
            place,
            launched: &rank.launched,
            token: &rank.token,
            limit: Duration::from_secs(self.join_limit),
            shared: Some(shared),
            gift: &|| Ok(Vec::new()),
        }
    }
}

impl Rank {
    /// The GPU of those that this process sees which is its own.
    #[must_use]
    pub fn gpu(&self) -> usize {
        self.launched.gpu(&variable)
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn greeting(given: &Value) -> Result<Greeting> {
    Ok(Greeting { facts: json!({ "program": program()?, "given": given }), ..Greeting::default() })
}

/// SHA-256 of this program's file.
fn program() -> Result<String> {
    let path = std::env::current_exe().map_err(|e| Error::io("this program", e))?;
    let mut digest = files::Digest::new();
    digest.bytes(&std::fs::read(&path).map_err(|e| Error::io(&path, e))?);
    Ok(digest.hex())
}
