//! The flags of programs that several ranks run together, and what this process is among them.

use std::path::{Path, PathBuf};
use std::process;
use std::process::ExitCode;
use std::time::Duration;

use candle_core::Device;
use serde::Serialize;
use serde_json::{Value, json};
use tinyonn::files::StagedFolder;
use tinyonn::interrupt::Signal;
use tinyonn::phases::DeviceName;
use tinyonn::ranks::address::meeting_place;
use tinyonn::ranks::launcher::of_environment;
use tinyonn::ranks::{Collective, Connected, Greeting, Launched, Launcher, Meeting, Token, end_now, meet};
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

    /// Meets the other ranks, which must have been given the same program, settings and files; all must see the folder `shared`, if there is one.
    ///
    /// # Errors
    /// As of [`meet`].
    pub fn meet(&self, rank: &Rank, given: &Value, shared: Option<&Path>) -> Result<Connected> {
        let place = self.place(rank)?;
        meet(&self.meeting(rank, &place, shared), &greeting(given)?)
    }

    /// The same on GPUs, which then compute together. This process ends when another rank is lost.
    ///
    /// # Errors
    /// As of [`begin`].
    pub fn begin(&self, rank: &Rank, given: &Value, shared: Option<&Path>, device: &Device) -> Result<Together> {
        let (place, asked) = (self.place(rank)?, interrupt());
        let code = move || asked.requested().map_or(ERROR, Signal::exit_code);
        let timeout = Duration::from_secs(self.collective_timeout);
        let lost = move |error| end_now(&error, code());
        begin(&self.meeting(rank, &place, shared), greeting(given)?, device, timeout, lost)
    }

    /// What `make` makes among the ranks, which are together for as long as it takes; they leave nothing in a folder that all see.
    ///
    /// # Errors
    /// As of [`begin`](Self::begin); what `make` reports.
    pub fn share<T>(
        &self,
        rank: &Rank,
        given: &Value,
        device: &Device,
        make: impl FnOnce(&dyn Collective) -> Result<T>,
    ) -> Result<T> {
        let together = self.begin(rank, given, None, device)?;
        told(Some(&together), make(together.ranks.as_ref()))
    }

    fn place(&self, rank: &Rank) -> Result<String> {
        meeting_place(self.rendezvous.as_deref(), &rank.launched, &variable)
    }

    fn meeting<'a>(&self, rank: &'a Rank, place: &'a str, shared: Option<&'a Path>) -> Meeting<'a> {
        Meeting {
            place,
            launched: &rank.launched,
            token: &rank.token,
            limit: Duration::from_secs(self.join_limit),
            shared,
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

    /// Where this rank computes, of a run that was asked to compute on `asked`.
    ///
    /// # Errors
    /// A processor: ranks have no sums there.
    pub fn device(&self, asked: DeviceName) -> Result<DeviceName> {
        let Launched { rank, ranks, .. } = self.launched;
        let DeviceName::Cuda(_) = asked else {
            let problem = format!("is {asked}, and {ranks} ranks compute on GPUs");
            let remedy = "give --device cuda; without GPUs scans and passes are dealt as shards: --shard I/N of exp_scan and exp_phase1";
            return Err(Error::setting("--device", problem, remedy));
        };
        let own = DeviceName::Cuda(self.gpu());
        tracing::info!("rank {rank} of {ranks} on {own}");
        Ok(own)
    }

    /// A folder of this host for what a rank that is not the first needs while it works. It goes with what is returned.
    ///
    /// # Errors
    /// What the system reports.
    pub fn folder(&self) -> Result<StagedFolder> {
        let name = format!("tinyonn-rank-{}-of-{}-{}", self.launched.rank, self.launched.ranks, process::id());
        StagedFolder::new(std::env::temp_dir().join(name))
    }

    /// Refuses `--shard` where it is given: ranks are dealt a shard each.
    ///
    /// # Errors
    /// As above.
    pub fn refuse_shard(&self, is_given: bool) -> Result<()> {
        if !is_given {
            return Ok(());
        }
        let problem = format!("is given, and {} ranks are dealt a shard each", self.launched.ranks);
        let remedy = "leave it out; or start each shard as a process of its own, without a launcher, and --merge what they leave";
        Err(Error::setting("--shard", problem, remedy))
    }

    /// Where a rank keeps what is its own, of what a run would keep in `file`.
    #[must_use]
    pub fn file(&self, file: &Path) -> PathBuf {
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".rank-{}", self.launched.rank));
        name.into()
    }

    /// Whether it is the first, which alone prints and writes.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.launched.rank == 0
    }
}

/// What all ranks must have been given: settings, and what has to be `alike` besides, by name.
///
/// # Errors
/// Settings that cannot be written down.
pub fn given(settings: &impl Serialize, mut alike: Value) -> Result<Value> {
    alike["settings"] = serde_json::to_value(settings)
        .map_err(|e| Error::setting("settings", e.to_string(), "report this as a defect"))?;
    Ok(alike)
}

/// Has the other ranks hear of a failure of this one: but what all stop by is none of one.
///
/// # Errors
/// Those of `done`.
pub fn told<T>(together: Option<&Together>, done: Result<T>) -> Result<T> {
    match (&done, together) {
        (Err(Error::Interrupted { .. }) | Ok(_), _) | (Err(_), None) => {}
        (Err(error), Some(together)) => together.watched.fail(&error.to_string()),
    }
    done
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
