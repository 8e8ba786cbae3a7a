//! NCCL between the GPUs of several ranks. The library is opened when it is first needed, so that a program runs without it where there is one rank.
//!
//! A communicator never blocks the host: whoever started something asks for its outcome until a limit, and gives the communicator up behind it. NCCL then works in
//! a thread of its own, where the stream that everything else on a card runs in (each thread's own) is another one. So it has a stream by itself, which waits for
//! what was queued before, and for which waits what is queued behind: on the card it is as if there were one, but where something is queued between the beginning of a
//! collective and the question for its values ([`Underway`]).
//!
//! ```no_run
//! use candle_core::Device;
//! use tinyonn::ops::nccl::{Gpus, UniqueId, card_name, card_place};
//!
//! /// What ranks tell each other of their cards before they train together on them.
//! fn told(device: &Device, ranks: &Gpus) -> tinyonn::Result<String> {
//!     use tinyonn::ranks::Collective as _;
//!     Ok(format!("rank {}: {} at {}", ranks.rank(), card_name(device)?, card_place(device)?))
//! }
//! let id = UniqueId::random()?;
//! assert_eq!(UniqueId::of(id.bytes())?.bytes(), id.bytes());
//! # Ok::<(), tinyonn::Error>(())
//! ```

use std::ffi::{c_int, c_uint, c_void};
use std::fmt;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use candle_core::backend::BackendDevice as _;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::result::{event, stream};
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUdevice_attribute, CUevent, CUevent_flags, CUevent_wait_flags, CUstream,
};
use candle_core::{DType, Device, Tensor};
use libloading::Library;

use super::collective_watchdog::{Hung, Watchdog};
use super::kernel::{address, attribute, card, room, room_like};
use crate::ranks::{Collective, Underway};
use crate::{Error, Result};

/// Where the library is looked for, on the loader's path.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Between two looks at a call that is not over.
const PAUSE: Duration = Duration::from_micros(20);

/// `ncclResult_t`: well, and not over yet.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// `ncclSum`.
const SUM: c_int = 0;

/// Names a communicator: rank 0 draws one, and gives it to all ([`crate::ranks::Meeting::gift`]).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId([u8; 128]);

impl UniqueId {
    /// A new one.
    ///
    /// # Errors
    /// No libnccl; what NCCL reports.
    #[allow(unsafe_code)]
    pub fn random() -> Result<Self> {
        let (nccl, mut id) = (Nccl::open()?, Self([0; 128]));
        // SAFETY: it fills the 128 bytes that it is given.
        nccl.check(unsafe { (nccl.get_unique_id)(&raw mut id) }, "draw an identifier")?;
        Ok(id)
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Of the bytes of another rank's.
    ///
    /// # Errors
    /// Another number of bytes than 128.
    pub fn of(bytes: &[u8]) -> Result<Self> {
        let wrong = |_| Error::rank(0, format!("gave {} bytes for NCCL's identifier", bytes.len()), "report this");
        Ok(Self(bytes.try_into().map_err(wrong)?))
    }
}

/// `ncclConfig_t` as of NCCL 2.18; later ones take it by its size and version.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const u8,
    split_share: c_int,
}

type Comm = *mut c_void;

// SAFETY: as nccl.h declares ncclGetVersion; the number that it fills must be there.
type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
// SAFETY: as nccl.h declares ncclGetUniqueId; the identifier that it fills must be there.
type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> c_int;
// SAFETY: as nccl.h declares ncclCommInitRankConfig; the communicator's place and the configuration must be there.
type Init = unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> c_int;
// SAFETY: as nccl.h declares ncclCommGetAsyncError; the communicator must be NCCL's, and the state that it fills be there.
type AsyncError = unsafe extern "C" fn(Comm, *mut c_int) -> c_int;
// SAFETY: as nccl.h declares ncclCommAbort; the communicator must be NCCL's, and is not used again.
type Abort = unsafe extern "C" fn(Comm) -> c_int;
// SAFETY: as nccl.h declares ncclAllReduce and ncclReduceScatter; both addresses must have room for what is read and written until it is done.
type Sum = unsafe extern "C" fn(u64, u64, usize, c_int, c_int, Comm, CUstream) -> c_int;
// SAFETY: as nccl.h declares ncclAllGather; as of the sums.
type Gather = unsafe extern "C" fn(u64, u64, usize, c_int, Comm, CUstream) -> c_int;

/// The functions of NCCL that are used here.
struct Nccl {
    get_unique_id: GetUniqueId,
    init: Init,
    async_error: AsyncError,
    abort: Abort,
    all_reduce: Sum,
    reduce_scatter: Sum,
    all_gather: Gather,
    /// As NCCL writes it: 22809 is 2.28.9.
    version: c_int,
}

