//! What provenance tells of this machine (`provenanceEnvDir`): the `*.json` files of a directory, one object of all of them.

use std::{fs, io, path::Path};

use serde_json::{Map, Value};

use crate::error::ProgramError;

/// Longest file.
const MOST: u64 = 1 << 20;
/// What is told anyway, and by nobody else.
const OWN: [&str; 4] = ["buildConfig", "builderPlatform", "platform", "dockerfileVersion"];

/// Reads the files in the order of their names; where two say the same, the later one counts. A directory that is not there says nothing.
pub(crate) fn facts(directory: &Path) -> Result<Map<String, Value>, ProgramError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(source) => return Err(ProgramError::file("read", directory)(source)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(ProgramError::file("read", directory))?.path();
        if path.extension().is_some_and(|extension| extension == "json") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    let mut facts = Map::new();
    for path in files {
        let setting =
            |why: String| ProgramError::setting(format!("provenanceEnvDir: {}", path.display()), why);
        let length = fs::metadata(&path).map_err(ProgramError::file("read", &path))?.len();
        if length > MOST {
            return Err(setting(format!("it is longer than {MOST} bytes")));
        }
        let text = fs::read(&path).map_err(ProgramError::file("read", &path))?;
        let said: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|error| setting(error.to_string()))?;
        if let Some(key) = said.keys().find(|key| OWN.contains(&key.as_str())) {
            return Err(setting(format!(
                "key {key:?} is builtin and not allowed to be modified in provenance config"
            )));
        }
        facts.extend(said);
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_files_make_one_object_and_what_is_told_anyway_is_nobody_elses() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        assert_eq!(facts(&directory.path().join("none")).unwrap(), Map::new());
        write("b.json", r#"{"numbers": [1, 2], "a": "later"}"#);
        write("a.json", r#"{"a": "first"}"#);
        write("c.txt", "no json");
        assert_eq!(Value::from(facts(directory.path()).unwrap()), json!({"a": "later", "numbers": [1, 2]}));
        for (text, why) in [("[]", "invalid type"), (r#"{"platform": "x"}"#, "is builtin")] {
            write("d.json", text);
            let error = facts(directory.path()).unwrap_err().to_string();
            assert!(error.contains("d.json") && error.contains(why), "{error}");
        }
    }
}
