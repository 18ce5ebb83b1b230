//! A list of environment variables.

use std::sync::Arc;

/// Environment variables, each once. Setting one moves it to the end, as in BuildKit's client: the order is part of a vertex's digest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EnvList(Arc<Vec<(Arc<str>, Arc<str>)>>);

impl EnvList {
    /// Sets a variable.
    pub fn set(&mut self, key: &str, value: &str) {
        let list = Arc::make_mut(&mut self.0);
        list.retain(|(k, _)| **k != *key);
        list.push((key.into(), value.into()));
    }

    /// Removes a variable.
    pub fn remove(&mut self, key: &str) {
        if self.get(key).is_some() {
            Arc::make_mut(&mut self.0).retain(|(k, _)| **k != *key);
        }
    }

    /// A variable's value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| **k == *key).map(|(_, v)| &**v)
    }

    /// How many variables there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All variables, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (&**k, &**v))
    }

    /// As `KEY=value`, in order.
    pub fn to_vec(&self) -> Vec<String> {
        self.iter().map(|(k, v)| [k, "=", v].concat()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_a_variable_again_moves_it_to_the_end() {
        let mut env = EnvList::default();
        for (k, v) in [("A", "1"), ("B", "2"), ("A", "3")] {
            env.set(k, v);
        }
        assert_eq!(env.to_vec(), ["B=2", "A=3"]);
        env.remove("B");
        assert_eq!(env.to_vec(), ["A=3"]);
    }
}