impl Nccl {
    #[allow(unsafe_code)]
    fn open() -> Result<Self> {
        let absent = |e: &libloading::Error| {
            let remedy = "install libnccl 2.18 or later (Debian: libnccl2; PyPI: nvidia-nccl-cu13) and name its folder in LD_LIBRARY_PATH";
            Error::setting("libnccl.so.2", format!("cannot be opened: {e}"), remedy)
        };
        // SAFETY: opening NCCL runs the initialisers of that library, which do not touch this process's own state.
        let opened = unsafe { Library::new(NAMES[0]).or_else(|first| Library::new(NAMES[1]).map_err(|_| first)) };
        // It stays open: threads of its own may run in it as long as the process does.
        let library: &'static Library = Box::leak(Box::new(opened.map_err(|e| absent(&e))?));
        let mut version = 0;
        // SAFETY: the types are those of nccl.h, whose functions of these names have not changed since NCCL 2.14; the library is never closed. The first
        // call fills the number that it is given.
        let nccl = unsafe {
            let get_version = *library.get::<GetVersion>(b"ncclGetVersion\0").map_err(|e| absent(&e))?;
            get_version(&raw mut version);
            Self {
                get_unique_id: *library.get(b"ncclGetUniqueId\0").map_err(|e| absent(&e))?,
                init: *library.get(b"ncclCommInitRankConfig\0").map_err(|e| absent(&e))?,
                async_error: *library.get(b"ncclCommGetAsyncError\0").map_err(|e| absent(&e))?,
                abort: *library.get(b"ncclCommAbort\0").map_err(|e| absent(&e))?,
                all_reduce: *library.get(b"ncclAllReduce\0").map_err(|e| absent(&e))?,
                reduce_scatter: *library.get(b"ncclReduceScatter\0").map_err(|e| absent(&e))?,
                all_gather: *library.get(b"ncclAllGather\0").map_err(|e| absent(&e))?,
                version,
            }
        };
        if nccl.version < 21_800 {
            let problem = format!("is NCCL {}, whose start cannot be given up", nccl.said_version());
            return Err(Error::setting("libnccl.so.2", problem, "install NCCL 2.18 or later"));
        }
        Ok(nccl)
    }

    fn said_version(&self) -> String {
        format!("{}.{}.{}", self.version / 10_000, self.version / 100 % 100, self.version % 100)
    }

    fn check(&self, result: c_int, what: &str) -> Result<()> {
        if matches!(result, SUCCESS | IN_PROGRESS) {
            return Ok(());
        }
        let problem = format!("NCCL {} could not {what}: ncclResult {result}", self.said_version());
        Err(Error::setting("NCCL", problem, "see its own words with NCCL_DEBUG=WARN"))
    }
}

/// The ranks of a training on their GPUs.
pub struct Gpus {
    nccl: Nccl,
    comm: Comm,
    // Ended before the events that it looks at.
    watchdog: Watchdog,
    beside: Beside,
    device: CudaDevice,
    place: (usize, usize),
    /// How long a call may take to be queued: connections are made by the first of its kind, for which a rank may be late.
    timeout: Duration,
}

// SAFETY: NCCL lets a communicator be used by any thread, one at a time; a rank computes in one thread.
#[allow(unsafe_code)]
unsafe impl Send for Gpus {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Gpus {}

impl fmt::Debug for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpus({} of {}, NCCL {})", self.place.0, self.place.1, self.nccl.said_version())
    }
}

