//! The same over NCCL, where there are GPUs: a process each, beside each other or as if on hosts of their own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::cuda_backend::cudarc::driver::result;
use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tinyonn::checkpoint::ParamStore;
use tinyonn::interrupt::{Interrupt, Signal};
use tinyonn::ranks::launcher::of_environment;
use tinyonn::ranks::{Collective, Greeting, Meeting, Token, end_now, gather};
use tinyonn::train::{Memory, PretrainConfig, SmkConfig, begin};
use tinyonn::{Error, Result};

use super::resumed::states;
use super::training::{DENSE, LONG_NARROW, Rank, SMK, dense_on, experts_on, last_losses, said};
use crate::tiny;

/// The weights of a model, by name.
type Bits = Vec<(String, Vec<u32>)>;
/// What a training leaves: weights, and the losses of its steps.
type Left = (Bits, Vec<f64>);

const TOLD: &str = "TINYONN_TEST_GPU_RANK";

/// A training, and where it keeps its states if it does.
#[derive(Clone, Copy)]
struct Training<'a> {
    what: &'a str,
    states: Option<&'a Path>,
    /// Whether it is asked to stop at once.
    stops: bool,
}

impl<'a> Training<'a> {
    fn of(what: &'a str) -> Self {
        Self { what, states: None, stops: false }
    }

    fn run(self, device: &Device, ranks: Option<&Arc<dyn Collective>>) -> Result<Left> {
        let (dir, ranks): (_, Rank) = (TempDir::new().unwrap(), ranks.cloned());
        let log = dir.path().join("log.jsonl");
        let interrupt = Interrupt::default();
        if self.stops {
            interrupt.request(Signal::Terminate);
        }
        let states = self.states.map(|dir| states(dir, interrupt));
        let dense = |config: &PretrainConfig| dense_on(device, config, ranks.clone(), &log, states.as_ref());
        let experts = |config: &SmkConfig| -> Result<ParamStore> {
            Ok(experts_on(device, ("Moe7x3", config), ranks.clone(), &log, states.as_ref())?.0)
        };
        if self.what == "nothing" {
            return Ok(Left::default());
        }
        let store = match self.what {
            "dense" => dense(&DENSE),
            "endless" => dense(&PretrainConfig { steps: 1_000_000, ..DENSE }),
            "parts" => dense(&PretrainConfig { memory: Memory { micro_batches: 2, ..DENSE.memory }, ..DENSE }),
            "narrow" => dense(&LONG_NARROW),
            "narrow experts" => experts(&SmkConfig { steps: LONG_NARROW.steps, memory: LONG_NARROW.memory, ..SMK }),
            "a step of experts" => experts(&SmkConfig { steps: 1, ..SMK }),
            _ => experts(&SMK),
        }?;
        Ok((tiny::bits(&store), said(&log, "loss")))
    }
}

/// The exit code of a rank that was asked to stop.
const STOPPED: i32 = 4;

/// A rank of the tests below; without what it is told it does nothing.
#[test]
fn a_rank_on_a_gpu() {
    let Ok(told) = std::env::var(TOLD) else { return };
    let told: Value = serde_json::from_str(&told).unwrap();
    let variable = |name: &str| std::env::var(name).ok();
    let launched = of_environment().unwrap().unwrap();
    let device = Device::new_cuda(launched.gpu(&variable)).unwrap();
    let meeting = Meeting {
        place: told["place"].as_str().unwrap(),
        launched: &launched,
        token: &Token::of_environment(&variable).unwrap(),
        limit: Duration::from_mins(1),
        shared: None,
        gift: &|| Ok(Vec::new()),
    };
    let together =
        begin(&meeting, Greeting::default(), &device, Duration::from_mins(1), |error| end_now(&error, 2)).unwrap();
    sums(together.ranks.as_ref(), &device);
    gathered(together.ranks.as_ref(), &device);
    std::fs::write(told["begun"].as_str().unwrap(), "").unwrap();
    let states = told["states"].as_str().map(Path::new);
    let training = Training { what: told["what"].as_str().unwrap(), states, stops: told["stops"] == true };
    match training.run(&device, Some(&together.ranks)) {
        Ok(left) => std::fs::write(told["out"].as_str().unwrap(), serde_json::to_vec(&left).unwrap()).unwrap(),
        Err(Error::Interrupted { .. }) => {
            // The others are told that it leaves: they may still be saving.
            drop(together);
            std::process::exit(STOPPED)
        }
        Err(error) => panic!("{error}"),
    }
}

