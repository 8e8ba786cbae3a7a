//! Which rank this process is, by the variables of what started it: the program's own `--gpus`, torchrun, Open MPI or Slurm, in this order.
//!
//! Of Slurm's only those of a step count: the script of `sbatch` is a process of its own, whatever the job has room for.

use std::fmt;

use super::node_list;
use crate::{Error, Result};

/// What started the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Launcher {
    /// A parent of the same program, on one host.
    Parent,
    /// `torchrun`.
    Torchrun,
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// `srun`.
    Slurm,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parent => "--gpus",
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "Open MPI",
            Self::Slurm => "Slurm",
        })
    }
}

/// A rank among several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// What started it.
    pub launcher: Launcher,
    /// Which it is, from 0.
    pub rank: usize,
    /// How many there are.
    pub ranks: usize,
    /// Which it is on its host.
    pub local_rank: usize,
    /// How many there are on its host.
    pub local_ranks: usize,
    /// The job, as its launcher names it.
    pub job: String,
    /// How often the launcher has started it anew.
    pub restart: u64,
    /// Hosts of the job, the first one first, where the launcher lists them.
    pub hosts: Vec<String>,
}

impl Launched {
    /// Which GPU of those that this process sees is its own: the only one, or else that of its number on its host.
    ///
    /// ```
    /// use tinyonn::ranks::launcher::launched;
    ///
    /// let second = |name: &str| match name {
    ///     "RANK" | "LOCAL_RANK" => Some("1".to_owned()),
    ///     "WORLD_SIZE" | "LOCAL_WORLD_SIZE" => Some("2".to_owned()),
    ///     _ => None,
    /// };
    /// let rank = launched(&second)?.expect("two ranks");
    /// assert_eq!(rank.gpu(&|_| None), 1);
    /// assert_eq!(rank.gpu(&|_| Some("3".into())), 0); // CUDA_VISIBLE_DEVICES=3
    /// # Ok::<(), tinyonn::Error>(())
    /// ```
    #[must_use]
    pub fn gpu(&self, variable: &dyn Fn(&str) -> Option<String>) -> usize {
        let seen =
            variable("CUDA_VISIBLE_DEVICES").map(|seen| seen.split(',').filter(|gpu| !gpu.trim().is_empty()).count());
        if seen == Some(1) { 0 } else { self.local_rank }
    }
}

/// The names of a launcher's variables.
struct Names {
    launcher: Launcher,
    rank: &'static str,
    ranks: &'static str,
    local_rank: &'static str,
    local_ranks: &'static str,
    /// Together they name the job.
    job: &'static [&'static str],
    restart: &'static str,
}

/// The variables of `--gpus`, which are ours.
pub const PARENT: [&str; 3] = ["TINYONN_RANK", "TINYONN_RANKS", "TINYONN_JOB"];

const SOURCES: [Names; 3] = [
    Names {
        launcher: Launcher::Parent,
        rank: PARENT[0],
        ranks: PARENT[1],
        local_rank: PARENT[0],
        local_ranks: PARENT[1],
        job: &[PARENT[2]],
        restart: "TINYONN_RESTARTS",
    },
    Names {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        ranks: "WORLD_SIZE",
        local_rank: "LOCAL_RANK",
        local_ranks: "LOCAL_WORLD_SIZE",
        // The id alone is `none` unless it was given.
        job: &["TORCHELASTIC_RUN_ID", "MASTER_PORT"],
        restart: "TORCHELASTIC_RESTART_COUNT",
    },
    Names {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        ranks: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_ranks: "OMPI_COMM_WORLD_LOCAL_SIZE",
        job: &["PMIX_NAMESPACE"],
        restart: "OMPI_MCA_orte_num_restarts",
    },
];