impl Gpus {
    /// Rank `rank` of `ranks`, on `device`; all give the same `id`. The start is waited for no longer than `limit`, a collective no longer than `hangs` says, whose
    /// function is told of it.
    ///
    /// # Errors
    /// No libnccl; a device that is none of NVIDIA's; a rank that does not come; what NCCL reports.
    #[allow(unsafe_code)]
    pub fn new(
        device: &Device,
        (rank, ranks): (usize, usize),
        id: UniqueId,
        limit: Duration,
        hangs: (Duration, Hung),
    ) -> Result<Arc<Self>> {
        let device = gpu(device)?;
        let nccl = Nccl::open()?;
        tracing::info!("NCCL {}", nccl.said_version());
        device.cuda_stream().context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21_800,
            blocking: 0,
            cga_cluster_size: c_int::MIN,
            min_ctas: c_int::MIN,
            max_ctas: c_int::MIN,
            net_name: std::ptr::null(),
            split_share: c_int::MIN,
        };
        let (beside, timeout) = (Beside::new()?, hangs.0);
        let watchdog = Watchdog::start(device, beside.events[1], rank, hangs)?;
        let mut comm: Comm = std::ptr::null_mut();
        let (own, all) = (rank as c_int, ranks as c_int);
        // SAFETY: the configuration has the size and version that it says, and it and the place of the communicator live as long as the call.
        let result = unsafe { (nccl.init)(&raw mut comm, all, id, own, &raw mut config) };
        let gpus = Self { nccl, comm, watchdog, beside, device: device.clone(), place: (rank, ranks), timeout };
        gpus.wait(result, "start", limit)?;
        Ok(Arc::new(gpus))
    }

    /// Waits until what was begun is queued.
    #[allow(unsafe_code)]
    fn wait(&self, mut result: c_int, what: &str, limit: Duration) -> Result<()> {
        let began = Instant::now();
        while result == IN_PROGRESS {
            if began.elapsed() > limit {
                let problem = format!("NCCL {} did not {what} within {} s", self.nccl.said_version(), limit.as_secs());
                let remedy = "see which rank is missing, and NCCL's own words with NCCL_DEBUG=INFO";
                return Err(Error::setting("NCCL", problem, remedy));
            }
            let mut state = SUCCESS;
            // SAFETY: the communicator was made by NCCL and is given up only when this is dropped; the state is filled.
            let asked = unsafe { (self.nccl.async_error)(self.comm, &raw mut state) };
            self.nccl.check(asked, what)?;
            result = state;
            if result == IN_PROGRESS {
                sleep(PAUSE);
            }
        }
        self.nccl.check(result, what)
    }

    /// Queues a call of NCCL behind what was queued before, which reads `read` and writes `values`.
    fn begin(
        &self,
        what: &'static str,
        (read, values): (&Tensor, Tensor),
        call: impl FnOnce(CUstream) -> c_int,
    ) -> Result<Underway> {
        let (done, device) = (Mark::new()?, self.device.clone());
        self.watchdog.begins(what);
        self.beside.behind(device.cuda_stream().cu_stream())?;
        self.wait(call(self.beside.stream), what, self.timeout)?;
        self.beside.mark(&done)?;
        let order = move || done.before(&device);
        Ok(Underway::until(read.clone(), values, Box::new(order)))
    }

    fn refuse_elsewhere(&self, tensor: &Tensor) -> Result<()> {
        if !card(tensor)?.same_device(&self.device) {
            let problem = "is on another card than NCCL was started on";
            return Err(Error::tensor("of a collective", problem, "report this"));
        }
        Ok(())
    }
}

fn gpu(device: &Device) -> Result<&CudaDevice> {
    match device {
        Device::Cuda(device) => Ok(device),
        _ => Err(Error::setting("--device", "is no GPU, and several ranks compute on GPUs", "give --device cuda")),
    }
}

/// The place of a card: its host, and where on the host's bus it is.
///
/// # Errors
/// A device that is no GPU of NVIDIA's; what the driver reports.
pub fn card_place(device: &Device) -> Result<String> {
    use CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
    };

    let device = gpu(device)?;
    // Hosts may share a name; each start of a kernel has an id of its own.
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let [domain, bus, place] =
        [CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID]
            .map(|of| attribute(device, of));
    Ok(format!("{} {:04x}:{:02x}:{:02x}", host.trim(), domain?, bus?, place?))
}

/// The name of a card.
///
/// # Errors
/// As of [`card_place`].
pub fn card_name(device: &Device) -> Result<String> {
    Ok(gpu(device)?.cuda_stream().context().name().map_err(candle_core::Error::wrap)?)
}

/// `ncclDataType_t`.
fn data_type(tensor: &Tensor) -> Result<c_int> {
    match tensor.dtype() {
        DType::F32 => Ok(7),
        DType::F64 => Ok(8),
        DType::BF16 => Ok(9),
        other => Err(candle_core::Error::msg(format!("no ranks add up {other:?}")).into()),
    }
}

/// A stream beside the one that everything else runs in; on the card what is queued here goes before what waits there.
struct Beside {
    stream: CUstream,
    /// What was queued before is done, and what is queued here.
    events: [CUevent; 2],
}

impl Beside {
    fn new() -> Result<Self> {
        let (_, first) = stream::get_priority_range().map_err(candle_core::Error::wrap)?;
        let stream = stream::create_with_priority(stream::StreamKind::NonBlocking, first);
        let stream = stream.map_err(candle_core::Error::wrap)?;
        Ok(Self { stream, events: [new_event()?, new_event()?] })
    }