/// Each collective by itself, in each type.
fn sums(ranks: &dyn Collective, device: &Device) {
    let (rank, count) = (ranks.rank(), ranks.ranks());
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let own = Tensor::arange(0f32, (4 * count) as f32, device).unwrap().affine(1.0, rank as f64).unwrap();
        let own = own.to_dtype(dtype).unwrap();
        let list = |x: Tensor| x.to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        let extra = (0..count).sum::<usize>() as f32;
        let expected: Vec<f32> = (0..4 * count).map(|at| (at * count) as f32 + extra).collect();
        assert_eq!(list(ranks.all_reduce(&own).unwrap()), expected);
        let gathered: Vec<f32> = (0..count).flat_map(|rank| (0..4 * count).map(move |at| (at + rank) as f32)).collect();
        assert_eq!(list(ranks.all_gather(&own).unwrap()), gathered);
        let shard = ranks.reduce_scatter(&own).unwrap().force_contiguous().unwrap();
        assert_eq!(list(shard), expected[4 * rank..][..4]);
    }
}

/// Bytes of each rank, by rank, whatever numbers they would be: of no length at rank 0, and of more than a piece of 16 MiB.
fn gathered(ranks: &dyn Collective, device: &Device) {
    let own = |rank: usize| -> Vec<u8> { (0..rank * (17 << 20) + rank).map(|at| ((at * at) >> 9) as u8).collect() };
    let found = gather(ranks, &own(ranks.rank()), device).unwrap();
    let expected = (ranks.rank() == 0).then(|| (0..ranks.ranks()).map(own).collect::<Vec<_>>());
    assert!(found == expected, "rank {}", ranks.rank());
}

/// How ranks reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    /// As NCCL finds them.
    Found,
    /// By sockets alone, as if each were on a host of its own.
    Sockets,
}

struct World {
    ranks: Vec<Child>,
    dir: TempDir,
}

impl World {
    fn start(count: usize, training: Training<'_>, links: Links) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (token, dir) = (Token::random(), TempDir::new().unwrap());
        let start = |rank: usize| {
            let told = json!({
                "place": free.to_string(), "what": training.what, "states": training.states, "stops": training.stops,
                "out": dir.path().join(rank.to_string()), "begun": dir.path().join(format!("begun-{rank}")),
            });
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "ranks::over_nccl::a_rank_on_a_gpu", "--nocapture"]).env(TOLD, told.to_string());
            command
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", count.to_string())
                .env("TINYONN_TOKEN", token.hex());
            command.env("LOCAL_RANK", rank.to_string()).env("LOCAL_WORLD_SIZE", count.to_string());
            if links == Links::Sockets {
                command.env("NCCL_HOSTID", format!("host-{rank}")).env("NCCL_SOCKET_IFNAME", "lo");
                command.env("NCCL_P2P_DISABLE", "1").env("NCCL_SHM_DISABLE", "1").env("NCCL_IB_DISABLE", "1");
            }
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let ranks = (0..count).map(start).collect();
        Self { ranks, dir }
    }

    /// What each rank left; nothing of those that were stopped.
    fn left(self) -> Vec<Left> {
        let Self { ranks, dir } = self;
        for (rank, child) in ranks.into_iter().enumerate() {
            let ended = child.wait_with_output().unwrap();
            let well = matches!(ended.status.code(), Some(0 | STOPPED));
            assert!(well, "rank {rank}: {}", String::from_utf8_lossy(&ended.stderr));
        }
        let mut found: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| !path.to_string_lossy().contains("begun"));
        found.sort();
        found.iter().map(|path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).collect()
    }
}

/// How many ranks there can be, and a line where there are too few GPUs.
fn worlds() -> Vec<usize> {
    let gpus = result::init().and_then(|()| result::device::get_count()).unwrap_or(0);
    if gpus < 2 {
        println!("skipped: two GPUs are needed, and there are {gpus}");
    }
    [2, 4].into_iter().filter(|ranks| *ranks <= gpus as usize).collect()
}

fn first_gpu() -> Device {
    Device::new_cuda(0).unwrap()
}

