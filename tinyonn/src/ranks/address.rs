//! Where the ranks of a job meet.

use super::Launched;
use crate::{Error, Result};

/// The lowest port that a job is given, and how many there are: below those that systems hand out by themselves.
const PORTS: (u16, u16) = (20_480, 10_240);

/// `HOST:PORT` where rank 0 listens: as `--rendezvous` gives it (`given`), else torchrun's `MASTER_ADDR`, else the first host that Slurm
/// lists, else this host if all ranks are on it. The port is the job's own: torchrun may listen at its `MASTER_PORT` itself.
///
/// # Errors
/// An address without a port; ranks on several hosts none of which is named.
///
/// ```
/// use tinyonn::ranks::{address::meeting_place, launcher::{Launched, Launcher}};
///
/// let rank = Launched {
///     launcher: Launcher::Parent, rank: 1, ranks: 2, local_rank: 1, local_ranks: 2, job: "a".into(), restart: 0, hosts: Vec::new(),
/// };
/// assert!(meeting_place(None, &rank, &|_| None)?.starts_with("127.0.0.1:"));
/// assert_eq!(meeting_place(Some("node1:4000"), &rank, &|_| None)?, "node1:4000");
/// # Ok::<(), tinyonn::Error>(())
/// ```
pub fn meeting_place(
    given: Option<&str>,
    launched: &Launched,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<String> {
    if let Some(given) = given {
        let port = given.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            return Err(Error::setting(
                "--rendezvous",
                format!("`{given}` is no HOST:PORT"),
                "name a port from 1 to 65535",
            ));
        }
        return Ok(given.to_owned());
    }
    let port = PORTS.0
        + (crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(launched.job.as_bytes()) % u32::from(PORTS.1)) as u16;
    let at = |host: &str| if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let all_here = launched.local_ranks == launched.ranks;
    let master = (launched.launcher == super::Launcher::Torchrun).then(|| variable("MASTER_ADDR")).flatten();
    match (master, launched.hosts.first()) {
        (Some(master), _) => Ok(at(&master)),
        (None, Some(first)) if !all_here => Ok(at(first)),
        _ if all_here => Ok(at("127.0.0.1")),
        _ => {
            let problem = format!(
                "{} ranks are on several hosts ({} on this one), and nothing names that of rank 0",
                launched.ranks, launched.local_ranks
            );
            Err(Error::setting("--rendezvous", problem, "give --rendezvous HOST:PORT of the host of rank 0 to all"))
        }
    }
}