    /// What is queued here next waits for all that is queued in `main`.
    fn behind(&self, main: CUstream) -> Result<()> {
        record(self.events[0], main)?;
        wait_for(self.events[0], self.stream)
    }

    /// Puts `mark` behind all that is queued here.
    fn mark(&self, mark: &Mark) -> Result<()> {
        record(mark.0, self.stream)?;
        record(self.events[1], self.stream)
    }
}

/// A place in a stream.
struct Mark(CUevent);

// SAFETY: the driver lets every thread in which the context is bound use an event.
#[allow(unsafe_code)]
unsafe impl Send for Mark {}

impl Mark {
    fn new() -> Result<Self> {
        Ok(Self(new_event()?))
    }

    /// What is queued next in the stream of all else waits until this place is reached.
    fn before(&self, device: &CudaDevice) -> Result<()> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        wait_for(self.0, stream.cu_stream())
    }
}

impl Drop for Mark {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: this made it; the driver keeps it for streams that wait for it already.
        let _ = unsafe { event::destroy(self.0) };
    }
}

fn new_event() -> Result<CUevent> {
    Ok(event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(candle_core::Error::wrap)?)
}

#[allow(unsafe_code)]
fn record(event: CUevent, stream: CUstream) -> Result<()> {
    // SAFETY: both are of the context that is bound to this thread, and whoever made them has not destroyed them.
    Ok(unsafe { event::record(event, stream) }.map_err(candle_core::Error::wrap)?)
}

#[allow(unsafe_code)]
fn wait_for(event: CUevent, stream: CUstream) -> Result<()> {
    // SAFETY: as of `record`.
    let waits = unsafe { stream::wait_event(stream, event, CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) };
    Ok(waits.map_err(candle_core::Error::wrap)?)
}

impl Drop for Beside {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: nothing is queued here any more by this process, and the driver keeps what still runs until it is done.
        unsafe {
            for event in &self.events {
                let _ = event::destroy(*event);
            }
            let _ = stream::destroy(self.stream);
        }
    }
}

impl Drop for Gpus {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if !self.comm.is_null() {
            // SAFETY: the communicator was made by NCCL and is not used again. What was queued may wait for a rank that is gone: that ends too.
            let _ = unsafe { (self.nccl.abort)(self.comm) };
        }
    }
}

impl Collective for Gpus {
    fn rank(&self) -> usize {
        self.place.0
    }

    fn ranks(&self) -> usize {
        self.place.1
    }

    #[allow(unsafe_code)]
    fn reduce_scatter(&self, bucket: &Tensor) -> Result<Tensor> {
        self.refuse_elsewhere(bucket)?;
        let (rank, ranks) = self.place;
        let count = bucket.dims1()? / ranks;
        let own = bucket.narrow(0, rank * count, count)?;
        let (from, to, dtype) = (address(bucket)?, address(&own)?, data_type(bucket)?);
        // SAFETY: the addresses are of `ranks` times `count` and of `count` values of that type, the second where NCCL has it within the first for a sum
        // in place; both live until what is queued in the stream that they are used in waits for the call.
        let call = |stream| unsafe { (self.nccl.reduce_scatter)(from, to, count, dtype, SUM, self.comm, stream) };
        self.begin("reduce and scatter a bucket", (bucket, own), call)?.values()
    }

    #[allow(unsafe_code)]
    fn begin_gather(&self, shard: &Tensor) -> Result<Underway> {
        self.refuse_elsewhere(shard)?;
        let count = shard.dims1()?;
        let all = room(count * self.place.1, shard.dtype(), shard.device())?;
        let (from, to, dtype) = (address(shard)?, address(&all)?, data_type(shard)?);
        // SAFETY: as above; `all` has room for the shards of all ranks, and nobody else knows it yet.
        let call = |stream| unsafe { (self.nccl.all_gather)(from, to, count, dtype, self.comm, stream) };
        self.begin("gather a bucket", (shard, all), call)
    }

    #[allow(unsafe_code)]
    fn begin_sum(&self, values: &Tensor) -> Result<Underway> {
        self.refuse_elsewhere(values)?;
        let values = values.contiguous()?;
        if values.elem_count() == 0 {
            return Ok(Underway::done(values));
        }
        let sum = room_like(&values)?;
        let (from, to, dtype) = (address(&values)?, address(&sum)?, data_type(&values)?);
        let count = values.elem_count();
        // SAFETY: as above; `sum` is like `values`, and nobody else knows it yet.
        let call = |stream| unsafe { (self.nccl.all_reduce)(from, to, count, dtype, SUM, self.comm, stream) };
        self.begin("add up over ranks", (&values, sum), call)
    }
}
