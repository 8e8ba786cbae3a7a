//! The same over NCCL, where there are GPUs: a process each.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::cuda_backend::cudarc::driver::result;
use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tinyonn::checkpoint::ParamStore;
use tinyonn::ranks::launcher::of_environment;
use tinyonn::ranks::{Collective, Greeting, Meeting, Token};
use tinyonn::train::{PretrainConfig, SmkConfig, begin};

use super::training::{DENSE, SMK, dense_on, experts_on};
use crate::tiny;

/// The weights of a model, by name.
type Bits = Vec<(String, Vec<u32>)>;

const TOLD: &str = "TINYONN_TEST_GPU_RANK";

/// What is trained.
fn trained(what: &str, device: &Device, ranks: Option<Arc<dyn Collective>>) -> ParamStore {
    let dir = TempDir::new().unwrap();
    let log = dir.path().join("log.jsonl");
    let dense = |config: &PretrainConfig| dense_on(device, config, ranks.clone(), &log, None).unwrap();
    match what {
        "dense" => dense(&DENSE),
        "endless" => dense(&PretrainConfig { steps: 1_000_000, ..DENSE }),
        "parts" => {
            dense(&PretrainConfig { memory: tinyonn::train::Memory { micro_batches: 2, ..DENSE.memory }, ..DENSE })
        }
        _ => experts_on(device, ("Moe7x3", &SmkConfig { ..SMK }), ranks.clone(), &log, None).unwrap().0,
    }
}

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
    let together = begin(&meeting, Greeting::default(), &device, Duration::from_mins(1), |error| {
        eprintln!("error: {error}");
        std::process::exit(2);
    })
    .unwrap();
    sums(together.ranks.as_ref(), &device);
    std::fs::write(told["begun"].as_str().unwrap(), "").unwrap();
    let store = trained(told["what"].as_str().unwrap(), &device, Some(together.ranks.clone()));
    let bits = serde_json::to_vec(&tiny::bits(&store)).unwrap();
    std::fs::write(told["out"].as_str().unwrap(), bits).unwrap();
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

struct World {
    ranks: Vec<Child>,
    dir: TempDir,
}

impl World {
    fn start(count: usize, what: &str) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (token, dir) = (Token::random(), TempDir::new().unwrap());
        let start = |rank: usize| {
            let told = json!({
                "place": free.to_string(), "what": what,
                "out": dir.path().join(rank.to_string()), "begun": dir.path().join(format!("begun-{rank}")),
            });
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "ranks::over_nccl::a_rank_on_a_gpu", "--nocapture"]).env(TOLD, told.to_string());
            command
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", count.to_string())
                .env("TINYONN_TOKEN", token.hex());
            command.env("LOCAL_RANK", rank.to_string()).env("LOCAL_WORLD_SIZE", count.to_string());
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let ranks = (0..count).map(start).collect();
        Self { ranks, dir }
    }

    /// What each rank trained.
    fn trained(self) -> Vec<Bits> {
        let Self { ranks, dir } = self;
        for (rank, child) in ranks.into_iter().enumerate() {
            let ended = child.wait_with_output().unwrap();
            assert!(ended.status.success(), "rank {rank}: {}", String::from_utf8_lossy(&ended.stderr));
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

#[rstest]
#[case("dense")]
#[case("parts")]
#[case("experts")]
fn gpus_train_what_one_does(#[case] what: &str) {
    for ranks in worlds() {
        let one = tiny::bits(&trained(what, &Device::new_cuda(0).unwrap(), None));
        let (first, again) = (World::start(ranks, what).trained(), World::start(ranks, what).trained());
        assert_eq!(first.len(), ranks);
        for bits in &first {
            let apart = apart(&one, bits);
            assert!(apart < 1e-5, "{ranks} ranks, {what}: {apart}");
            assert!(bits == &first[0], "ranks differ");
        }
        assert!(first == again, "not the same bits again");
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

/// Killed in the middle of a training, wherever that is: NCCL says nothing, the connection does.
#[rstest]
fn a_rank_that_is_killed_takes_all_with_it(#[values(0, 1)] which: usize, #[values(0, 40, 170, 900)] behind: u64) {
    for ranks in worlds() {
        let mut world = World::start(ranks, "endless");
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
    }
}
