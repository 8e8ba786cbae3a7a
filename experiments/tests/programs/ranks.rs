//! Several ranks of a program, for real: started by `--gpus`, by torchrun's variables, by stand-ins of `srun` and `mpirun`. They meet, compare, plan, and
//! leave; what a launcher contradicts, and who is missing, ends all of them.
#![cfg(unix)]

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rstest::rstest;

use super::{PHASE2, Place, RUN, SCAN, assert_done, assert_refused};

const PLAN: &str = "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out/run --dry-run";
const PHASE1: &str = env!("CARGO_BIN_EXE_exp_phase1");
const SCANNED: &str =
    "--model dense --data a=a.txt --data b=b.txt --length 16 --batch 4 --max-tokens 400 --out out/run";
const PASS: &str = "--model dense --data a=a.txt --data b=b.txt --config run.toml --out out/run";
const TOKEN: &str = "00112233445566778899aabbccddeeff";

fn place() -> Place {
    let place = Place::new();
    fs::write(place.path("run.toml"), RUN).unwrap();
    place
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Rank `rank` of two, as torchrun starts it.
fn of_torchrun(place: &Place, rank: usize, arguments: &str, port: u16) -> Command {
    started(place, (PHASE2, rank), arguments, port)
}

fn started(place: &Place, (program, rank): (&str, usize), arguments: &str, port: u16) -> Command {
    let mut command = place.command(program, &format!("{arguments} --rendezvous 127.0.0.1:{port}"));
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2").env("LOCAL_RANK", rank.to_string());
    command.env("LOCAL_WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", "29500");
    command.env("TINYONN_TOKEN", TOKEN).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn assert_planned_once(output: &Output, by: &str) {
    assert_done(output);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(out.starts_with(&format!("ranks     2 have met, 2 of them on this host, started by {by}\n")), "{out}");
    assert_eq!(out.matches("Surprise Min-K: 2 steps of 64 tokens").count(), 1, "{out}");
}

#[test]
fn ranks_of_one_parent_meet_and_plan() {
    let place = place();
    let output = place.run(PHASE2, &format!("{PLAN} --gpus 2"));
    assert_planned_once(&output, "--gpus");
    // The folder that a run's own would lie in is all that is left.
    assert_eq!(fs::read_dir(place.path("out")).unwrap().count(), 0);
    // One rank is no world of several.
    let alone = place.run(PHASE2, &format!("{PLAN} --gpus 1"));
    assert_done(&alone);
    assert!(!String::from_utf8_lossy(&alone.stdout).contains("have met"));
}

#[rstest]
#[case("srun", "Slurm")]
#[case("mpirun", "Open MPI")]
fn ranks_of_a_launcher_meet_and_plan(#[case] launcher: &str, #[case] by: &str) {
    let place = place();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/launchers").join(launcher);
    let mut command = Command::new(program);
    command.args(["-n", "2", PHASE2]).args(PLAN.split_whitespace()).current_dir(place.path("."));
    assert_planned_once(&command.env("TINYONN_TOKEN", TOKEN).output().unwrap(), by);
    // Ranks know each other by a token.
    let without = command.env_remove("TINYONN_TOKEN").output().unwrap();
    assert!(!without.status.success() && said(&without).contains("`TINYONN_TOKEN`"), "{}", said(&without));
}

#[test]
fn ranks_of_torchrun_meet_and_plan() {
    let (place, port) = (place(), free_port());
    let [first, second] = [0, 1].map(|rank| of_torchrun(&place, rank, PLAN, port).spawn().unwrap());
    let [first, second] = [first, second].map(|rank| rank.wait_with_output().unwrap());
    assert_planned_once(&first, "torchrun");
    assert_done(&second);
    assert_eq!(second.stdout, b"");
}

#[test]
fn another_setting_is_named_by_all() {
    let (place, port) = (place(), free_port());
    fs::write(place.path("other.toml"), RUN.replace("[smk]\nsteps = 2", "[smk]\nsteps = 3")).unwrap();
    let plans = [PLAN.to_owned(), PLAN.replace("run.toml", "other.toml")];
    let ranks = [0, 1].map(|rank| of_torchrun(&place, rank, &plans[rank], port).spawn().unwrap());
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        assert_refused(&output, &["rank 1: ", "`given.settings.smk.steps` is 3, and 2 on rank 0"]);
    }
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let place = place();
    let output = of_torchrun(&place, 0, &format!("{PLAN} --join-limit 1"), free_port()).output().unwrap();
    assert_refused(&output, &["rank 1: has not come", "within 1 s", "1 of 2 ranks are there"]);
}

#[rstest]
#[case::contradiction(&[("RANK", "2")], "", &["`RANK`", "is 2, and WORLD_SIZE says 2"])]
#[case::no_number(&[("LOCAL_RANK", "first")], "", &["`LOCAL_RANK`", "first"])]
#[case::two_launchers(&[], "--gpus 2", &["`--gpus`", "torchrun has started this process already"])]
#[case::no_token(&[("TINYONN_TOKEN", "secret")], "", &["TINYONN_TOKEN", "openssl rand -hex 16"])]
#[case::no_place(&[], "--rendezvous here", &["`--rendezvous`", "no HOST:PORT"])]
fn what_a_launcher_contradicts_is_refused(#[case] with: &[(&str, &str)], #[case] more: &str, #[case] says: &[&str]) {
    let place = place();
    let mut command = place.command(PHASE2, &format!("{PLAN} {more}"));
    for (name, value) in [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")] {
        command.env(name, value);
    }
    let output = command.env("TINYONN_TOKEN", TOKEN).envs(with.iter().copied()).output().unwrap();
    assert_refused(&output, says);
    assert!(!said(&output).contains(TOKEN));
}

/// The message of the rank that failed first and its code come last, whatever the others say of it.
#[test]
fn the_first_rank_that_fails_is_told_last() {
    let place = place();
    let output = place.run(PHASE2, &format!("{} --gpus 3", PLAN.replace(" --dry-run", "")));
    assert_eq!(output.status.code(), Some(2));
    let said = said(&output);
    assert!(said.contains("`--from`: is not given, and 3 ranks share Surprise Min-K alone"), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("rank ") && last.contains(" of 3 ended first, with code 2"), "{said}");
}

/// What ranks do not share, or cannot, is refused before anything is read, by name and with what to do; nothing is left.
#[rstest]
#[case::shard(SCAN, SCANNED, "--device cuda --shard 0/2", &["`--shard`", "2 ranks are dealt a shard each", "without a launcher, and --merge"])]
#[case::merge(SCAN, "--out out/run", "--merge a.safetensors", &["`--merge`", "which one process does, and 2 ranks were started"])]
#[case::dump(SCAN, "--model dense", "--tokens ids.json --dump dump", &["`--dump`", "start one process"])]
#[case::processor(SCAN, SCANNED, "", &["`--device`", "is cpu, and 2 ranks compute on GPUs", "--shard I/N"])]
#[case::all_of_it(PHASE1, PASS, "--device cuda", &["`--pass`", "2 ranks share its passes over text alone", "one process"])]
#[case::a_plan_of_it(PHASE1, PASS, "--dry-run", &["`--pass`"])]
#[case::a_sum(PHASE1, "--out out/run", "--merge a.safetensors", &["`--pass`", "without a launcher"])]
#[case::shard_of_a_pass(PHASE1, PASS, "--pass inputs --shard 1/2", &["`--shard`", "2 ranks are dealt a shard each"])]
#[case::no_model(PHASE1, "--out out/run", "--pass scan", &["`--model`", "each of 2 ranks would pretrain"])]
#[case::pass_on_a_processor(PHASE1, PASS, "--pass scan", &["`--device`", "is cpu, and 2 ranks compute on GPUs"])]
fn what_ranks_do_not_share_is_refused(
    #[case] program: &str,
    #[case] of: &str,
    #[case] more: &str,
    #[case] says: &[&str],
    #[values(0, 1)] rank: usize,
) {
    let place = place();
    let before = place.files();
    let output = started(&place, (program, rank), &format!("{of} {more}"), free_port()).output().unwrap();
    assert_refused(&output, says);
    assert_eq!(place.files(), before);
}

/// A pass is tried without a GPU as a training is.
#[test]
fn ranks_of_a_pass_meet_and_plan() {
    let place = place();
    let pass = format!("{PASS} --pass scan --dry-run");
    let output = place.run(PHASE1, &format!("{pass} --gpus 2"));
    assert_done(&output);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(out.starts_with("ranks     2 have met, 2 of them on this host, started by --gpus\n"), "{out}");
    assert_eq!(out.matches("nothing was done").count(), 1, "{out}");
    let (port, passes) = (free_port(), [pass.clone(), pass.replace("scan", "inputs")]);
    let ranks = [0, 1].map(|rank| started(&place, (PHASE1, rank), &passes[rank], port).spawn().unwrap());
    for rank in ranks {
        assert_refused(
            &rank.wait_with_output().unwrap(),
            &["rank 1: ", "`given.pass` is \"Inputs\", and \"Scan\" on rank 0"],
        );
    }
    assert!(!place.path("out/run").exists());
}

/// A build without CUDA says so, on every rank, and a parent passes on what the first of them said.
#[cfg(not(feature = "cuda"))]
#[rstest]
#[case(SCAN, SCANNED)]
#[case(PHASE1, "--pass scan --model dense --data a=a.txt --data b=b.txt --config run.toml --out out/run")]
fn ranks_without_cuda_say_so(#[case] program: &str, #[case] of: &str) {
    let place = place();
    let output = place.run(program, &format!("{of} --device cuda --gpus 2"));
    let said = said(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("needs a build with CUDA"), "{said}");
    assert!(said.lines().last().unwrap().contains(" of 2 ended first, with code 2"), "{said}");
    assert!(!place.path("out/run").exists());
    // One rank is no world of several.
    assert_done(&place.run(program, &format!("{of} --gpus 1")));
}
