//! How much memory this process holds.

/// Bytes of it that lie in memory now (its resident set), where the system says so: Linux.
///
/// ```
/// use tinyonn::metrics::{peak_bytes, resident_bytes};
/// assert!(resident_bytes().is_none_or(|bytes| bytes > 1 << 20));
/// assert!(peak_bytes() >= resident_bytes());
/// ```
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    status("VmRSS:")
}

/// The most bytes that have lain in memory so far, pages of mapped files among them.
#[must_use]
pub fn peak_bytes() -> Option<u64> {
    status("VmHWM:")
}

fn status(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix("kB")?;
    Some(kib.trim().parse::<u64>().ok()? * 1024)
}