#[rstest]
#[case("dense")]
#[case("parts")]
#[case("a step of experts")]
#[case("experts")]
fn gpus_train_what_one_does(#[case] what: &str, #[values(Links::Found, Links::Sockets)] links: Links) {
    for ranks in worlds() {
        let training = Training::of(what);
        let one = training.run(&first_gpu(), None).unwrap();
        let [first, again] = [0, 1].map(|_| World::start(ranks, training, links).left());
        assert_eq!(first.len(), ranks);
        for left in &first {
            let apart = apart(&one.0, &left.0);
            // The weights of a loser do not move at all: another one would be seen.
            assert!(apart < 1e-5, "{ranks} ranks, {what}: {apart}");
            assert!(left == &first[0], "ranks differ");
        }
        assert!(first == again, "not the same bits again");
    }
}

/// In bf16 a sum of another order rounds elsewhere: what is learnt is the same, weights are not.
#[rstest]
#[case("narrow")]
#[case("narrow experts")]
fn gpus_learn_in_bf16_what_one_does(#[case] what: &str) {
    for ranks in worlds() {
        let training = Training::of(what);
        let one = training.run(&first_gpu(), None).unwrap();
        let [first, again] = [0, 1].map(|_| World::start(ranks, training, Links::Found).left());
        approx::assert_relative_eq!(last_losses(&one.1), last_losses(&first[0].1), max_relative = 5e-3);
        assert!(first == again, "not the same bits again");
    }
}

/// A training that one GPU began and ends, and several went on with in between.
#[rstest]
#[case("dense")]
#[case("experts")]
fn a_training_goes_on_over_nccl(#[case] what: &str) {
    for ranks in worlds() {
        let dir = TempDir::new().unwrap();
        let training = Training { states: Some(dir.path()), ..Training::of(what) };
        let stopped = Training { stops: true, ..training };
        let ended = stopped.run(&first_gpu(), None);
        assert!(matches!(ended, Err(Error::Interrupted { .. })), "{ended:?}");
        assert!(World::start(ranks, stopped, Links::Found).left().is_empty(), "they did not stop");
        let turned = training.run(&first_gpu(), None).unwrap();
        let straight = Training::of(what).run(&first_gpu(), None).unwrap();
        let apart = apart(&straight.0, &turned.0);
        assert!(apart < 1e-5, "{apart}");
    }
}

/// The largest difference of a weight.
fn apart(a: &Bits, b: &Bits) -> f32 {
    let values = |bits: &Bits| {
        bits.iter().flat_map(|(_, bits)| bits.iter().map(|bits| f32::from_bits(*bits))).collect::<Vec<_>>()
    };
    let (a, b) = (values(a), values(b));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Nothing is trained: each collective, and bytes of any length, which every rank of these tests brings together first.
#[rstest]
fn gpus_bring_bytes_together(#[values(Links::Found, Links::Sockets)] links: Links) {
    for ranks in worlds() {
        assert_eq!(World::start(ranks, Training::of("nothing"), links).left().len(), ranks);
    }
}

/// Killed in the middle of a training, wherever that is: NCCL says nothing, the connection does; and the last state serves to go on.
#[rstest]
#[case(0, 0, Links::Found)]
#[case(1, 40, Links::Found)]
#[case(0, 170, Links::Found)]
#[case(1, 900, Links::Found)]
#[case(0, 300, Links::Sockets)]
#[case(1, 600, Links::Sockets)]
fn a_rank_that_is_killed_takes_all_with_it(#[case] which: usize, #[case] behind: u64, #[case] links: Links) {
    for ranks in worlds() {
        let states = TempDir::new().unwrap();
        let training = Training { states: Some(states.path()), ..Training::of("endless") };
        let mut world = World::start(ranks, training, links);
        let began = Instant::now();
        let begun = |rank: usize| world.dir.path().join(format!("begun-{rank}")).exists();
        while !(0..ranks).all(begun) {
            assert!(began.elapsed() < Duration::from_secs(90), "they do not begin");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(behind));
        let mut killed = world.ranks.remove(which);
        killed.kill().unwrap();
        killed.wait().unwrap();
        let began = Instant::now();
        for child in world.ranks {
            let ended = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(2), "{said}");
            assert!(said.contains(&format!("rank {which}: was lost")), "{said}");
        }
        assert!(began.elapsed() < Duration::from_secs(30));
        // One GPU takes it up, and is asked to stop behind its first steps.
        let ended = Training { stops: true, ..training }.run(&first_gpu(), None);
        assert!(matches!(ended, Err(Error::Interrupted { .. })), "{ended:?}");
    }
}
