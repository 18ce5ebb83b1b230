//! JSON exactly as Go's `encoding/json` writes it.
//!
//! Documents are named by the digest of their bytes, so a config or manifest made here must have the bytes that
//! BuildKit or Moby would give it. serde_json differs in one way: Go escapes `<`, `>`, `&`, U+2028 and U+2029.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use crate::OciError;

/// Serialises compactly, as `json.Marshal`.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, OciError> {
    let mut out = Vec::with_capacity(256);
    let mut ser = Serializer::with_formatter(&mut out, Compact);
    value.serialize(&mut ser).map_err(|e| OciError::json("value for JSON", &e))?;
    Ok(out)
}

/// Serialises with a given indent, as `json.MarshalIndent` with an empty prefix.
pub fn to_vec_indent<T: Serialize + ?Sized>(value: &T, indent: &str) -> Result<Vec<u8>, OciError> {
    let mut out = Vec::with_capacity(256);
    let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    let mut ser = Serializer::with_formatter(&mut out, Indented(pretty));
    value.serialize(&mut ser).map_err(|e| OciError::json("value for JSON", &e))?;
    Ok(out)
}

/// Writes a piece of a string that serde_json considers safe, escaping what Go does not.
fn write_fragment<W: ?Sized + Write>(w: &mut W, fragment: &str) -> io::Result<()> {
    let bytes = fragment.as_bytes();
    let mut done = 0;
    for (i, c) in fragment.char_indices() {
        let escaped = match c {
            '<' => "\\u003c",
            '>' => "\\u003e",
            '&' => "\\u0026",
            '\u{2028}' => "\\u2028",
            '\u{2029}' => "\\u2029",
            _ => continue,
        };
        w.write_all(&bytes[done..i])?;
        w.write_all(escaped.as_bytes())?;
        done = i + c.len_utf8();
    }
    w.write_all(&bytes[done..])
}

struct Compact;

impl Formatter for Compact {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, w: &mut W, fragment: &str) -> io::Result<()> {
        write_fragment(w, fragment)
    }
}

struct Indented<'a>(serde_json::ser::PrettyFormatter<'a>);

macro_rules! forward {
    ($($name:ident($($arg:ident: $ty:ty),*)),* $(,)?) => {
        $(fn $name<W: ?Sized + Write>(&mut self, w: &mut W $(, $arg: $ty)*) -> io::Result<()> {
            self.0.$name(w $(, $arg)*)
        })*
    };
}

impl Formatter for Indented<'_> {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, w: &mut W, fragment: &str) -> io::Result<()> {
        write_fragment(w, fragment)
    }
    forward! {
        begin_array(), end_array(), begin_array_value(first: bool), end_array_value(),
        begin_object(), end_object(), begin_object_key(first: bool), begin_object_value(), end_object_value(),
    }
}
