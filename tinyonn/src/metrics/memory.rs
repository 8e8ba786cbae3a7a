//! How much memory this process holds.

/// Bytes of it that lie in memory now (its resident set), where the system says so: Linux.
///
/// ```
/// use tinyonn::metrics::resident_bytes;
/// assert!(resident_bytes().is_none_or(|bytes| bytes > 1 << 20));
/// ```
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?;
    Some(kib.trim().parse::<u64>().ok()? * 1024)
}