/// The rank that `variable` (the environment) says this process is; `None` of a world of one.
///
/// # Errors
/// A variable of the launcher that is missing beside another, is no number, or contradicts another of the same launcher.
///
/// ```
/// use tinyonn::ranks::launcher::{Launcher, launched};
///
/// let torchrun = |name: &str| {
///     let given = [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")];
///     given.iter().find(|(given, _)| *given == name).map(|(_, value)| value.to_string())
/// };
/// let rank = launched(&torchrun)?.expect("four ranks");
/// assert_eq!((rank.launcher, rank.rank, rank.ranks, rank.local_rank), (Launcher::Torchrun, 3, 4, 1));
/// assert_eq!(launched(&|_| None)?, None);
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn launched(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Launched>> {
    for names in &SOURCES {
        // A world of one needs nothing else.
        if variable(names.ranks).is_some_and(|ranks| ranks.trim() == "1") {
            return Ok(None);
        }
        if variable(names.rank).is_some() || variable(names.ranks).is_some() {
            return of(names, variable).map(several);
        }
    }
    if variable("SLURM_STEP_NUM_TASKS").is_some() {
        return of_slurm(variable).map(several);
    }
    Ok(None)
}

/// [`launched`] of the environment of this process.
///
/// ```
/// use tinyonn::ranks::launcher::{Launched, PARENT, of_environment};
///
/// // Nobody started this process as one of several.
/// assert!(PARENT.iter().all(|name| std::env::var(name).is_err()));
/// let rank: Option<Launched> = of_environment()?;
/// assert_eq!(rank, None);
/// # Ok::<(), tinyonn::Error>(())
/// ```
///
/// # Errors
/// As of [`launched`].
pub fn of_environment() -> Result<Option<Launched>> {
    launched(&|name| std::env::var(name).ok())
}

fn several(launched: Launched) -> Option<Launched> {
    (launched.ranks > 1).then_some(launched)
}

fn of(names: &Names, variable: &dyn Fn(&str) -> Option<String>) -> Result<Launched> {
    let launched = Launched {
        launcher: names.launcher,
        rank: number(names.rank, variable)?,
        ranks: number(names.ranks, variable)?,
        local_rank: number(names.local_rank, variable)?,
        local_ranks: number(names.local_ranks, variable)?,
        job: names.job.iter().filter_map(|name| variable(name)).collect::<Vec<_>>().join("/"),
        restart: variable(names.restart).map_or(Ok(0), |value| parsed(names.restart, &value))?,
        hosts: Vec::new(),
    };
    check(&launched, [names.rank, names.ranks, names.local_rank, names.local_ranks])?;
    Ok(launched)
}

fn of_slurm(variable: &dyn Fn(&str) -> Option<String>) -> Result<Launched> {
    let names = ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"];
    let list = variable("SLURM_STEP_NODELIST").map(|list| node_list::hosts("SLURM_STEP_NODELIST", &list));
    let hosts = list.transpose()?.unwrap_or_default();
    let nodes = variable("SLURM_STEP_NUM_NODES").map(|value| parsed::<usize>("SLURM_STEP_NUM_NODES", &value));
    if let Some(nodes) = nodes.transpose()?
        && !hosts.is_empty()
        && nodes != hosts.len()
    {
        return Err(contradiction("SLURM_STEP_NUM_NODES", &format!("is {nodes}"), "SLURM_STEP_NODELIST", hosts.len()));
    }
    let local_rank = number(names[2], variable)?;
    let ranks = number(names[1], variable)?;
    let local_ranks = match variable(names[3]) {
        Some(counts) => {
            let counts = node_list::tasks(names[3], &counts)?;
            let sum: usize = counts.iter().sum();
            if sum != ranks {
                return Err(contradiction(names[3], &format!("has {sum} tasks in all"), names[1], ranks));
            }
            let node = variable("SLURM_NODEID").map_or(Ok(0), |value| parsed::<usize>("SLURM_NODEID", &value))?;
            let own = counts.get(node).copied();
            own.ok_or_else(|| contradiction("SLURM_NODEID", &format!("is {node}"), names[3], counts.len()))?
        }
        // Without the list a step on one node has all of them there, and no other says.
        None if hosts.len() == 1 => ranks,
        None => local_rank + 1,
    };
    let job = [variable("SLURM_JOB_ID"), variable("SLURM_STEP_ID")];
    let launched = Launched {
        launcher: Launcher::Slurm,
        rank: number(names[0], variable)?,
        ranks,
        local_rank,
        local_ranks,
        job: job.into_iter().flatten().collect::<Vec<_>>().join("."),
        restart: variable("SLURM_RESTART_COUNT").map_or(Ok(0), |value| parsed("SLURM_RESTART_COUNT", &value))?,
        hosts,
    };
    check(&launched, names)?;
    Ok(launched)
}

fn check(of: &Launched, [rank, ranks, local_rank, local_ranks]: [&'static str; 4]) -> Result<()> {
    if of.ranks == 0 {
        return Err(Error::setting(
            ranks,
            "is 0, and there is at least this process",
            "start it by its launcher again",
        ));
    }
    for (small, value, large, bound) in [
        (rank, of.rank, ranks, of.ranks),
        (local_rank, of.local_rank, local_ranks, of.local_ranks),
        (local_rank, of.local_rank, rank, of.rank + 1),
    ] {
        if value >= bound {
            return Err(contradiction(
                small,
                &format!("is {value}"),
                large,
                if large == rank { of.rank } else { bound },
            ));
        }
    }
    if of.local_ranks > of.ranks {
        return Err(contradiction(local_ranks, &format!("is {}", of.local_ranks), ranks, of.ranks));
    }
    Ok(())
}

fn contradiction(name: &str, is: &str, other: &str, value: usize) -> Error {
    let problem = format!("{is}, and {other} says {value}");
    Error::setting(name, problem, "unset both, or start all ranks by one launcher")
}

fn number(name: &'static str, variable: &dyn Fn(&str) -> Option<String>) -> Result<usize> {
    let missing = || {
        let remedy = "set all variables of a launcher or none; torchrun, mpirun and srun set them";
        Error::setting(name, "is missing beside other variables of the same launcher", remedy)
    };
    parsed(name, &variable(name).ok_or_else(missing)?)
}

fn parsed<T: std::str::FromStr>(name: &str, value: &str) -> Result<T> {
    let wrong = || Error::setting(name, format!("is `{value}`, no number"), "unset it, or start the ranks again");
    value.trim().parse().map_err(|_| wrong())
}
