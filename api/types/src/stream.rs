//! The lines of streamed answers (`/build`, `/images/create`, `/images/load`, push).

use serde::Serialize;
use serde_json::Value;

/// One line, in Moby's field order. Use the constructors; a message says one thing.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StreamMessage {
    /// Text for the terminal, as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// What is going on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// How far.
    #[serde(rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    pub progress: Option<StreamProgress>,
    /// The bar, for clients that draw none themselves.
    #[serde(rename = "progress", skip_serializing_if = "Option::is_none")]
    pub bar: Option<String>,
    /// What it is about, such as a layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The error.
    #[serde(rename = "errorDetail", skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<ErrorDetail>,
    /// The error's message once more, for old clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Something for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<Value>,
}

/// The error of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorDetail {
    /// A process's exit code; left out when 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub code: i64,
    /// What went wrong.
    pub message: String,
}

/// How far something is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StreamProgress {
    /// Bytes done.
    #[serde(skip_serializing_if = "is_zero")]
    pub current: i64,
    /// Bytes in all.
    #[serde(skip_serializing_if = "is_zero")]
    pub total: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &i64) -> bool {
    *n == 0
}

impl StreamMessage {
    /// Text for the terminal.
    pub fn stream(text: impl Into<String>) -> Self {
        Self { stream: Some(text.into()), ..Self::default() }
    }

    /// What is going on.
    pub fn status(text: impl Into<String>) -> Self {
        Self { status: Some(text.into()), ..Self::default() }
    }

    /// The same message about something, such as a layer.
    #[must_use]
    pub fn about(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Some work's start, progress or end: always has `progressDetail`, be it empty, as Moby's does.
    pub fn progress(id: impl Into<String>, action: impl Into<String>, current: u64, total: u64) -> Self {
        let bar = progress_bar(current, total);
        Self {
            status: Some(action.into()),
            progress: Some(StreamProgress {
                current: i64::try_from(current).unwrap_or(i64::MAX),
                total: i64::try_from(total).unwrap_or(i64::MAX),
            }),
            bar: (!bar.is_empty()).then_some(bar),
            id: Some(id.into()),
            ..Self::default()
        }
    }

    /// Something for programs.
    pub fn aux(id: Option<&str>, value: Value) -> Self {
        Self { id: id.map(str::to_owned), aux: Some(value), ..Self::default() }
    }

    /// The image that a build made.
    pub fn image_id(id: Option<&str>, image: &str) -> Self {
        Self::aux(id, serde_json::json!({ "ID": image }))
    }

    /// The end of a stream that began well. `code` is a process's exit code or 0.
    pub fn error(message: impl Into<String>, code: i64) -> Self {
        let message = message.into();
        Self {
            error_detail: Some(ErrorDetail { code, message: message.clone() }),
            error: Some(message),
            ..Self::default()
        }
    }

    /// The line, with Moby's line end.
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("text and numbers are always JSON");
        line.extend_from_slice(b"\r\n");
        line
    }
}

/// Moby's progress bar for 200 columns: `[====>     ]  1.5MB/3MB`.
pub fn progress_bar(current: u64, total: u64) -> String {
    if total == 0 {
        return if current == 0 { String::new() } else { format!("{:>8}", human_size(current)) };
    }
    let filled = usize::try_from((u128::from(current) * 50 / u128::from(total)).min(50)).unwrap_or(50);
    let bar = format!("[{}>{}] ", "=".repeat(filled), " ".repeat(50 - filled));
    if current > total {
        return format!("{bar}{:>8}", human_size(current));
    }
    format!("{bar}{:>8}/{}", human_size(current), human_size(total))
}

/// go-units' `HumanSize`: four significant digits, powers of 1000.
fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    #[allow(clippy::cast_precision_loss)] // four digits are shown
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    // Go's %.4g
    let digits = if size >= 1000.0 {
        0
    } else if size >= 100.0 {
        1
    } else if size >= 10.0 {
        2
    } else {
        3
    };
    let text = format!("{size:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_mobys() {
        let lines: String = [
            StreamMessage::stream("Step 1/3 : FROM busybox\n"),
            StreamMessage::status("Pulling from library/x").about("latest"),
            StreamMessage::progress("abc", "Pulling fs layer", 0, 0),
            StreamMessage::progress("abc", "Downloading", 1_500_000, 3_000_000),
            StreamMessage::image_id(None, "sha256:00"),
            StreamMessage::image_id(Some("moby.image.id"), "sha256:00"),
            StreamMessage::error("The command '/bin/sh -c false' returned a non-zero code: 1", 1),
            StreamMessage::error("no", 0),
        ]
        .iter()
        .map(|message| String::from_utf8(message.to_line()).unwrap())
        .collect();
        insta::assert_snapshot!(lines.replace("\r\n", "⏎\n"), @r#"
        {"stream":"Step 1/3 : FROM busybox\n"}⏎
        {"status":"Pulling from library/x","id":"latest"}⏎
        {"status":"Pulling fs layer","progressDetail":{},"id":"abc"}⏎
        {"status":"Downloading","progressDetail":{"current":1500000,"total":3000000},"progress":"[=========================>                         ]    1.5MB/3MB","id":"abc"}⏎
        {"aux":{"ID":"sha256:00"}}⏎
        {"id":"moby.image.id","aux":{"ID":"sha256:00"}}⏎
        {"errorDetail":{"code":1,"message":"The command '/bin/sh -c false' returned a non-zero code: 1"},"error":"The command '/bin/sh -c false' returned a non-zero code: 1"}⏎
        {"errorDetail":{"message":"no"},"error":"no"}⏎
        "#);
    }

    #[test]
    fn bars_are_drawn_like_mobys() {
        assert_eq!(progress_bar(0, 0), "");
        assert_eq!(progress_bar(1234, 0), " 1.234kB");
        assert_eq!(progress_bar(5, 3), format!("[{}>]       5B", "=".repeat(50)));
        assert_eq!(human_size(999), "999B");
        assert_eq!(human_size(123_456), "123.5kB");
        assert_eq!(human_size(1_000_000_000), "1GB");
    }
}
