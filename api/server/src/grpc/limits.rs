//! Limits on processes, as BuildKit's clients say them: options of the Dockerfile frontend, since 0.32.

use std::{collections::HashMap, str::FromStr};

use lapstrake_builder_engine::Resources;
use tonic::Status;

/// The limits among a build's options. Whether this machine can hold them is checked when the build begins.
pub(super) fn limits(attrs: &HashMap<String, String>) -> Result<Resources, Status> {
    let text = |name: &str| attrs.get(name).filter(|value| !value.is_empty()).cloned();
    Ok(Resources {
        memory: number(attrs, "memory", "must be > 0", |bytes: &u64| *bytes > 0)?,
        memory_swap: number(attrs, "memswap", "must be -1 (unlimited) or > 0", |bytes: &i64| {
            *bytes == -1 || *bytes > 0
        })?,
        cpu_shares: number(attrs, "cpushares", "must be > 0", |shares: &u64| *shares > 0)?,
        cpu_period: number(attrs, "cpuperiod", "must be > 0", |period: &u64| *period > 0)?,
        cpu_quota: number(attrs, "cpuquota", "must be > 0", |quota: &i64| *quota > 0)?,
        cpuset_cpus: text("cpusetcpus"),
        cpuset_mems: text("cpusetmems"),
        // They have no such options; the size of /dev/shm is said in the graph itself.
        pids: None,
        shm_size: None,
    })
}

fn number<N: FromStr<Err = std::num::ParseIntError>>(
    attrs: &HashMap<String, String>,
    name: &str,
    rule: &str,
    holds: impl Fn(&N) -> bool,
) -> Result<Option<N>, Status> {
    let Some(value) = attrs.get(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    let invalid = |why: &str| Status::invalid_argument(format!("invalid {name} value: {value}: {why}"));
    match value.parse::<N>() {
        Ok(number) if holds(&number) => Ok(Some(number)),
        Ok(_) => Err(invalid(rule)),
        Err(error) => Err(invalid(&error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Resources, Status> {
        limits(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn limits_are_read_by_their_names() {
        let read = of(&[
            ("memory", "67108864"),
            ("memswap", "-1"),
            ("cpushares", "300"),
            ("cpuperiod", "50000"),
            ("cpuquota", "25000"),
            ("cpusetcpus", "0-1"),
            ("cpusetmems", "0"),
            ("build-arg:memory", "no limit"),
        ]);
        let expected = Resources {
            memory: Some(67_108_864),
            memory_swap: Some(-1),
            cpu_shares: Some(300),
            cpu_period: Some(50_000),
            cpu_quota: Some(25_000),
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: Some("0".to_owned()),
            ..Resources::default()
        };
        assert_eq!(read.unwrap(), expected);
        assert_eq!(of(&[("memory", "")]).unwrap(), Resources::default());
    }

    #[test]
    fn what_is_no_limit_is_named() {
        for (name, value, why) in [
            ("memory", "0", "invalid memory value: 0: must be > 0"),
            ("memory", "-1", "invalid memory value: -1: "),
            ("memswap", "-2", "invalid memswap value: -2: must be -1 (unlimited) or > 0"),
            ("cpuquota", "x", "invalid cpuquota value: x: "),
            ("cpushares", "99999999999999999999", "invalid cpushares value: 99999999999999999999: "),
        ] {
            let error = of(&[(name, value)]).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().starts_with(why), "{}", error.message());
        }
    }
}
