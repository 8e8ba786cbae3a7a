//! Slurm's short forms: lists of hosts (`gpu[01-03,7],login`) and of tasks a node (`2(x3),1`).

use crate::{Error, Result};

/// Hosts that a list may have: more is no list of a cluster.
const MOST: usize = 1 << 16;

/// The hosts of `list`, in its order; `name` is the variable that holds it.
///
/// # Errors
/// A list that Slurm does not write.
pub(super) fn hosts(name: &str, list: &str) -> Result<Vec<String>> {
    let wrong = || Error::setting(name, format!("is `{list}`, no list of hosts"), "give --rendezvous HOST:PORT");
    let mut hosts = Vec::new();
    for part in parts(list).ok_or_else(wrong)? {
        let found = expanded(part).ok_or_else(wrong)?;
        if hosts.len() + found.len() > MOST {
            return Err(wrong());
        }
        hosts.extend(found);
    }
    if hosts.iter().any(String::is_empty) { Err(wrong()) } else { Ok(hosts) }
}

/// Tasks on each node of `counts`; `name` is the variable that holds it.
///
/// # Errors
/// Counts that Slurm does not write.
pub(super) fn tasks(name: &str, counts: &str) -> Result<Vec<usize>> {
    let wrong = || Error::setting(name, format!("is `{counts}`, no list of counts"), "start the step by srun");
    let mut tasks = Vec::new();
    for part in counts.split(',') {
        let (count, times) = match part.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')').ok_or_else(wrong)?),
            None => (part, "1"),
        };
        let (count, times): (usize, usize) = (count.parse().map_err(|_| wrong())?, times.parse().map_err(|_| wrong())?);
        if tasks.len().saturating_add(times) > MOST || count > MOST {
            return Err(wrong());
        }
        tasks.extend(std::iter::repeat_n(count, times));
    }
    Ok(tasks)
}

/// What stands between commas that are in no brackets.
fn parts(list: &str) -> Option<Vec<&str>> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0usize, 0);
    for (at, letter) in list.char_indices() {
        match letter {
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                parts.push(&list[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[from..]);
    (depth == 0).then_some(parts)
}

/// `rack[1-2]n[01,03]` as the four hosts that it stands for.
fn expanded(part: &str) -> Option<Vec<String>> {
    let Some((before, rest)) = part.split_once('[') else {
        return (!part.contains(']')).then(|| vec![part.to_owned()]);
    };
    let (inner, behind) = rest.split_once(']')?;
    let behind = expanded(behind)?;
    let mut hosts = Vec::new();
    for range in inner.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (from, to): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        let count = to.checked_sub(from)?.checked_add(1)?;
        if hosts.len() + count.checked_mul(behind.len())? > MOST {
            return None;
        }
        for number in from..=to {
            let width = first.len();
            hosts.extend(behind.iter().map(|behind| format!("{before}{number:0width$}{behind}")));
        }
    }
    Some(hosts)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::{hosts, tasks};
    use crate::Result;

    #[rstest]
    #[case("gpu1", &["gpu1"])]
    #[case("gpu[01-03,7],login", &["gpu01", "gpu02", "gpu03", "gpu7", "login"])]
    #[case("rack[1-2]n[09-10]", &["rack1n09", "rack1n10", "rack2n09", "rack2n10"])]
    #[case("a-b-[2].site.org,c", &["a-b-2.site.org", "c"])]
    fn lists_of_hosts(#[case] list: &str, #[case] expected: &[&str]) -> Result<()> {
        assert_eq!(hosts("LIST", list)?, expected);
        Ok(())
    }

    #[rstest]
    #[case("")]
    #[case("gpu[1-3")]
    #[case("gpu1-3]")]
    #[case("gpu[3-1]")]
    #[case("gpu[a-b]")]
    #[case("gpu[0-99999999]")]
    #[case("a,,b")]
    fn what_is_none_is_refused(#[case] list: &str) {
        let said = hosts("LIST", list).map_err(|e| e.to_string());
        assert!(said.is_err_and(|said| said.contains("`LIST`")));
    }

    #[rstest]
    #[case("4", Some(&[4usize][..]))]
    #[case("2(x3),1", Some(&[2, 2, 2, 1][..]))]
    #[case("2(x", None)]
    #[case("2(x99999999)", None)]
    #[case("", None)]
    fn tasks_of_nodes(#[case] counts: &str, #[case] expected: Option<&[usize]>) {
        assert_eq!(tasks("COUNTS", counts).ok().as_deref(), expected);
    }
}
