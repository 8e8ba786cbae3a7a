//! Which rank a process is, and where ranks meet, by the variables of each launcher.

use rstest::rstest;
use tinyonn::Result;
use tinyonn::ranks::launcher::launched;
use tinyonn::ranks::{Launched, Launcher, Token, address::meeting_place};

use crate::models::message;

/// `NAME=VALUE` words as an environment.
fn environment(words: &str) -> impl Fn(&str) -> Option<String> {
    let given: Vec<(String, String)> =
        words.split_whitespace().filter_map(|word| word.split_once('=')).map(|(a, b)| (a.into(), b.into())).collect();
    move |name| given.iter().find(|(given, _)| given == name).map(|(_, value)| value.clone())
}

fn rank_of(words: &str) -> Result<Option<Launched>> {
    launched(&environment(words))
}

const TORCHRUN: &str = "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 MASTER_ADDR=node1 MASTER_PORT=29500 TORCHELASTIC_RUN_ID=none TORCHELASTIC_RESTART_COUNT=2";
const OPEN_MPI: &str = "OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=4 PMIX_NAMESPACE=prte-1@1";
const SLURM: &str = "SLURM_JOB_ID=77 SLURM_STEP_ID=0 SLURM_PROCID=5 SLURM_STEP_NUM_TASKS=8 SLURM_LOCALID=1 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=gpu[07-08] SLURM_STEP_TASKS_PER_NODE=4(x2) SLURM_NODEID=1 SLURM_RESTART_COUNT=2";
const PARENT: &str = "TINYONN_RANK=5 TINYONN_RANKS=8 TINYONN_JOB=1-a";

#[rstest]
#[case::torchrun(TORCHRUN, Launcher::Torchrun, (1, 4), "none/29500", 2)]
#[case::open_mpi(OPEN_MPI, Launcher::OpenMpi, (1, 4), "prte-1@1", 0)]
#[case::slurm(SLURM, Launcher::Slurm, (1, 4), "77.0", 2)]
#[case::a_parent(PARENT, Launcher::Parent, (5, 8), "1-a", 0)]
fn each_launcher_says_which_rank_it_is(
    #[case] words: &str,
    #[case] launcher: Launcher,
    #[case] local: (usize, usize),
    #[case] job: &str,
    #[case] restart: u64,
) {
    let found = rank_of(words).unwrap().unwrap();
    assert_eq!((found.launcher, found.rank, found.ranks, found.restart), (launcher, 5, 8, restart));
    assert_eq!(((found.local_rank, found.local_ranks), found.job.as_str()), (local, job));
}

/// A job of Slurm may start torchrun, and torchrun anything: the innermost counts.
#[test]
fn torchrun_goes_before_open_mpi_and_slurm() {
    let order = [Launcher::Parent, Launcher::Torchrun, Launcher::OpenMpi, Launcher::Slurm];
    let words = [PARENT, TORCHRUN, OPEN_MPI, SLURM];
    for (at, launcher) in order.into_iter().enumerate() {
        assert_eq!(rank_of(&words[at..].join(" ")).unwrap().unwrap().launcher, launcher);
    }
}

#[rstest]
#[case::nothing("")]
#[case::a_script_of_sbatch("SLURM_JOB_ID=77 SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_NODELIST=gpu[1-2]")]
#[case::a_step_of_one("SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_STEP_NODELIST=gpu1")]
#[case::torchrun_of_one("RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1")]
#[case::an_operator_of_one("RANK=0 WORLD_SIZE=1")]
#[case::an_address_alone("MASTER_ADDR=node1 LOCAL_RANK=3")]
fn a_world_of_one_is_none(#[case] words: &str) {
    assert_eq!(rank_of(words).unwrap(), None);
}

#[rstest]
#[case("RANK=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1", "WORLD_SIZE", "is missing")]
#[case("WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1", "RANK", "is missing")]
#[case("RANK=2 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2", "RANK", "is 2, and WORLD_SIZE says 2")]
#[case("RANK=1 WORLD_SIZE=2 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", "LOCAL_RANK", "is 2, and LOCAL_WORLD_SIZE says 2")]
#[case("RANK=0 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2", "LOCAL_RANK", "is 1, and RANK says 0")]
#[case("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4", "LOCAL_WORLD_SIZE", "is 4, and WORLD_SIZE says 2")]
#[case("RANK=0 WORLD_SIZE=0 LOCAL_RANK=0 LOCAL_WORLD_SIZE=0", "WORLD_SIZE", "is 0")]
#[case("RANK=one WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2", "RANK", "is `one`")]
#[case(
    "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=0",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "is missing"
)]
#[case(&SLURM.replace("NODELIST=gpu[07-08]", "NODELIST=gpu[07-09]"), "SLURM_STEP_NUM_NODES", "is 2, and SLURM_STEP_NODELIST says 3")]
#[case(&SLURM.replace("4(x2)", "4(x3)"), "SLURM_STEP_TASKS_PER_NODE", "has 12 tasks in all, and SLURM_STEP_NUM_TASKS says 8")]
#[case(&SLURM.replace("NODEID=1", "NODEID=2"), "SLURM_NODEID", "is 2, and SLURM_STEP_TASKS_PER_NODE says 2")]
#[case(&SLURM.replace("gpu[07-08]", "gpu[07-"), "SLURM_STEP_NODELIST", "no list of hosts")]
fn contradictions_are_refused_by_name(#[case] words: &str, #[case] name: &str, #[case] problem: &str) {
    let said = message(rank_of(words));
    assert!(said.starts_with(&format!("`{name}`: ")) && said.contains(problem), "{said}");
}

#[rstest]
#[case::given(Some("10.0.0.7:4000"), TORCHRUN, "10.0.0.7:4000")]
#[case::of_torchrun(None, TORCHRUN, "node1:")]
#[case::of_slurm(None, SLURM, "gpu07:")]
#[case::all_here(None, PARENT, "127.0.0.1:")]
fn ranks_meet_where_they_can(#[case] given: Option<&str>, #[case] words: &str, #[case] expected: &str) {
    let place = meeting_place(given, &rank_of(words).unwrap().unwrap(), &environment(words)).unwrap();
    assert!(place.starts_with(expected), "{place}");
    // torchrun's own port is its own.
    assert!(!place.ends_with(":29500"), "{place}");
    let port: u16 = place.rsplit_once(':').unwrap().1.parse().unwrap();
    assert!(given.is_some() || (20_480..30_720).contains(&port), "{place}");
}

#[test]
fn ranks_on_several_hosts_need_an_address() {
    let found = rank_of(OPEN_MPI).unwrap().unwrap();
    let said = message(meeting_place(None, &found, &environment(OPEN_MPI)));
    assert!(said.starts_with("`--rendezvous`: 8 ranks are on several hosts (4 on this one)"), "{said}");
    for wrong in ["node1", ":4000", "node1:0", "node1:70000", "node1:http"] {
        let said = message(meeting_place(Some(wrong), &found, &environment("")));
        assert!(said.contains("is no HOST:PORT"), "{said}");
    }
}

#[cfg(unix)]
#[test]
fn a_token_lies_where_nobody_else_reads_it() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, format!("{}\n", Token::random().hex())).unwrap();
    let words = format!("TINYONN_TOKEN_FILE={}", path.display());
    for (mode, refused) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let read = Token::of_environment(&environment(&words));
        assert_eq!(read.is_err(), refused, "{mode:o}");
        assert!(!refused || message(read).contains("chmod 600"));
    }
    assert!(message(Token::of_environment(&environment(""))).contains("openssl rand -hex 16"));
}
