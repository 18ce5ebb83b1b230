//! `docker import --change`: Dockerfile instructions applied to an image's config.

use lapstrake_api_server::ApiError;
use lapstrake_builder_dockerfile::{Answer, DockerfileOptions, Facts, plan};
use lapstrake_layerstore_oci::{ContainerConfig, ImageConfig, Platform};

/// Instructions that change nothing but a config, as Moby lists them.
const ALLOWED: [&str; 11] = [
    "cmd",
    "entrypoint",
    "env",
    "expose",
    "healthcheck",
    "label",
    "onbuild",
    "stopsignal",
    "user",
    "volume",
    "workdir",
];

/// A config with these instructions applied, and nothing else.
pub(super) fn config(platform: &Platform, changes: &[String]) -> Result<ImageConfig, ApiError> {
    for change in changes {
        let word = change.split_whitespace().next().unwrap_or_default();
        if !ALLOWED.contains(&word.to_ascii_lowercase().as_str()) {
            return Err(ApiError::invalid(format!("{word} is not a valid change command")));
        }
        if change.contains('\n') {
            return Err(ApiError::invalid(format!("change {word}: one instruction only, on one line")));
        }
    }
    let mut config = planned(platform, changes)?;
    // A Dockerfile's `FROM scratch` brings a PATH and a working directory; an imported tree has what it is told to have.
    let plain = planned(platform, &[])?.config;
    let ContainerConfig { env, working_dir, .. } = &mut config.config;
    let says = |word: &str| {
        changes.iter().any(|change| {
            change.split_whitespace().next().is_some_and(|found| found.eq_ignore_ascii_case(word))
        })
    };
    if !changes.iter().any(|change| change.contains("PATH")) {
        env.retain(|entry| !plain.env.contains(entry));
    }
    if !says("workdir") {
        working_dir.clear();
    }
    config.history.clear();
    Ok(config)
}

fn planned(platform: &Platform, changes: &[String]) -> Result<ImageConfig, ApiError> {
    let mut options = DockerfileOptions::new(Platform::host());
    options.platforms = vec![platform.normalized()];
    let text = format!("FROM scratch\n{}\n", changes.join("\n"));
    match plan(&options, &Facts::new(text.into_bytes())) {
        Ok(Answer::Plan(plan)) => match plan.targets.into_iter().next() {
            Some(target) => Ok(target.config),
            None => Err(ApiError::invalid("changes: nothing to change")),
        },
        Ok(Answer::Need(_)) => Err(ApiError::invalid("changes: an instruction needs more than a config")),
        Err(error) => Err(ApiError::invalid(format!("changes: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(changes: &[&str]) -> Result<ImageConfig, String> {
        let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
        config(&Platform::new("linux", "amd64"), &changes).map_err(|error| error.message)
    }

    #[test]
    fn nothing_is_said_that_was_not_asked_for() {
        let config = changed(&[]).unwrap();
        assert!(
            config.config.env.is_empty() && config.config.working_dir.is_empty() && config.history.is_empty()
        );
        assert_eq!((config.os.as_str(), config.architecture.as_str()), ("linux", "amd64"));
    }

    #[test]
    fn changes_are_applied() {
        let config = changed(&["CMD [\"/bin/sh\"]", "ENV A=1", "env B=2", "WORKDIR /w"]).unwrap().config;
        assert_eq!(config.cmd, Some(vec!["/bin/sh".to_owned()]));
        assert_eq!(config.env, ["A=1", "B=2"]);
        assert_eq!(config.working_dir, "/w");
    }

    #[test]
    fn what_is_no_change_is_refused_by_name() {
        assert_eq!(changed(&["RUN x"]).unwrap_err(), "RUN is not a valid change command");
        assert!(changed(&["CMD x\nRUN y"]).unwrap_err().contains("one instruction"));
        assert!(changed(&["EXPOSE x"]).unwrap_err().starts_with("changes: "));
    }
}
